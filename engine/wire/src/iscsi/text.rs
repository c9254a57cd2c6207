//! Keys and values of login and text requests (RFC 7143, 6.1).

use super::pdu::Broken;

/// Bytes of all the keys of one negotiation.
pub const MOST: usize = 64 << 10;
const KEY: usize = 63;

/// Keys and values in their order.
pub type Pairs = Vec<(String, String)>;

/// The pairs of a data segment.
///
/// # Errors
/// When it is no text, or a pair is no pair.
pub fn decode(data: &[u8]) -> Result<Pairs, Broken> {
    let text = std::str::from_utf8(data).map_err(|_| Broken::Protocol("text that is no UTF-8"))?;
    let pairs = text.split('\0').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').ok_or(Broken::Protocol("a key of no value"))?;
            if key.is_empty() || key.len() > KEY {
                return Err(Broken::Protocol("a key that is no name"));
            }
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Appends a pair.
pub fn put(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value.as_bytes());
    out.push(0);
}
