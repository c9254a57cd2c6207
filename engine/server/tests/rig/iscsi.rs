//! An initiator for tests: one command at a time, its data with it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU8, Ordering};

use vs_wire::iscsi::pdu::{Digests, Frame, Header, emit, frame};
use vs_wire::iscsi::{opcode, text};

use super::{SOON, Sp};

/// A session's own part of its identity.
static QUALIFIER: AtomicU8 = AtomicU8::new(1);

/// How a command has failed: its sense key, its additional code, its information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense(pub u8, pub u16, pub u32);

pub struct Iscsi {
    stream: TcpStream,
    input: Vec<u8>,
    task: u32,
}

impl Iscsi {
    /// A session with the volume's target. Its first command has taken the unit attention.
    pub fn connect(address: &str, volume: &str) -> Iscsi {
        let stream = TcpStream::connect(address).expect("a portal");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(SOON)).expect("a socket");
        let mut host = Iscsi { stream, input: Vec::new(), task: 0 };
        let target = format!("iqn.2026-11.io.vswitchd:{volume}");
        let mut keys = Vec::new();
        for (key, value) in [
            ("InitiatorName", "iqn.2026-11.test:host"),
            ("TargetName", target.as_str()),
            ("SessionType", "Normal"),
            ("MaxRecvDataSegmentLength", "262144"),
            ("ImmediateData", "Yes"),
            ("FirstBurstLength", "131072"),
        ] {
            text::put(&mut keys, key, value);
        }
        let mut header = Header::new(opcode::LOGIN | 0x40, 0x07, 0);
        header.0[8] = 0x80;
        header.0[11] = QUALIFIER.fetch_add(1, Ordering::Relaxed);
        header.put(24, 1);
        host.send(&header, &keys);
        let (answer, _) = host.receive();
        assert_eq!(answer.0[36..38], [0, 0], "the login");
        let _ = host.run(&[0; 16], 0, &[]);
        host
    }

    fn send(&mut self, header: &Header, data: &[u8]) {
        let mut out = Vec::new();
        emit(&mut out, header, data, Digests::default());
        self.stream.write_all(&out).expect("a target");
    }

    fn receive(&mut self) -> (Header, Vec<u8>) {
        loop {
            let found = frame(&self.input, Digests::default(), 1 << 24).expect("a PDU");
            if let Some(Frame { header, data, length, .. }) = found {
                let data = self.input[data].to_vec();
                self.input.drain(..length);
                return (header, data);
            }
            let mut bytes = [0; 65_536];
            let count = self.stream.read(&mut bytes).expect("an answer");
            assert!(count > 0, "the target closed the connection");
            self.input.extend_from_slice(&bytes[..count]);
        }
    }

    /// A command that gives `expected` bytes, or brings `data`.
    pub fn run(&mut self, cdb: &[u8; 16], expected: u32, data: &[u8]) -> Result<Vec<u8>, Sense> {
        self.task += 1;
        let flags = if data.is_empty() { 0x40 } else { 0x20 };
        let mut header = Header::new(opcode::COMMAND, flags, self.task);
        header.put_lun(1 << 48);
        header.put(20, if data.is_empty() { expected } else { data.len() as u32 });
        header.put(24, self.task);
        header.0[32..48].copy_from_slice(cdb);
        self.send(&header, data);
        let mut given = Vec::new();
        loop {
            let (answer, data) = self.receive();
            match answer.opcode() {
                opcode::DATA_IN => {
                    given.extend_from_slice(&data);
                    if answer.0[1] & 1 != 0 {
                        return Ok(given);
                    }
                }
                opcode::RESPONSE if answer.0[3] == 0 => return Ok(given),
                opcode::RESPONSE => {
                    let sense = &data[2..];
                    let code = u16::from_be_bytes([sense[12], sense[13]]);
                    let told = [sense[3], sense[4], sense[5], sense[6]];
                    return Err(Sense(sense[2], code, u32::from_be_bytes(told)));
                }
                _ => {}
            }
        }
    }

    pub fn read(&mut self, lba: u64, blocks: u32) -> Result<Vec<u8>, Sense> {
        self.run(&long(0x88, lba, blocks), blocks * 512, &[])
    }

    pub fn write(&mut self, lba: u64, data: &[u8]) -> Result<(), Sense> {
        self.run(&long(0x8a, lba, data.len() as u32 / 512), 0, data).map(drop)
    }

    pub fn or(&mut self, lba: u64, data: &[u8]) -> Result<(), Sense> {
        self.run(&long(0x8b, lba, data.len() as u32 / 512), 0, data).map(drop)
    }

    /// COMPARE AND WRITE of one block.
    pub fn swap(&mut self, lba: u64, found: &[u8], new: &[u8], fua: bool) -> Result<(), Sense> {
        let mut cdb = long(0x89, lba, 0);
        cdb[1] = if fua { 0x08 } else { 0 };
        cdb[13] = 1;
        self.run(&cdb, 0, &[found, new].concat()).map(drop)
    }
}

/// A CDB of 16 bytes.
pub fn long(code: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = code;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

impl Sp {
    /// Serves iSCSI, too; where.
    pub fn iscsi(&self) -> String {
        self.engine.listen_iscsi("127.0.0.1:0").expect("a portal")
    }
}
