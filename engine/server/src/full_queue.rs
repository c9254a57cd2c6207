//! What becomes of requests when too many wait for their device: a test of what can't be seen
//! from outside.

use std::sync::mpsc::channel;

use vs_io::Full;

#[path = "../tests/rig/mod.rs"]
mod rig;

use rig::nbd::{READ, TRIM};
use rig::*;

const SIZE: u64 = 16 * MIB;

#[test]
fn requests_wait_for_room_in_a_full_queue_and_block_nobody() {
    let rig = Rig::new();
    let sp = rig.sp("sp-a");
    sp.leaf("a", SIZE);
    sp.leaf("b", SIZE);
    let root = concat(&[leaf("a", SIZE), leaf("b", SIZE)]);
    sp.activate(&Tree::new(1, 2 * SIZE, root, &[("a", &sp), ("b", &sp)]));
    let devices = sp.engine.shared.devices();
    let full = &devices["d-a"];
    let (open, wait) = channel::<()>();
    let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
    loop {
        let wait = std::sync::Arc::clone(&wait);
        let hang = move || {
            let _opened = wait.lock().map(|wait| wait.recv());
        };
        if full.pool.submit(hang) == Err(Full) {
            break;
        }
    }
    let mut waiting = sp.host();
    let trim = waiting.send(TRIM, 0, 0, 65536, &[]);
    until("it is under way", || sp.metrics()["volumes"][0]["inflight"] == 1);
    // The loops do the same work for another device, on the same connections and others.
    for _ in 0..4 {
        let mut host = sp.host();
        host.write(SIZE, b"good").expect("write");
        host.trim(SIZE + 65536, 65536).expect("trim on the pool");
        host.flush().expect("flush of both");
        assert_eq!(host.read(SIZE, 4).expect("read"), b"good");
    }
    let read = waiting.send(READ, 0, SIZE, 4, &[]);
    assert_eq!(waiting.reply().expect("the read overtakes it"), (read, 0));
    assert_eq!(waiting.socket.take(4), b"good");
    drop(open);
    assert_eq!(waiting.reply().expect("the trim"), (trim, 0));
    sp.stop();
}
