//! EXTENDED COPY between volumes, and within one.

mod rig;

use rig::iscsi::{Iscsi, Sense};
use rig::*;

const SIZE: u64 = 16 * MIB;
const BLOCKS: u64 = SIZE / 512;

/// The designator by which INQUIRY tells who the unit is.
fn name(host: &mut Iscsi) -> Vec<u8> {
    let mut cdb = [0; 16];
    cdb[..5].copy_from_slice(&[0x12, 1, 0x83, 0, 255]);
    let page = host.run(&cdb, 255, &[]).expect("who it is");
    assert_eq!(page[4..8], [1, 3, 0, 8]);
    page[8..16].to_vec()
}

/// A list of targets by their names, and of (source, destination, blocks, from, to).
fn list(id: u8, names: &[Vec<u8>], segments: &[(u16, u16, u16, u64, u64)]) -> Vec<u8> {
    let mut data = vec![0; 16];
    data[0] = id;
    data[2..4].copy_from_slice(&(names.len() as u16 * 32).to_be_bytes());
    data[8..12].copy_from_slice(&(segments.len() as u32 * 28).to_be_bytes());
    for name in names {
        let mut target = [0; 32];
        (target[0], target[4], target[5], target[7], target[30]) = (0xe4, 1, 3, 8, 2);
        target[8..16].copy_from_slice(name);
        data.extend_from_slice(&target);
    }
    for (source, destination, blocks, from, to) in segments {
        data.extend_from_slice(&[0x02, 0, 0, 24]);
        data.extend_from_slice(&source.to_be_bytes());
        data.extend_from_slice(&destination.to_be_bytes());
        data.extend_from_slice(&[0, 0]);
        data.extend_from_slice(&blocks.to_be_bytes());
        data.extend_from_slice(&from.to_be_bytes());
        data.extend_from_slice(&to.to_be_bytes());
    }
    data
}

fn copy(host: &mut Iscsi, list: &[u8]) -> Result<(), Sense> {
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
    host.run(&cdb, 0, list).map(drop)
}

fn asked(host: &mut Iscsi, action: u8, list: u8) -> Result<Vec<u8>, Sense> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[2], cdb[13]) = (0x84, action, list, 255);
    host.run(&cdb, 255, &[])
}

/// `vol` mirrored over two SPs, and `other` at sp-b alone; sp-b serves both, sp-a the first.
fn two(rig: &Rig) -> (Sp, Sp) {
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    a.leaf("a", SIZE);
    b.leaf("b", SIZE);
    b.leaf("c", SIZE);
    let root = mirror(&[(true, leaf("a", SIZE)), (true, leaf("b", SIZE))]);
    let tree = Tree::new(1, SIZE, root, &[("a", &a), ("b", &b)]);
    a.activate(&tree);
    b.activate(&tree);
    let mut other = Tree::new(1, SIZE, leaf("c", SIZE), &[("c", &b)]);
    (other.volume, other.name) = ("v-2".into(), "other".into());
    b.activate(&other);
    (a, b)
}

#[test]
fn blocks_go_from_volume_to_volume_and_within_one() {
    let rig = Rig::new();
    let (a, b) = two(&rig);
    let portal = b.iscsi();
    let (mut host, mut other) = (Iscsi::connect(&portal, "vol"), Iscsi::connect(&portal, "other"));
    let names = [name(&mut host), name(&mut other)];
    assert_ne!(names[0], names[1]);
    // More than a piece, with a hole in it, at odd places.
    let data = pattern(1, 0, 128 << 10);
    for at in [7, 263, 5000, 6000] {
        host.write(at, &data).expect("a write");
    }
    let list = list(9, &names, &[(0, 1, 7000, 3, 1001), (0, 0, 6000, 3, 503)]);
    assert_eq!(copy(&mut host, &list), Ok(()));
    for at in [7, 263, 5000, 6000] {
        assert!(other.read(at + 998, 256).expect("a read") == data, "{at}");
        let there = host.read(at + 500, 256).expect("a read");
        // What overlaps was read before it was written.
        assert!(at == 6000 || there == data, "{at}");
    }
    assert!(other.read(1000 + 1600, 256).expect("a read") == vec![0; 128 << 10]);
    assert!(other.read(990, 11).expect("a read") == vec![0; 11 * 512]);
    let status = asked(&mut host, 0, 9).expect("a status");
    assert_eq!(status, [0, 0, 0, 8, 1, 0, 2, 1, 0, 0, 0x19, 0x64]);
    assert_eq!(asked(&mut host, 4, 9), Ok(vec![0; 4]));
    // Each session has its own lists.
    assert_eq!(asked(&mut other, 0, 9), Err(Sense(5, 0x2400, 0)));
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn what_can_not_be_copied_is_told() {
    let rig = Rig::new();
    let (a, b) = two(&rig);
    let (mut host, mut there) =
        (Iscsi::connect(&a.iscsi(), "vol"), Iscsi::connect(&b.iscsi(), "other"));
    let names = [name(&mut host), name(&mut there)];
    let mut fails = |names: &[Vec<u8>], segment, code| {
        assert_eq!(copy(&mut host, &list(3, names, &[segment])), Err(Sense(0xa, code, 0)));
        let details = asked(&mut host, 4, 3).expect("details");
        assert_eq!(details[56], 2);
        assert_eq!(details[72..74], code.to_be_bytes());
        assert_eq!(asked(&mut host, 0, 3).expect("a status")[4], 2);
    };
    // sp-a does not serve the other.
    fails(&names, (0, 1, 8, 0, 0), 0x0d02);
    fails(&names[..1], (0, 1, 8, 0, 0), 0x0804);
    fails(&names[..1], (0, 0, 8, 0, BLOCKS - 7), 0x0000);
    fails(&names[..1], (0, 0, 8, u64::MAX, 0), 0x0000);
    a.stop();
    b.stop();
}
