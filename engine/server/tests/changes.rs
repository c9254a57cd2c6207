//! COMPARE AND WRITE and ORWRITE: hosts at several SPs count in one block, and no step is lost.

mod rig;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use rig::iscsi::{Iscsi, Sense};
use rig::*;

const SIZE: u64 = 16 * MIB;
const HOSTS: usize = 6;
/// Where they count: in the second unit, beside its beginning.
const LBA: u64 = 9;

const MISCOMPARE: (u8, u16) = (0xe, 0x1d00);
/// Nobody knows whether it was carried out.
const UNSURE: (u8, u16) = (0xb, 0x0800);

/// a at sp-a and b at sp-b, mirrored; both serve.
fn mirrored(rig: &Rig) -> (Sp, Sp, Tree) {
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    a.leaf("a", SIZE);
    b.leaf("b", SIZE);
    let root = mirror(&[(true, leaf("a", SIZE)), (true, leaf("b", SIZE))]);
    let tree = Tree::new(1, SIZE, root, &[("a", &a), ("b", &b)]);
    a.activate(&tree);
    b.activate(&tree);
    (a, b, tree)
}

/// a at sp-a alone; both serve, and sp-b is the owner.
fn single(rig: &Rig) -> (Sp, Sp, Tree) {
    let (a, b) = (rig.sp("sp-a"), rig.sp("sp-b"));
    a.leaf("a", SIZE);
    let mut tree = Tree::new(1, SIZE, leaf("a", SIZE), &[("a", &a)]).owned_by(&b);
    tree.owner = "sp-b".into();
    a.activate(&tree);
    b.activate(&tree);
    (a, b, tree)
}

/// How many steps each host has counted is in the block, a word for each: so one that does not know whether
/// it was carried out sees it there.
fn counts(block: &[u8]) -> Vec<u64> {
    let words = block.as_chunks::<8>().0.iter();
    words.take(HOSTS).map(|word| u64::from_le_bytes(*word)).collect()
}

#[derive(Default)]
struct Met {
    steps: AtomicU64,
    unsure: AtomicU64,
    carried_out: AtomicU64,
}

/// Counts until `stop`; how many steps it has counted.
fn count(address: &str, me: usize, stop: &AtomicBool, met: &Met) -> u64 {
    let mut host = Iscsi::connect(address, "vol");
    let mut seen = host.read(LBA, 1).expect("a read");
    let mut mine = 0u64;
    while !stop.load(Ordering::SeqCst) {
        assert_eq!(counts(&seen)[me], mine, "host {me}: a step was lost, or made twice");
        let mut new = seen.clone();
        new[me * 8..me * 8 + 8].copy_from_slice(&(mine + 1).to_le_bytes());
        match host.swap(LBA, &seen, &new, mine.is_multiple_of(7)) {
            Ok(()) => {
                mine += 1;
                met.steps.fetch_add(1, Ordering::SeqCst);
                seen = new;
                continue;
            }
            Err(Sense(key, code, at)) if (key, code) == MISCOMPARE => {
                let now = host.read(LBA, 1).expect("a read");
                let others = |block: &[u8]| {
                    let mut block = block.to_vec();
                    block[me * 8..me * 8 + 8].fill(0);
                    block
                };
                assert!(at < 512 && at as usize / 8 != me, "host {me}: its own step at {at}");
                assert_ne!(others(&now), others(&seen), "host {me}: nothing differs");
                seen = now;
            }
            Err(Sense(key, code, _)) => {
                assert_eq!((key, code), UNSURE);
                met.unsure.fetch_add(1, Ordering::SeqCst);
                seen = host.read(LBA, 1).expect("a read");
                if counts(&seen)[me] == mine + 1 {
                    mine += 1;
                    met.carried_out.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }
    mine
}

/// Has hosts at both SPs count while `during` goes on; all that was counted is there.
fn hammer(a: &Sp, b: &Sp, during: impl FnOnce(&Met)) {
    let portals = [a.iscsi(), b.iscsi()];
    let (stop, met) = (Arc::new(AtomicBool::new(false)), Arc::new(Met::default()));
    let hosts: Vec<_> = (0..HOSTS)
        .map(|me| {
            let (address, stop, met) =
                (portals[me % 2].clone(), Arc::clone(&stop), Arc::clone(&met));
            thread::spawn(move || count(&address, me, &stop, &met))
        })
        .collect();
    during(&met);
    stop.store(true, Ordering::SeqCst);
    let counted: Vec<u64> = hosts.into_iter().map(|host| host.join().expect("a host")).collect();
    for portal in &portals {
        let block = Iscsi::connect(portal, "vol").read(LBA, 1).expect("a read");
        assert_eq!(counts(&block), counted);
    }
    println!(
        "{} steps, {} unsure, {} of them carried out",
        met.steps.load(Ordering::SeqCst),
        met.unsure.load(Ordering::SeqCst),
        met.carried_out.load(Ordering::SeqCst)
    );
}

fn steps(met: &Met, more: u64) {
    let before = met.steps.load(Ordering::SeqCst);
    until("steps", || met.steps.load(Ordering::SeqCst) > before + more);
}

#[test]
fn no_step_is_lost_in_a_mirror_through_swaps_and_changes_of_owner() {
    let rig = Rig::new();
    let (a, b, mut tree) = mirrored(&rig);
    hammer(&a, &b, |met| {
        for round in 0..12 {
            steps(met, 40);
            tree = Tree { version: tree.version + 1, ..tree.clone() };
            if round % 2 == 1 {
                tree.owner = if tree.owner == "sp-a" { "sp-b" } else { "sp-a" }.into();
            }
            let (first, second) = if tree.owner == "sp-a" { (&a, &b) } else { (&b, &a) };
            a.fence("a", tree.version);
            b.fence("b", tree.version);
            first.activate(&tree);
            second.activate(&tree);
        }
        steps(met, 40);
    });
    a.stop();
    b.stop();
    assert!(on_device(&rig, "a", SIZE) == on_device(&rig, "b", SIZE));
}

#[test]
fn no_step_is_lost_where_there_is_one_copy() {
    let rig = Rig::new();
    let (a, b, mut tree) = single(&rig);
    hammer(&a, &b, |met| {
        for _ in 0..8 {
            steps(met, 40);
            tree = Tree { version: tree.version + 1, ..tree.clone() };
            a.fence("a", tree.version);
            b.activate(&tree);
            a.activate(&tree);
        }
        steps(met, 40);
    });
    a.stop();
    b.stop();
}

/// A plain write is before a COMPARE AND WRITE or after it: of two blocks' worth of halves that one
/// host writes in turn and another swaps, nothing plain is ever undone.
fn plain_writes_are_not_undone(a: &Sp, b: &Sp) {
    let portals = [a.iscsi(), b.iscsi()];
    let stop = Arc::new(AtomicBool::new(false));
    let swaps = Arc::new(AtomicU64::new(0));
    let swappers: Vec<_> = portals
        .iter()
        .cloned()
        .enumerate()
        .map(|(me, address)| {
            let (stop, swaps) = (Arc::clone(&stop), Arc::clone(&swaps));
            thread::spawn(move || {
                let mut host = Iscsi::connect(&address, "vol");
                while !stop.load(Ordering::SeqCst) {
                    // Marks what a plain write has left unmarked.
                    let seen = host.read(LBA, 1).expect("a read");
                    if seen[511] != 0 {
                        continue;
                    }
                    let mut new = seen.clone();
                    new[511] = me as u8 + 1;
                    match host.swap(LBA, &seen, &new, false) {
                        Ok(()) => drop(swaps.fetch_add(1, Ordering::SeqCst)),
                        Err(Sense(key, code, _)) => assert_eq!((key, code), MISCOMPARE),
                    }
                }
            })
        })
        .collect();
    let mut writers: Vec<Iscsi> = portals.iter().map(|at| Iscsi::connect(at, "vol")).collect();
    let deadline = Instant::now() + SOON;
    let mut round = 0u64;
    while round < 600 || swaps.load(Ordering::SeqCst) < 50 {
        assert!(Instant::now() < deadline, "swaps: not in time");
        round += 1;
        let host = &mut writers[round as usize % 2];
        let mut block = vec![0u8; 512];
        block[..8].copy_from_slice(&round.to_le_bytes());
        host.write(LBA, &block).expect("a write");
        let now = writers[(round as usize / 2) % 2].read(LBA, 1).expect("a read");
        assert_eq!(now[..8], round.to_le_bytes(), "round {round} was undone");
    }
    stop.store(true, Ordering::SeqCst);
    swappers.into_iter().for_each(|host| host.join().expect("a host"));
}

#[test]
fn plain_writes_from_any_sp_are_not_undone() {
    let rig = Rig::new();
    let (a, b, _) = single(&rig);
    plain_writes_are_not_undone(&a, &b);
    a.stop();
    b.stop();
}

#[test]
fn nor_are_they_in_a_mirror() {
    let rig = Rig::new();
    let (a, b, _) = mirrored(&rig);
    plain_writes_are_not_undone(&a, &b);
    a.stop();
    b.stop();
}

#[test]
fn bits_that_several_set_are_all_set() {
    let rig = Rig::new();
    for (a, b) in [mirrored(&rig)].map(|(a, b, _)| (a, b)) {
        let portals = [a.iscsi(), b.iscsi()];
        let hosts: Vec<_> = (0..8u32)
            .map(|bit| {
                let address = portals[bit as usize % 2].clone();
                thread::spawn(move || {
                    let mut host = Iscsi::connect(&address, "vol");
                    for at in 0..20 {
                        let mut data = vec![0; 20 * 512];
                        data[at * 512..][..512].fill(1 << bit);
                        // Over the ends of units.
                        host.or(5, &data).expect("an ORWRITE");
                    }
                })
            })
            .collect();
        hosts.into_iter().for_each(|host| host.join().expect("a host"));
        let mut host = Iscsi::connect(&portals[1], "vol");
        assert!(host.read(5, 20).expect("a read") == vec![0xff; 20 * 512]);
        assert!(host.read(4, 1).expect("a read") == vec![0; 512]);
        a.stop();
        b.stop();
    }
}

#[test]
fn what_differs_is_told_from_either_sp() {
    let rig = Rig::new();
    let (a, b, _) = mirrored(&rig);
    for (n, portal) in [a.iscsi(), b.iscsi()].iter().enumerate() {
        let mut host = Iscsi::connect(portal, "vol");
        let lba = n as u64 * 100;
        let mut block = vec![7; 512];
        host.write(lba, &block).expect("a write");
        block[300] = 8;
        let differs = Sense(MISCOMPARE.0, MISCOMPARE.1, 300);
        assert_eq!(host.swap(lba, &block, &[9; 512], true), Err(differs));
        assert!(host.read(lba, 1).expect("a read") == vec![7; 512], "nothing is written");
        assert_eq!(host.swap(lba, &[7; 512], &[9; 512], true), Ok(()));
        assert!(host.read(lba, 1).expect("a read") == vec![9; 512]);
    }
    a.stop();
    b.stop();
}
