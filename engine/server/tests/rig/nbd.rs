//! A plain NBD client: blocking, one connection, written from the protocol's document and
//! not with the engine's own codec.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use super::SOON;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const CACHE: u16 = 5;
pub const ZEROES: u16 = 6;
pub const STATUS: u16 = 7;
pub const FUA: u16 = 1;
pub const REQ_ONE: u16 = 8;
pub const FAST_ZERO: u16 = 16;

pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub fn connect(address: &str) -> Socket {
        match address.strip_prefix("unix:") {
            Some(path) => {
                let socket = UnixStream::connect(path).expect("a connection");
                socket.set_read_timeout(Some(SOON)).expect("a timeout");
                Socket::Unix(socket)
            }
            None => {
                let socket = TcpStream::connect(address).expect("a connection");
                socket.set_nodelay(true).expect("nodelay");
                socket.set_read_timeout(Some(SOON)).expect("a timeout");
                Socket::Tcp(socket)
            }
        }
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => socket.write_all(bytes),
            Socket::Unix(socket) => socket.write_all(bytes),
        }
    }

    pub fn receive(&mut self, into: &mut [u8]) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => socket.read_exact(into),
            Socket::Unix(socket) => socket.read_exact(into),
        }
    }

    pub fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.receive(&mut bytes).expect("bytes");
        bytes
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes[at..at + 2].try_into().expect("2 bytes"))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// An option's replies up to the last one: (kind, payload).
type Replies = Vec<(u32, Vec<u8>)>;

pub struct Nbd {
    pub socket: Socket,
    pub size: u64,
    pub flags: u16,
    structured: bool,
    cookie: u64,
}

/// A request's answer: data of a read, extents of each context, or an error number.
pub type Answer<T> = Result<T, u32>;

impl Nbd {
    pub fn connect(address: &str, export: &str) -> Nbd {
        let mut nbd = Nbd::greeted(address);
        nbd.go(export).expect("the export");
        nbd
    }

    /// With structured replies and both meta contexts.
    pub fn structured(address: &str, export: &str) -> Nbd {
        let mut nbd = Nbd::greeted(address);
        let replies = nbd.option(8, &[]);
        assert_eq!(replies[0].0, 1, "structured replies");
        nbd.structured = true;
        let mut wanted = (export.len() as u32).to_be_bytes().to_vec();
        wanted.extend_from_slice(export.as_bytes());
        wanted.extend_from_slice(&2u32.to_be_bytes());
        for context in ["base:allocation", "vswitch:health"] {
            wanted.extend_from_slice(&(context.len() as u32).to_be_bytes());
            wanted.extend_from_slice(context.as_bytes());
        }
        let replies = nbd.option(10, &wanted);
        assert_eq!(replies.iter().filter(|reply| reply.0 == 4).count(), 2, "both contexts");
        nbd.go(export).expect("the export");
        nbd
    }

    /// Up to where options may be sent.
    pub fn greeted(address: &str) -> Nbd {
        let mut socket = Socket::connect(address);
        let greeting = socket.take(18);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        socket.send(&3u32.to_be_bytes()).expect("flags");
        Nbd { socket, size: 0, flags: 0, structured: false, cookie: 0 }
    }

    pub fn option(&mut self, kind: u32, payload: &[u8]) -> Replies {
        let mut out = b"IHAVEOPT".to_vec();
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        out.extend_from_slice(payload);
        self.socket.send(&out).expect("an option");
        let mut replies = Vec::new();
        loop {
            let header = self.socket.take(20);
            assert_eq!(be64(&header, 0), 0x0003_e889_0455_65a9);
            assert_eq!(be32(&header, 8), kind);
            let reply = be32(&header, 12);
            let data = self.socket.take(be32(&header, 16) as usize);
            let last = reply == 1 || reply & (1 << 31) != 0;
            replies.push((reply, data));
            if last {
                return replies;
            }
        }
    }

    /// Opens the export, or gives the option's error.
    pub fn go(&mut self, export: &str) -> Result<(), u32> {
        let mut payload = (export.len() as u32).to_be_bytes().to_vec();
        payload.extend_from_slice(export.as_bytes());
        payload.extend_from_slice(&0u16.to_be_bytes());
        for (kind, data) in self.option(7, &payload) {
            if kind == 3 && be16(&data, 0) == 0 {
                self.size = be64(&data, 2);
                self.flags = be16(&data, 10);
            }
            if kind & (1 << 31) != 0 {
                return Err(kind);
            }
        }
        Ok(())
    }

    /// Sends a request without waiting; gives its cookie.
    pub fn send(&mut self, command: u16, flags: u16, offset: u64, length: u64, data: &[u8]) -> u64 {
        self.try_send(command, flags, offset, length, data).expect("a request")
    }

    pub fn try_send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
        data: &[u8],
    ) -> io::Result<u64> {
        self.cookie += 1;
        let mut out = 0x2560_9513u32.to_be_bytes().to_vec();
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&command.to_be_bytes());
        out.extend_from_slice(&self.cookie.to_be_bytes());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&(length as u32).to_be_bytes());
        out.extend_from_slice(data);
        self.socket.send(&out)?;
        Ok(self.cookie)
    }

    /// The next simple reply's (cookie, error); data of a read has to be taken by the caller.
    pub fn reply(&mut self) -> io::Result<(u64, u32)> {
        let mut header = [0; 16];
        self.socket.receive(&mut header)?;
        assert_eq!(be32(&header, 0), 0x6744_6698, "a simple reply");
        Ok((be64(&header, 8), be32(&header, 4)))
    }

    fn call(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u64,
        data: &[u8],
    ) -> Answer<()> {
        let cookie = self.send(command, flags, offset, length, data);
        if self.structured {
            return self.chunks(cookie).map(|_| ());
        }
        let (answered, error) = self.reply().expect("a reply");
        assert_eq!(answered, cookie);
        if error == 0 { Ok(()) } else { Err(error) }
    }

    pub fn read(&mut self, offset: u64, length: usize) -> Answer<Vec<u8>> {
        if self.structured {
            let cookie = self.send(READ, 0, offset, length as u64, &[]);
            return self.chunks(cookie).map(|chunks| chunks[0].1[8..].to_vec());
        }
        self.call(READ, 0, offset, length as u64, &[])?;
        Ok(self.socket.take(length))
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Answer<()> {
        self.call(WRITE, 0, offset, data.len() as u64, data)
    }

    pub fn write_fua(&mut self, offset: u64, data: &[u8]) -> Answer<()> {
        self.call(WRITE, FUA, offset, data.len() as u64, data)
    }

    pub fn flush(&mut self) -> Answer<()> {
        self.call(FLUSH, 0, 0, 0, &[])
    }

    pub fn trim(&mut self, offset: u64, length: u64) -> Answer<()> {
        self.call(TRIM, 0, offset, length, &[])
    }

    pub fn cache(&mut self, offset: u64, length: u64) -> Answer<()> {
        self.call(CACHE, 0, offset, length, &[])
    }

    pub fn zero(&mut self, flags: u16, offset: u64, length: u64) -> Answer<()> {
        self.call(ZEROES, flags, offset, length, &[])
    }

    /// Extents of `base:allocation` and of `vswitch:health`: (length, flags).
    #[allow(clippy::type_complexity)]
    pub fn status(
        &mut self,
        flags: u16,
        offset: u64,
        length: u64,
    ) -> Answer<(Vec<(u32, u32)>, Vec<(u32, u32)>)> {
        let cookie = self.send(STATUS, flags, offset, length, &[]);
        let mut found = (Vec::new(), Vec::new());
        for (kind, data) in self.chunks(cookie)? {
            assert_eq!(kind, 5, "a block status chunk");
            let words = |at: usize| (be32(&data, at), be32(&data, at + 4));
            let extents = (0..(data.len() - 4) / 8).map(|n| words(4 + 8 * n)).collect();
            match be32(&data, 0) {
                1 => found.0 = extents,
                _ => found.1 = extents,
            }
        }
        Ok(found)
    }

    /// All chunks of one structured answer, or its error. A simple reply counts as none.
    fn chunks(&mut self, cookie: u64) -> Answer<Vec<(u16, Vec<u8>)>> {
        let mut chunks = Vec::new();
        loop {
            let magic = self.socket.take(4);
            if be32(&magic, 0) == 0x6744_6698 {
                let rest = self.socket.take(12);
                assert_eq!(be64(&rest, 4), cookie);
                return if be32(&rest, 0) == 0 { Ok(chunks) } else { Err(be32(&rest, 0)) };
            }
            assert_eq!(be32(&magic, 0), 0x668e_33ef, "a structured reply");
            let rest = self.socket.take(16);
            assert_eq!(be64(&rest, 4), cookie);
            let (done, kind) = (be16(&rest, 0) & 1 != 0, be16(&rest, 2));
            let data = self.socket.take(be32(&rest, 12) as usize);
            if kind & (1 << 15) != 0 {
                return Err(be32(&data, 0));
            }
            if kind != 0 {
                chunks.push((kind, data));
            }
            if done {
                return Ok(chunks);
            }
        }
    }

    /// True if the server has closed the connection, with nothing more to say.
    pub fn is_closed(&mut self) -> bool {
        self.socket.receive(&mut [0]).is_err_and(|e| e.kind() == io::ErrorKind::UnexpectedEof)
    }
}
