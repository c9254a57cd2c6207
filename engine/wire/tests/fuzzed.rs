//! What fuzzing (`make fuzz`) found worth keeping, through the same functions.

#[path = "../../fuzz/src/entries.rs"]
mod entries;

use std::path::Path;

fn replay(name: &str, run: fn(&[u8])) {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut count = 0;
    for file in place.read_dir().expect("the corpus") {
        let path = file.expect("a file").path();
        // Shown only if it panics.
        println!("{}", path.display());
        run(&std::fs::read(path).expect("its bytes"));
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn pdus() {
    replay("pdu", entries::pdu);
}

#[test]
fn logins() {
    replay("login", entries::login);
}

#[test]
fn sessions() {
    replay("session", entries::session);
}

#[test]
fn commands() {
    replay("cdb", entries::cdb);
}
