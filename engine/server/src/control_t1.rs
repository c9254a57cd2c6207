//! The control calls about devices and T1 objects.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use vs_io::{Device, DeviceError, Regions, Survey, T1Spec, closing, device, label};

use crate::active::{Leaf, Volume};
use crate::control::{Engine, Failure, json, lock, parse};
use crate::mailbox::Message;
use crate::shapes::{DeviceShape, FreeRun, LabelShape, T1Shape, T1sShape};

/// Longest wait for labels to be read, in a view.
const LOOK: Duration = Duration::from_secs(2);

fn device_shape(device: &Device, look: u64, deadline: Instant) -> DeviceShape {
    let mut shape = DeviceShape {
        id: device.id.clone(),
        uri: device.uri.clone(),
        size: device.size,
        unit: device::UNIT,
        direct: device.is_direct(),
        checksums: device.checksums().is_some(),
        up: true,
        free: Vec::new(),
        error: String::new(),
    };
    match device.survey.end(&device.uri, look, deadline) {
        Ok(label) => {
            let runs = vs_io::alloc::free(&label).into_iter();
            shape.free =
                runs.map(|(offset, length)| FreeRun { device: "", offset, length }).collect();
        }
        Err(error) => {
            shape.up = false;
            shape.error = error.message;
        }
    }
    shape
}

/// How a device is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct How {
    /// Hosts' data goes past the page cache.
    pub direct: bool,
    /// Its data has checksums. That is settled when it is labelled; where this is false, what the
    /// label says is right.
    pub checksums: bool,
}

impl Engine {
    /// Opens a device, labelling it as `id` if it is blank; gives its JSON.
    ///
    /// # Errors
    /// When it can't be opened, is foreign, or is open already under another URI or the other
    /// way; `unlike` when it is labelled without the checksums that are asked for.
    pub fn device_add(
        &self,
        uri: &str,
        create_size: u64,
        id: &str,
        how: How,
    ) -> Result<String, Failure> {
        let How { direct, checksums } = how;
        let known = self.shared.devices();
        if let Some(device) = known.values().find(|device| device.uri == uri) {
            if device.is_direct() != direct {
                let how = if direct { "without" } else { "with" };
                let text = format!(
                    "{uri}: is open {how} --direct; move its data away, remove the device and add \
                     it anew, or leave it as it is"
                );
                return Err(Failure::new("precondition", text));
            }
            if checksums && device.checksums().is_none() {
                let text = format!(
                    "{uri}: is open as device {}, which is labelled without checksums; move its \
                     data away, remove it, wipe its first 4 MiB and add it anew, or leave it",
                    device.id
                );
                return Err(Failure::new("unlike", text));
            }
            return json(&self.device_shape(device));
        }
        let config = &self.shared.config;
        let options = device::Options {
            create_size,
            direct,
            checksums,
            roots: &config.device_roots,
            residency: self.shared.residency.as_ref(),
        };
        let (mut kind, mut blocking) = device::open(uri, &options)?;
        let fresh = label::Fresh { id, region: config.map_region, checksums };
        let label = label::claim(&mut *blocking, &config.cluster_id, &config.sp, &fresh)?;
        if label.size > blocking.size() {
            let text =
                format!("{uri}: {} bytes, but its label says {}", blocking.size(), label.size);
            return Err(Failure::new("unsafe", text));
        }
        if let Some(other) = known.get(&label.device) {
            let text = format!("{uri}: is device {}, open as {}", label.device, other.uri);
            return Err(Failure::new("exists", text));
        }
        kind.keep_checksums(uri, &label)?;
        let slot = self.shared.next_slot.fetch_add(1, Ordering::Relaxed);
        let regions = Regions::load(&mut *blocking, &label, &config.sp)?;
        let device = Device::new(uri, &label, kind, regions, config.pool_threads, slot);
        let device = Arc::new(device);
        closing::start(&device, &config.sp, Duration::from_secs_f64(config.map_clear_seconds))?;
        {
            let mut devices = self.shared.devices.write().unwrap_or_else(PoisonError::into_inner);
            let mut next = (**devices).clone();
            next.insert(device.id.clone(), Arc::clone(&device));
            *devices = Arc::new(next);
        }
        if let Err(error) = self.shared.t1s.load(&self.shared.devices(), &device) {
            // As if it had not been opened, so that the next attempt is a whole one; unless an
            // object on it is in service already.
            let _ = self.device_remove(&device.id);
            return Err(error.into());
        }
        self.refresh();
        json(&self.device_shape(&device))
    }

    /// Closes a device.
    ///
    /// # Errors
    /// `precondition` while a T1 object here lies on it.
    pub fn device_remove(&self, id: &str) -> Result<(), Failure> {
        let t1s = self.shared.t1s.all();
        let user = t1s.iter().find(|t1| t1.devices().iter().any(|device| device.id == id));
        if let Some(t1) = user {
            let text = format!("device {id} holds T1 object {}; move it away first", t1.spec.id);
            return Err(Failure::new("precondition", text));
        }
        let mut devices = self.shared.devices.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = (**devices).clone();
        let removed = next.remove(id);
        *devices = Arc::new(next);
        drop(devices);
        // Replies may still be sent from its resident pages: a barrier ends that. If a loop does
        // not answer, the mapping stays for good rather than going from under it.
        if let (Some(device), Err(_)) = (removed, self.ask(Message::Barrier, Self::prompt())) {
            std::mem::forget(device);
        }
        Ok(())
    }

    fn device_shape(&self, device: &Arc<Device>) -> DeviceShape {
        device_shape(device, Survey::begin(device), Instant::now() + LOOK)
    }

    /// JSON list of the open devices. One that does not answer is told of as it was last seen,
    /// and after a while as down.
    ///
    /// # Errors
    /// None but of JSON itself.
    pub fn devices(&self) -> Result<String, Failure> {
        let devices = self.shared.devices();
        let begun: Vec<_> =
            devices.values().map(|device| (device, Survey::begin(device))).collect();
        let deadline = Instant::now() + LOOK;
        let shapes = begun.into_iter().map(|(device, look)| device_shape(device, look, deadline));
        let mut shapes: Vec<DeviceShape> = shapes.collect();
        shapes.sort_by(|a, b| a.uri.cmp(&b.uri));
        json(&shapes)
    }

    /// JSON list of what the labels say, every T1 object in them, read afresh. A device that
    /// does not answer in time is only said to.
    ///
    /// # Errors
    /// None but of JSON itself.
    pub fn labels(&self) -> Result<String, Failure> {
        let devices = self.shared.devices();
        let begun: Vec<_> =
            devices.values().map(|device| (device, Survey::begin(device))).collect();
        let deadline = Instant::now() + LOOK;
        let mut shapes = Vec::with_capacity(begun.len());
        for (device, look) in begun {
            let standing = device
                .survey
                .end(&device.uri, look, deadline)
                .and_then(|_| vs_io::label::standing(&mut *device.blocking()?));
            shapes.push(LabelShape::new(device, standing));
        }
        shapes.sort_by(|a, b| a.uri.cmp(&b.uri));
        json(&shapes)
    }

    /// Creates or extends a T1 object.
    ///
    /// # Errors
    /// As `T1Table::put`.
    pub fn t1_put(&self, t1: &str, epoch: u64) -> Result<(), Failure> {
        let spec: T1Spec = parse("T1 object", t1)?;
        let devices = self.shared.devices();
        self.raise(&spec.id, epoch, || self.shared.t1s.put(&devices, &spec, epoch))?;
        self.refresh();
        Ok(())
    }

    /// Takes over a T1 object.
    ///
    /// # Errors
    /// As `T1Table::adopt`.
    pub fn t1_adopt(&self, t1: &str, epoch: u64) -> Result<(), Failure> {
        let spec: T1Spec = parse("T1 object", t1)?;
        let devices = self.shared.devices();
        self.raise(&spec.id, epoch, || self.shared.t1s.adopt(&devices, &spec, epoch))?;
        self.refresh();
        Ok(())
    }

    /// Raises a T1 object's epoch, and waits until I/O of lower ones has ended; with `from` only
    /// if it is at just that epoch. An object that no tree here refers to is flushed too: it may
    /// be about to leave.
    ///
    /// # Errors
    /// `not_found`; `stale` when it is at a higher epoch, or at another than `from`; `timeout`
    /// when I/O does not end.
    pub fn t1_fence(
        &self,
        id: &str,
        epoch: u64,
        from: Option<u64>,
        seconds: f64,
    ) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs_f64(seconds);
        let object = self.raise(id, epoch, || self.shared.t1s.fence(id, epoch, from))?;
        // When it was as high before, and everything lower has ended, only I/O that may go on
        // is under way: under load that never ends.
        if lock(&self.undrained).contains(id) {
            self.drain(&object, deadline)?;
            lock(&self.undrained).remove(id);
        }
        if !self.referred(id) {
            for device in object.devices() {
                if !self.flush(device, deadline) {
                    return Err(Failure::new("internal", format!("device {}: flush", device.id)));
                }
            }
            object.settle_checksums(deadline)?;
        }
        Ok(())
    }

    /// Does what may raise an object's epoch, noting that lower I/O may then be under way.
    fn raise<T>(
        &self,
        id: &str,
        epoch: u64,
        change: impl FnOnce() -> Result<T, DeviceError>,
    ) -> Result<T, Failure> {
        if self.shared.t1s.get(id).is_some_and(|object| object.epoch() < epoch) {
            lock(&self.undrained).insert(id.to_owned());
        }
        Ok(change()?)
    }

    fn drain(&self, object: &vs_io::T1Object, deadline: Instant) -> Result<(), Failure> {
        self.ask(Message::Barrier, deadline)?;
        while object.pending() > 0 {
            if Instant::now() > deadline {
                let text = format!("T1 object {}: its I/O does not end; try again", object.spec.id);
                return Err(Failure::new("timeout", text));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    fn referred(&self, t1: &str) -> bool {
        let refers =
            |volume: &Arc<Volume>| volume.active().tree.leaves().iter().any(|leaf| leaf.t1 == t1);
        self.volumes().iter().any(refers)
    }

    /// Forgets a T1 object, freeing its extents if this SP is its home by the label.
    ///
    /// # Errors
    /// `precondition` while an active tree here has an LRN to it; `stale` if it is at an epoch
    /// above `epoch`.
    pub fn t1_delete(&self, id: &str, epoch: u64) -> Result<(), Failure> {
        let uses = |volume: &Arc<Volume>| {
            volume.active().leaves.iter().any(|leaf| match leaf {
                Leaf::Local(t1) => t1.spec.id == id,
                _ => false,
            })
        };
        if let Some(volume) = self.volumes().iter().find(|volume| uses(volume)) {
            let text = format!("T1 object {id} is referred to by volume {}", volume.name);
            return Err(Failure::new("precondition", text));
        }
        if let Some(object) = self.shared.t1s.get(id)
            && object.epoch() > epoch
        {
            let text = format!("T1 object {id} is at epoch {} by now", object.epoch());
            return Err(Failure::new("stale", text));
        }
        if let Some(object) = self.shared.t1s.retire(id) {
            self.drain(&object, Self::prompt())?;
        }
        self.shared.t1s.delete(&self.shared.devices(), id, epoch)?;
        lock(&self.undrained).remove(id);
        Ok(())
    }

    /// JSON of the T1 objects homed here: those of a volume (empty: of all) in full, and how
    /// many others there are.
    ///
    /// # Errors
    /// None but of JSON itself.
    pub fn t1s(&self, volume: &str) -> Result<String, Failure> {
        let all = self.shared.t1s.all();
        let mut shown: Vec<T1Shape<'_>> = all
            .iter()
            .filter(|t1| volume.is_empty() || t1.spec.volume == volume)
            .map(|t1| T1Shape { t1: &t1.spec, epoch: t1.epoch() })
            .collect();
        shown.sort_by(|a, b| a.t1.id.cmp(&b.t1.id));
        json(&T1sShape { others: all.len() - shown.len(), t1s: shown })
    }
}
