//! PERSISTENT RESERVE OUT (SPC-4, 5.13 and 6.16), RESERVE and RELEASE (SPC-2, 7.21 and 7.16), and
//! the ends of sessions and tasks, as steps from one record to the next.

use super::{Held, LONGEST, MOST, NEWS, News, Nexus, REMEMBERED, Record, Registration, Type};
use crate::scsi::cdb::{Cdb, be32, op, reserve_out};
use crate::scsi::sense::{self, Sense};

/// Something that is to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its own, of all requests of all SPs: it may come again if nobody knows how it ended.
    pub id: u128,
    pub from: Nexus,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// PERSISTENT RESERVE OUT, RESERVE or RELEASE, with its parameters.
    Command { cdb: Cdb, data: Vec<u8> },
    /// The session has ended.
    Lost,
    /// LOGICAL UNIT RESET, and what amounts to it (SAM-5, 6.3.3).
    Reset,
    /// CLEAR TASK SET.
    Clear,
}

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Good,
    Conflict,
    Check(Sense),
}

type Step = Result<Option<Record>, Outcome>;

const fn refused(sense: Sense) -> Outcome {
    Outcome::Check(sense)
}

/// The parameters of PERSISTENT RESERVE OUT.
struct Keys {
    key: u64,
    /// The service action's.
    other: u64,
    aptpl: bool,
}

fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Carries out a request: how it ends, and the record that there is then, if it is another.
/// One that has been carried out already ends well.
#[must_use]
pub fn apply(record: &Record, request: &Request) -> (Outcome, Option<Record>) {
    if record.done.contains(&request.id) {
        return (Outcome::Good, None);
    }
    let step = match &request.what {
        What::Command { cdb, data } => match cdb[0] {
            op::RESERVE_6 | op::RESERVE_10 => reserve_unit(record, &request.from),
            op::RELEASE_6 | op::RELEASE_10 => Ok(release_unit(record, &request.from)),
            op::PERSISTENT_RESERVE_OUT => persistent(record, &request.from, cdb, data),
            _ => Err(refused(sense::INVALID_OPCODE)),
        },
        What::Lost => Ok(release_unit(record, &request.from)),
        What::Reset => {
            let mut next = Record { reserved: None, ..record.clone() };
            everybody(&mut next, &request.from, sense::RESET);
            Ok(Some(next))
        }
        What::Clear => {
            let mut next = record.clone();
            everybody(&mut next, &request.from, sense::CLEARED);
            Ok(Some(next))
        }
    };
    match step {
        Err(outcome) => (outcome, None),
        Ok(None) => (Outcome::Good, None),
        Ok(Some(mut next)) => {
            next.version = record.version + 1;
            next.done.push(request.id);
            let many = next.done.len().saturating_sub(REMEMBERED);
            next.done.drain(..many);
            for news in next.news.iter_mut().filter(|news| news.version == NEW) {
                news.version = next.version;
            }
            let many = next.news.len().saturating_sub(NEWS);
            next.news.drain(..many);
            (Outcome::Good, Some(next))
        }
    }
}

/// The version of news until there is one.
const NEW: u64 = u64::MAX;

fn everybody(next: &mut Record, by: &Nexus, sense: Sense) {
    let (to, by) = (None, by.clone());
    next.news.push(News { version: NEW, code: sense.code, aborts: true, to, by });
}

fn tell(next: &mut Record, to: Nexus, sense: Sense, aborts: bool) {
    let by = Nexus::default();
    next.news.push(News { version: NEW, code: sense.code, aborts, to: Some(to), by });
}

/// Tells all who are registered, but for one.
fn tell_registered(next: &mut Record, but: &Nexus, sense: Sense) {
    let others = next.registrations.iter().map(|known| known.nexus.clone());
    for nexus in others.filter(|nexus| nexus != but).collect::<Vec<_>>() {
        tell(next, nexus, sense, false);
    }
}

/// Beside persistent reservations (SPC-4, 5.13.3): True if RESERVE and RELEASE end well and
/// change nothing.
fn is_idle(record: &Record, nexus: &Nexus) -> bool {
    let shared = record.held.as_ref().is_some_and(|held| held.kind.is_shared());
    record.holds(nexus) || shared && record.key(nexus).is_some()
}

fn reserve_unit(record: &Record, nexus: &Nexus) -> Step {
    if is_idle(record, nexus) {
        return Ok(None);
    }
    let free = record.registrations.is_empty() && record.held.is_none();
    match &record.reserved {
        _ if !free => Err(Outcome::Conflict),
        Some(holder) if holder == nexus => Ok(None),
        Some(_) => Err(Outcome::Conflict),
        None => Ok(Some(Record { reserved: Some(nexus.clone()), ..record.clone() })),
    }
}

fn release_unit(record: &Record, nexus: &Nexus) -> Option<Record> {
    let holds = record.reserved.as_ref() == Some(nexus);
    holds.then(|| Record { reserved: None, ..record.clone() })
}

fn persistent(record: &Record, nexus: &Nexus, cdb: &Cdb, data: &[u8]) -> Step {
    if record.reserved.is_some() {
        return Err(Outcome::Conflict);
    }
    let action = cdb[1] & 0x1f;
    let moves = action == reserve_out::REGISTER_AND_MOVE;
    let registers = matches!(action, reserve_out::REGISTER | reserve_out::REGISTER_ANY);
    let long = data.len() >= 24 && data[20] & 0x08 != 0 && registers;
    let length = be32(cdb, 5) as usize;
    if data.len() != length || length < 24 || length != 24 && !moves && !long {
        return Err(refused(sense::PARAMETER_LENGTH));
    }
    let flags = if moves { data[17] & 1 } else { data[20] };
    // No other ports are registered along (SIP_C and ATP_C say so).
    if registers && flags & 0x0c != 0 {
        return Err(refused(sense::INVALID_PARAMETER));
    }
    let keys = Keys { key: be64(data), other: be64(&data[8..]), aptpl: flags & 1 != 0 };
    if registers {
        return register(record, nexus, &keys, action == reserve_out::REGISTER_ANY);
    }
    if record.key(nexus) != Some(keys.key) {
        return Err(Outcome::Conflict);
    }
    // Only the whole unit can be reserved.
    let kind = Type::of(cdb[2] & 0x0f).filter(|_| cdb[2] >> 4 == 0);
    let typed = || kind.ok_or(refused(sense::INVALID_FIELD));
    match action {
        reserve_out::RESERVE => reserve(record, nexus, typed()?),
        reserve_out::RELEASE => release(record, nexus, typed()?),
        reserve_out::CLEAR => Ok(Some(clear(record, nexus))),
        reserve_out::PREEMPT => preempt(record, nexus, keys.other, typed, false),
        reserve_out::PREEMPT_AND_ABORT => preempt(record, nexus, keys.other, typed, true),
        reserve_out::REGISTER_AND_MOVE => register_and_move(record, nexus, &keys, data),
        _ => Err(refused(sense::INVALID_FIELD)),
    }
}

/// A record in which a service action that counts has been carried out.
fn counted(record: &Record) -> Record {
    Record { generation: record.generation.wrapping_add(1), ..record.clone() }
}

fn put(next: &mut Record, nexus: &Nexus, key: u64) -> Result<(), Outcome> {
    if let Some(known) = next.registrations.iter_mut().find(|known| known.nexus == *nexus) {
        known.key = key;
        return Ok(());
    }
    if next.registrations.len() >= MOST {
        return Err(refused(sense::REGISTRATION_RESOURCES));
    }
    next.registrations.push(Registration { nexus: nexus.clone(), key });
    Ok(())
}

fn register(record: &Record, nexus: &Nexus, keys: &Keys, any: bool) -> Step {
    let known = record.key(nexus);
    if !any && known.unwrap_or(0) != keys.key {
        return Err(Outcome::Conflict);
    }
    if known.is_none() && keys.other == 0 {
        return Ok(None);
    }
    let mut next = counted(record);
    next.aptpl = keys.aptpl;
    if keys.other == 0 {
        unregister(&mut next, nexus);
    } else {
        put(&mut next, nexus, keys.other)?;
    }
    Ok(Some(next))
}

/// SPC-4, 5.13.11.2.2 and 5.13.11.2.3: what one holds alone goes with its registration.
fn unregister(next: &mut Record, nexus: &Nexus) {
    let held = next.held.clone();
    next.registrations.retain(|known| known.nexus != *nexus);
    let Some(held) = held else { return };
    let last = next.registrations.is_empty();
    if if held.kind.is_all() { last } else { held.nexus == *nexus } {
        next.held = None;
        if held.kind.is_shared() {
            tell_registered(next, nexus, sense::RELEASED);
        }
    }
}

fn reserve(record: &Record, nexus: &Nexus, kind: Type) -> Step {
    match &record.held {
        Some(held) if record.holds(nexus) && held.kind == kind => Ok(None),
        Some(_) => Err(Outcome::Conflict),
        None => {
            let held = Some(Held { nexus: nexus.clone(), kind });
            Ok(Some(Record { held, ..record.clone() }))
        }
    }
}

fn release(record: &Record, nexus: &Nexus, kind: Type) -> Step {
    let Some(held) = record.held.as_ref().filter(|_| record.holds(nexus)) else { return Ok(None) };
    if held.kind != kind {
        return Err(refused(sense::INVALID_RELEASE));
    }
    let mut next = Record { held: None, ..record.clone() };
    if kind.is_shared() {
        tell_registered(&mut next, nexus, sense::RELEASED);
    }
    Ok(Some(next))
}

fn clear(record: &Record, nexus: &Nexus) -> Record {
    let mut next = counted(record);
    tell_registered(&mut next, nexus, sense::RESERVATIONS_PREEMPTED);
    next.registrations.clear();
    next.held = None;
    next
}

/// SPC-4, 5.13.11.2.4 to 5.13.11.2.6.
fn preempt(
    record: &Record,
    nexus: &Nexus,
    key: u64,
    typed: impl Fn() -> Result<Type, Outcome>,
    aborts: bool,
) -> Step {
    let mut next = counted(record);
    let held = record.held.as_ref();
    let all = held.is_some_and(|held| held.kind.is_all());
    let holder = held.filter(|held| !held.kind.is_all());
    let takes = if all {
        key == 0
    } else {
        holder.is_some_and(|held| record.key(&held.nexus) == Some(key))
    };
    if key == 0 && !takes {
        return Err(refused(sense::INVALID_PARAMETER));
    }
    let meant = |known: &Registration| known.key == key || all && key == 0;
    // Who takes the reservation stays registered; who removes registrations may be among them.
    let leaves = |known: &Registration| meant(known) && !(takes && known.nexus == *nexus);
    let (gone, stay): (Vec<_>, Vec<_>) =
        std::mem::take(&mut next.registrations).into_iter().partition(leaves);
    if !takes && gone.is_empty() {
        return Err(Outcome::Conflict);
    }
    next.registrations = stay;
    let before = next.held.as_ref().map(|held| held.kind);
    if takes {
        let kind = typed()?;
        next.held = Some(Held { nexus: nexus.clone(), kind });
        if before != Some(kind) && before.is_some_and(Type::is_shared) {
            tell_registered(&mut next, nexus, sense::RELEASED);
        }
    } else if all && next.registrations.is_empty() {
        next.held = None;
    }
    for known in gone.into_iter().filter(|known| known.nexus != *nexus) {
        tell(&mut next, known.nexus, sense::REGISTRATIONS_PREEMPTED, aborts);
    }
    Ok(Some(next))
}

/// SPC-4, 5.13.8.
fn register_and_move(record: &Record, nexus: &Nexus, keys: &Keys, data: &[u8]) -> Step {
    let invalid = refused(sense::INVALID_PARAMETER);
    let length = be64(&data[20..24]) as usize;
    if data.len() != 24 + length || length < 24 {
        return Err(refused(sense::PARAMETER_LENGTH));
    }
    let Some(held) = record.held.as_ref().filter(|held| held.nexus == *nexus) else {
        return Err(Outcome::Conflict);
    };
    if held.kind.is_all() {
        return Err(Outcome::Conflict);
    }
    let initiator = initiator(&data[24..]).ok_or(invalid)?;
    let to = Nexus { initiator, tag: u16::from_be_bytes([data[18], data[19]]) };
    if keys.other == 0 || to == *nexus || to.tag == 0 {
        return Err(invalid);
    }
    let mut next = counted(record);
    next.aptpl = keys.aptpl;
    put(&mut next, &to, keys.other)?;
    next.held = Some(Held { nexus: to, kind: held.kind });
    if data[17] & 2 != 0 {
        next.registrations.retain(|known| known.nexus != *nexus);
    }
    Ok(Some(next))
}

/// The port that a TransportID names; None if it is not one port of iSCSI's.
fn initiator(id: &[u8]) -> Option<String> {
    let name = id.get(4..)?;
    let length = usize::from(u16::from_be_bytes([id[2], id[3]]));
    if id[0] != 0x45 || length != name.len() {
        return None;
    }
    let end = name.iter().position(|byte| *byte == 0)?;
    let text = std::str::from_utf8(&name[..end]).ok()?;
    let (name, isid) = text.split_once(",i,0x")?;
    let sound = isid.len() == 12 && isid.bytes().all(|byte| byte.is_ascii_hexdigit());
    (sound && text.len() <= LONGEST).then(|| format!("{name},i,0x{}", isid.to_ascii_lowercase()))
}
