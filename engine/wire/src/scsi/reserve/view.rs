//! How an SP that serves a volume asks its owner for the reservations, and tells it where it
//! serves.

use super::Record;
use crate::{Take, WireError};

const BAD: WireError = WireError::Malformed("a malformed view of reservations");
/// Most portals that are told of.
const MOST: usize = 1024;

/// An SP's portal group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Portal {
    pub tag: u16,
    /// `host:port`; empty: not known.
    pub address: String,
    /// The owner's.
    pub is_best: bool,
}

/// The question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub sp: String,
    /// Where it serves iSCSI, if it does.
    pub portal: Option<Portal>,
    /// The record that it goes by, with which all that it began under an older one has ended. The
    /// answer may wait until there is another.
    pub has: Option<(u64, u64)>,
    /// It goes by none any more.
    pub ends: bool,
}

/// The answer: it holds from when it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub record: Record,
    pub portals: Vec<Portal>,
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = crate::prefix(text, 255).as_bytes();
    out.push(text.len() as u8);
    out.extend_from_slice(text);
}

fn text(take: &mut Take<'_>) -> Option<String> {
    let length = usize::from(take.bytes(1)?[0]);
    String::from_utf8(take.bytes(length)?.to_vec()).ok()
}

impl Portal {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.tag.to_le_bytes());
        out.push(u8::from(self.is_best));
        put_text(out, &self.address);
    }

    fn take(take: &mut Take<'_>) -> Option<Portal> {
        let tag = take.le16()?;
        let is_best = take.bytes(1)?[0] == 1;
        Some(Portal { tag, is_best, address: text(take)? })
    }
}

impl Look {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let flags = u8::from(self.portal.is_some())
            | u8::from(self.has.is_some()) << 1
            | u8::from(self.ends) << 2;
        out.push(flags);
        put_text(&mut out, &self.sp);
        if let Some(portal) = &self.portal {
            portal.put(&mut out);
        }
        if let Some((epoch, version)) = self.has {
            out.extend_from_slice(&epoch.to_le_bytes());
            out.extend_from_slice(&version.to_le_bytes());
        }
        out
    }

    /// # Errors
    /// When it is none.
    pub fn decode(bytes: &[u8]) -> Result<Look, WireError> {
        let mut take = Take(bytes);
        let mut fields = || {
            let flags = take.bytes(1)?[0];
            let sp = text(&mut take)?;
            let portal = if flags & 1 != 0 { Some(Portal::take(&mut take)?) } else { None };
            let has = if flags & 2 != 0 { Some((take.le64()?, take.le64()?)) } else { None };
            let sound = flags < 8 && take.0.is_empty();
            sound.then_some(Look { sp, portal, has, ends: flags & 4 != 0 })
        };
        fields().ok_or(BAD)
    }
}

impl Shown {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = (self.portals.len() as u16).to_le_bytes().to_vec();
        for portal in &self.portals {
            portal.put(&mut out);
        }
        out.extend_from_slice(&self.record.encode(true));
        out
    }

    /// # Errors
    /// When it is none.
    pub fn decode(bytes: &[u8]) -> Result<Shown, WireError> {
        let mut take = Take(bytes);
        let count = usize::from(take.le16().ok_or(BAD)?);
        if count > MOST {
            return Err(BAD);
        }
        let portals = (0..count).map(|_| Portal::take(&mut take)).collect::<Option<Vec<_>>>();
        let portals = portals.ok_or(BAD)?;
        Ok(Shown { record: Record::decode(take.0)?, portals })
    }
}
