//! Reservations: every step against a plain model of the standard's words, the table of what is
//! forbidden against another way of saying it, and records and requests as bytes.

use std::collections::BTreeMap;

use proptest::prelude::*;
use vs_wire::scsi::cdb::Cdb;
use vs_wire::scsi::reserve::{
    Held, MOST, Nexus, Outcome, Record, Registration, Request, Type, What, allows, apply, reply,
    transport,
};

const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];

fn nexus(number: u8) -> Nexus {
    Nexus::new(
        &format!("iqn.x:{}", number / 2),
        &[0, 0, 0, 0, 0, number / 2],
        u16::from(number % 2) + 1,
    )
}

/// A PERSISTENT RESERVE OUT.
fn out(action: u8, kind: u8, key: u64, other: u64) -> What {
    let mut cdb = [0; 16];
    cdb[..10].copy_from_slice(&[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0]);
    let mut data = vec![0; 24];
    data[..8].copy_from_slice(&key.to_be_bytes());
    data[8..16].copy_from_slice(&other.to_be_bytes());
    What::Command { cdb, data }
}

fn plain(code: u8) -> What {
    let mut cdb = [0; 16];
    cdb[0] = code;
    What::Command { cdb, data: Vec::new() }
}

/// What somebody does.
#[derive(Clone, Debug)]
enum Step {
    Out { action: u8, kind: u8, key: u64, other: u64 },
    Reserve,
    Release,
    Lost,
    Reset,
}

fn steps() -> impl Strategy<Value = Vec<(u8, Step)>> {
    let kind = prop::sample::select(&TYPES[..]);
    let out = (0u8..7, kind, 0u64..4, 0u64..4);
    let out = out.prop_map(|(action, kind, key, other)| Step::Out { action, kind, key, other });
    let step = prop_oneof![
        12 => out,
        1 => Just(Step::Reserve),
        1 => Just(Step::Release),
        1 => Just(Step::Lost),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec((0u8..4, step), 1..40)
}

/// The standard's words, one by one: keys by nexus, the reservation, the SPC-2 one.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    keys: BTreeMap<u8, u64>,
    held: Option<(u8, u8)>,
    reserved: Option<u8>,
    generation: u32,
    /// Who was told what by the last step.
    told: Vec<(u8, u16)>,
}

impl Model {
    fn all(kind: u8) -> bool {
        kind >= 7
    }

    fn shared(kind: u8) -> bool {
        kind >= 5
    }

    fn holds(&self, who: u8) -> bool {
        match self.held {
            Some((_, kind)) if Model::all(kind) => self.keys.contains_key(&who),
            Some((holder, _)) => holder == who,
            None => false,
        }
    }

    fn tell(&mut self, but: u8, code: u16) {
        let others: Vec<u8> = self.keys.keys().copied().filter(|who| *who != but).collect();
        self.told.extend(others.into_iter().map(|who| (who, code)));
    }

    fn drop_key(&mut self, who: u8) {
        let held = self.held;
        self.keys.remove(&who);
        let Some((holder, kind)) = held else { return };
        if Model::all(kind) && self.keys.is_empty() || !Model::all(kind) && holder == who {
            self.held = None;
            if Model::shared(kind) {
                self.tell(who, 0x2a04);
            }
        }
    }

    /// Ok: GOOD. Err(None): a conflict; Err(code): a check condition.
    fn step(&mut self, who: u8, step: &Step) -> Result<(), Option<u16>> {
        self.told.clear();
        match *step {
            Step::Lost | Step::Release => {
                if self.reserved == Some(who) {
                    self.reserved = None;
                }
                Ok(())
            }
            Step::Reset => {
                self.reserved = None;
                self.told = (0..4).map(|who| (who, 0x2903)).collect();
                Ok(())
            }
            Step::Reserve => {
                let registered = self.keys.contains_key(&who);
                let shared = self.held.is_some_and(|(_, kind)| Model::shared(kind));
                if self.holds(who) || registered && shared {
                    return Ok(());
                }
                if !self.keys.is_empty() || self.reserved.is_some_and(|other| other != who) {
                    return Err(None);
                }
                self.reserved = Some(who);
                Ok(())
            }
            Step::Out { .. } if self.reserved.is_some() => Err(None),
            Step::Out { action: action @ (0 | 6), key, other, .. } => {
                let known = self.keys.get(&who).copied();
                if action == 0 && known.unwrap_or(0) != key {
                    return Err(None);
                }
                if known.is_none() && other == 0 {
                    return Ok(());
                }
                self.generation += 1;
                if other == 0 {
                    self.drop_key(who);
                } else {
                    self.keys.insert(who, other);
                }
                Ok(())
            }
            Step::Out { key, .. } if self.keys.get(&who) != Some(&key) => Err(None),
            Step::Out { action: 1, kind, .. } => match self.held {
                Some((_, other)) if self.holds(who) && other == kind => Ok(()),
                Some(_) => Err(None),
                None => {
                    self.held = Some((who, kind));
                    Ok(())
                }
            },
            Step::Out { action: 2, kind, .. } => {
                let Some((_, held)) = self.held.filter(|_| self.holds(who)) else { return Ok(()) };
                if held != kind {
                    return Err(Some(0x2604));
                }
                self.held = None;
                if Model::shared(kind) {
                    self.tell(who, 0x2a04);
                }
                Ok(())
            }
            Step::Out { action: 3, .. } => {
                self.generation += 1;
                self.tell(who, 0x2a03);
                self.keys.clear();
                self.held = None;
                Ok(())
            }
            Step::Out { kind, other, .. } => self.preempt(who, kind, other),
        }
    }

    fn preempt(&mut self, who: u8, kind: u8, other: u64) -> Result<(), Option<u16>> {
        let holders_key = match self.held {
            Some((_, kind)) if Model::all(kind) => Some(0),
            Some((holder, _)) => self.keys.get(&holder).copied(),
            None => None,
        };
        let takes = holders_key == Some(other);
        if other == 0 && !takes {
            return Err(Some(0x2600));
        }
        let mut gone: Vec<u8> =
            self.keys.iter().filter(|(_, k)| **k == other).map(|(w, _)| *w).collect();
        if takes {
            if other == 0 {
                gone = self.keys.keys().copied().collect();
            }
            gone.retain(|gone| *gone != who);
        } else if gone.is_empty() {
            return Err(None);
        }
        self.generation += 1;
        self.keys.retain(|who, _| !gone.contains(who));
        if takes {
            let before = self.held.map(|(_, kind)| kind);
            self.held = Some((who, kind));
            if before != Some(kind) && before.is_some_and(Model::shared) {
                self.tell(who, 0x2a04);
            }
        } else if self.keys.is_empty() && self.held.is_some_and(|(_, kind)| Model::all(kind)) {
            self.held = None;
        }
        self.told.extend(gone.into_iter().filter(|gone| *gone != who).map(|gone| (gone, 0x2a05)));
        Ok(())
    }
}

fn request(id: u128, who: u8, step: &Step) -> Request {
    let what = match *step {
        Step::Out { action, kind, key, other } => out(action, kind, key, other),
        Step::Reserve => plain(0x16),
        Step::Release => plain(0x57),
        Step::Lost => What::Lost,
        Step::Reset => What::Reset,
    };
    Request { id, from: nexus(who), what }
}

/// What the record says, as the model does.
fn seen(record: &Record, last: bool) -> Model {
    let of = |nexus_: &Nexus| (0..4).find(|who| nexus(*who) == *nexus_).expect("one of ours");
    let mut told = Vec::new();
    for news in record.news.iter().filter(|news| last && news.version == record.version) {
        told.extend((0..4).filter(|who| news.is_for(&nexus(*who))).map(|who| (who, news.code)));
    }
    Model {
        keys: record.registrations.iter().map(|known| (of(&known.nexus), known.key)).collect(),
        held: record.held.as_ref().map(|held| (of(&held.nexus), held.kind as u8)),
        reserved: record.reserved.as_ref().map(of),
        generation: record.generation,
        told,
    }
}

fn held_by(record: &Record) -> bool {
    record.held.as_ref().is_none_or(|held| held.kind.is_all() || record.key(&held.nexus).is_some())
}

/// The table of SPC-4 and SBC-3, as rows: opcode, byte 1, byte 4; and whether another may do so
/// while writing is exclusive, and while access is.
const TABLE: &[(u8, u8, u8, bool, bool)] = &[
    (0x00, 0, 0, true, true),
    (0x03, 0, 0, true, true),
    (0x08, 0, 1, true, false),
    (0x0a, 0, 1, false, false),
    (0x12, 0, 0, true, true),
    (0x15, 0, 0, false, false),
    (0x1a, 0, 0, true, false),
    (0x1b, 0, 1, true, true),
    (0x1b, 0, 0, false, false),
    (0x25, 0, 0, true, true),
    (0x28, 0, 0, true, false),
    (0x2a, 0, 0, false, false),
    (0x2e, 0, 0, false, false),
    (0x2f, 0, 0, true, false),
    (0x34, 0, 0, true, false),
    (0x35, 0, 0, false, false),
    (0x41, 0, 0, false, false),
    (0x42, 0, 0, false, false),
    (0x55, 0, 0, false, false),
    (0x5a, 0, 0, true, false),
    (0x5e, 0, 0, true, true),
    (0x5f, 0, 0, true, true),
    (0x83, 0, 0, false, false),
    (0x88, 0, 0, true, false),
    (0x89, 0, 0, false, false),
    (0x8a, 0, 0, false, false),
    (0x8b, 0, 0, false, false),
    (0x91, 0, 0, false, false),
    (0x93, 0, 0, false, false),
    (0x9e, 0x10, 0, true, true),
    (0x9e, 0x12, 0, true, false),
    (0xa0, 0, 0, true, true),
    (0xa3, 0x0a, 0, true, true),
    (0xa3, 0x0c, 0, true, false),
    (0xa8, 0, 0, true, false),
    (0xaa, 0, 0, false, false),
    (0xaf, 0, 0, true, false),
];

#[test]
fn the_table_of_what_is_forbidden_holds() {
    for kind in TYPES {
        let kind = Type::of(kind).expect("a type");
        let (holder, registered, other) = (nexus(0), nexus(1), nexus(2));
        let registration = |nexus: &Nexus| Registration { nexus: nexus.clone(), key: 1 };
        let record = Record {
            registrations: vec![registration(&holder), registration(&registered)],
            held: Some(Held { nexus: holder.clone(), kind }),
            ..Record::default()
        };
        for &(code, one, four, writing, access) in TABLE {
            let mut cdb: Cdb = [0; 16];
            (cdb[0], cdb[1], cdb[4]) = (code, one, four);
            let others = if kind.is_exclusive() { access } else { writing };
            assert!(allows(&record, &holder, &cdb));
            assert_eq!(allows(&record, &registered, &cdb), kind.is_shared() || others, "{code:x}");
            assert_eq!(allows(&record, &other, &cdb), others, "{kind:?} {code:x}");
            assert!(allows(&Record::default(), &other, &cdb));
            let old = Record { reserved: Some(holder.clone()), ..Record::default() };
            assert!(allows(&old, &holder, &cdb));
            let told = matches!((code, one), (0x03 | 0x12 | 0xa0, _) | (0xa3, 0x0a));
            assert_eq!(allows(&old, &other, &cdb), told, "{code:x}");
        }
    }
}

#[test]
fn there_is_room_for_so_many_registrations_and_no_more() {
    let mut record = Record::default();
    for number in 0..=MOST as u64 {
        let from = Nexus::new(
            &"n".repeat(223),
            &(number as u32).to_be_bytes().repeat(2)[2..].try_into().unwrap(),
            1,
        );
        let (outcome, next) =
            apply(&record, &Request { id: number.into(), from, what: out(0, 0, 0, 1) });
        if number < MOST as u64 {
            record = next.expect("it is registered");
        } else {
            assert!(matches!(outcome, Outcome::Check(sense) if sense.code == 0x5504));
        }
    }
    assert!(record.encode(true).len() < vs_wire::peer::MAX_RECORD as usize);
    assert_eq!(Record::decode(&record.encode(true)), Ok(record));
}

#[test]
fn what_is_told_has_the_standards_form() {
    let (holder, other) = (nexus(0), nexus(3));
    let registration = |nexus: &Nexus, key| Registration { nexus: nexus.clone(), key };
    let record = Record {
        generation: 5,
        aptpl: true,
        registrations: vec![registration(&holder, 0x11), registration(&other, 0x22)],
        held: Some(Held { nexus: holder.clone(), kind: Type::WriteExclusiveRegistrants }),
        ..Record::default()
    };
    let ask = |action: u8, most: u8| {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[8]) = (0x5e, action, most);
        reply(&record, &cdb)
    };
    let keys = [&[0, 0, 0, 5, 0, 0, 0, 16][..], &0x11u64.to_be_bytes(), &0x22u64.to_be_bytes()];
    assert_eq!(ask(0, 255).unwrap(), keys.concat());
    assert_eq!(ask(0, 9).unwrap(), keys.concat()[..9]);
    let held = [&[0, 0, 0, 5, 0, 0, 0, 16][..], &0x11u64.to_be_bytes(), &[0, 0, 0, 0, 0, 5, 0, 0]];
    assert_eq!(ask(1, 255).unwrap(), held.concat());
    assert_eq!(ask(2, 255).unwrap(), [0, 8, 0x11, 0x81, 0xea, 0x01, 0, 0]);
    let full = ask(3, 255).unwrap();
    let id = transport(&holder);
    assert_eq!((id[0], id.len() % 4), (0x45, 0));
    assert!(id[4..].starts_with(b"iqn.x:0,i,0x000000000000\0"));
    assert_eq!(&full[8..16], 0x11u64.to_be_bytes());
    assert_eq!((full[20], full[21], full[27]), (1, 5, 1));
    assert_eq!(&full[32..32 + id.len()], id);
    let second = 32 + id.len();
    assert_eq!((full[second + 12], full[second + 13], full[second + 19]), (0, 0, 2));
    assert!(ask(4, 255).is_err());
}

#[test]
fn a_reservation_moves_to_another_port() {
    let (from, to) = (nexus(0), nexus(3));
    let id = transport(&to);
    let moving = |key: u64, other: u64, unregisters: bool| {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1], cdb[8]) = (0x5f, 7, 24 + id.len() as u8);
        let mut data = vec![0; 24];
        data[..8].copy_from_slice(&key.to_be_bytes());
        data[8..16].copy_from_slice(&other.to_be_bytes());
        data[17] = if unregisters { 2 } else { 0 };
        data[19] = to.tag as u8;
        data[23] = id.len() as u8;
        data.extend_from_slice(&id);
        What::Command { cdb, data }
    };
    let held = |kind| Record {
        registrations: vec![Registration { nexus: from.clone(), key: 1 }],
        held: Some(Held { nexus: from.clone(), kind }),
        ..Record::default()
    };
    let ask = |record: &Record, what| apply(record, &Request { id: 1, from: from.clone(), what });
    let (outcome, next) = ask(&held(Type::ExclusiveAccess), moving(1, 9, true));
    let next = next.expect("it has moved");
    assert_eq!(outcome, Outcome::Good);
    assert_eq!(next.registrations, [Registration { nexus: to.clone(), key: 9 }]);
    assert!(next.holds(&to) && next.generation == 1);
    let stays = ask(&held(Type::ExclusiveAccess), moving(1, 9, false)).1.expect("it has moved");
    assert_eq!((stays.key(&from), stays.key(&to)), (Some(1), Some(9)));
    assert_eq!(ask(&held(Type::ExclusiveAccessAll), moving(1, 9, true)).0, Outcome::Conflict);
    assert_eq!(ask(&held(Type::ExclusiveAccess), moving(2, 9, true)).0, Outcome::Conflict);
    assert!(matches!(ask(&held(Type::ExclusiveAccess), moving(1, 0, true)).0, Outcome::Check(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_step_is_as_the_standard_says(steps in steps()) {
        let (mut record, mut model) = (Record::default(), Model::default());
        for (id, (who, step)) in steps.into_iter().enumerate() {
            let request = request(id as u128, who, &step);
            let (outcome, next) = apply(&record, &request);
            let wanted = model.step(who, &step);
            let got = match outcome {
                Outcome::Good => Ok(()),
                Outcome::Conflict => Err(None),
                Outcome::Check(sense) => Err(Some(sense.code)),
            };
            prop_assert_eq!(got, wanted, "{:?}", step);
            let changed = next.is_some();
            if let Some(next) = next {
                prop_assert_eq!(next.version, record.version + 1);
                record = next;
                // Once more, since nobody has heard of its end: nothing happens.
                prop_assert_eq!(apply(&record, &request), (Outcome::Good, None));
            }
            let mut found = seen(&record, changed);
            found.told.sort_unstable();
            model.told.sort_unstable();
            prop_assert_eq!(&found, &model, "{:?}", step);
            prop_assert!(held_by(&record), "a holder is registered");
            prop_assert_eq!(&Record::decode(&record.encode(true)), &Ok(record.clone()));
            let kept = Record::decode(&record.encode(false)).expect("a record");
            prop_assert_eq!(kept, Record { news: Vec::new(), ..record.clone() });
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        }
    }

    #[test]
    fn damaged_records_are_refused(steps in steps(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut record = Record::default();
        for (id, (who, step)) in steps.into_iter().enumerate() {
            record = apply(&record, &request(id as u128, who, &step)).1.unwrap_or(record);
        }
        let mut bytes = record.encode(true);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Record::decode(&bytes).is_err());
    }

    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), cdb in any::<[u8; 16]>()) {
        let _ = (Record::decode(&bytes), Request::decode(&bytes), Outcome::decode(&bytes));
        let mut cdb = cdb;
        cdb[0] = 0x5f;
        let what = What::Command { cdb, data: bytes };
        let _ = apply(&Record::default(), &Request { id: 0, from: nexus(0), what });
        let _ = reply(&Record::default(), &cdb);
    }
}
