//! Resident pages: whatever is mapped, evicted, trimmed or taken away, the file is what it would
//! be without.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use vs_io::resident::WINDOW;
use vs_io::{ErrorKind, FileDevice, Look, Residency, Stored, guard};

const WINDOWS: u64 = 6;
const SIZE: u64 = WINDOWS * WINDOW;

fn device(path: &Path, budget: &Arc<Residency>) -> FileDevice {
    let mut device = FileDevice::open("test", path, false, SIZE).expect("a device");
    device.keep_resident(budget);
    device
}

/// Uses the range until it is resident.
fn warm(device: &FileDevice, offset: u64, length: u64) -> *const u8 {
    // Reading puts the pages into the cache, without which nothing becomes resident.
    let (start, end) = (offset / WINDOW * WINDOW, (offset + length).next_multiple_of(WINDOW));
    let mut bytes = vec![0; (end - start) as usize];
    device.read(start, &mut bytes).expect("read");
    for _ in 0..200 {
        match device.look(offset, length) {
            Look::Here(at) => return at.cast_const(),
            Look::Wanted => device.admit(),
            Look::Away => {}
        }
    }
    panic!("{offset}+{length} did not become resident");
}

fn bytes_at(at: *const u8, length: usize) -> Result<Vec<u8>, guard::Fault> {
    let mut bytes = vec![0; length];
    // SAFETY: `at` is where a device that is still open is mapped.
    unsafe { guard::copy(bytes.as_mut_ptr(), at, length) }?;
    Ok(bytes)
}

#[derive(Clone, Debug)]
enum Step {
    /// As a host's write without FUA.
    Store(u64, Vec<u8>),
    /// As one with FUA.
    Write(u64, Vec<u8>),
    Trim(u64, u64),
    Zero(u64, u64),
    Read(u64, u64),
    Warm(u64),
    Forget(u64, u64),
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    let range = || (0..SIZE - 70_000, 1..70_000u64);
    let data = || (0..SIZE - 300, proptest::collection::vec(any::<u8>(), 1..300));
    prop_oneof![
        4 => data().prop_map(|(at, data)| Step::Store(at, data)),
        1 => data().prop_map(|(at, data)| Step::Write(at, data)),
        1 => range().prop_map(|(at, length)| Step::Trim(at, length)),
        1 => range().prop_map(|(at, length)| Step::Zero(at, length)),
        3 => range().prop_map(|(at, length)| Step::Read(at, length)),
        3 => (0..WINDOWS).prop_map(Step::Warm),
        1 => range().prop_map(|(at, length)| Step::Forget(at, length)),
        1 => Just(Step::Sync),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn it_is_the_file_whatever_is_resident(
        steps in proptest::collection::vec(step(), 1..80),
        budget in 1..=WINDOWS,
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("d");
        let budget = Residency::new(budget * WINDOW).expect("a budget");
        let device = device(&path, &budget);
        let mut model = vec![0u8; SIZE as usize];
        for step in steps {
            match step {
                Step::Store(at, data) => {
                    match device.store(at, &data) {
                        Stored::Done => {}
                        Stored::No => device.write(at, &data).expect("write"),
                        Stored::Wanted => {
                            device.admit();
                            device.write(at, &data).expect("write");
                        }
                    }
                    model[at as usize..at as usize + data.len()].copy_from_slice(&data);
                }
                Step::Write(at, data) => {
                    device.write(at, &data).expect("write");
                    model[at as usize..at as usize + data.len()].copy_from_slice(&data);
                }
                Step::Trim(at, length) => {
                    device.trim(at, length).expect("trim");
                    model[at as usize..(at + length) as usize].fill(0);
                }
                Step::Zero(at, length) => {
                    device.zero(at, length, false).expect("zero");
                    model[at as usize..(at + length) as usize].fill(0);
                }
                Step::Read(at, length) => {
                    let found = match device.look(at, length) {
                        Look::Here(from) => bytes_at(from, length as usize).expect("there"),
                        look => {
                            // Asked for once: who does not admit it then is not asked again.
                            if look == Look::Wanted {
                                device.admit();
                            }
                            let mut bytes = vec![0; length as usize];
                            device.read(at, &mut bytes).expect("read");
                            bytes
                        }
                    };
                    prop_assert!(found == model[at as usize..(at + length) as usize]);
                }
                Step::Warm(window) => drop(warm(&device, window * WINDOW, WINDOW)),
                Step::Forget(at, length) => device.forget(at, length),
                Step::Sync => device.sync_data().expect("sync"),
            }
            prop_assert!(budget.bytes() <= SIZE);
        }
        let file = std::fs::read(&path).expect("the file");
        prop_assert!(file == model);
        drop(device);
        prop_assert_eq!(budget.bytes(), 0);
    }
}

#[test]
fn what_is_used_stays_and_the_budget_holds() {
    let dir = tempfile::tempdir().expect("a directory");
    let budget = Residency::new(2 * WINDOW).expect("a budget");
    let device = device(&dir.path().join("d"), &budget);
    for window in 0..WINDOWS {
        warm(&device, window * WINDOW, 4096);
        assert!(budget.bytes() <= 2 * WINDOW);
    }
    let last = (WINDOWS - 1) * WINDOW;
    assert!(matches!(device.look(last, 4096), Look::Here(_)), "the last one came");
    assert!(!matches!(device.look(0, 4096), Look::Here(_)), "the first one went");
    assert!(Residency::new(WINDOW - 1).is_none(), "less than a window is none");
}

#[test]
fn what_is_not_cached_is_not_fetched_for_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let budget = Residency::new(SIZE).expect("a budget");
    let device = device(&dir.path().join("d"), &budget);
    for _ in 0..100 {
        if device.look(0, 4096) == Look::Wanted {
            device.admit();
        }
    }
    assert_eq!(budget.bytes(), 0);
}

#[test]
fn a_page_that_is_gone_is_an_error_and_not_the_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("d");
    let budget = Residency::new(SIZE).expect("a budget");
    let device = device(&path, &budget);
    let at = warm(&device, 2 * WINDOW, 8192);
    let kept = warm(&device, 0, 4096);
    File::options().write(true).open(&path).and_then(|f| f.set_len(WINDOW)).expect("shrink");
    assert_eq!(bytes_at(at, 8192), Err(guard::Fault));
    assert_eq!(device.store(2 * WINDOW, &[1; 512]), Stored::No, "nothing was stored");
    device.faulted(at, 8192);
    assert!(!matches!(device.look(2 * WINDOW, 8192), Look::Here(_)), "not mapped any more");
    let error = device.try_read(2 * WINDOW, &mut [0; 512]).expect_err("past the end");
    assert_eq!(error.kind, ErrorKind::Io);
    assert!(error.message.contains("has it shrunk?"), "{error}");
    assert_eq!(bytes_at(kept, 4096), Ok(vec![0; 4096]), "the rest is as it was");
}

#[test]
fn a_full_filesystem_says_so_and_ends_nothing() {
    // A mount that only this thread sees, and that is gone with it.
    let checked = std::thread::spawn(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let target = std::ffi::CString::new(dir.path().to_str().expect("UTF-8")).expect("a path");
        // SAFETY: plain system calls with live, zero-terminated strings.
        let mounted = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ) == 0
                && libc::mount(
                    c"tmpfs".as_ptr(),
                    target.as_ptr(),
                    c"tmpfs".as_ptr(),
                    0,
                    c"size=2m".as_ptr().cast(),
                ) == 0
        };
        assert!(mounted, "can't mount: {}; run as root", std::io::Error::last_os_error());
        let path = dir.path().join("d");
        let budget = Residency::new(SIZE).expect("a budget");
        let device = device(&path, &budget);
        device.write(0, &vec![1; WINDOW as usize]).expect("write");
        warm(&device, 0, 4096);
        // Behind its back, so that the page is still thought to be there; and no room for another.
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let file = File::options().write(true).open(&path).expect("the file");
        // SAFETY: touches no memory of ours.
        assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), punch, 0, WINDOW as i64) }, 0);
        let filler = File::create(dir.path().join("filler")).expect("a file");
        let chunk = vec![1u8; 4096];
        let mut at = 0;
        while filler.write_at(&chunk, at).is_ok_and(|count| count == chunk.len()) {
            at += 4096;
        }
        assert!(matches!(device.look(0, 4096), Look::Here(_)));
        assert_eq!(device.store(0, &[7; 4096]), Stored::No, "the fault was caught");
        let error = device.write(0, &[7; 4096]).expect_err("no room");
        assert_eq!(error.kind, ErrorKind::NoSpace);
        drop(filler);
        std::fs::remove_file(dir.path().join("filler")).expect("remove");
        device.write(0, &[7; 4096]).expect("room again");
        let mut bytes = [0; 4096];
        device.read(0, &mut bytes).expect("read");
        assert_eq!(bytes, [7; 4096]);
        drop((device, file));
        // SAFETY: as above.
        assert_eq!(unsafe { libc::umount(target.as_ptr()) }, 0);
    });
    checked.join().expect("the thread's checks");
}
