//! Checksums against a plain model, on a disk that loses its power at any point, and on real files.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vs_io::checksums::{self, BLOCK, Checksums, Medium, PAGE, REGION};
use vs_io::device::{self, LABEL_AREA, Options};
use vs_io::{DeviceError, ErrorKind, FileDevice, Kind, Put, TryRead};

const SECTOR: usize = 512;
const REGIONS: u64 = 3;
/// The label, a MiB of pages, and the data.
const DATA: u64 = LABEL_AREA + REGION;
const SIZE: u64 = DATA + REGIONS * REGION;
const SPAN: usize = (REGIONS * REGION) as usize;

#[derive(Debug)]
struct State {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// What each sector has held since it was last durable.
    pending: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    /// Calls until the power fails.
    left: usize,
}

/// A disk that keeps of each sector what it was given last, or anything since it was told to
/// keep it durably.
#[derive(Clone, Debug)]
struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn new() -> Disk {
        let bytes = vec![0; SIZE as usize];
        let (now, durable) = (bytes.clone(), bytes);
        Disk(Arc::new(Mutex::new(State {
            now,
            durable,
            pending: BTreeMap::new(),
            left: usize::MAX,
        })))
    }

    fn state(&self) -> Result<std::sync::MutexGuard<'_, State>, DeviceError> {
        let mut state = self.0.lock().unwrap();
        if state.left == 0 {
            return Err(DeviceError::new(ErrorKind::Timeout, "the power is off"));
        }
        state.left = state.left.saturating_sub(1);
        Ok(state)
    }

    fn put(&self, offset: u64, data: &[u8], durably: bool) -> Result<(), DeviceError> {
        let mut state = self.state()?;
        let at = offset as usize;
        state.now[at..at + data.len()].copy_from_slice(data);
        for sector in at / SECTOR..(at + data.len()).div_ceil(SECTOR) {
            let place = sector * SECTOR..(sector + 1) * SECTOR;
            let held: [u8; SECTOR] = state.now[place.clone()].try_into().unwrap();
            if durably {
                state.durable[place].copy_from_slice(&held);
                state.pending.remove(&sector);
            } else {
                state.pending.entry(sector).or_default().push(held);
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), DeviceError> {
        let mut state = self.state()?;
        let State { now, durable, pending, .. } = &mut *state;
        for (sector, _) in std::mem::take(pending) {
            let place = sector * SECTOR..(sector + 1) * SECTOR;
            durable[place.clone()].copy_from_slice(&now[place]);
        }
        Ok(())
    }

    fn lose_power(&self, mut seed: u64) {
        let mut state = self.0.lock().unwrap();
        let State { now, durable, pending, left } = &mut *state;
        for (sector, mut held) in std::mem::take(pending) {
            seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let pick = (seed >> 33) as usize % (held.len() + 1);
            if pick > 0 {
                durable[sector * SECTOR..(sector + 1) * SECTOR]
                    .copy_from_slice(&held.swap_remove(pick - 1));
            }
        }
        now.copy_from_slice(durable);
        *left = usize::MAX;
    }

    /// A bit turns, on the disk itself.
    fn rot(&self, at: u64) {
        let mut state = self.0.lock().unwrap();
        state.now[at as usize] ^= 1;
        state.durable[at as usize] ^= 1;
        let sector = at as usize / SECTOR;
        for held in state.pending.get_mut(&sector).into_iter().flatten() {
            held[at as usize % SECTOR] ^= 1;
        }
    }

    fn data(&self) -> Vec<u8> {
        self.0.lock().unwrap().now[DATA as usize..].to_vec()
    }

    fn checksums(&self) -> Checksums {
        Checksums::new("disk", "d-1", SIZE, Box::new(self.clone()))
    }
}

impl Medium for Disk {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let state = self.state()?;
        buffer.copy_from_slice(&state.now[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn try_read(&self, offset: u64, buffer: &mut [u8]) -> Result<bool, DeviceError> {
        self.read(offset, buffer).map(|()| true)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        // As a disk: some of it may be there when the power fails.
        let half = data.len() / 2;
        self.put(offset, &data[..half], false)?;
        self.put(offset + half as u64, &data[half..], false)
    }

    fn write_durably(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.put(offset, data, true)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, u8),
    Zero(usize, usize),
    Read(usize, usize),
    Round(bool),
    /// A round, and then everything is durable.
    Settle,
    Kill,
    LosePower(u64),
    Rot(usize),
}

fn span() -> impl Strategy<Value = (usize, usize)> {
    let at = prop_oneof![0..SPAN, (0..SPAN / 4096).prop_map(|block| block * 4096)];
    let length = prop_oneof![1usize..9000, (1usize..40).prop_map(|blocks| blocks * 4096)];
    (at, length).prop_map(|(at, length)| (at, length.min(SPAN - at)))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (span(), any::<u8>()).prop_map(|((at, length), byte)| Step::Write(at, length, byte)),
        1 => span().prop_map(|(at, length)| Step::Zero(at, length)),
        3 => span().prop_map(|(at, length)| Step::Read(at, length)),
        2 => any::<bool>().prop_map(Step::Round),
        2 => Just(Step::Settle),
        1 => Just(Step::Kill),
        2 => any::<u64>().prop_map(Step::LosePower),
        2 => (0..SPAN).prop_map(Step::Rot),
    ]
}

/// What must be so, and what may be.
struct Model {
    disk: Disk,
    checksums: Checksums,
    flat: Vec<u8>,
    /// Blocks whose sums are certainly known.
    known: BTreeSet<usize>,
    /// Those of them that are so after a crash, unless their region was written since.
    firm: BTreeSet<usize>,
    dirty: BTreeSet<usize>,
}

fn blocks(at: usize, length: usize) -> std::ops::Range<usize> {
    at / BLOCK as usize..(at + length).div_ceil(BLOCK as usize)
}

fn region(block: usize) -> usize {
    block / (REGION / BLOCK) as usize
}

impl Model {
    fn new() -> Model {
        let disk = Disk::new();
        let checksums = disk.checksums();
        let flat = vec![0; SPAN];
        let (known, firm, dirty) = Default::default();
        Model { disk, checksums, flat, known, firm, dirty }
    }

    fn round(&mut self, all: bool) -> Result<(), DeviceError> {
        self.checksums.round(all, |_| true, || self.disk.sync().is_ok())
    }

    fn change(&mut self, at: usize, bytes: &[u8], zero: bool) -> Result<(), DeviceError> {
        self.dirty.extend(blocks(at, bytes.len()).map(region));
        let offset = DATA + at as u64;
        let done = if zero {
            let make = |from, length| self.disk.write(from, &vec![0; length as usize]);
            self.checksums.zero(&self.disk, offset, bytes.len() as u64, make)
        } else {
            self.checksums.write(&self.disk, offset, bytes, true).map(|done| assert!(done))
        };
        done?;
        self.flat[at..at + bytes.len()].copy_from_slice(bytes);
        self.known.extend(blocks(at, bytes.len()));
        Ok(())
    }

    fn read(&mut self, at: usize, length: usize) -> Result<Vec<u8>, DeviceError> {
        let mut found = vec![0; length];
        self.checksums.read(&self.disk, DATA + at as u64, &mut found)?;
        self.known.extend(blocks(at, length));
        Ok(found)
    }

    /// The process has ended, and another begins with what the disk has.
    fn begin_again(&mut self) {
        self.checksums = self.disk.checksums();
        self.flat = self.disk.data();
        let dirty = std::mem::take(&mut self.dirty);
        self.firm.retain(|block| !dirty.contains(&region(*block)));
        self.known = self.firm.clone();
    }

    fn step(&mut self, step: &Step) -> Result<(), DeviceError> {
        match *step {
            Step::Write(at, length, byte) => {
                let bytes: Vec<u8> = (0..length).map(|n| byte.wrapping_add(n as u8)).collect();
                self.change(at, &bytes, false)?;
            }
            Step::Zero(at, length) => self.change(at, &vec![0; length], true)?,
            Step::Read(at, length) => {
                let found = self.read(at, length)?;
                assert!(found == self.flat[at..at + length], "other bytes than were written");
            }
            Step::Round(all) => self.round(all)?,
            Step::Settle => {
                self.round(true)?;
                self.disk.sync()?;
                self.firm = self.known.clone();
                self.dirty.clear();
                assert_eq!(self.checksums.live(), 0);
            }
            Step::Kill => self.begin_again(),
            Step::LosePower(seed) => {
                self.disk.lose_power(seed);
                self.begin_again();
            }
            Step::Rot(at) => {
                let known = self.known.contains(&(at / BLOCK as usize));
                self.disk.rot(DATA + at as u64);
                let errors = self.checksums.errors();
                match self.read(at, 1) {
                    Err(error) => {
                        assert_eq!(error.kind, ErrorKind::Io, "{error}");
                        assert_eq!(self.checksums.errors(), errors + 1);
                        // A part of it can't be written, and is not blessed.
                        if at % BLOCK as usize != 0 {
                            assert!(self.change(at, &[7], false).is_err());
                        }
                        assert!(self.read(at, 1).is_err());
                    }
                    Ok(_) => assert!(!known, "rot was not seen"),
                }
                let start = at / BLOCK as usize * BLOCK as usize;
                self.change(start, &[9; BLOCK as usize], false)?;
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn rot_is_seen_and_nothing_else_is_taken_for_it(
        steps in prop::collection::vec((step(), prop::option::weighted(0.15, 0usize..6)), 1..40),
        seed in any::<u64>(),
    ) {
        let mut model = Model::new();
        for (number, (step, cut)) in steps.iter().enumerate() {
            // What has rotted is mended within its step.
            let cut = cut.filter(|_| !matches!(step, Step::Rot(_)));
            model.disk.0.lock().unwrap().left = cut.unwrap_or(usize::MAX);
            if let Err(error) = model.step(step) {
                prop_assert_eq!(error.kind, ErrorKind::Timeout, "{}", error);
            }
            let off = std::mem::replace(&mut model.disk.0.lock().unwrap().left, usize::MAX) == 0;
            if off {
                model.disk.lose_power(seed ^ number as u64);
                model.begin_again();
            }
        }
        // All of it can be read, whatever has happened.
        let found = model.read(0, SPAN).unwrap();
        prop_assert!(found == model.flat);
    }
}

fn open(path: &Path, direct: bool) -> FileDevice {
    let options = Options { direct, create_size: SIZE, ..Options::default() };
    let uri = format!("file:{}", path.display());
    let (Kind::File(mut file), _) = device::open(&uri, &options).unwrap() else {
        panic!("a file");
    };
    file.keep_checksums("d-1", SIZE).unwrap();
    file
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn writers_of_the_same_blocks_and_their_readers_see_no_rot() {
    for direct in [false, true] {
        let dir = directory();
        let path = dir.path().join("disk");
        let file = open(&path, direct);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (file, stop) = (&file, &stop);
            let writers: Vec<_> = (0..4u64)
                .map(|lane| {
                    scope.spawn(move || {
                        for round in 0..400u64 {
                            // They overlap, and begin and end within blocks.
                            let at = DATA + (lane * 1111 + round * 2777) % 60_000;
                            let data = vec![(lane * 50 + round) as u8; 5000];
                            let put = file.put(at, &data, round % 2 == 0).unwrap();
                            if put == Put::WouldBlock {
                                file.write(at, &data).unwrap();
                            }
                            if round % 50 == 0 {
                                file.zero(at, 9000, round % 100 == 0).unwrap();
                            }
                        }
                    })
                })
                .collect();
            for lane in 0..2u64 {
                scope.spawn(move || {
                    let mut found = vec![0; 70_000];
                    while !stop.load(Ordering::SeqCst) {
                        file.read(DATA + lane * 13, &mut found).unwrap();
                        let _ = file.try_read(DATA, &mut found[..8192]).unwrap();
                    }
                });
            }
            scope.spawn(move || {
                let sums = file.checksums().unwrap();
                while !stop.load(Ordering::SeqCst) {
                    sums.round(true, |_| true, || file.sync_data().is_ok()).unwrap();
                }
            });
            for writer in writers {
                writer.join().unwrap();
            }
            stop.store(true, Ordering::SeqCst);
        });
        let sums = file.checksums().unwrap();
        sums.round(true, |_| true, || file.sync_data().is_ok()).unwrap();
        assert_eq!((sums.errors(), sums.live()), (0, 0));
        let mut before = vec![0; 70_000];
        file.read(DATA, &mut before).unwrap();
        drop(file);
        let again = open_again(&path, direct);
        let mut found = vec![0; 70_000];
        again.read(DATA, &mut found).unwrap();
        assert!(found == before);
        // And the sums are there: rot is found at once.
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(&[!before[100]], DATA + 100)
            .unwrap();
        assert!(again.read(DATA, &mut found).is_err());
        assert_eq!(again.try_read(DATA, &mut found).unwrap(), TryRead::WouldBlock);
    }
}

fn open_again(path: &Path, direct: bool) -> FileDevice {
    let uri = format!("file:{}", path.display());
    let options = Options { direct, ..Options::default() };
    let (Kind::File(mut file), _) = device::open(&uri, &options).unwrap() else {
        panic!("a file");
    };
    file.keep_checksums("d-1", SIZE).unwrap();
    file
}

#[test]
fn pages_of_another_device_or_region_or_half_of_one_know_nothing() {
    let disk = Disk::new();
    let mine = disk.checksums();
    mine.write(&disk, DATA, &[1; 4096], true).unwrap();
    mine.round(true, |_| true, || disk.sync().is_ok()).unwrap();
    disk.rot(DATA);
    let rotten = |sums: &Checksums| sums.read(&disk, DATA, &mut [0; 4096]).is_err();
    assert!(rotten(&disk.checksums()), "its own page tells");
    let other = Checksums::new("disk", "d-2", SIZE, Box::new(disk.clone()));
    assert!(!rotten(&other), "another device's does not");
    // The page itself rots: that makes no data unreadable.
    let (page, length) = checksums::pages(DATA, 1);
    assert_eq!((page, length), (LABEL_AREA + DATA / REGION * PAGE, PAGE));
    disk.rot(page + PAGE - 1);
    assert!(!rotten(&disk.checksums()));
    disk.rot(page + PAGE - 1);
    assert!(rotten(&disk.checksums()));
}
