//! The label of a device: two checksummed slots, written in turn (docs/engine.md).

mod body;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::checksums;
use crate::device::{BlockingDevice, LABEL_AREA, UNIT};
use crate::error::{DeviceError, ErrorKind};
use crate::regions::{self, MAPS, MAX_SPS};
use body::Body;

const MAGIC: &[u8; 8] = b"VSLABEL1";
/// Bytes of a slot; the write-intent maps lie at its end.
pub const SLOT: u64 = 2 << 20;
/// magic, sequence u64, length u32, crc32c of all that follows the checksum and of the
/// sequence and length before it, u32.
const HEADER: usize = 24;
/// Longest body.
const BODY: u64 = SLOT - MAPS - HEADER as u64;

/// A run of bytes on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentSpec {
    pub device: String,
    pub offset: u64,
    pub length: u64,
}

/// A T1 object as Python and the labels know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct T1Spec {
    pub id: String,
    pub volume: String,
    pub size: u64,
    pub extents: Vec<ExtentSpec>,
    pub home: String,
}

/// A T1 object on a label. Up to `ready` bytes of it hold data or zeroes; what lies behind
/// is reserved but was not yet zeroed, and is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub t1: T1Spec,
    pub epoch: u64,
    pub ready: u64,
    pub kept: Option<Arc<Kept>>,
}

/// What the volume's owner has kept with its T1 objects: its reservations. Between two, the one
/// with the higher epoch counts, and of one epoch the higher version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Of the tree whose owner had it kept.
    pub epoch: u64,
    pub version: u64,
    pub bytes: Vec<u8>,
}

impl Kept {
    #[must_use]
    pub fn stamp(&self) -> (u64, u64) {
        (self.epoch, self.version)
    }

    /// The later of two.
    #[must_use]
    pub fn later(one: Option<Arc<Kept>>, other: Option<Arc<Kept>>) -> Option<Arc<Kept>> {
        let stamp = |kept: &Option<Arc<Kept>>| kept.as_ref().map(|kept| kept.stamp());
        if stamp(&other) > stamp(&one) { other } else { one }
    }

    /// As it stands in a label: [epoch, version, bytes in hexadecimal].
    fn text(&self) -> (u64, u64, String) {
        let mut text = String::with_capacity(self.bytes.len() * 2);
        for byte in &self.bytes {
            let digit = |half: u8| char::from_digit(half.into(), 16).unwrap_or('0');
            text.extend([digit(byte >> 4), digit(byte & 15)]);
        }
        (self.epoch, self.version, text)
    }

    fn of((epoch, version, text): &(u64, u64, String)) -> Option<Kept> {
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
        let half = |digit: u8| char::from(digit).to_digit(16);
        let byte = |pair: &[u8; 2]| Some((half(pair[0])? << 4 | half(pair[1])?) as u8);
        let bytes = pairs.iter().map(byte).collect::<Option<Vec<u8>>>()?;
        Some(Kept { epoch: *epoch, version: *version, bytes })
    }
}

/// All that a label says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub cluster: String,
    pub device: String,
    pub size: u64,
    pub unit: u64,
    /// Bytes of a region of the write-intent maps.
    pub region: u64,
    /// Every block of the data has a checksum; these lie between the label and the data.
    pub checksums: bool,
    /// The SPs that have a write-intent map here, in the order of their maps.
    pub maps: Vec<String>,
    pub t1s: Vec<Entry>,
}

impl Label {
    /// Where the data begins.
    #[must_use]
    pub fn data(&self) -> u64 {
        LABEL_AREA + if self.checksums { checksums::area(self.size) } else { 0 }
    }
}

/// What stands where a label would.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Label(Label),
    /// Zeroes: free to be labelled.
    Blank,
    /// Somebody's data; in words, what it looks like.
    Foreign(String),
}

fn encode(sequence: u64, label: &Label) -> Result<Vec<u8>, DeviceError> {
    let body = Body::of(label).ok_or_else(|| {
        let text = format!("device {}: an extent is not made of whole units", label.device);
        DeviceError::new(ErrorKind::Invalid, text)
    })?;
    let body = serde_json::to_vec(&body)
        .map_err(|e| DeviceError::new(ErrorKind::Invalid, format!("label: {e}")))?;
    if body.len() as u64 > BODY {
        let extents: usize = label.t1s.iter().map(|entry| entry.t1.extents.len()).sum();
        let text = format!(
            "device {}: its label is full: {} T1 objects with {extents} extents would take {} of \
             {} bytes; use another device, or one with longer free runs",
            label.device,
            label.t1s.len(),
            body.len(),
            BODY
        );
        return Err(DeviceError::new(ErrorKind::NoSpace, text));
    }
    let mut slot = Vec::with_capacity(HEADER + body.len());
    slot.extend_from_slice(MAGIC);
    slot.extend_from_slice(&sequence.to_le_bytes());
    slot.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&slot[8..20]), &body);
    slot.extend_from_slice(&sum.to_le_bytes());
    slot.extend_from_slice(&body);
    // Whole blocks, so that no device has to read before it writes.
    slot.resize(slot.len().next_multiple_of(4096), 0);
    Ok(slot)
}

/// The first block of a slot, if it looks like one.
struct Head {
    index: u64,
    sequence: u64,
    length: usize,
    sum: u32,
    block: [u8; 4096],
}

fn read_head(device: &mut dyn BlockingDevice, index: u64) -> Result<Option<Head>, DeviceError> {
    let mut block = [0; 4096];
    device.read_at(index * SLOT, &mut block)?;
    let number =
        |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (length, sum) = (number(16) as usize, number(20));
    let sequence = u64::from(number(8)) | u64::from(number(12)) << 32;
    let known = &block[..8] == MAGIC && length as u64 <= BODY;
    Ok(known.then_some(Head { index, sequence, length, sum, block }))
}

/// The slot's label; None if it was torn.
fn read_slot(device: &mut dyn BlockingDevice, head: &Head) -> Result<Option<Label>, DeviceError> {
    let mut slot = head.block.to_vec();
    slot.resize((HEADER + head.length).next_multiple_of(4096), 0);
    device.read_at(head.index * SLOT + 4096, &mut slot[4096..])?;
    let body = &slot[HEADER..HEADER + head.length];
    let sum = crc32c::crc32c_append(crc32c::crc32c(&slot[8..20]), body);
    if sum != head.sum {
        return Ok(None);
    }
    Ok(serde_json::from_slice::<Body<'_>>(body).ok().and_then(Body::label))
}

/// A label as it was last read or written, so that one with thousands of objects need not be
/// read again when the first block of its slot, with the checksum of the rest, is as it was.
#[derive(Debug)]
pub struct Known {
    index: u64,
    sequence: u64,
    block: [u8; 4096],
    label: Arc<Label>,
}

/// The newest valid slot. The other's body is read only if the one with the higher sequence
/// is not whole.
fn newest(
    device: &mut dyn BlockingDevice,
    known: Option<Known>,
) -> Result<Option<Known>, DeviceError> {
    device.forget_cache(0, 2 * SLOT)?;
    let mut heads = Vec::new();
    for index in 0..2 {
        heads.extend(read_head(device, index)?);
    }
    heads.sort_by_key(|head| std::cmp::Reverse(head.sequence));
    for head in heads {
        let same = |known: &Known| known.index == head.index && known.block == head.block;
        if known.as_ref().is_some_and(same) {
            return Ok(known);
        }
        if let Some(label) = read_slot(device, &head)? {
            let Head { index, sequence, block, .. } = head;
            return Ok(Some(Known { index, sequence, block, label: Arc::new(label) }));
        }
    }
    Ok(None)
}

/// Reads what stands on a device.
///
/// # Errors
/// Whatever the device says.
pub fn read(device: &mut dyn BlockingDevice) -> Result<Found, DeviceError> {
    if let Some(known) = newest(device, None)? {
        return Ok(Found::Label(Arc::unwrap_or_clone(known.label)));
    }
    let mut head = vec![0; 1 << 20];
    device.read_at(0, &mut head)?;
    let mut tail = vec![0; 64 << 10];
    device.read_at(device.size() - tail.len() as u64, &mut tail)?;
    let mut second = vec![0; 4096];
    device.read_at(SLOT, &mut second)?;
    let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    if zero(&head) && zero(&tail) && zero(&second) {
        return Ok(Found::Blank);
    }
    let is = |at: usize, magic: &[u8]| head[at..at + magic.len()] == *magic;
    let what = if is(0, MAGIC) {
        "a damaged vswitchd label"
    } else if is(0x438, &[0x53, 0xef]) {
        "an ext2/3/4 filesystem"
    } else if is(0, b"XFSB") {
        "an XFS filesystem"
    } else if is(512, b"EFI PART") {
        "a GPT partition table"
    } else if is(512, b"LABELONE") {
        "an LVM physical volume"
    } else if is(510, &[0x55, 0xaa]) {
        "a boot sector or MBR partition table"
    } else {
        "data of an unknown kind"
    };
    Ok(Found::Foreign(what.to_owned()))
}

/// A label as it stands on the device, for those who check it.
#[derive(Clone, Debug)]
pub struct Standing {
    pub label: Label,
    /// Rises with every write.
    pub sequence: u64,
    /// How many of the two copies are whole.
    pub copies: usize,
}

/// Reads both copies of a label afresh, while nobody writes it.
///
/// # Errors
/// Whatever the device says, and `Unsafe` if no copy is whole.
pub fn standing(device: &mut dyn BlockingDevice) -> Result<Standing, DeviceError> {
    device.lock()?;
    let result = standing_locked(device);
    device.unlock();
    result
}

fn standing_locked(device: &mut dyn BlockingDevice) -> Result<Standing, DeviceError> {
    device.forget_cache(0, 2 * SLOT)?;
    let mut found: Option<Standing> = None;
    for index in 0..2 {
        let Some(head) = read_head(device, index)? else { continue };
        let Some(label) = read_slot(device, &head)? else { continue };
        let copies = found.as_ref().map_or(0, |other| other.copies) + 1;
        match &mut found {
            Some(other) if other.sequence > head.sequence => other.copies = copies,
            _ => found = Some(Standing { label, sequence: head.sequence, copies }),
        }
    }
    found.ok_or_else(|| {
        let text = format!("{}: no copy of its label is whole", device.name());
        DeviceError::new(ErrorKind::Unsafe, text)
    })
}

/// How a device is labelled that is blank.
#[derive(Clone, Copy, Debug)]
pub struct Fresh<'a> {
    /// What it is called; if this is empty it is refused: it was not blank when it was known.
    pub id: &'a str,
    /// Least bytes of a region of its write-intent maps.
    pub region: u64,
    /// Whether its data has checksums. If so, a device that is labelled without them is refused.
    pub checksums: bool,
}

/// Labels a blank device, or recognises this cluster's, and has a write-intent map there for `sp`.
/// Gives the label that stands there.
///
/// # Errors
/// `Unsafe` for foreign data, another cluster's device, and a device that lost its label;
/// `Unlike` for one that is labelled without the checksums that are asked for; `Invalid` for a
/// blank one that has no room for them.
pub fn claim(
    device: &mut dyn BlockingDevice,
    cluster: &str,
    sp: &str,
    fresh: &Fresh<'_>,
) -> Result<Label, DeviceError> {
    device.lock()?;
    let result = claim_locked(device, cluster, sp, fresh);
    device.unlock();
    result
}

fn claim_locked(
    device: &mut dyn BlockingDevice,
    cluster: &str,
    sp: &str,
    fresh: &Fresh<'_>,
) -> Result<Label, DeviceError> {
    let refuse = |text: String| Err(DeviceError::new(ErrorKind::Unsafe, text));
    match read(device)? {
        Found::Label(label) if label.cluster != cluster => refuse(format!(
            "{}: belongs to cluster {} (device {}); wipe its first 4 MiB if it may be used here",
            device.name(),
            label.cluster,
            label.device
        )),
        Found::Label(label) if fresh.checksums && !label.checksums => {
            let text = format!(
                "{}: is labelled as device {} without checksums; add it without --checksums, or \
                 move its data away, remove it, wipe its first 4 MiB and add it anew",
                device.name(),
                label.device
            );
            Err(DeviceError::new(ErrorKind::Unlike, text))
        }
        Found::Label(label) if label.maps.iter().any(|known| known == sp) => Ok(label),
        Found::Label(label) if label.maps.len() == MAX_SPS => refuse(format!(
            "{}: {MAX_SPS} SPs have used it, no more can; use another device",
            device.name()
        )),
        Found::Label(Label { cluster, device: id, .. }) => {
            update_locked(device, &cluster, &id, &mut None, |label| {
                label.maps.push(sp.to_owned());
                Ok(label.clone())
            })
        }
        Found::Foreign(what) => refuse(format!(
            "{}: holds {what}; wipe its first 4 MiB and last 64 KiB if it may be used here",
            device.name()
        )),
        Found::Blank if fresh.id.is_empty() => refuse(format!(
            "{}: is blank, but was a device of this cluster; bring its data back, or remove it",
            device.name()
        )),
        Found::Blank => {
            let label = Label {
                cluster: cluster.to_owned(),
                device: fresh.id.to_owned(),
                size: device.size() / UNIT * UNIT,
                unit: UNIT,
                region: regions::region(device.size(), fresh.region),
                checksums: fresh.checksums,
                maps: vec![sp.to_owned()],
                t1s: Vec::new(),
            };
            if label.data() >= label.size {
                let text = format!("{}: no room for checksums; 6 MiB at least", device.name());
                return Err(DeviceError::new(ErrorKind::Invalid, text));
            }
            // Somebody may have wiped another label's beginning only.
            for slot in 0..2 {
                device.write_durably((slot + 1) * SLOT - MAPS, &vec![0; MAPS as usize])?;
            }
            let slot = encode(1, &label)?;
            device.write_durably(0, &slot)?;
            Ok(label)
        }
    }
}

/// The label of a device, unless it is not the one expected. `known` is what this gave or wrote
/// last, and is kept up to date.
///
/// # Errors
/// The device's, or `Unsafe` when the label is not the one expected.
pub fn current(
    device: &mut dyn BlockingDevice,
    cluster: &str,
    device_id: &str,
    known: &mut Option<Known>,
) -> Result<Arc<Label>, DeviceError> {
    device.lock()?;
    let result = current_locked(device, cluster, device_id, known);
    device.unlock();
    result
}

fn current_locked(
    device: &mut dyn BlockingDevice,
    cluster: &str,
    device_id: &str,
    known: &mut Option<Known>,
) -> Result<Arc<Label>, DeviceError> {
    *known = newest(device, known.take())?;
    let Some(Known { label, .. }) = known else {
        let text = format!("{}: its label is gone", device.name());
        return Err(DeviceError::new(ErrorKind::Unsafe, text));
    };
    if label.cluster != cluster || label.device != device_id {
        let text = format!(
            "{}: now holds device {} of cluster {}",
            device.name(),
            label.device,
            label.cluster
        );
        return Err(DeviceError::new(ErrorKind::Unsafe, text));
    }
    Ok(Arc::clone(label))
}

/// Changes a label: read, `change`, write to the older slot, sync; under the device's lock.
/// Nothing is written when `change` fails or changes nothing.
///
/// # Errors
/// `change`'s, and those of `current`.
pub fn update<R>(
    device: &mut dyn BlockingDevice,
    cluster: &str,
    device_id: &str,
    known: &mut Option<Known>,
    change: impl FnOnce(&mut Label) -> Result<R, DeviceError>,
) -> Result<R, DeviceError> {
    device.lock()?;
    let result = update_locked(device, cluster, device_id, known, change);
    device.unlock();
    result
}

fn update_locked<R>(
    device: &mut dyn BlockingDevice,
    cluster: &str,
    device_id: &str,
    known: &mut Option<Known>,
    change: impl FnOnce(&mut Label) -> Result<R, DeviceError>,
) -> Result<R, DeviceError> {
    let before = current_locked(device, cluster, device_id, known)?;
    let mut label = (*before).clone();
    let result = change(&mut label)?;
    if label != *before
        && let Some(now) = known
    {
        let (index, sequence) = (1 - now.index, now.sequence + 1);
        let slot = encode(sequence, &label)?;
        device.write_durably(index * SLOT, &slot)?;
        let mut block = [0; 4096];
        block.copy_from_slice(&slot[..4096]);
        *now = Known { index, sequence, block, label: Arc::new(label) };
    }
    Ok(result)
}
