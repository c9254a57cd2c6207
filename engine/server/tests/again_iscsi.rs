//! Commands that an initiator sends again over another path: what is stuck on the first must not land
//! over what was written since. Over iSCSI an SP can ask whether somebody still waits.

mod rig;

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use rig::iscsi::{Ended, Initiator};
use rig::proxy::Proxy;
use rig::*;
use serde_json::json;

const SIZE: u64 = 8 * MIB;
const GOOD: Ended = Ended::Good(Vec::new());
/// Longer than what a host has asked for may be under way.
const TIME_OUT: Duration = Duration::from_millis(900);

fn served() -> (Rig, Sp, String) {
    let rig = Rig { more: json!({"forward_seconds": 0.3, "lease_seconds": 0.3}), ..Rig::new() };
    let sp = rig.sp("sp-a");
    sp.leaf("a", SIZE);
    sp.activate(&Tree::new(1, SIZE, leaf("a", SIZE), &[("a", &sp)]));
    let portal = sp.iscsi();
    (rig, sp, portal)
}

#[test]
fn a_command_stuck_in_the_network_does_not_land_over_a_newer_one() {
    let (_rig, sp, portal) = served();
    let link = Proxy::start(&portal);
    let mut host = Initiator::new(&link.address, "host");
    let mut other = Initiator::new(&portal, "other");
    assert_eq!(host.write(0, 1), GOOD);
    link.hold();
    host.begin(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], 0, &[2; 512]);
    until("the write to be stuck", || link.waiting.load(Ordering::SeqCst) > 512);
    thread::sleep(TIME_OUT);
    // It waits in vain, and goes over the other path.
    assert_eq!(other.write(0, 2), GOOD);
    assert_eq!(other.write(0, 3), GOOD);
    host.answers = false;
    link.open();
    // The end of its connection is further behind than what it had sent.
    assert!(host.is_asked(), "it is not asked whether it waits");
    assert_eq!(other.read(0), Ended::Good(vec![3; 512]));
    drop(host);
    let sessions = || sp.metrics()["sessions"]["iscsi"].as_u64();
    until("its session to be gone", || sessions() == Some(1));
    assert_eq!(other.read(0), Ended::Good(vec![3; 512]));
    sp.stop();
}

#[test]
fn a_command_that_comes_late_is_carried_out_if_its_initiator_waits() {
    let (_rig, sp, portal) = served();
    let link = Proxy::start(&portal);
    let mut host = Initiator::new(&link.address, "host");
    for round in 1..4 {
        link.hold();
        let late = thread::spawn(move || {
            let ended = host.write(0, round);
            (host, ended)
        });
        until("the write to be stuck", || link.waiting.load(Ordering::SeqCst) > 512);
        thread::sleep(TIME_OUT);
        link.open();
        let (back, ended) = late.join().expect("a host");
        assert_eq!(ended, GOOD);
        host = back;
        assert_eq!(host.read(0), Ended::Good(vec![round; 512]));
    }
    sp.stop();
}

#[test]
fn an_initiator_that_answers_no_questions_is_served_all_the_same() {
    let (_rig, sp, portal) = served();
    let mut host = Initiator::login(&portal, "host");
    host.answers = false;
    thread::sleep(TIME_OUT);
    assert_eq!(host.ready(), Ended::Check(6, 0x2900));
    for round in 0..4 {
        assert_eq!(host.write(0, round), GOOD);
        thread::sleep(TIME_OUT / 2);
    }
    sp.stop();
}

#[test]
fn a_command_that_waits_for_its_initiator_can_be_aborted() {
    let (_rig, sp, portal) = served();
    let mut host = Initiator::new(&portal, "host");
    let mut other = Initiator::new(&portal, "other");
    assert_eq!(host.write(0, 1), GOOD);
    thread::sleep(TIME_OUT);
    host.answers = false;
    host.begin(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], 0, &[2; 512]);
    assert!(host.is_asked(), "it is not asked whether it waits");
    host.answers = true;
    // ABORT TASK SET: nothing but its own answer comes, and the write does not happen.
    assert_eq!(host.manage(2), 0);
    assert_eq!(other.read(0), Ended::Good(vec![1; 512]));
    assert_eq!(host.write(0, 3), GOOD);
    sp.stop();
}
