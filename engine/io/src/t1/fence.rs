//! Fences: who may still reach an object, and who may say so.

use std::sync::Arc;

use super::{T1Object, T1Table, stale};
use crate::error::{DeviceError, ErrorKind};
use crate::planted::planted;

impl T1Table {
    /// Raises an object's epoch, durably and then for requests. Waiting for what runs is
    /// the caller's. With `from` only if it is at just that epoch, or has been raised so already,
    /// and is not in doubt: then nobody else can have raised it since.
    ///
    /// # Errors
    /// `NotFound` for an object that is not homed here; `Stale` for one that is at a higher epoch,
    /// or at another than `from`.
    pub fn fence(
        &self,
        id: &str,
        epoch: u64,
        from: Option<u64>,
    ) -> Result<Arc<T1Object>, DeviceError> {
        let _turn = self.turn(id);
        let object = self.get(id).ok_or_else(|| {
            DeviceError::new(ErrorKind::NotFound, format!("T1 object {id} is not homed here"))
        })?;
        let now = object.epoch();
        if now > epoch {
            return Err(stale(id, now, epoch));
        }
        if let Some(from) = from
            && ((now != from && now != epoch) || object.is_doubtful())
            && !planted("fence_without_compare")
        {
            let text = format!("T1 object {id} is at epoch {now}, or in doubt, and not at {from}");
            return Err(DeviceError::new(ErrorKind::Stale, text));
        }
        if object.epoch() < epoch {
            for device in object.devices() {
                let known = self.change_entry(device, id, |entry| {
                    if entry.t1.home == self.sp {
                        entry.epoch = entry.epoch.max(epoch);
                    }
                });
                match known {
                    // Adopted by another SP and deleted there since: nothing left to protect.
                    Err(e) if e.kind == ErrorKind::NotFound => {}
                    other => other?,
                }
            }
            object.gate.raise(epoch);
        }
        Ok(object)
    }
}
