//! Replies that lie in resident pages, and what may happen before they have left.

mod rig;

use rig::nbd::READ;
use rig::*;
use serde_json::json;

const SIZE: u64 = 16 * MIB;
/// More than sockets hold.
const READS: u64 = 64;
const LENGTH: u64 = MIB;

/// Reads until all of it is resident.
fn warm(sp: &Sp, host: &mut Nbd, size: u64) {
    until("all of it is resident", || {
        for at in (0..size).step_by(65_536) {
            host.read(at, 65_536).expect("read");
        }
        sp.metrics()["resident_bytes"].as_u64().expect("a number") >= size
    });
}

/// A host that has asked for much and takes nothing yet; what it will be told.
fn slow_reader(sp: &Sp) -> (Nbd, Vec<u64>) {
    let mut host = sp.host();
    let cookies = (0..READS).map(|n| host.send(READ, 0, n * LENGTH % SIZE, LENGTH, &[])).collect();
    until("some replies wait", || {
        let read = &sp.metrics()["volumes"][0]["operations"]["read"];
        // All that could be carried out has been.
        read["nbd_tcp"].as_u64().unwrap_or(0) >= READS
    });
    (host, cookies)
}

fn expect_replies(host: &mut Nbd, cookies: &[u64], wanted: &[u8]) {
    for (n, cookie) in cookies.iter().enumerate() {
        assert_eq!(host.reply().expect("a reply"), (*cookie, 0));
        let at = (n as u64 * LENGTH % SIZE) as usize;
        let data = host.socket.take(LENGTH as usize);
        assert!(data == wanted[at..at + LENGTH as usize], "read {n}");
    }
}

#[test]
fn a_reply_that_waits_keeps_its_bytes_when_its_blocks_are_given_away() {
    let rig = Rig::new();
    let sp = rig.sp("sp-a");
    sp.device("d", 4 * SIZE);
    sp.put("old", SIZE, &[("d", DATA, SIZE)], 1);
    sp.put("new", SIZE, &[("d", DATA + SIZE, SIZE)], 1);
    sp.activate(&Tree::new(1, SIZE, leaf("old", SIZE), &[("old", &sp)]));
    let mut writer = sp.host();
    let data = pattern(1, 0, SIZE as usize);
    writer.write(0, &data).expect("write");
    warm(&sp, &mut writer, SIZE);
    let (mut host, cookies) = slow_reader(&sp);
    // The volume moves to other blocks, and another volume gets the old ones.
    sp.fence("old", 2);
    sp.activate(&Tree::new(2, SIZE, leaf("new", SIZE), &[("new", &sp)]));
    sp.engine.t1_delete("old", u64::MAX).expect("delete");
    sp.put("other", SIZE, &[("d", DATA, SIZE)], 1);
    let mut tree = Tree::new(1, SIZE, leaf("other", SIZE), &[("other", &sp)]);
    tree.volume = "v-2".into();
    tree.name = "other".into();
    sp.activate(&tree);
    let mut other = Nbd::connect(&sp.nbd, "other");
    other.write(0, &vec![0xee; SIZE as usize]).expect("write");
    expect_replies(&mut host, &cookies, &data);
    assert!(host.read(0, 4096).expect("read") == [0; 4096], "the new tree's blocks");
    sp.stop();
}

#[test]
fn a_device_that_is_removed_is_mapped_until_its_replies_have_left() {
    let rig = Rig::new();
    let sp = rig.sp("sp-a");
    sp.leaf("t", SIZE);
    sp.leaf("u", SIZE);
    sp.activate(&Tree::new(1, SIZE, leaf("t", SIZE), &[("t", &sp)]));
    let mut writer = sp.host();
    let data = pattern(2, 0, SIZE as usize);
    writer.write(0, &data).expect("write");
    warm(&sp, &mut writer, SIZE);
    let (mut host, cookies) = slow_reader(&sp);
    sp.fence("t", 2);
    sp.activate(&Tree::new(2, SIZE, leaf("u", SIZE), &[("u", &sp)]));
    sp.engine.t1_delete("t", u64::MAX).expect("delete");
    sp.engine.device_remove("d-t").expect("remove");
    std::fs::remove_file(rig.file("d-t")).expect("remove");
    expect_replies(&mut host, &cookies, &data);
    sp.stop();
}

#[test]
fn a_file_that_shrinks_ends_the_connection_and_not_the_process() {
    let rig = Rig::new();
    let sp = rig.sp("sp-a");
    sp.leaf("t", SIZE);
    sp.leaf("u", SIZE);
    let root = concat(&[leaf("t", SIZE), leaf("u", SIZE)]);
    sp.activate(&Tree::new(1, 2 * SIZE, root, &[("t", &sp), ("u", &sp)]));
    let mut host = sp.host();
    let data = pattern(3, 0, 2 * SIZE as usize);
    host.write(0, &data).expect("write");
    warm(&sp, &mut host, 2 * SIZE);
    let file = std::fs::File::options().write(true).open(rig.file("d-t")).expect("the file");
    file.set_len(DATA).expect("shrink");
    host.send(READ, 0, 4096, 8192, &[]);
    until("the connection has ended", || host.is_closed());
    let mut host = sp.host();
    assert!(host.read(4096, 8192).is_err(), "an error from the kernel now");
    assert!(host.read(SIZE, 8192).expect("read") == data[SIZE as usize..][..8192]);
    sp.stop();
}

#[test]
fn without_a_budget_all_goes_through_the_kernel() {
    let mut rig = Rig::new();
    rig.more = json!({"resident_percent": 0, "spin_microseconds": 0});
    let sp = rig.sp("sp-a");
    sp.leaf("t", SIZE);
    sp.activate(&Tree::new(1, SIZE, leaf("t", SIZE), &[("t", &sp)]));
    let mut host = sp.host();
    let data = pattern(4, 0, SIZE as usize);
    for _ in 0..20 {
        host.write(0, &data).expect("write");
        assert!(host.read(0, SIZE as usize).expect("read") == data);
    }
    assert_eq!(sp.metrics()["resident_bytes"], json!(0));
    sp.stop();
}
