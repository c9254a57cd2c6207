//! A page of checksums as it is on the device.
//!
//! magic, crc32c u32 of all that follows it, state u32, region u64, 8 bytes of nothing, the device's
//! id cut off after 64 bytes, and at the page's end a u32 for each block; all little-endian. The
//! crc, the region and the id tell a page that is not whole, or was never this region's, so what
//! stands there before the first need not be overwritten.

use super::{BLOCKS, PAGE};

const MAGIC: &[u8; 8] = b"VSSUMS01";
const CRC: usize = 8;
const STATE: usize = 12;
const INDEX: usize = 16;
const ID: usize = 32;
const ID_END: usize = 96;
const SUMS: usize = PAGE as usize - BLOCKS * 4;

pub type Bytes = [u8; PAGE as usize];

/// A device's id, as its pages have it.
pub type Id = [u8; ID_END - ID];

/// What a page says of its sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Closed = 1,
    Open = 2,
}

pub fn id(text: &str) -> Id {
    let mut id = [0; ID_END - ID];
    let length = text.len().min(id.len());
    id[..length].copy_from_slice(&text.as_bytes()[..length]);
    id
}

pub fn encode(id: &Id, index: usize, state: State, sums: impl Iterator<Item = u32>) -> Bytes {
    let mut page = [0; PAGE as usize];
    page[..CRC].copy_from_slice(MAGIC);
    page[STATE..INDEX].copy_from_slice(&(state as u32).to_le_bytes());
    page[INDEX..INDEX + 8].copy_from_slice(&(index as u64).to_le_bytes());
    page[ID..ID_END].copy_from_slice(id);
    let (places, _) = page[SUMS..].as_chunks_mut::<4>();
    for (place, sum) in places.iter_mut().zip(sums) {
        *place = sum.to_le_bytes();
    }
    let crc = crc32c::crc32c(&page[STATE..]);
    page[CRC..STATE].copy_from_slice(&crc.to_le_bytes());
    page
}

/// The state that a page is in; None if it is none of this region's.
pub fn state(id: &Id, index: usize, page: &Bytes) -> Option<State> {
    let number =
        |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
    let mine = page[..CRC] == *MAGIC
        && number(CRC) == crc32c::crc32c(&page[STATE..])
        && page[INDEX..INDEX + 8] == (index as u64).to_le_bytes()
        && page[ID..ID_END] == *id;
    match number(STATE) {
        1 if mine => Some(State::Closed),
        2 if mine => Some(State::Open),
        _ => None,
    }
}

/// The sums of a page, in order.
pub fn sums(page: &Bytes) -> impl Iterator<Item = u32> {
    let (sums, _) = page[SUMS..].as_chunks::<4>();
    sums.iter().map(|sum| u32::from_le_bytes(*sum))
}
