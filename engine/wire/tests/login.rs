//! Logins by CHAP against a model initiator: right and wrong secrets, both directions, reflection, the
//! order of keys, and no panic on anything.

use std::sync::Arc;

use md5::{Digest, Md5};
use proptest::prelude::*;
use sha1::Sha1;
use sha2::Sha256;
use sha3::Sha3_256;
use vs_wire::iscsi::access::{Credentials, Demand, Door, Nonce, Secret, Targets};
use vs_wire::iscsi::chap;
use vs_wire::iscsi::login::{Login, Outcome, Refusal};
use vs_wire::iscsi::pdu::{Digests, Header, frame};
use vs_wire::iscsi::{opcode, text};

const HOST: &str = "iqn.2026-11.test:host";
const OPEN: &str = "iqn.x:open";
const GUARDED: &str = "iqn.x:guarded";
const MUTUAL: &str = "iqn.x:mutual";
const SECRET: &str = "a secret of a host";
const OURS: &str = "a secret of a target";
const OTHER: &str = "some other secret";

/// What is random to everybody else.
const NONCE: Nonce = [0xa5; 33];

struct House {
    has_random: bool,
}

fn credentials(user: &str, secret: &str) -> Option<Credentials> {
    Some(Credentials { user: user.into(), secret: Secret::new(secret.as_bytes())? })
}

impl Targets for House {
    fn all(&self, _: &str) -> Vec<(String, Vec<String>)> {
        Vec::new()
    }

    fn door(&self, target: &str, initiator: &str) -> Door {
        let chap = credentials("host", SECRET);
        let demand = match target {
            OPEN => Demand::default(),
            GUARDED => Demand { chap, mutual: None },
            MUTUAL => Demand { chap, mutual: credentials("target", OURS) },
            _ => return Door::Absent,
        };
        if initiator == HOST { Door::Open(Arc::new(demand)) } else { Door::Closed }
    }

    fn nonce(&self) -> Option<Nonce> {
        self.has_random.then_some(NONCE)
    }
}

const HOUSE: House = House { has_random: true };

/// A login under way: what a request is answered with.
struct Talk(Login);

type Pairs = Vec<(String, String)>;

/// Status, whether the next stage begins, and the keys.
type Answer = (u16, bool, Pairs);

impl Talk {
    fn new() -> Talk {
        Talk(Login::new(1))
    }

    /// Flags: 0x00 the security stage, 0x81 and on to the next, 0x83 and on to the end, 0x87 the
    /// next stage to the end.
    fn say(&mut self, flags: u8, pairs: &[(&str, &str)]) -> (Outcome, Answer) {
        self.say_to(&HOUSE, flags, pairs)
    }

    fn say_to(&mut self, house: &House, flags: u8, pairs: &[(&str, &str)]) -> (Outcome, Answer) {
        let mut data = Vec::new();
        for (key, value) in pairs {
            text::put(&mut data, key, value);
        }
        let mut header = Header::new(opcode::LOGIN | 0x40, 0, 1);
        header.0[1] = flags;
        let mut out = Vec::new();
        let outcome = self.0.feed(&header, &data, 9, house, &mut out).expect("a login");
        let one = frame(&out, Digests::default(), 1 << 20).expect("a PDU").expect("all of it");
        let status = u16::from_be_bytes([one.header.0[36], one.header.0[37]]);
        let moved = one.header.0[1] & 0x80 != 0;
        (outcome, (status, moved, text::decode(&out[one.data]).expect("text")))
    }

    fn names(target: &str) -> [(&'static str, &str); 2] {
        [("InitiatorName", HOST), ("TargetName", target)]
    }

    /// Says who it is, offers CHAP and these algorithms; the challenge that it gets.
    fn challenged(target: &str, algorithms: &str) -> (Talk, Pairs) {
        let mut talk = Talk::new();
        let [who, whom] = Talk::names(target);
        // A transit that was asked for too early is not granted.
        let (outcome, answer) = talk.say(0x81, &[who, whom, ("AuthMethod", "CHAP,None")]);
        assert_eq!((outcome, answer.0, answer.1), (Outcome::More, 0, false));
        assert_eq!(value(&answer.2, "AuthMethod"), "CHAP");
        let (outcome, answer) = talk.say(0x00, &[("CHAP_A", algorithms)]);
        assert_eq!(outcome, Outcome::More);
        (talk, answer.2)
    }

    fn refused(&mut self, flags: u8, pairs: &[(&str, &str)], why: Refusal) {
        let (outcome, answer) = self.say(flags, pairs);
        assert_eq!(outcome, Outcome::Refused(why), "{pairs:?}");
        assert_eq!(answer, (why as u16, false, Vec::new()));
    }
}

fn value<'a>(pairs: &'a Pairs, key: &str) -> &'a str {
    let found = pairs.iter().find(|pair| pair.0 == key);
    &found.unwrap_or_else(|| panic!("no {key}: {pairs:?}")).1
}

fn hex(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("0x{digits}")
}

/// What an initiator of these algorithms answers; written anew, so that both can't be wrong alike.
fn response(algorithm: &str, id: u8, secret: &str, challenge: &[u8]) -> Vec<u8> {
    let all = [&[id], secret.as_bytes(), challenge].concat();
    match algorithm {
        "5" => Md5::digest(&all).to_vec(),
        "6" => Sha1::digest(&all).to_vec(),
        "7" => Sha256::digest(&all).to_vec(),
        "8" => Sha3_256::digest(&all).to_vec(),
        other => panic!("algorithm {other}"),
    }
}

/// The response to a challenge that was sent.
fn answer(challenge: &Pairs, secret: &str) -> String {
    let id = value(challenge, "CHAP_I").parse().expect("a number");
    let bytes = chap::decode(value(challenge, "CHAP_C")).expect("a challenge");
    hex(&response(value(challenge, "CHAP_A"), id, secret, &bytes))
}

#[test]
fn a_response_is_what_the_standard_says() {
    // RFC 1994, 4.1: a hash over the identifier, the secret and the challenge. By Python's hashlib.
    let secret = Secret::new(b"secretsecretsecret").expect("a secret");
    for (algorithm, wanted) in [
        (chap::Algorithm::Md5, "0x87955e1154abf5f9e6946b4c80f65596"),
        (chap::Algorithm::Sha1, "0x494098d0207a4510a2a87201730e9847c45458ea"),
        (
            chap::Algorithm::Sha256,
            "0x60857b7cd710f99b674bdbb366dd7bdf6bc5b68f79c32c2725cced8215cce407",
        ),
        (
            chap::Algorithm::Sha3,
            "0x70d160764b1bebe104e5919035ad671026e75557c80a37a1a4c67d574682459e",
        ),
    ] {
        let made = algorithm.response(1, &secret, &[0xab; 16]);
        assert_eq!(chap::encode(&made), wanted, "{algorithm:?}");
    }
}

#[test]
fn who_has_the_secret_gets_in_by_each_algorithm() {
    for (offered, taken) in
        [("5", "5"), ("6,5", "6"), ("7,6,5", "7"), ("8,7,6,5", "8"), ("99,x,5,8", "5")]
    {
        let (mut talk, challenge) = Talk::challenged(GUARDED, offered);
        assert_eq!(value(&challenge, "CHAP_A"), taken);
        let said = answer(&challenge, SECRET);
        let (outcome, (status, moved, pairs)) =
            talk.say(0x83, &[("CHAP_N", "host"), ("CHAP_R", &said)]);
        let Outcome::Done(agreed) = outcome else { panic!("{outcome:?}") };
        assert_eq!((status, moved, pairs.is_empty()), (0, true, true));
        assert!(agreed.shown.chap.is_some());
    }
}

#[test]
fn who_has_not_stays_out() {
    for (user, secret) in [("host", OTHER), ("other", SECRET), ("", SECRET), ("host", OURS)] {
        let (mut talk, challenge) = Talk::challenged(MUTUAL, "5");
        let said = answer(&challenge, secret);
        let shown = [("CHAP_N", user), ("CHAP_R", said.as_str())];
        talk.refused(0x81, &shown, Refusal::Authentication);
    }
    for said in ["", "0x", "0x00", "00", "0x00112233445566778899aabbccddeeff00", "0bzz=", "0xgg"] {
        let (mut talk, _) = Talk::challenged(GUARDED, "5");
        let shown = [("CHAP_N", "host"), ("CHAP_R", said)];
        talk.refused(0x81, &shown, Refusal::Authentication);
    }
}

#[test]
fn a_target_shows_that_it_has_the_other_secret() {
    for algorithm in ["5", "8"] {
        let (mut talk, challenge) = Talk::challenged(MUTUAL, algorithm);
        let said = answer(&challenge, SECRET);
        let theirs = [7u8; 24];
        let asked = [
            ("CHAP_N", "host"),
            ("CHAP_R", said.as_str()),
            ("CHAP_I", "0x2A"),
            ("CHAP_C", "0bBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH"),
        ];
        let (outcome, (_, moved, pairs)) = talk.say(0x81, &asked);
        assert_eq!((outcome, moved), (Outcome::More, true));
        assert_eq!(value(&pairs, "CHAP_N"), "target");
        let shown = chap::decode(value(&pairs, "CHAP_R"));
        assert_eq!(shown, Some(response(algorithm, 42, OURS, &theirs)));
        assert!(matches!(talk.say(0x87, &[]).0, Outcome::Done(_)));
    }
    // An initiator that does not ask is let in, too.
    let (mut talk, challenge) = Talk::challenged(MUTUAL, "5");
    let said = answer(&challenge, SECRET);
    let (outcome, _) = talk.say(0x83, &[("CHAP_N", "host"), ("CHAP_R", &said)]);
    assert!(matches!(outcome, Outcome::Done(_)));
}

#[test]
fn a_target_answers_nobody_who_has_shown_nothing_or_asks_for_what_it_has_not() {
    let mine = [("CHAP_I", "1"), ("CHAP_C", "0x0707070707070707")];
    // The target has no secret of its own for this initiator.
    let (mut talk, challenge) = Talk::challenged(GUARDED, "5");
    let said = answer(&challenge, SECRET);
    let asked = [("CHAP_N", "host"), ("CHAP_R", said.as_str()), mine[0], mine[1]];
    talk.refused(0x81, &asked, Refusal::Authentication);
    // Nothing, or what is wrong, was shown with the question.
    Talk::challenged(MUTUAL, "5").0.refused(0x00, &mine, Refusal::Authentication);
    let (mut talk, challenge) = Talk::challenged(MUTUAL, "5");
    let wrong = answer(&challenge, OTHER);
    let asked = [("CHAP_N", "host"), ("CHAP_R", wrong.as_str()), mine[0], mine[1]];
    talk.refused(0x81, &asked, Refusal::Authentication);
    // Half a question, or one that is none.
    for (id, bytes) in [
        (None, Some("0x07")),
        (Some("1"), None),
        (Some("256"), Some("0x07")),
        (Some("-1"), Some("0x07")),
        (Some("1"), Some("0x")),
        (Some("1"), Some("7")),
        (Some("1"), Some(format!("0x{}", "00".repeat(1025)).as_str())),
    ] {
        let (mut talk, challenge) = Talk::challenged(MUTUAL, "5");
        let said = answer(&challenge, SECRET);
        let mut asked = vec![("CHAP_N", "host"), ("CHAP_R", said.as_str())];
        asked.extend(id.map(|id| ("CHAP_I", id)));
        asked.extend(bytes.map(|bytes| ("CHAP_C", bytes)));
        talk.refused(0x81, &asked, Refusal::Authentication);
    }
}

#[test]
fn a_challenge_that_is_given_back_is_not_answered() {
    // Written as it was sent, or otherwise.
    for written in [hex(&NONCE[..32]), format!("0b{}paU=", "paWl".repeat(10))] {
        assert_eq!(chap::decode(&written).as_deref(), Some(&NONCE[..32]));
        let (mut talk, challenge) = Talk::challenged(MUTUAL, "7");
        let said = answer(&challenge, SECRET);
        // Whatever identifier it comes with.
        let asked =
            [("CHAP_N", "host"), ("CHAP_R", said.as_str()), ("CHAP_I", "3"), ("CHAP_C", &written)];
        talk.refused(0x81, &asked, Refusal::Authentication);
    }
}

#[test]
fn keys_come_in_their_order_once_each() {
    let [who, whom] = Talk::names(GUARDED);
    let chap = ("AuthMethod", "CHAP");
    let algorithm = ("CHAP_A", "5");
    for first in [
        // None is not enough, nor is nothing, nor to leave the stage out.
        vec![who, whom, ("AuthMethod", "None")],
        vec![who, whom, ("AuthMethod", "KRB5,SRP")],
        vec![who, whom],
        // More at once than has been agreed on.
        vec![who, whom, chap, algorithm],
        vec![who, whom, algorithm],
        vec![who, whom, ("CHAP_N", "host"), ("CHAP_R", "0x00")],
    ] {
        Talk::new().refused(0x81, &first, Refusal::Authentication);
    }
    Talk::new().refused(0x87, &[who, whom], Refusal::Authentication);
    Talk::new().refused(0x83, &[who, whom], Refusal::Authentication);
    Talk::new().refused(0x81, &[who, whom, chap, chap], Refusal::Initiator);
    let begun = || {
        let mut talk = Talk::new();
        assert_eq!(talk.say(0x00, &[who, whom, chap]).0, Outcome::More);
        talk
    };
    for then in [
        vec![("CHAP_A", "0")],
        vec![("CHAP_A", "")],
        vec![algorithm, ("CHAP_N", "host")],
        vec![chap],
        vec![("CHAP_N", "host"), ("CHAP_R", "0x00")],
    ] {
        begun().refused(0x00, &then, Refusal::Authentication);
    }
    begun().refused(0x00, &[algorithm, algorithm], Refusal::Initiator);
    for then in [vec![algorithm], vec![("CHAP_N", "host")], vec![("CHAP_R", "0x00")], vec![chap]] {
        Talk::challenged(GUARDED, "5").0.refused(0x81, &then, Refusal::Authentication);
    }
    // A stage that is left in the middle.
    Talk::challenged(GUARDED, "5").0.refused(0x87, &[], Refusal::Invalid);
    // What is over does not begin again.
    let (mut talk, challenge) = Talk::challenged(GUARDED, "5");
    let said = answer(&challenge, SECRET);
    let shown = [("CHAP_N", "host"), ("CHAP_R", said.as_str())];
    assert_eq!(talk.say(0x00, &shown).0, Outcome::More);
    talk.refused(0x00, &shown, Refusal::Authentication);
    // Nor does it belong to the next stage.
    let (mut talk, challenge) = Talk::challenged(GUARDED, "5");
    let said = answer(&challenge, SECRET);
    let shown = [("CHAP_N", "host"), ("CHAP_R", said.as_str())];
    assert_eq!(talk.say(0x81, &shown).0, Outcome::More);
    talk.refused(0x87, &[chap], Refusal::Invalid);
}

#[test]
fn a_wait_is_granted_while_it_is_under_way_and_nothing_else() {
    let (mut talk, challenge) = Talk::challenged(GUARDED, "5");
    for flags in [0x00, 0x81, 0x83] {
        let (outcome, (status, moved, pairs)) = talk.say(flags, &[]);
        assert_eq!((outcome, status, moved, pairs.len()), (Outcome::More, 0, false, 0));
    }
    let said = answer(&challenge, SECRET);
    let (outcome, _) = talk.say(0x83, &[("CHAP_N", "host"), ("CHAP_R", &said)]);
    assert!(matches!(outcome, Outcome::Done(_)));
}

#[test]
fn where_nothing_is_asked_for_nothing_need_be_shown() {
    let [who, whom] = Talk::names(OPEN);
    for method in ["None", "None,CHAP", "CHAP,None"] {
        let (outcome, answer) = Talk::new().say(0x83, &[who, whom, ("AuthMethod", method)]);
        assert!(matches!(outcome, Outcome::Done(_)), "{method}");
        assert_eq!(value(&answer.2, "AuthMethod"), "None");
    }
    assert!(matches!(Talk::new().say(0x87, &[who, whom]).0, Outcome::Done(_)));
    let only = [who, whom, ("AuthMethod", "CHAP")];
    Talk::new().refused(0x81, &only, Refusal::Authentication);
    let discovery = [who, ("SessionType", "Discovery"), ("AuthMethod", "CHAP,None")];
    let (outcome, answer) = Talk::new().say(0x83, &discovery);
    assert!(matches!(outcome, Outcome::Done(_)));
    assert_eq!(value(&answer.2, "AuthMethod"), "None");
}

#[test]
fn others_are_told_that_it_is_not_for_them() {
    for target in [OPEN, GUARDED, MUTUAL] {
        let other = [("InitiatorName", "iqn.other"), ("TargetName", target)];
        Talk::new().refused(0x00, &other, Refusal::Authorization);
    }
    let none = [("InitiatorName", HOST), ("TargetName", "iqn.x:none")];
    Talk::new().refused(0x00, &none, Refusal::NotFound);
}

#[test]
fn without_random_bytes_nobody_is_challenged() {
    let house = House { has_random: false };
    let mut talk = Talk::new();
    let [who, whom] = Talk::names(GUARDED);
    talk.say_to(&house, 0x00, &[who, whom, ("AuthMethod", "CHAP")]);
    let (outcome, _) = talk.say_to(&house, 0x00, &[("CHAP_A", "5")]);
    assert_eq!(outcome, Outcome::Refused(Refusal::Target));
}

#[test]
fn secrets_are_not_printed_and_have_bounds() {
    let shown = format!("{:?}", credentials("host", SECRET));
    assert!(shown.contains("host") && !shown.contains(SECRET), "{shown}");
    for (length, allowed) in [(0, false), (11, false), (12, true), (255, true), (256, false)] {
        assert_eq!(Secret::new(&vec![b's'; length]).is_some(), allowed, "{length}");
    }
}

const KEYS: [&str; 10] = [
    "InitiatorName",
    "TargetName",
    "SessionType",
    "AuthMethod",
    "CHAP_A",
    "CHAP_I",
    "CHAP_C",
    "CHAP_N",
    "CHAP_R",
    "MaxBurstLength",
];

proptest! {
    #[test]
    fn a_binary_value_is_what_was_written(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        prop_assert_eq!(chap::decode(&chap::encode(&bytes)), Some(bytes.clone()));
        prop_assert_eq!(chap::decode(&hex(&bytes).replacen("0x", "0X", 1)), Some(bytes));
    }

    #[test]
    fn no_binary_value_is_too_much(text in "(0[xXbB])?[0-9a-zA-Z+/=é]{0,60}") {
        if let Some(bytes) = chap::decode(&text) {
            prop_assert!(!bytes.is_empty() && bytes.len() < text.len());
        }
    }

    /// Whatever is said, in whatever order: nobody gets past CHAP without a response that the
    /// secret made, for that one was never given.
    #[test]
    fn nobody_gets_in_without_the_secret(
        requests in prop::collection::vec(
            (
                prop::sample::select(vec![0x00u8, 0x04, 0x40, 0x81, 0x83, 0x84, 0x87, 0xff]),
                prop::collection::vec(
                    (
                        prop::sample::select(KEYS.to_vec()),
                        prop_oneof![
                            Just(HOST.to_owned()),
                            Just(MUTUAL.to_owned()),
                            Just("CHAP".to_owned()),
                            Just("CHAP,None".to_owned()),
                            Just("5".to_owned()),
                            Just("host".to_owned()),
                            Just(hex(&NONCE[..32])),
                            Just(hex(&response("5", 0xa5, OTHER, &NONCE[..32]))),
                            "[ -~]{0,30}",
                        ],
                    ),
                    0..5,
                ),
            ),
            1..8,
        ),
        introduced: bool,
    ) {
        let mut talk = Talk::new();
        if introduced {
            let [who, whom] = Talk::names(MUTUAL);
            talk.say(0x00, &[who, whom, ("AuthMethod", "CHAP")]);
        }
        let mut discovery = false;
        for (flags, pairs) in &requests {
            discovery |= pairs.contains(&("SessionType", "Discovery".to_owned()));
            let mut data = Vec::new();
            for (key, value) in pairs {
                text::put(&mut data, key, value);
            }
            let mut header = Header::new(opcode::LOGIN | 0x40, 0, 1);
            header.0[1] = *flags;
            let mut out = Vec::new();
            match talk.0.feed(&header, &data, 9, &HOUSE, &mut out) {
                Ok(Outcome::More) => {}
                Ok(Outcome::Done(agreed)) => {
                    prop_assert!(discovery && agreed.target.is_none(), "{:?}", agreed);
                    break;
                }
                _ => break,
            }
            prop_assert!(!String::from_utf8_lossy(&out).contains(OURS));
        }
    }
}
