//! What a volume's owner keeps with each of its T1 objects: the reservations, as bytes that are
//! the owner's affair. They stand in the object's entry on every label that has one.

use std::sync::Arc;

use crate::device::Device;
use crate::error::{DeviceError, ErrorKind};
use crate::label::Kept;
use crate::t1::{T1Object, T1Table, stale};

impl T1Object {
    /// The latest that was kept with it, if anything was.
    #[must_use]
    pub fn kept(&self) -> Option<Arc<Kept>> {
        self.gate.kept()
    }
}

impl T1Table {
    /// Keeps this with an object, durably, in the place of what is older. A fence of the object
    /// comes before or after: what a lower epoch wants kept is refused once it holds.
    ///
    /// # Errors
    /// `Stale` for an epoch that the object does not serve, when what it has is later, and when it
    /// has another home by now; `Timeout` while it is being changed otherwise; and when a label can't
    /// be written.
    pub fn keep(&self, object: &T1Object, epoch: u64, new: Kept) -> Result<(), DeviceError> {
        let id = &object.spec.id;
        // What changes it may have much to zero, and nobody waits for that on a pool.
        let Some(_turn) = self.try_turn(id) else {
            let text = format!("T1 object {id} is being changed; try again");
            return Err(DeviceError::new(ErrorKind::Timeout, text));
        };
        if !object.serves(epoch) {
            return Err(stale(id, object.epoch(), epoch));
        }
        if let Some(old) = object.kept() {
            if *old == new {
                return Ok(());
            }
            if old.stamp() >= new.stamp() {
                let text = format!("T1 object {id}: later reservations are kept with it");
                return Err(DeviceError::new(ErrorKind::Stale, text));
            }
        }
        let new = Arc::new(new);
        for device in object.devices() {
            self.keep_on(device, id, epoch, &new)?;
        }
        object.gate.keep(Some(new));
        Ok(())
    }

    fn keep_on(
        &self,
        device: &Device,
        id: &str,
        epoch: u64,
        new: &Arc<Kept>,
    ) -> Result<(), DeviceError> {
        device.change_label(|label| {
            let mine = |home: &str| home == self.sp();
            let entry = label.t1s.iter_mut().find(|e| e.t1.id == id && mine(&e.t1.home));
            let entry = entry.ok_or_else(|| {
                let text = format!("T1 object {id} is another SP's, or gone");
                DeviceError::new(ErrorKind::Stale, text)
            })?;
            if entry.epoch > epoch {
                return Err(stale(id, entry.epoch, epoch));
            }
            entry.kept = Some(Arc::clone(new));
            Ok(())
        })
    }
}
