//! Devices past the page cache: any range, whatever its alignment, beside others.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use vs_io::device::{self, LABEL_AREA, Options};
use vs_io::{ErrorKind, FileDevice, Kind, TryRead};

const SIZE: usize = 1 << 20;

/// On a disk filesystem: a tmpfs would show nothing.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn open(path: &Path, direct: bool) -> Result<FileDevice, vs_io::DeviceError> {
    let options = Options { direct, create_size: 8 << 20, ..Options::default() };
    match device::open(&format!("file:{}", path.display()), &options)? {
        (Kind::File(file), _) => Ok(file),
        (Kind::Nbd(_), _) => panic!("a file"),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, u8),
    Zero(usize, usize, bool),
    Read(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let at = prop_oneof![0..SIZE, (0..SIZE / 512).prop_map(|block| block * 512)];
    let length = prop_oneof![
        1usize..40,
        1usize..20_000,
        (1usize..40).prop_map(|blocks| blocks * 512),
        (1usize..10).prop_map(|pages| pages * 4096),
        1usize..SIZE,
    ];
    let span = (at, length).prop_map(|(at, length)| (at, length.min(SIZE - at)));
    prop_oneof![
        (span.clone(), any::<u8>()).prop_map(|((at, length), byte)| Step::Write(at, length, byte)),
        (span.clone(), any::<bool>()).prop_map(|((at, length), hole)| Step::Zero(at, length, hole)),
        span.prop_map(|(at, length)| Step::Read(at, length)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_range_reads_as_it_was_written(steps in prop::collection::vec(step(), 1..40)) {
        let dir = directory();
        let file = open(&dir.path().join("disk"), true).unwrap();
        let mut flat = vec![0u8; SIZE];
        for step in steps {
            match step {
                Step::Write(at, length, byte) => {
                    let data: Vec<u8> = (0..length).map(|n| byte.wrapping_add(n as u8)).collect();
                    file.write(LABEL_AREA + at as u64, &data).unwrap();
                    flat[at..at + length].copy_from_slice(&data);
                }
                Step::Zero(at, length, hole) => {
                    file.zero(LABEL_AREA + at as u64, length as u64, hole).unwrap();
                    flat[at..at + length].fill(0);
                }
                Step::Read(at, length) => {
                    let mut data = vec![9; length];
                    file.read(LABEL_AREA + at as u64, &mut data).unwrap();
                    prop_assert!(data == flat[at..at + length]);
                }
            }
        }
        let mut all = vec![9; SIZE];
        file.read(LABEL_AREA, &mut all).unwrap();
        prop_assert!(all == flat);
        // And whoever looks through the page cache sees the same.
        file.sync_data().unwrap();
        let cached = open(&dir.path().join("disk"), false).unwrap();
        cached.read(LABEL_AREA, &mut all).unwrap();
        prop_assert!(all == flat);
    }
}

/// Each writer owns stretches of odd lengths that share blocks with the others': what one
/// writes back around its own bytes must never be an older state of its neighbours'.
#[test]
fn neighbours_in_one_block_lose_nothing() {
    const WRITERS: usize = 4;
    const STRETCH: usize = 1237;
    const ROUNDS: u8 = 60;
    let dir = directory();
    let file = Arc::new(open(&dir.path().join("disk"), true).unwrap());
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let file = Arc::clone(&file);
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    for index in 0..4 {
                        let at = LABEL_AREA + ((index * WRITERS + writer) * STRETCH) as u64;
                        // Zeroes in between: they are made another way.
                        if round % 3 == 0 {
                            file.zero(at, STRETCH as u64, true).unwrap();
                        }
                        file.write(at, &[round; STRETCH]).unwrap();
                        let mut back = [0; STRETCH];
                        file.read(at, &mut back).unwrap();
                        assert!(back.iter().all(|byte| *byte == round), "writer {writer}");
                    }
                }
            });
        }
        // Whole blocks meanwhile, side by side, right behind.
        let file = Arc::clone(&file);
        scope.spawn(move || {
            let at = LABEL_AREA + (WRITERS * 4 * STRETCH).next_multiple_of(4096) as u64;
            for round in 1..=ROUNDS {
                file.write(at, &vec![round; 64 << 10]).unwrap();
            }
        });
    });
    let mut all = vec![0; WRITERS * 4 * STRETCH];
    file.read(LABEL_AREA, &mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == ROUNDS));
}

#[test]
fn a_direct_device_is_never_for_a_loop() {
    let dir = directory();
    let path = dir.path().join("disk");
    let file = open(&path, true).unwrap();
    assert!(file.is_direct() && file.is_slow() && !file.may_inline());
    file.write(LABEL_AREA, &[1; 4096]).unwrap();
    assert_eq!(file.try_read(LABEL_AREA, &mut [0; 16]).unwrap(), TryRead::WouldBlock);
    let cached = open(&path, false).unwrap();
    assert!(!cached.is_direct() && cached.may_inline());
}

#[test]
fn an_nbd_device_refuses_direct() {
    let options = Options { direct: true, ..Options::default() };
    let refused = device::open("nbd://127.0.0.1:1/x", &options).err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Invalid);
    assert!(refused.message.contains("without --direct"), "{refused}");
}

/// Mounts a filesystem without O_DIRECT where only the calling thread sees it; false where that
/// is not allowed. It goes with the thread.
fn mount_ramfs(at: &Path) -> bool {
    let path = std::ffi::CString::new(at.to_str().unwrap()).unwrap();
    let nothing = std::ptr::null();
    // SAFETY: the strings live through the calls, and the other pointers are allowed to be null.
    unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(nothing, c"/".as_ptr(), nothing, private, nothing.cast()) == 0
            && libc::mount(c"none".as_ptr(), path.as_ptr(), c"ramfs".as_ptr(), 0, nothing.cast())
                == 0
    }
}

#[test]
fn a_filesystem_that_can_not_says_what_to_do() {
    let dir = directory();
    let at: PathBuf = dir.path().into();
    std::thread::spawn(move || {
        if !mount_ramfs(&at) {
            eprintln!("skipped: mounting is not allowed here");
            return;
        }
        let refused = open(&at.join("disk"), true).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Invalid);
        assert!(refused.message.contains("add the device without --direct"), "{refused}");
        assert!(open(&at.join("disk"), false).is_ok());
    })
    .join()
    .unwrap();
}
