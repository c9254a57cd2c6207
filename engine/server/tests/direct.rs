//! Volumes on devices past the page cache, alone and beside others.

mod rig;

use rig::*;

const SIZE: u64 = 16 * MIB;

/// With a direct device for "d", which is put at its beginning.
fn direct(rig: &Rig) -> Sp {
    let sp = rig.sp("sp-a");
    let uri = format!("file:{}", rig.file("d-d").display());
    sp.engine.device_add(&uri, DATA + SIZE, "d-d", DIRECT).expect("a direct device");
    sp.put("d", SIZE, &[("d-d", DATA, SIZE)], 1);
    sp
}

#[test]
fn a_direct_volume_does_all_that_others_do() {
    let rig = Rig::new();
    let sp = direct(&rig);
    sp.activate(&Tree::new(1, SIZE, leaf("d", SIZE), &[("d", &sp)]));
    let mut host = Nbd::structured(&sp.nbd, "vol");
    let mut flat = vec![0; 3 << 20];
    for (salt, at, length) in [(1, 0, 4096), (2, 1, 3), (3, 511, 100_000), (4, 65_000, 1 << 20)] {
        let data = pattern(salt, at, length);
        host.write(at, &data).expect("write");
        flat[at as usize..at as usize + length].copy_from_slice(&data);
    }
    host.write_fua(2 << 20, &pattern(5, 2 << 20, 70_001)).expect("FUA");
    flat[2 << 20..(2 << 20) + 70_001].copy_from_slice(&pattern(5, 2 << 20, 70_001));
    host.trim(5000, 20_000).expect("trim");
    host.zero(0, 200_001, 33_333).expect("zeroes");
    flat[5000..25_000].fill(0);
    flat[200_001..233_334].fill(0);
    host.flush().expect("flush");
    assert!(host.read(0, 3 << 20).expect("read") == flat);
    let (runs, _) = host.status(0, 0, SIZE).expect("status");
    assert_eq!(runs.iter().map(|run| u64::from(run.0)).sum::<u64>(), SIZE);
    let devices: serde_json::Value =
        serde_json::from_str(&sp.engine.devices().expect("devices")).expect("JSON");
    assert_eq!((&devices[0]["direct"], &devices[0]["up"]), (&true.into(), &true.into()));
    sp.stop();
    assert!(on_device(&rig, "d", 3 << 20) == flat, "and it is in the file");
}

#[test]
fn legs_past_and_through_the_page_cache_agree() {
    let rig = Rig::new();
    let sp = direct(&rig);
    sp.leaf("p", SIZE);
    let root = mirror(&[(true, leaf("d", SIZE)), (true, leaf("p", SIZE))]);
    sp.activate(&Tree::new(1, SIZE, root, &[("d", &sp), ("p", &sp)]));
    std::thread::scope(|scope| {
        for lane in 0..4u64 {
            let sp = &sp;
            scope.spawn(move || {
                let mut host = sp.host();
                for round in 0..50u64 {
                    // They overlap one another's, so that the order on both legs matters.
                    let at = (lane * 1111 + round * 2777) % 60_000;
                    host.write(at, &pattern(lane * 1000 + round, at, 5000)).expect("write");
                }
            });
        }
    });
    let mut host = sp.host();
    host.flush().expect("flush");
    sp.stop();
    assert!(on_device(&rig, "d", MIB) == on_device(&rig, "p", MIB));
}

#[test]
fn an_open_device_stays_as_it_is() {
    let rig = Rig::new();
    let sp = direct(&rig);
    let uri = format!("file:{}", rig.file("d-d").display());
    assert!(sp.engine.device_add(&uri, 0, "", DIRECT).is_ok());
    let refused = sp.engine.device_add(&uri, 0, "", How::default()).expect_err("the other way");
    assert_eq!(refused.kind, "precondition");
    sp.stop();
}
