//! Labels, allocation and T1 objects on real files.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vs_io::device::{self, LABEL_AREA, UNIT};
use vs_io::label::{self, Found, Fresh};
use vs_io::{
    BlockingDevice, Committer, Device, DeviceError, Entry, ErrorKind, ExtentSpec, Kind, Label,
    Survey, T1Spec, T1Table, TryRead, alloc,
};

const SIZE: u64 = 64 << 20;

/// Labels a device that is blank, or knows it again.
fn claim(device: &mut dyn BlockingDevice, cluster: &str, id: &str) -> Result<Label, DeviceError> {
    label::claim(device, cluster, "sp", &Fresh { id, region: UNIT, checksums: false })
}

struct Disk {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Disk {
    fn new() -> Disk {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
        Disk { _dir: dir, path }
    }

    fn uri(&self) -> String {
        format!("file:{}", self.path.display())
    }

    fn open(&self) -> (Kind, Box<dyn BlockingDevice>) {
        device::open(&self.uri(), &device::Options::default()).unwrap()
    }

    fn blocking(&self) -> Box<dyn BlockingDevice> {
        self.open().1
    }

    fn device(&self, id: &str) -> Arc<Device> {
        let (kind, mut blocking) = self.open();
        let label = claim(&mut *blocking, "c1", id).unwrap();
        let regions = vs_io::Regions::load(&mut *blocking, &label, "sp").unwrap();
        Arc::new(Device::new(&self.uri(), &label, kind, regions, 2, 0))
    }
}

fn extent(device: &str, unit: u64, units: u64) -> ExtentSpec {
    ExtentSpec { device: device.into(), offset: LABEL_AREA + unit * UNIT, length: units * UNIT }
}

fn t1(id: &str, home: &str, size: u64, extents: Vec<ExtentSpec>) -> T1Spec {
    T1Spec { id: id.into(), volume: "v".into(), size, extents, home: home.into() }
}

fn devices(all: &[&Arc<Device>]) -> HashMap<String, Arc<Device>> {
    all.iter().map(|device| (device.id.clone(), Arc::clone(device))).collect()
}

/// The label as a view shows it.
fn seen(device: &Arc<Device>) -> Arc<Label> {
    let number = Survey::begin(device);
    let deadline = Instant::now() + Duration::from_secs(20);
    device.survey.end(&device.uri, number, deadline).unwrap()
}

fn file(device: &Device) -> &vs_io::FileDevice {
    match &device.kind {
        Kind::File(file) => file,
        Kind::Nbd(_) => panic!("a file"),
    }
}

#[test]
fn a_blank_device_is_labelled_once() {
    let disk = Disk::new();
    let first = claim(&mut *disk.blocking(), "c1", "d1").unwrap();
    let again = claim(&mut *disk.blocking(), "c1", "d2").unwrap();
    assert_eq!(first, again, "it keeps its first name");
    let refused = claim(&mut *disk.blocking(), "c2", "d3").unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unsafe);
    assert!(refused.message.contains("belongs to cluster c1"));
}

#[test]
fn foreign_data_is_refused_by_its_name() {
    let disk = Disk::new();
    disk.blocking().write_at(0x438, &[0x53, 0xef]).unwrap();
    let refused = claim(&mut *disk.blocking(), "c1", "d1").unwrap_err();
    assert!(refused.message.contains("ext2/3/4"), "{refused}");
    let disk = Disk::new();
    disk.blocking().write_at(SIZE - 1, &[1]).unwrap();
    assert!(matches!(label::read(&mut *disk.blocking()), Ok(Found::Foreign(_))));
}

#[test]
fn paths_outside_the_roots_are_refused() {
    let disk = Disk::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let roots = [elsewhere.path().into()];
    let only_there = device::Options { roots: &roots, ..device::Options::default() };
    let refused = device::open(&disk.uri(), &only_there).err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Invalid);
    let link = elsewhere.path().join("link");
    std::os::unix::fs::symlink(&disk.path, &link).unwrap();
    let uri = format!("file:{}", link.display());
    assert!(device::open(&uri, &only_there).is_err(), "links are followed first");
}

#[test]
fn many_writers_lose_no_update() {
    let disk = Disk::new();
    claim(&mut *disk.blocking(), "c1", "d1").unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let disk = &disk;
            scope.spawn(move || {
                for round in 0..8 {
                    let id = format!("t-{writer}-{round}");
                    let new = t1(&id, "a", 4096, vec![]);
                    label::update(&mut *disk.blocking(), "c1", "d1", &mut None, |label| {
                        label.t1s.push(Entry { t1: new, epoch: 1, ready: 0, kept: None });
                        Ok(())
                    })
                    .unwrap();
                }
            });
        }
    });
    let Found::Label(label) = label::read(&mut *disk.blocking()).unwrap() else { panic!("label") };
    assert_eq!(label.t1s.len(), 32);
}

#[test]
fn a_label_that_is_known_is_read_again_when_another_has_written_it() {
    let disk = Disk::new();
    claim(&mut *disk.blocking(), "c1", "d1").unwrap();
    let (mut mine, mut theirs) = (None, None);
    for round in 0..6 {
        for known in [&mut mine, &mut theirs] {
            let new = t1(&format!("t-{round}"), "a", 4096, vec![]);
            label::update(&mut *disk.blocking(), "c1", "d1", known, |label| {
                label.t1s.push(Entry { t1: new, epoch: 1, ready: 0, kept: None });
                Ok(())
            })
            .unwrap();
        }
    }
    for known in [&mut mine, &mut theirs, &mut None] {
        let label = label::current(&mut *disk.blocking(), "c1", "d1", known).unwrap();
        assert_eq!(label.t1s.len(), 12);
    }
    // A write that was torn: what is known of the slot before it holds again.
    let mut torn = vec![0; 4096];
    disk.blocking().read_at(0, &mut torn).unwrap();
    torn[100] ^= 1;
    disk.blocking().write_at(0, &torn).unwrap();
    let label = label::current(&mut *disk.blocking(), "c1", "d1", &mut mine).unwrap();
    assert_eq!(label.t1s.len(), 11);
    // Wiped under a process that has it open.
    disk.blocking().write_at(0, &vec![0; 4 << 20]).unwrap();
    let gone = label::current(&mut *disk.blocking(), "c1", "d1", &mut mine).unwrap_err();
    assert_eq!(gone.kind, ErrorKind::Unsafe);
}

#[test]
fn an_object_lives_from_put_to_delete() {
    let disk = Disk::new();
    let device = disk.device("d1");
    let all = devices(&[&device]);
    let dirty = vec![7; UNIT as usize];
    file(&device).write(LABEL_AREA + 5 * UNIT, &dirty).unwrap();
    let table = T1Table::new("a", false);
    let spec = t1("t-1", "a", 2 * UNIT, vec![extent("d1", 0, 1), extent("d1", 5, 1)]);
    table.put(&all, &spec, 3).unwrap();
    table.put(&all, &spec, 3).unwrap();
    let object = table.get("t-1").unwrap();
    assert!(object.serves(3) && !object.serves(2));
    let mut pieces = Vec::new();
    object
        .map(UNIT - 10, 30, |_, offset, length, at| {
            pieces.push((offset, length, at));
            Ok::<(), ()>(())
        })
        .unwrap();
    assert_eq!(pieces, [(LABEL_AREA + UNIT - 10, 10, 0), (LABEL_AREA + 5 * UNIT, 20, 10)]);
    let mut read = vec![1; UNIT as usize];
    file(&device).read(LABEL_AREA + 5 * UNIT, &mut read).unwrap();
    assert!(read.iter().all(|&byte| byte == 0), "new bytes read as zeroes");

    let clash = t1("t-2", "a", UNIT, vec![extent("d1", 5, 1)]);
    let refused = table.put(&all, &clash, 1).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Exists);
    assert!(refused.message.contains("belongs to T1 object t-1"));

    let longer =
        t1("t-1", "a", 3 * UNIT, vec![extent("d1", 0, 1), extent("d1", 5, 1), extent("d1", 9, 1)]);
    table.put(&all, &longer, 4).unwrap();
    assert_eq!(table.get("t-1").unwrap().size(), 3 * UNIT);
    table.fence("t-1", 9, None).unwrap();
    assert!(!object.serves(8), "a fence reaches those who hold the object from before");

    let again = T1Table::new("a", false);
    let reopened = disk.device("other");
    again.load(&devices(&[&reopened]), &reopened).unwrap();
    let loaded = again.get("t-1").unwrap();
    assert_eq!((loaded.size(), loaded.epoch()), (3 * UNIT, 9));

    table.delete(&all, "t-1", u64::MAX).unwrap();
    table.delete(&all, "t-1", u64::MAX).unwrap();
    assert!(!loaded.serves(0) && table.get("t-1").is_none());
    assert!(!object.serves(u64::MAX - 1));
    assert_eq!(alloc::free(&seen(&device)), [(LABEL_AREA, SIZE - LABEL_AREA)]);
}

#[test]
fn an_object_moves_to_the_sp_that_adopts_it() {
    let disk = Disk::new();
    let (at_a, at_b) = (disk.device("d1"), disk.device("d1"));
    let (a, b) = (T1Table::new("a", false), T1Table::new("b", false));
    let spec = t1("t-1", "a", UNIT, vec![extent("d1", 0, 1)]);
    a.put(&devices(&[&at_a]), &spec, 1).unwrap();
    a.fence("t-1", 2, None).unwrap();
    let moved = T1Spec { home: "b".into(), ..spec };
    b.adopt(&devices(&[&at_b]), &moved, 2).unwrap();
    a.delete(&devices(&[&at_a]), "t-1", u64::MAX).unwrap();
    assert_eq!(seen(&at_a).t1s.len(), 1, "B's object is not A's to free");
    let restarted = T1Table::new("a", false);
    let reopened = disk.device("d1");
    restarted.load(&devices(&[&reopened]), &reopened).unwrap();
    assert!(restarted.get("t-1").is_none(), "A does not come back as its home");
    assert_eq!(b.get("t-1").unwrap().epoch(), 2);
}

#[test]
fn an_object_on_two_devices_is_loaded_when_both_are_here() {
    let (first, second) = (Disk::new(), Disk::new());
    let (d1, d2) = (first.device("d1"), second.device("d2"));
    let spec = t1("t-1", "a", 2 * UNIT, vec![extent("d1", 0, 1), extent("d2", 0, 1)]);
    T1Table::new("a", false).put(&devices(&[&d1, &d2]), &spec, 4).unwrap();
    let again = T1Table::new("a", false);
    again.load(&devices(&[&d2]), &d2).unwrap();
    assert!(again.get("t-1").is_none(), "half of it is missing");
    again.load(&devices(&[&d1, &d2]), &d1).unwrap();
    let loaded = again.get("t-1").unwrap();
    assert_eq!((loaded.size(), loaded.epoch()), (2 * UNIT, 4));
}

/// An NBD server's label has no lock, and a file's is between processes: what one process
/// changes at the same time must not be lost either.
#[test]
fn changes_of_many_objects_at_once_all_reach_the_label() {
    let disk = Disk::new();
    let device = disk.device("d1");
    let all = devices(&[&device]);
    let table = T1Table::new("a", false);
    std::thread::scope(|scope| {
        for lane in 0..4u64 {
            let (table, all) = (&table, &all);
            scope.spawn(move || {
                for round in 0..6 {
                    let id = format!("t-{lane}-{round}");
                    let spec = t1(&id, "a", UNIT, vec![extent("d1", lane * 6 + round, 1)]);
                    table.put(all, &spec, 1).unwrap();
                    table.fence(&id, 5, None).unwrap();
                    if round % 2 == 0 {
                        table.delete(all, &id, u64::MAX).unwrap();
                    }
                }
            });
        }
    });
    let label = seen(&device);
    assert_eq!(label.t1s.len(), 12);
    assert!(label.t1s.iter().all(|entry| entry.epoch == 5 && entry.ready == UNIT));
    assert_eq!(table.all().len(), 12);
}

/// While one device's label can't be changed, objects on others are put, fenced and deleted.
#[test]
fn a_device_that_does_not_answer_holds_up_changes_of_its_own_objects_only() {
    let (stuck, good) = (Disk::new(), Disk::new());
    let (d1, d2) = (stuck.device("d1"), good.device("d2"));
    let all = devices(&[&d1, &d2]);
    let table = T1Table::new("a", false);
    table.put(&all, &t1("t-1", "a", UNIT, vec![extent("d1", 0, 1)]), 1).unwrap();
    let held = d1.known.lock().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| table.fence("t-1", 2, None).unwrap());
        table.put(&all, &t1("t-2", "a", UNIT, vec![extent("d2", 0, 1)]), 1).unwrap();
        table.fence("t-2", 2, None).unwrap();
        table.delete(&all, "t-2", u64::MAX).unwrap();
        assert!(!waiting.is_finished());
        drop(held);
        assert_eq!(waiting.join().unwrap().epoch(), 2);
    });
}

#[test]
fn an_object_is_loaded_when_the_last_of_its_devices_has_come() {
    let (one, two) = (Disk::new(), Disk::new());
    let (first, second) = (one.device("d1"), two.device("d2"));
    let both = devices(&[&first, &second]);
    let spec = t1("t-1", "a", 2 * UNIT, vec![extent("d1", 0, 1), extent("d2", 3, 1)]);
    T1Table::new("a", false).put(&both, &spec, 5).unwrap();
    // As a crash in the middle of an adoption from B leaves it, whichever device comes last.
    label::update(&mut *two.blocking(), "c1", "d2", &mut None, |label| {
        label.t1s[0].t1.home = "b".into();
        Ok(())
    })
    .unwrap();
    for (early, late) in [(&first, &second), (&second, &first)] {
        let table = T1Table::new("a", false);
        table.load(&devices(&[early]), early).unwrap();
        assert!(table.get("t-1").is_none());
        table.load(&both, late).unwrap();
        let loaded = table.get("t-1").unwrap();
        assert_eq!((loaded.size(), loaded.epoch(), loaded.devices().len()), (2 * UNIT, 5, 2));
    }
}

#[test]
fn an_object_of_a_hundred_thousand_extents_is_put_loaded_and_mapped() {
    const COUNT: u64 = 100_000;
    let disk = Disk::new();
    let file = std::fs::OpenOptions::new().write(true).open(&disk.path).unwrap();
    file.set_len(LABEL_AREA + 4 * COUNT * UNIT).unwrap();
    let device = disk.device("3f0c2a52-7f9b-4a55-9f0e-0f8f6a1d2b3c");
    let all = devices(&[&device]);
    // Every other unit, from the end to the beginning: no two touch.
    let extents = (0..COUNT).rev().map(|index| extent(&device.id, 2 * index, 1)).collect();
    let spec = t1("t-1", "a", COUNT * UNIT, extents);
    T1Table::new("a", false).put(&all, &spec, 1).unwrap();
    let table = T1Table::new("a", false);
    table.load(&all, &device).unwrap();
    let object = table.get("t-1").unwrap();
    assert_eq!(object.spec, spec);
    for index in [0, 1, COUNT / 2, COUNT - 1] {
        let mut found = Vec::new();
        object
            .map(index * UNIT + 4096, 4096, |_, offset, length, _| {
                found.push((offset, length));
                Ok::<(), ()>(())
            })
            .unwrap();
        assert_eq!(found, [(LABEL_AREA + 2 * (COUNT - 1 - index) * UNIT + 4096, 4096)]);
    }
    let clash = t1("t-2", "a", UNIT, vec![extent(&device.id, COUNT, 1)]);
    assert_eq!(table.put(&all, &clash, 1).unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(alloc::free(&seen(&device)).len() as u64, COUNT);

    let more = (0..2 * COUNT).map(|index| extent(&device.id, 2 * index + 1, 1)).collect();
    let refused = table.put(&all, &t1("t-3", "a", 2 * COUNT * UNIT, more), 1).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::NoSpace);
    assert!(refused.message.contains("its label is full: 2 T1 objects with 300000 extents"));
    assert_eq!(seen(&device).t1s.len(), 1, "and nothing is changed");
}

#[test]
fn flushes_that_wait_share_one_sync() {
    let disk = Disk::new();
    let device = disk.device("d1");
    let (sender, receiver) = std::sync::mpsc::channel();
    for index in 0..50 {
        let sender = sender.clone();
        let done =
            Box::new(move |result: Result<f64, _>| sender.send((index, result.is_ok())).unwrap());
        Committer::flush(&device, done);
    }
    drop(sender);
    let mut answered: Vec<_> = receiver.iter().collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..50).map(|index| (index, true)).collect::<Vec<_>>());
}

#[test]
fn files_tell_holes_from_data() {
    let disk = Disk::new();
    let device = disk.device("d1");
    let file = file(&device);
    file.write(8 << 20, &[1; 4096]).unwrap();
    let mut runs = Vec::new();
    file.status((8 << 20) - 4096, 12288, &mut runs).unwrap();
    assert_eq!(runs, [(4096, 3), (4096, 0), (4096, 3)]);
    file.trim(8 << 20, 4096).unwrap();
    let mut read = vec![9; 4096];
    file.read(8 << 20, &mut read).unwrap();
    assert!(read.iter().all(|&byte| byte == 0));
    assert!(matches!(file.try_read(8 << 20, &mut read), Ok(TryRead::Done | TryRead::WouldBlock)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// What is written to a label is what is read from it.
    #[test]
    fn a_label_keeps_every_extent_in_its_order(
        objects in prop::collection::vec(
            (any::<u64>(), any::<u64>(), any::<bool>(), prop::collection::vec((0usize..3, 0u64..1 << 40, 1u64..1 << 20), 0..9)),
            0..6,
        ),
    ) {
        let disk = Disk::new();
        claim(&mut *disk.blocking(), "c1", "d0").unwrap();
        let entries: Vec<Entry> = objects.into_iter().enumerate().map(|(index, (epoch, ready, home, extents))| {
            let extents = extents.into_iter().map(|(device, unit, units)| ExtentSpec {
                device: format!("d{device}"), offset: unit * UNIT, length: units * UNIT,
            }).collect();
            let home = if home { "sp \"a\" \\" } else { "b" };
            Entry { t1: t1(&format!("t-{index}"), home, index as u64 * 4096, extents), epoch, ready, kept: (epoch % 2 == 0).then(|| Arc::new(label::Kept { epoch, version: ready, bytes: epoch.to_le_bytes().to_vec() })) }
        }).collect();
        label::update(&mut *disk.blocking(), "c1", "d0", &mut None, |label| {
            label.t1s.clone_from(&entries);
            Ok(())
        }).unwrap();
        let Found::Label(label) = label::read(&mut *disk.blocking()).unwrap() else { panic!("label") };
        prop_assert_eq!(label.t1s, entries);
    }

    /// Whatever becomes of the slot that is being written, the other still tells all.
    #[test]
    fn a_torn_write_leaves_the_other_slot(updates in 1u64..5, at in 0usize..200, byte in any::<u8>(), cut in 0usize..4096) {
        let disk = Disk::new();
        claim(&mut *disk.blocking(), "c1", "d1").unwrap();
        let read = |disk: &Disk| match label::read(&mut *disk.blocking()).unwrap() {
            Found::Label(label) => label.t1s.len() as u64,
            other => panic!("{other:?}"),
        };
        for round in 0..updates {
            let new = t1(&format!("t-{round}"), "a", 4096, vec![]);
            label::update(&mut *disk.blocking(), "c1", "d1", &mut None, |label| {
                label.t1s.push(Entry { t1: new, epoch: 1, ready: 0, kept: None });
                Ok(())
            }).unwrap();
        }
        prop_assert_eq!(read(&disk), updates);
        // Slot 1 holds odd numbers of updates; the next update would go to the other one.
        let next = if updates % 2 == 1 { 0 } else { 2 << 20 };
        let mut torn = vec![0; 4096];
        disk.blocking().read_at(next, &mut torn).unwrap();
        torn[cut..].fill(0);
        torn[at] = byte;
        disk.blocking().write_at(next, &torn).unwrap();
        prop_assert_eq!(read(&disk), updates);
    }

    #[test]
    fn free_and_taken_make_up_the_device(pieces in prop::collection::vec((0u64..50, 1u64..6), 0..12)) {
        let mut label = Label { cluster: "c".into(), device: "d1".into(), size: SIZE, unit: UNIT, region: UNIT, checksums: false, maps: vec![], t1s: vec![] };
        let mut taken = vec![false; ((SIZE - LABEL_AREA) / UNIT) as usize];
        for (index, (unit, units)) in pieces.into_iter().enumerate() {
            let new = t1(&format!("t-{index}"), "a", 4096, vec![extent("d1", unit, units)]);
            let range = unit as usize..(unit + units) as usize;
            let fits = range.end <= taken.len() && !taken[range.clone()].iter().any(|&t| t);
            prop_assert_eq!(alloc::check(&label, &new).is_ok(), fits);
            if fits {
                taken[range].fill(true);
                label.t1s.push(Entry { t1: new, epoch: 1, ready: 4096, kept: None });
            }
        }
        for (offset, length) in alloc::free(&label) {
            for unit in (offset - LABEL_AREA) / UNIT..(offset + length - LABEL_AREA) / UNIT {
                prop_assert!(!std::mem::replace(&mut taken[unit as usize], true));
            }
        }
        prop_assert!(taken.iter().all(|&t| t));
    }
}
