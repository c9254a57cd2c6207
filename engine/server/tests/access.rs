//! Who may use a volume: logins with and without CHAP, what a change of it ends, and NBD.

mod rig;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rig::nbd::Nbd;
use rig::{MIB, Rig, Sp, Tree, leaf};
use serde_json::{Value, json};
use vs_wire::iscsi::access::Secret;
use vs_wire::iscsi::chap::{self, Algorithm};
use vs_wire::iscsi::pdu::{Digests, Header, emit, frame};
use vs_wire::iscsi::{opcode, text};

const HOST: &str = "iqn.2026-11.test:host";
const OTHER: &str = "iqn.2026-11.test:other";
const SECRET: &str = "a secret of a host";
const OURS: &str = "a secret of a target";

/// A connection to a portal.
struct Initiator {
    stream: TcpStream,
    input: Vec<u8>,
    number: u32,
}

type Pairs = Vec<(String, String)>;

impl Initiator {
    fn connect(address: &str) -> Initiator {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        Initiator { stream, input: Vec::new(), number: 1 }
    }

    fn send(&mut self, header: &Header, data: &[u8]) {
        let mut out = Vec::new();
        emit(&mut out, header, data, Digests::default());
        self.stream.write_all(&out).expect("sent");
    }

    /// The next PDU; None when the connection is closed.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        loop {
            if let Some(one) = frame(&self.input, Digests::default(), 1 << 20).expect("a PDU") {
                let data = self.input[one.data.clone()].to_vec();
                self.input.drain(..one.length);
                return Some((one.header, data));
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("nothing was heard: {e}"),
            }
        }
    }

    fn say(&mut self, flags: u8, pairs: &[(&str, &str)]) -> (u16, Pairs) {
        let mut data = Vec::new();
        for (key, value) in pairs {
            text::put(&mut data, key, value);
        }
        let mut header = Header::new(opcode::LOGIN | 0x40, 0, 1);
        header.0[1] = flags;
        header.put(24, self.number);
        self.send(&header, &data);
        let (header, data) = self.receive().expect("an answer");
        let status = u16::from_be_bytes([header.0[36], header.0[37]]);
        (status, text::decode(&data).expect("text"))
    }

    /// Logs in; the status.
    fn login(&mut self, name: &str, secret: Option<&str>) -> u16 {
        let who = [("InitiatorName", name), ("TargetName", "iqn.2026-11.io.vswitchd:vol")];
        let Some(secret) = secret else { return self.say(0x87, &who).0 };
        let (status, _) = self.say(0x00, &[who[0], who[1], ("AuthMethod", "CHAP")]);
        if status != 0 {
            return status;
        }
        let (_, told) = self.say(0x00, &[("CHAP_A", "7")]);
        let value = |key: &str| &told.iter().find(|pair| pair.0 == key).expect(key).1;
        let challenge = chap::decode(value("CHAP_C")).expect("a challenge");
        let id = value("CHAP_I").parse().expect("a number");
        let secret = Secret::new(secret.as_bytes()).expect("a secret");
        let response = chap::encode(&Algorithm::Sha256.response(id, &secret, &challenge));
        self.say(0x83, &[("CHAP_N", "host"), ("CHAP_R", &response)]).0
    }

    /// True if the session still answers.
    fn is_heard(&mut self) -> bool {
        let mut header = Header::new(opcode::NOP_OUT | 0x40, 0, 77);
        header.0[1] = 0x80;
        header.put(20, vs_wire::iscsi::NONE);
        header.put(24, self.number);
        let mut out = Vec::new();
        emit(&mut out, &header, &[], Digests::default());
        self.stream.write_all(&out).is_ok() && self.receive().is_some()
    }

    /// The targets that it is told of.
    fn discover(&mut self, name: &str) -> Pairs {
        let who = [("InitiatorName", name), ("SessionType", "Discovery")];
        assert_eq!(self.say(0x87, &who).0, 0);
        let mut header = Header::new(opcode::TEXT, 0, 2);
        header.0[1] = 0x80;
        header.put(20, vs_wire::iscsi::NONE);
        header.put(24, self.number);
        let mut ask = Vec::new();
        text::put(&mut ask, "SendTargets", "All");
        self.send(&header, &ask);
        text::decode(&self.receive().expect("an answer").1).expect("text")
    }
}

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
    fn login(&self, name: &str, secret: Option<&str>) -> Result<Initiator, u16> {
        let mut initiator = Initiator::connect(&self.portal);
        match initiator.login(name, secret) {
            0 => Ok(initiator),
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
    assert_eq!(Initiator::connect(&house.portal).discover(OTHER).len(), 0);
    assert_eq!(Initiator::connect(&house.portal).discover(HOST).len(), 2);
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
    let mut late = Initiator::connect(&house.portal);
    let who = [("InitiatorName", OTHER), ("TargetName", "iqn.2026-11.io.vswitchd:vol")];
    assert_eq!(late.say(0x00, &who).0, 0);
    house.admit(true, &[entry(HOST, SECRET)]);
    assert!(!open.is_heard(), "it is not in the list any more");
    assert!(host.is_heard());
    let mut header = Header::new(opcode::LOGIN | 0x40, 0, 1);
    header.0[1] = 0x87;
    header.put(24, 1);
    late.send(&header, &[]);
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
