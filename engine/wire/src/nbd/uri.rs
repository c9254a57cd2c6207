//! NBD URIs of devices: `nbd://host:port/export`, `nbd+unix:///export?socket=/path`.

use crate::WireError;

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
            return Ok(NbdUri { address: Address::Unix(decode(socket)?), export: decode(export)? });
        }
        let rest = text
            .strip_prefix("nbd://")
            .ok_or(WireError::Malformed("an NBD URI begins with nbd:// or nbd+unix:///"))?;
        let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() || host.starts_with(':') {
            return Err(WireError::Malformed("nbd:// needs a host"));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let host = if has_port { host.to_owned() } else { format!("{host}:10809") };
        Ok(NbdUri { address: Address::Tcp(host), export: decode(export)? })
    }
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
        let hex = [bytes.next().ok_or(BAD)?, bytes.next().ok_or(BAD)?];
        let hex = std::str::from_utf8(&hex).map_err(|_| BAD)?;
        out.push(u8::from_str_radix(hex, 16).map_err(|_| BAD)?);
    }
    String::from_utf8(out).map_err(|_| BAD)
}
