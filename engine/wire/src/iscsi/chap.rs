//! CHAP's values (RFC 1994; RFC 7143, 6.1 and 12.1.3): algorithms, responses, and binary values as
//! text.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use md5::Digest;
use subtle::ConstantTimeEq;

use super::access::Secret;

/// Most bytes of a challenge (RFC 7143, 12.1.3).
const MOST: usize = 1024;
/// Some initiators pad what they write in base64, some do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How a response is made of a challenge, by IANA's numbers of PPP's authentication algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    Md5 = 5,
    Sha1 = 6,
    Sha256 = 7,
    Sha3 = 8,
}

impl Algorithm {
    /// The first of a list, in which the initiator's dearest comes first, that is known here.
    #[must_use]
    pub fn first(list: &str) -> Option<Algorithm> {
        list.split(',').find_map(|one| match one.trim() {
            "5" => Some(Algorithm::Md5),
            "6" => Some(Algorithm::Sha1),
            "7" => Some(Algorithm::Sha256),
            "8" => Some(Algorithm::Sha3),
            _ => None,
        })
    }

    /// What somebody who has the secret answers to a challenge.
    #[must_use]
    pub fn response(self, id: u8, secret: &Secret, challenge: &[u8]) -> Vec<u8> {
        fn of<D: Digest>(id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
            let all = D::new().chain_update([id]).chain_update(secret).chain_update(challenge);
            all.finalize().to_vec()
        }
        let respond = match self {
            Algorithm::Md5 => of::<md5::Md5>,
            Algorithm::Sha1 => of::<sha1::Sha1>,
            Algorithm::Sha256 => of::<sha2::Sha256>,
            Algorithm::Sha3 => of::<sha3::Sha3_256>,
        };
        respond(id, secret.bytes(), challenge)
    }
}

/// Whether two are the same, in a time that does not tell where they differ.
#[must_use]
pub fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.ct_eq(other).into()
}

/// The bytes of a large binary value: digits after `0x`, or base64 after `0b`. None if it is
/// neither, empty, or of more than 1024 bytes.
#[must_use]
pub fn decode(value: &str) -> Option<Vec<u8>> {
    let (base, digits) = value.split_at_checked(2)?;
    let most = MOST * 2;
    if digits.is_empty() || digits.len() > most || !digits.is_ascii() {
        return None;
    }
    let bytes = match base {
        "0x" | "0X" => {
            let digits = digits.as_bytes();
            // Of an odd number of digits the first is a byte of its own.
            let (first, rest) = digits.split_at(digits.len() % 2);
            let of = |pair: &[u8]| {
                pair.iter().try_fold(0u8, |sum, digit| {
                    Some(sum << 4 | (*digit as char).to_digit(16)? as u8)
                })
            };
            let pairs = first.chunks(1).chain(rest.chunks(2));
            pairs.map(of).collect::<Option<Vec<u8>>>()?
        }
        "0b" | "0B" => BASE64.decode(digits).ok()?,
        _ => return None,
    };
    (1..=MOST).contains(&bytes.len()).then_some(bytes)
}

/// A large binary value as text.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold("0x".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
