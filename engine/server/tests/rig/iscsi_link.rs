//! How initiators get in: PDUs one by one, logins with and without CHAP, discovery.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use vs_wire::iscsi::access::Secret;
use vs_wire::iscsi::chap::{self, Algorithm};
use vs_wire::iscsi::text;

use super::SOON;

pub const PREFIX: &str = "iqn.2026-11.io.vswitchd:";
/// The flags of a login's PDU: from security to security, to the full feature phase, and there from
/// the operational stage at once.
const STAY: u8 = 0x00;
const BEGIN: u8 = 0x83;
pub const AT_ONCE: u8 = 0x87;

pub type Header = [u8; 48];
type Pairs = Vec<(String, String)>;

/// A big-endian number.
pub fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

/// A connection to a portal.
pub struct Link {
    stream: TcpStream,
    /// The number of the next command.
    pub command: u32,
    /// Of its initiator's ports.
    pub port: u8,
}

impl Link {
    pub fn connect(address: &str) -> Link {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(SOON)).expect("a time-out");
        Link { stream, command: 1, port: 1 }
    }

    /// Sends a PDU; false if the connection has ended.
    pub fn send(&mut self, header: &mut Header, data: &[u8]) -> bool {
        header[4..8].copy_from_slice(&(data.len() as u32).to_be_bytes());
        header[24..28].copy_from_slice(&self.command.to_be_bytes());
        let mut all = header.to_vec();
        all.extend_from_slice(data);
        all.resize(all.len().next_multiple_of(4), 0);
        self.stream.write_all(&all).is_ok()
    }

    fn fill(&mut self, room: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(room) {
            Ok(()) => Some(()),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing was heard in {SOON:?}")
            }
            Err(_) => None,
        }
    }

    /// The next PDU; None when the connection has ended.
    pub fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut header = [0; 48];
        self.fill(&mut header)?;
        let length = number(&header[5..8]) as usize;
        let mut data = vec![0; length.next_multiple_of(4)];
        self.fill(&mut data)?;
        data.truncate(length);
        Some((header, data))
    }

    /// Sends a login's PDU.
    pub fn put(&mut self, flags: u8, pairs: &[(&str, &str)]) {
        let mut data = Vec::new();
        for (key, value) in pairs {
            text::put(&mut data, key, value);
        }
        let mut header = [0; 48];
        (header[0], header[1]) = (0x43, flags);
        (header[8], header[11]) = (0x80, self.port);
        assert!(self.send(&mut header, &data), "it is sent");
    }

    /// One exchange of a login: its status, and what was answered.
    pub fn say(&mut self, flags: u8, pairs: &[(&str, &str)]) -> (u16, Pairs) {
        self.put(flags, pairs);
        let (header, data) = self.receive().expect("an answer");
        (number(&header[36..38]) as u16, text::decode(&data).expect("text"))
    }

    /// Begins a login at the target of "vol", which has its security still before it.
    pub fn begin(&mut self, name: &str) {
        let target = format!("{PREFIX}vol");
        assert_eq!(self.say(STAY, &[("InitiatorName", name), ("TargetName", &target)]).0, 0);
    }

    /// Logs in at the target of "vol"; the status. With a secret by CHAP, as "host".
    pub fn login(&mut self, name: &str, secret: Option<&str>) -> u16 {
        let target = format!("{PREFIX}vol");
        let who = [("InitiatorName", name), ("TargetName", &target)];
        let Some(secret) = secret else { return self.say(AT_ONCE, &who).0 };
        let (status, _) = self.say(STAY, &[who[0], who[1], ("AuthMethod", "CHAP")]);
        if status != 0 {
            return status;
        }
        let (_, told) = self.say(STAY, &[("CHAP_A", "7")]);
        let value = |key: &str| &told.iter().find(|pair| pair.0 == key).expect(key).1;
        let challenge = chap::decode(value("CHAP_C")).expect("a challenge");
        let id = value("CHAP_I").parse().expect("a number");
        let secret = Secret::new(secret.as_bytes()).expect("a secret");
        let response = chap::encode(&Algorithm::Sha256.response(id, &secret, &challenge));
        self.say(BEGIN, &[("CHAP_N", "host"), ("CHAP_R", &response)]).0
    }

    /// What is asked at once, outside the order of commands, and of no unit.
    fn immediate(opcode: u8, task: u8) -> Header {
        let mut header = [0; 48];
        (header[0], header[1], header[19]) = (opcode | 0x40, 0x80, task);
        header[20..24].fill(0xff);
        header
    }

    /// True if the session still answers.
    pub fn is_heard(&mut self) -> bool {
        self.send(&mut Link::immediate(0x00, 77), &[]) && self.receive().is_some()
    }

    /// The targets that it is told of in a session of its own.
    pub fn discover(&mut self, name: &str) -> Pairs {
        let who = [("InitiatorName", name), ("SessionType", "Discovery")];
        assert_eq!(self.say(AT_ONCE, &who).0, 0);
        let mut ask = Vec::new();
        text::put(&mut ask, "SendTargets", "All");
        assert!(self.send(&mut Link::immediate(0x04, 2), &ask), "it is sent");
        text::decode(&self.receive().expect("an answer").1).expect("text")
    }
}
