//! Who may use a volume: logins with and without CHAP, what a change of it ends, and NBD.

mod rig;

use rig::iscsi_link::{AT_ONCE, Link};
use rig::nbd::Nbd;
use rig::{MIB, Rig, Sp, Tree, leaf};
use serde_json::{Value, json};

const HOST: &str = "iqn.2026-11.test:host";
const OTHER: &str = "iqn.2026-11.test:other";
const SECRET: &str = "a secret of a host";
const OURS: &str = "a secret of a target";

/// An entry; no secret: CHAP is not demanded.
fn entry(initiator: &str, secret: &str) -> Value {
    let user = if secret.is_empty() { "" } else { "host" };
    let mutual = if secret.is_empty() { ["", ""] } else { ["target", OURS] };
    json!({"initiator": initiator, "user": user, "secret": secret,
        "mutual_user": mutual[0], "mutual_secret": mutual[1]})
}

struct House {
    sp: Sp,
    portal: String,
}

impl House {
    fn new(rig: &Rig) -> House {
        let sp = rig.sp("a");
        let portal = sp.engine.listen_iscsi("127.0.0.1:0").expect("a portal");
        sp.leaf("t-1", MIB);
        sp.activate(&Tree::new(1, MIB, leaf("t-1", MIB), &[("t-1", &sp)]));
        House { sp, portal }
    }

    fn admit(&self, nbd: bool, entries: &[Value]) {
        let access = json!({"nbd": nbd, "entries": entries}).to_string();
        self.sp.engine.access_set("v-1", &access).expect("an access");
    }

    /// A session of that initiator; else why it was refused.
    fn login(&self, name: &str, secret: Option<&str>) -> Result<Link, u16> {
        let mut link = Link::connect(&self.portal);
        match link.login(name, secret) {
            0 => Ok(link),
            status => Err(status),
        }
    }

    fn refused(&self, name: &str, secret: Option<&str>) -> u16 {
        self.login(name, secret).err().expect("a refusal")
    }
}

#[test]
fn those_of_the_list_get_in_and_others_do_not() {
    let rig = Rig::new();
    let house = House::new(&rig);
    assert!(house.login(OTHER, None).expect("whoever").is_heard());
    house.admit(true, &[entry(HOST, SECRET)]);
    assert!(house.login(&HOST.to_uppercase(), Some(SECRET)).expect("the host").is_heard());
    assert_eq!(house.refused(HOST, None), 0x0201);
    assert_eq!(house.refused(HOST, Some("another secret")), 0x0201);
    assert_eq!(house.refused(OTHER, Some(SECRET)), 0x0202);
    assert_eq!(Link::connect(&house.portal).discover(OTHER).len(), 0);
    assert_eq!(Link::connect(&house.portal).discover(HOST).len(), 2);
    let failed = &house.sp.metrics()["logins_failed"];
    assert_eq!(*failed, json!({"authentication": 2, "authorization": 1}));
    // What is out of service is nobody's; the next one of its id is not bound by its access.
    house.sp.engine.t2_remove("v-1", 10.0).expect("removed");
    house.sp.activate(&Tree::new(1, MIB, leaf("t-1", MIB), &[("t-1", &house.sp)]));
    assert!(house.login(OTHER, None).expect("whoever").is_heard());
}

#[test]
fn a_change_ends_just_the_sessions_that_it_does_not_admit() {
    let rig = Rig::new();
    let house = House::new(&rig);
    let mut open = house.login(OTHER, None).expect("a session");
    house.admit(true, &[entry(HOST, SECRET), entry(OTHER, "")]);
    assert!(open.is_heard(), "it is in the list");
    let mut host = house.login(HOST, Some(SECRET)).expect("a session");
    // A login that is under way is judged at its end.
    let mut late = Link::connect(&house.portal);
    late.begin(OTHER);
    house.admit(true, &[entry(HOST, SECRET)]);
    assert!(!open.is_heard(), "it is not in the list any more");
    assert!(host.is_heard());
    late.put(AT_ONCE, &[]);
    while late.receive().is_some() {}
    house.admit(true, &[entry(HOST, "another secret")]);
    assert!(!host.is_heard(), "its secret is another");
    let mut host = house.login(HOST, Some("another secret")).expect("a session");
    house.admit(true, &[entry(HOST, "")]);
    assert!(host.is_heard(), "less is asked for");
    house.admit(true, &[]);
    assert!(host.is_heard(), "nothing is asked for");
}

#[test]
fn a_volume_that_is_closed_to_nbd_is_not_there_for_it() {
    let rig = Rig::new();
    let house = House::new(&rig);
    let mut host = house.sp.host();
    host.write(0, &[1; 512]).expect("written");
    house.admit(false, &[]);
    assert!(host.socket.receive(&mut [0]).is_err(), "it has ended");
    assert!(Nbd::greeted(&house.sp.nbd).go("vol").is_err());
    assert!(house.login(HOST, None).expect("over iSCSI").is_heard());
    house.admit(true, &[]);
    assert_eq!(house.sp.host().read(0, 512), Ok(vec![1; 512]));
}

#[test]
fn an_access_is_there_before_its_volume() {
    let rig = Rig::new();
    let sp = rig.sp("a");
    let portal = sp.engine.listen_iscsi("127.0.0.1:0").expect("a portal");
    let house = House { sp, portal };
    house.admit(false, &[entry(HOST, SECRET)]);
    house.sp.leaf("t-1", MIB);
    house.sp.activate(&Tree::new(1, MIB, leaf("t-1", MIB), &[("t-1", &house.sp)]));
    assert_eq!(house.refused(HOST, None), 0x0201);
    assert_eq!(house.refused(OTHER, None), 0x0202);
    assert!(Nbd::greeted(&house.sp.nbd).go("vol").is_err());
}
