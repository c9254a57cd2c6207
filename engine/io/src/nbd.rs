//! An NBD server as a blocking device: for labels and zeroing, never for hosts' I/O.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vs_wire::nbd::client::{Export, Handshake, Outcome, decode_reply};
use vs_wire::nbd::transmission::{Request, encode_request};
use vs_wire::nbd::uri::{Address, NbdUri};
use vs_wire::nbd::{command, flag};

use crate::device::{BlockingDevice, LABEL_AREA, UNIT};
use crate::error::{DeviceError, ErrorKind};

/// Longest wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Bytes in one request.
const CHUNK: usize = 1 << 20;

trait Stream: Read + Write + Send {}
impl Stream for TcpStream {}
impl Stream for UnixStream {}

/// A connection with one request at a time.
pub struct NbdBlocking {
    name: String,
    stream: Box<dyn Stream>,
    export: Export,
    cookie: u64,
}

impl NbdBlocking {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// When the server can't be reached, refuses, or exports too little.
    pub fn connect(name: &str, uri: &NbdUri) -> Result<NbdBlocking, DeviceError> {
        let os = |e: std::io::Error| DeviceError::os("connect", name, &e);
        let mut stream: Box<dyn Stream> = match &uri.address {
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).map_err(os)?;
                stream.set_nodelay(true).map_err(os)?;
                stream.set_read_timeout(Some(TIMEOUT)).map_err(os)?;
                stream.set_write_timeout(Some(TIMEOUT)).map_err(os)?;
                Box::new(stream)
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(os)?;
                stream.set_read_timeout(Some(TIMEOUT)).map_err(os)?;
                stream.set_write_timeout(Some(TIMEOUT)).map_err(os)?;
                Box::new(stream)
            }
        };
        let refused = |text: String| DeviceError::new(ErrorKind::Io, format!("{name}: {text}"));
        let mut handshake = Handshake::new(&uri.export);
        let (mut have, mut out) = (Vec::new(), Vec::new());
        let export = loop {
            let (used, outcome) =
                handshake.feed(&have, &mut out).map_err(|e| refused(e.to_string()))?;
            have.drain(..used);
            if let Outcome::Done(export) = outcome {
                break export;
            }
            stream.write_all(&out).map_err(os)?;
            out.clear();
            if used == 0 {
                let mut buffer = [0; 4096];
                let count = stream.read(&mut buffer).map_err(os)?;
                if count == 0 {
                    return Err(refused("the server closed the connection".into()));
                }
                have.extend_from_slice(&buffer[..count]);
            }
        };
        if export.flags & flag::READ_ONLY != 0 {
            return Err(DeviceError::new(
                ErrorKind::ReadOnly,
                format!("{name}: exported read-only"),
            ));
        }
        if export.flags & flag::SEND_WRITE_ZEROES == 0 {
            return Err(DeviceError::new(
                ErrorKind::Invalid,
                format!("{name}: the server can't write zeroes, which mirrors need"),
            ));
        }
        if export.size < LABEL_AREA + UNIT || export.min_block > 1 {
            let text = format!("{name}: a device needs 5 MiB, and a minimum block size of 1");
            return Err(DeviceError::new(ErrorKind::Invalid, text));
        }
        Ok(NbdBlocking { name: name.to_owned(), stream, export, cookie: 0 })
    }

    fn call(
        &mut self,
        command: u16,
        offset: u64,
        data: &[u8],
        into: &mut [u8],
        length: u64,
    ) -> Result<(), DeviceError> {
        self.cookie += 1;
        let mut out = Vec::with_capacity(28 + data.len());
        let request = Request { flags: 0, command, cookie: self.cookie, offset, length };
        encode_request(&request, false, &mut out);
        out.extend_from_slice(data);
        let name = self.name.clone();
        let os = |e: std::io::Error| DeviceError::os("talk to the server", &name, &e);
        self.stream.write_all(&out).map_err(os)?;
        let mut header = [0; 16];
        self.stream.read_exact(&mut header).map_err(os)?;
        let bad = |text: String| DeviceError::new(ErrorKind::Io, format!("{name}: {text}"));
        match decode_reply(&header).map_err(|e| bad(e.to_string()))? {
            Some((0, cookie)) if cookie == self.cookie => self.stream.read_exact(into).map_err(os),
            Some((28, _)) => Err(DeviceError::new(ErrorKind::NoSpace, format!("{name}: full"))),
            Some((error, _)) => Err(bad(format!("the server answered error {error}"))),
            None => Err(bad("short reply".into())),
        }
    }
}

impl BlockingDevice for NbdBlocking {
    fn name(&self) -> &str {
        &self.name
    }

    fn size(&self) -> u64 {
        self.export.size
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), DeviceError> {
        for (index, part) in buffer.chunks_mut(CHUNK).enumerate() {
            let at = offset + (index * CHUNK) as u64;
            let length = part.len() as u64;
            self.call(command::READ, at, &[], part, length)?;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        for (index, part) in data.chunks(CHUNK).enumerate() {
            let at = offset + (index * CHUNK) as u64;
            self.call(command::WRITE, at, part, &mut [], part.len() as u64)?;
        }
        Ok(())
    }

    fn write_durably(&mut self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.write_at(offset, data)?;
        self.sync()
    }

    fn sync(&mut self) -> Result<(), DeviceError> {
        if self.export.flags & flag::SEND_FLUSH == 0 {
            return Ok(());
        }
        self.call(command::FLUSH, 0, &[], &mut [], 0)
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<(), DeviceError> {
        const STEP: u64 = 16 << 20;
        let mut at = 0;
        while at < length {
            let take = STEP.min(length - at);
            self.call(command::WRITE_ZEROES, offset + at, &[], &mut [], take)?;
            at += take;
        }
        Ok(())
    }

    fn forget_cache(&mut self, _offset: u64, _length: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    /// NBD has no locks; the controller gives one SP at a time leave to change a label.
    fn lock(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn unlock(&mut self) {}
}

impl Drop for NbdBlocking {
    fn drop(&mut self) {
        let mut out = Vec::new();
        let request = Request { flags: 0, command: command::DISC, cookie: 0, offset: 0, length: 0 };
        encode_request(&request, false, &mut out);
        // The server may be gone already, which is all that DISC would ask for.
        let _ = self.stream.write_all(&out);
    }
}
