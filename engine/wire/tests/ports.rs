//! What a unit says of the target's ports (SPC-4, 6.36 and 7.8).

use vs_wire::scsi::ports::Port;
use vs_wire::scsi::unit::{Action, Unit, decide};

fn ask(cdb: &[u8]) -> Vec<u8> {
    let ports = [(1, false), (2, true)].map(|(tag, is_best)| Port { tag, is_best }).to_vec();
    let (target, serial) = ("iqn.x:v".into(), "s".into());
    let unit = Unit { size: 1 << 20, target, tag: 1, serial, ports, ..Unit::default() };
    let mut whole = [0; 16];
    whole[..cdb.len()].copy_from_slice(cdb);
    match decide(Some(&unit), &whole, &[]) {
        Action::Reply(data) => data,
        other => panic!("{other:?}"),
    }
}

#[test]
fn groups_are_told_in_both_forms() {
    let one = [0x01, 3, 0, 1, 0, 2, 0, 1, 0, 0, 0, 1];
    let two = [0x80, 3, 0, 2, 0, 2, 0, 1, 0, 0, 0, 2];
    let plain = ask(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(plain, [&[0, 0, 0, 24][..], &one, &two].concat());
    let extended = ask(&[0xa3, 0x2a, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(extended, [&[0, 0, 0, 28, 0x10, 0, 0, 0][..], &one, &two].concat());
    assert_eq!(ask(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0]), [0, 0, 0, 24]);
    let mut other = [0; 16];
    (other[0], other[1]) = (0xa3, 0x4a);
    let unit = Unit { size: 1 << 20, ..Unit::default() };
    assert!(matches!(decide(Some(&unit), &other, &[]), Action::Fail(_)));
}

#[test]
fn inquiry_says_that_access_is_asymmetric_and_by_which_ports() {
    assert_eq!(ask(&[0x12, 0, 0, 0, 96])[5] & 0x30, 0x10);
    let pages = ask(&[0x12, 1, 0, 0, 255]);
    for page in &pages[4..] {
        let body = ask(&[0x12, 1, *page, 1, 0]);
        let length = usize::from(u16::from_be_bytes([body[2], body[3]]));
        assert_eq!((body[1], body.len()), (*page, 4 + length));
    }
    let names = ask(&[0x12, 1, 0x83, 1, 0]);
    let has = |wanted: &[u8]| names.windows(wanted.len()).any(|found| found == wanted);
    // Relative target port, group, and the names of port and target.
    assert!(has(&[0x51, 0x94, 0, 4, 0, 0, 0, 1]) && has(&[0x51, 0x95, 0, 4, 0, 0, 0, 1]));
    assert!(has(b"iqn.x:v,t,0x0001\0") && has(b"iqn.x:v\0"));
    let listed = ask(&[0x12, 1, 0x88, 1, 0]);
    for tag in ["1", "2"] {
        let name = format!("iqn.x:v,t,0x000{tag}\0");
        assert!(listed.windows(name.len()).any(|found| found == name.as_bytes()));
    }
}
