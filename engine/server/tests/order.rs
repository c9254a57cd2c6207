//! Writes to the same place reach the legs of a mirror in one order.

mod rig;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rig::gate::Gate;
use rig::*;

const SIZE: u64 = 8 * MIB;
const WRITE: u16 = 1;
/// In the region of the others, and beside them.
const BESIDE: u64 = 65_536;

fn gated(sp: &Sp, t1: &str) -> Arc<Gate> {
    let gate = Gate::start((DATA + SIZE) as usize);
    let device = format!("d-{t1}");
    sp.engine.device_add(&gate.uri(), 0, &device, How::default()).expect("a device");
    sp.put(t1, SIZE, &[(&device, DATA, SIZE)], 1);
    gate
}

#[test]
fn a_write_over_one_that_is_under_way_reaches_no_leg_before_it() {
    let rig = Rig::new();
    let sp = rig.sp("sp-a");
    let (fast, slow) = (gated(&sp, "a"), gated(&sp, "b"));
    let root = mirror(&[(true, leaf("a", SIZE)), (true, leaf("b", SIZE))]);
    sp.activate(&Tree::new(1, SIZE, root, &[("a", &sp), ("b", &sp)]));
    slow.hold();
    let (mut first, mut second) = (sp.host(), sp.host());
    first.send(WRITE, 0, 0, 8192, &pattern(1, 0, 8192));
    until("one leg to have it", || fast.bytes(DATA, 8192) == pattern(1, 0, 8192));
    until("the other to wait", || slow.waiting.load(Ordering::SeqCst) > 0);
    second.send(WRITE, 0, 4096, 8192, &pattern(2, 4096, 8192));
    second.send(WRITE, 0, BESIDE, 4096, &pattern(2, BESIDE, 4096));
    // A leg takes what it is sent in its order: the write over the first would be there by now.
    let beside = || fast.bytes(DATA + BESIDE, 4096) == pattern(2, BESIDE, 4096);
    until("what was sent last to be written", beside);
    assert!(fast.bytes(DATA + 4096, 4096) == pattern(1, 4096, 4096));
    assert!(fast.bytes(DATA + 8192, 4096) == vec![0; 4096]);
    slow.open();
    assert_eq!(first.reply().expect("a reply").1, 0);
    for _ in 0..2 {
        assert_eq!(second.reply().expect("a reply").1, 0);
    }
    for leg in [&fast, &slow] {
        assert!(leg.bytes(DATA + 4096, 8192) == pattern(2, 4096, 8192));
    }
    sp.stop();
}
