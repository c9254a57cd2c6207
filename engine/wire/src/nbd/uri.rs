//! NBD URIs of devices: `nbd://host:port/export`, `nbd+unix:///export?socket=/path`.

use crate::WireError;

const DEFAULT_PORT: u16 = 10809;
/// Longest export name that the protocol allows, in bytes.
const MAX_NAME: usize = 4096;

/// Where an NBD server listens, and the export wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    pub address: Address,
    pub export: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// host:port
    Tcp(String),
    Unix(String),
}

impl NbdUri {
    /// Parses a URI.
    ///
    /// # Errors
    /// `Malformed` says which part is missing.
    pub fn parse(text: &str) -> Result<NbdUri, WireError> {
        if let Some(rest) = text.strip_prefix("nbd+unix:///") {
            let (export, query) = rest.split_once('?').unwrap_or((rest, ""));
            let socket = query
                .split('&')
                .find_map(|pair| pair.strip_prefix("socket="))
                .filter(|path| path.starts_with('/'))
                .ok_or(WireError::Malformed("nbd+unix needs ?socket=/path"))?;
            return Ok(NbdUri { address: Address::Unix(decode(socket)?), export: name(export)? });
        }
        let rest = text
            .strip_prefix("nbd://")
            .ok_or(WireError::Malformed("an NBD URI begins with nbd:// or nbd+unix:///"))?;
        if rest.contains(['?', '#']) {
            return Err(WireError::Malformed("nbd:// takes no ?query or #fragment"));
        }
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        // In brackets stands an IPv6 address with colons of its own.
        let bare = host.rsplit_once(']').map_or(host, |(_, after)| after);
        let address = match bare.rsplit_once(':') {
            Some((_, port)) if port.parse::<u16>().is_ok_and(|port| port > 0) => host.to_owned(),
            Some(_) => return Err(WireError::Malformed("nbd:// needs a port from 1 to 65535")),
            None => format!("{host}:{DEFAULT_PORT}"),
        };
        if host.is_empty() || host.starts_with(':') {
            return Err(WireError::Malformed("nbd:// needs a host"));
        }
        Ok(NbdUri { address: Address::Tcp(address), export: name(export)? })
    }
}

fn name(text: &str) -> Result<String, WireError> {
    let name = decode(text)?;
    if name.len() > MAX_NAME {
        return Err(WireError::Malformed("an export's name has at most 4096 bytes"));
    }
    Ok(name)
}

fn decode(text: &str) -> Result<String, WireError> {
    const BAD: WireError = WireError::Malformed("bad % escape in the URI");
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = digit().zip(digit()).ok_or(BAD)?;
        out.push((high * 16 + low) as u8);
    }
    String::from_utf8(out).map_err(|_| BAD)
}
