//! Records and requests as bytes: on labels, and between SPs.

use super::change::{Outcome, Request, What};
use super::{Held, LONGEST, MOST, NEWS, News, Nexus, REMEMBERED, Record, Registration, Type};
use crate::scsi::sense::Sense;
use crate::{Take, WireError};

const FORM: u8 = 1;
const BAD: WireError = WireError::Malformed("malformed reservations");
/// Most bytes of parameters that a request brings.
const MOST_DATA: usize = 4096;

fn put_nexus(out: &mut Vec<u8>, nexus: &Nexus) {
    let name = crate::prefix(&nexus.initiator, LONGEST).as_bytes();
    out.push(name.len() as u8);
    out.extend_from_slice(name);
    out.extend_from_slice(&nexus.tag.to_le_bytes());
}

fn put_some(out: &mut Vec<u8>, nexus: Option<&Nexus>) {
    out.push(u8::from(nexus.is_some()));
    if let Some(nexus) = nexus {
        put_nexus(out, nexus);
    }
}

impl Take<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.bytes(1).map(|one| one[0])
    }

    fn flag(&mut self) -> Option<bool> {
        self.byte().filter(|flag| *flag < 2).map(|flag| flag == 1)
    }

    fn number(&mut self) -> Option<u128> {
        Some(u128::from(self.le64()?) | u128::from(self.le64()?) << 64)
    }

    fn nexus(&mut self) -> Option<Nexus> {
        let length = usize::from(self.byte()?);
        let initiator = String::from_utf8(self.bytes(length)?.to_vec()).ok()?;
        Some(Nexus { initiator, tag: self.le16()? })
    }

    fn some(&mut self) -> Option<Option<Nexus>> {
        if self.flag()? { self.nexus().map(Some) } else { Some(None) }
    }
}

impl Record {
    /// `told`: with its news, which labels do without.
    #[must_use]
    pub fn encode(&self, told: bool) -> Vec<u8> {
        let mut out = vec![FORM];
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.push(u8::from(self.aptpl));
        out.extend_from_slice(&(self.registrations.len() as u16).to_le_bytes());
        for Registration { nexus, key } in &self.registrations {
            put_nexus(&mut out, nexus);
            out.extend_from_slice(&key.to_le_bytes());
        }
        out.push(self.held.as_ref().map_or(0, |held| held.kind as u8));
        if let Some(held) = &self.held {
            put_nexus(&mut out, &held.nexus);
        }
        put_some(&mut out, self.reserved.as_ref());
        out.push(self.done.len() as u8);
        for id in &self.done {
            out.extend_from_slice(&id.to_le_bytes());
        }
        let news = if told { &self.news[..] } else { &[] };
        out.extend_from_slice(&(news.len() as u16).to_le_bytes());
        for News { version, code, aborts, to, by } in news {
            out.extend_from_slice(&version.to_le_bytes());
            out.extend_from_slice(&code.to_le_bytes());
            out.push(u8::from(*aborts));
            put_some(&mut out, to.as_ref());
            put_nexus(&mut out, by);
        }
        let sum = crc32c::crc32c(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// # Errors
    /// When it is damaged, of another form, or of more than there may be.
    pub fn decode(bytes: &[u8]) -> Result<Record, WireError> {
        let (body, sum) = bytes.split_last_chunk().ok_or(BAD)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*sum) {
            return Err(BAD);
        }
        let mut take = Take(body);
        let record = Record::fields(&mut take).ok_or(BAD)?;
        if take.0.is_empty() { Ok(record) } else { Err(BAD) }
    }

    fn fields(take: &mut Take<'_>) -> Option<Record> {
        if take.byte()? != FORM {
            return None;
        }
        let mut record = Record {
            epoch: take.le64()?,
            version: take.le64()?,
            generation: take.le32()?,
            aptpl: take.flag()?,
            ..Record::default()
        };
        let count = usize::from(take.le16()?);
        if count > MOST {
            return None;
        }
        for _ in 0..count {
            record.registrations.push(Registration { nexus: take.nexus()?, key: take.le64()? });
        }
        let kind = take.byte()?;
        if kind != 0 {
            record.held = Some(Held { kind: Type::of(kind)?, nexus: take.nexus()? });
        }
        record.reserved = take.some()?;
        let count = usize::from(take.byte()?);
        if count > REMEMBERED {
            return None;
        }
        for _ in 0..count {
            record.done.push(take.number()?);
        }
        let count = usize::from(take.le16()?);
        if count > NEWS {
            return None;
        }
        for _ in 0..count {
            record.news.push(News {
                version: take.le64()?,
                code: take.le16()?,
                aborts: take.flag()?,
                to: take.some()?,
                by: take.nexus()?,
            });
        }
        Some(record)
    }
}

impl Request {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.id.to_le_bytes().to_vec();
        put_nexus(&mut out, &self.from);
        match &self.what {
            What::Command { cdb, data } => {
                out.push(0);
                out.extend_from_slice(cdb);
                out.extend_from_slice(&data[..data.len().min(MOST_DATA)]);
            }
            What::Lost => out.push(1),
            What::Reset => out.push(2),
            What::Clear => out.push(3),
        }
        out
    }

    /// # Errors
    /// When it is none.
    pub fn decode(bytes: &[u8]) -> Result<Request, WireError> {
        let mut take = Take(bytes);
        let mut fields = || {
            let (id, from) = (take.number()?, take.nexus()?);
            let what = match take.byte()? {
                0 => {
                    let cdb = take.bytes(16)?.try_into().ok()?;
                    let data = std::mem::take(&mut take.0).to_vec();
                    What::Command { cdb, data }
                }
                1 => What::Lost,
                2 => What::Reset,
                3 => What::Clear,
                _ => return None,
            };
            take.0.is_empty().then_some(Request { id, from, what })
        };
        let request = fields().ok_or(BAD)?;
        let fits = !matches!(&request.what, What::Command { data, .. } if data.len() > MOST_DATA);
        if fits { Ok(request) } else { Err(BAD) }
    }
}

impl Outcome {
    #[must_use]
    pub fn encode(&self) -> [u8; 4] {
        match self {
            Outcome::Good => [0; 4],
            Outcome::Conflict => [1, 0, 0, 0],
            Outcome::Check(sense) => {
                let [high, low] = sense.code.to_be_bytes();
                [2, sense.key, high, low]
            }
        }
    }

    /// # Errors
    /// When it is none.
    pub fn decode(bytes: &[u8]) -> Result<Outcome, WireError> {
        match *bytes {
            [0, 0, 0, 0] => Ok(Outcome::Good),
            [1, 0, 0, 0] => Ok(Outcome::Conflict),
            [2, key, high, low] => {
                let code = u16::from_be_bytes([high, low]);
                Ok(Outcome::Check(Sense { key, code, information: None }))
            }
            _ => Err(BAD),
        }
    }
}
