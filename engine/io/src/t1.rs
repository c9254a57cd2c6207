//! The T1 objects that this SP homes.

mod fence;
mod object;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock};

use crate::alloc;
use crate::checksums;
use crate::device::{Device, Kind};
use crate::error::{DeviceError, ErrorKind};
use crate::label::{Entry, Kept, T1Spec};
use object::Run;
pub use object::T1Object;

/// All T1 objects homed here. Changes of one object are made one at a time; two objects meet only
/// on labels, which have locks of their own.
#[derive(Debug)]
pub struct T1Table {
    sp: String,
    objects: RwLock<HashMap<String, Arc<T1Object>>>,
    version: AtomicU64,
    /// Objects that a call is changing: one at a time for each, so that a device that does not
    /// answer holds up changes of what lies on it, and of nothing else.
    changing: Mutex<HashSet<String>>,
    changed: Condvar,
    /// Counts up when a deletion has ended.
    deletions: AtomicU64,
    /// The machine has lost its power, or was started anew, since this SP last ended.
    rebooted: bool,
}

/// A call's turn to change one object.
pub(crate) struct Turn<'a>(&'a T1Table, String);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.changing().remove(&self.1);
        self.0.changed.notify_all();
    }
}

pub(crate) fn stale(id: &str, held: u64, asked: u64) -> DeviceError {
    let text = format!("T1 object {id} is at epoch {held} by now, above {asked}");
    DeviceError::new(ErrorKind::Stale, text)
}

fn invalid(text: String) -> DeviceError {
    DeviceError::new(ErrorKind::Invalid, text)
}

impl T1Table {
    #[must_use]
    pub fn new(sp: &str, rebooted: bool) -> T1Table {
        T1Table {
            sp: sp.to_owned(),
            objects: RwLock::default(),
            version: AtomicU64::new(0),
            changing: Mutex::default(),
            changed: Condvar::new(),
            deletions: AtomicU64::new(0),
            rebooted,
        }
    }

    pub(crate) fn sp(&self) -> &str {
        &self.sp
    }

    /// What is homed here at this moment, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<T1Object>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Power was lost under a device: what lies on it and is being written is in doubt.
    pub fn doubt(&self, device: &str) {
        for object in self.all() {
            if object.devices().iter().any(|on| on.id == device) {
                object.doubt();
            }
        }
    }

    /// Changes whenever what is homed here does.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<T1Object>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Loads what the label of `added`, one of these devices, names this SP as home of and all
    /// of whose devices are here. Objects in service stay as they are.
    ///
    /// # Errors
    /// When a label can't be read.
    pub fn load(
        &self,
        devices: &HashMap<String, Arc<Device>>,
        added: &Arc<Device>,
    ) -> Result<(), DeviceError> {
        let mut deletions = self.deletions.load(Ordering::SeqCst);
        // Labels as they were at that number of deletions, by device; entries by object.
        let mut labels: HashMap<String, HashMap<String, Entry>> = HashMap::new();
        let first = Self::entries(added)?;
        let ids: Vec<String> = first.keys().cloned().collect();
        labels.insert(added.id.clone(), first);
        for id in ids {
            let _turn = self.turn(&id);
            let now = self.deletions.load(Ordering::SeqCst);
            if now != deletions {
                // It may have been deleted since its entry was read.
                labels.clear();
                deletions = now;
            }
            let mut entry: Option<Entry> = None;
            let mut on = vec![Arc::clone(added)];
            let mut asked = false;
            while let Some(device) = on.pop() {
                if !labels.contains_key(&device.id) {
                    labels.insert(device.id.clone(), Self::entries(&device)?);
                }
                let Some(found) = labels[&device.id].get(&id) else { continue };
                if !std::mem::replace(&mut asked, true) {
                    let all = Self::devices_of(devices, &found.t1).unwrap_or_default();
                    on.extend(all.into_iter().filter(|device| device.id != added.id));
                }
                // After a crash in the middle of an adoption labels may name two homes.
                if found.t1.home != self.sp {
                    continue;
                }
                match &mut entry {
                    // A crash between two labels: what both know is what is there.
                    Some(known) => {
                        known.epoch = known.epoch.max(found.epoch);
                        known.kept = Kept::later(known.kept.take(), found.kept.clone());
                        if found.ready < known.ready {
                            known.ready = found.ready;
                            known.t1 = found.t1.clone();
                        }
                    }
                    None => entry = Some(found.clone()),
                }
            }
            let Some(entry) = entry else { continue };
            let reachable = entry.t1.extents.iter().all(|e| devices.contains_key(&e.device));
            if entry.ready > 0 && reachable && self.get(&id).is_none() {
                self.install(devices, &entry, self.rebooted)?;
            }
        }
        Ok(())
    }

    /// What a device's label holds, by id.
    fn entries(device: &Device) -> Result<HashMap<String, Entry>, DeviceError> {
        let label = device.label()?;
        Ok(label.t1s.iter().map(|entry| (entry.t1.id.clone(), entry.clone())).collect())
    }

    /// Creates an object, or extends it. New bytes read as zeroes: their extents are reserved
    /// on the labels first, zeroed, and only then declared ready, so that a crash at any point
    /// leaves the old object, and doing it again finishes.
    ///
    /// # Errors
    /// `Exists` for extents of another object, `Invalid` for a definition that can't be,
    /// `NotFound` for a device that is not here.
    pub fn put(
        &self,
        devices: &HashMap<String, Arc<Device>>,
        spec: &T1Spec,
        epoch: u64,
    ) -> Result<(), DeviceError> {
        let _turn = self.turn(&spec.id);
        if spec.home != self.sp {
            return Err(invalid(format!("T1 object {}: its home is {}", spec.id, spec.home)));
        }
        let room: u64 = spec.extents.iter().map(|extent| extent.length).sum();
        if spec.size == 0 || !spec.size.is_multiple_of(4096) || spec.size > room {
            let text = format!("T1 object {}: {} bytes in {room} of extents", spec.id, spec.size);
            return Err(invalid(text));
        }
        let mine = Self::devices_of(devices, spec)?;
        // Every label that an object stands on has its volume's reservations.
        let kept = self.get(&spec.id).and_then(|object| object.kept());
        let mut known: Option<Entry> = None;
        for device in &mine {
            let entry = device.change_label(|label| {
                alloc::check(label, spec)?;
                let at = label.t1s.iter().position(|entry| entry.t1.id == spec.id);
                let Some(at) = at else {
                    let kept = kept.clone();
                    label.t1s.push(Entry { t1: spec.clone(), epoch, ready: 0, kept });
                    return Ok(label.t1s[label.t1s.len() - 1].clone());
                };
                let entry = &mut label.t1s[at];
                let old = &entry.t1;
                let prefix = old.extents.len() <= spec.extents.len()
                    && old.extents == spec.extents[..old.extents.len()];
                if old.volume != spec.volume || old.home != spec.home {
                    let text = format!("T1 object {}: exists, of volume {}", spec.id, old.volume);
                    return Err(DeviceError::new(ErrorKind::Exists, text));
                }
                if old == spec || (prefix && old.size <= spec.size) {
                    let before = entry.clone();
                    entry.t1 = spec.clone();
                    entry.epoch = entry.epoch.max(epoch);
                    return Ok(before);
                }
                let text = format!("T1 object {}: an extension keeps the old extents", spec.id);
                Err(invalid(text))
            })?;
            if known.as_ref().is_none_or(|known| entry.ready < known.ready) {
                known = Some(entry);
            }
        }
        let Some(known) = known else {
            return Err(invalid(format!("T1 object {}: has no extents", spec.id)));
        };
        if known.ready < spec.size {
            let old = if known.ready == 0 { 0 } else { known.t1.extents.len() };
            for device in &mine {
                let mut blocking = device.blocking()?;
                for (offset, length) in alloc::runs(&spec.extents[old..], &device.id) {
                    if let Some(sums) = device.checksums() {
                        sums.forget(offset, length);
                        let (offset, length) = checksums::pages(offset, length);
                        blocking.zero(offset, length)?;
                    }
                    blocking.zero(offset, length)?;
                    // What its last user left there.
                    device.regions.clear(&mut *blocking, offset, length)?;
                }
                blocking.sync()?;
            }
            for device in &mine {
                self.change_entry(device, &spec.id, |entry| entry.ready = spec.size)?;
            }
        }
        let (t1, ready, kept) = (spec.clone(), spec.size, Kept::later(kept, known.kept));
        self.install(devices, &Entry { t1, epoch, ready, kept }, false)
    }

    /// Takes over an object that another SP was home of.
    ///
    /// # Errors
    /// `NotFound` if a device is not here or does not know the object; `Stale` if another home
    /// has it at an epoch above `epoch`: it has moved on since this was asked.
    pub fn adopt(
        &self,
        devices: &HashMap<String, Arc<Device>>,
        spec: &T1Spec,
        epoch: u64,
    ) -> Result<(), DeviceError> {
        let _turn = self.turn(&spec.id);
        if spec.home != self.sp {
            return Err(invalid(format!("T1 object {}: its new home is {}", spec.id, spec.home)));
        }
        let devices_of = Self::devices_of(devices, spec)?;
        let mut mine = self.get(&spec.id).is_some();
        let mut kept = None;
        for device in &devices_of {
            let label = device.label()?;
            mine &= label.t1s.iter().any(|e| e.t1.id == spec.id && e.t1.home == self.sp);
            let here = label.t1s.iter().find(|e| e.t1.id == spec.id);
            kept = Kept::later(kept, here.and_then(|entry| entry.kept.clone()));
            let other = here.filter(|entry| entry.t1.home != self.sp);
            if let Some(entry) = other.filter(|entry| entry.epoch > epoch) {
                return Err(stale(&spec.id, entry.epoch, epoch));
            }
        }
        if mine {
            // Said again, and it may have grown since: what is here counts.
            return Ok(());
        }
        for device in devices_of {
            let mut blocking = device.blocking()?;
            let runs = alloc::runs(&spec.extents, &device.id);
            device.regions.inherit(&mut *blocking, &*device.label()?, &runs)?;
            for (offset, length) in runs {
                if let Kind::File(file) = &device.kind {
                    file.forget(offset, length);
                }
                blocking.forget_cache(offset, length)?;
                if let Some(sums) = device.checksums() {
                    sums.forget(offset, length);
                    let (offset, length) = checksums::pages(offset, length);
                    blocking.forget_cache(offset, length)?;
                }
            }
            self.change_entry(&device, &spec.id, |entry| {
                entry.t1.home.clone_from(&spec.home);
                entry.epoch = entry.epoch.max(epoch);
            })?;
        }
        let (t1, ready) = (spec.clone(), spec.size);
        self.install(devices, &Entry { t1, epoch, ready, kept }, false)
    }

    /// Has an object answer nobody from now on; `delete` follows when what runs has ended.
    pub fn retire(&self, id: &str) -> Option<Arc<T1Object>> {
        let object = self.get(id)?;
        object.gate.shut();
        Some(object)
    }

    /// Forgets an object, and frees its extents if the labels say that it is this SP's.
    /// One that is not known any more is fine.
    ///
    /// # Errors
    /// `Stale` if it has been fenced to an epoch above `epoch`: it is in use anew, and the
    /// request is from before. Also when a label can't be written.
    pub fn delete(
        &self,
        devices: &HashMap<String, Arc<Device>>,
        id: &str,
        epoch: u64,
    ) -> Result<(), DeviceError> {
        let _turn = self.turn(id);
        let on: Vec<Arc<Device>> = match self.get(id) {
            Some(object) => object.devices().to_vec(),
            None => devices.values().cloned().collect(),
        };
        for device in &on {
            let label = device.label()?;
            let mine = label.t1s.iter().find(|e| e.t1.id == id && e.t1.home == self.sp);
            if let Some(entry) = mine.filter(|entry| entry.epoch > epoch) {
                return Err(stale(id, entry.epoch, epoch));
            }
        }
        if let Some(object) = self.retire(id) {
            object.forget();
        }
        self.swap(|objects| drop(objects.remove(id)));
        let freed = on.iter().try_for_each(|device| {
            device.change_label(|label| {
                label.t1s.retain(|entry| entry.t1.id != id || entry.t1.home != self.sp);
                Ok(())
            })
        });
        self.deletions.fetch_add(1, Ordering::SeqCst);
        freed
    }

    fn devices_of(
        devices: &HashMap<String, Arc<Device>>,
        spec: &T1Spec,
    ) -> Result<Vec<Arc<Device>>, DeviceError> {
        let mut found: Vec<Arc<Device>> = Vec::new();
        for extent in &spec.extents {
            let device = devices.get(&extent.device).ok_or_else(|| {
                let text = format!("T1 object {}: device {} is not here", spec.id, extent.device);
                DeviceError::new(ErrorKind::NotFound, text)
            })?;
            if !found.iter().any(|known| known.id == device.id) {
                found.push(Arc::clone(device));
            }
        }
        Ok(found)
    }

    fn change_entry(
        &self,
        device: &Device,
        id: &str,
        change: impl FnOnce(&mut Entry),
    ) -> Result<(), DeviceError> {
        device.change_label(|label| {
            let entry = label.t1s.iter_mut().find(|entry| entry.t1.id == id).ok_or_else(|| {
                let text = format!("T1 object {id} is not on the label of device {}", device.id);
                DeviceError::new(ErrorKind::NotFound, text)
            })?;
            change(entry);
            Ok(())
        })
    }

    fn install(
        &self,
        devices: &HashMap<String, Arc<Device>>,
        entry: &Entry,
        doubt: bool,
    ) -> Result<(), DeviceError> {
        let mut start = 0;
        let mut runs = Vec::with_capacity(entry.t1.extents.len());
        for extent in &entry.t1.extents {
            let device = devices.get(&extent.device).ok_or_else(|| {
                invalid(format!("T1 object {}: device {} is not here", entry.t1.id, extent.device))
            })?;
            let (offset, length) = (extent.offset, extent.length);
            runs.push(Run { start, device: Arc::clone(device), offset, length });
            start += length;
        }
        let old = self.get(&entry.t1.id);
        if old.as_ref().is_some_and(|old| old.spec == entry.t1 && old.size == entry.ready) {
            if let Some(old) = old {
                old.gate.raise(entry.epoch);
                old.gate.keep(entry.kept.clone());
            }
            return Ok(());
        }
        let gate = old.map_or_else(Arc::default, |old| Arc::clone(&old.gate));
        gate.raise(entry.epoch);
        gate.keep(entry.kept.clone());
        let in_files = runs.iter().all(|run| matches!(run.device.kind, Kind::File(_)));
        let on = Self::devices_of(devices, &entry.t1)?;
        let (spec, size) = (entry.t1.clone(), entry.ready);
        let object = Arc::new(T1Object { spec, size, runs, in_files, devices: on, gate });
        if doubt {
            object.doubt();
        }
        self.swap(|objects| drop(objects.insert(entry.t1.id.clone(), object)));
        Ok(())
    }

    fn swap(&self, change: impl FnOnce(&mut HashMap<String, Arc<T1Object>>)) {
        change(&mut self.objects.write().unwrap_or_else(PoisonError::into_inner));
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    fn changing(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        // Changed by single calls: a panic can't leave it torn.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The turn, unless another has it.
    pub(crate) fn try_turn(&self, id: &str) -> Option<Turn<'_>> {
        self.changing().insert(id.to_owned()).then(|| Turn(self, id.to_owned()))
    }

    pub(crate) fn turn(&self, id: &str) -> Turn<'_> {
        let mut changing = self.changing();
        while changing.contains(id) {
            changing = self.changed.wait(changing).unwrap_or_else(PoisonError::into_inner);
        }
        changing.insert(id.to_owned());
        Turn(self, id.to_owned())
    }
}
