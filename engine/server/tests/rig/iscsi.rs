//! A small iSCSI initiator: one command at a time, or several sent ahead.

use std::sync::atomic::{AtomicU8, Ordering};

use super::Sp;
use super::iscsi_link::{AT_ONCE, Header, Link, PREFIX, number};

const GOOD: u8 = 0;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Good(Vec<u8>),
    /// Sense key, additional code.
    Check(u8, u16),
    /// Another status.
    Status(u8),
}

pub const CONFLICT: Ended = Ended::Status(0x18);

impl Ended {
    pub fn data(self) -> Vec<u8> {
        match self {
            Ended::Good(data) => data,
            other => panic!("{other:?}"),
        }
    }
}

pub struct Initiator {
    link: Link,
    task: u32,
    /// Of the last sense.
    information: u32,
    /// It says that it is there when it is asked.
    pub answers: bool,
    /// What it was asked and has not answered.
    asked: Vec<Header>,
}

impl Initiator {
    /// Logs in at the target of "vol" as the initiator of that name.
    pub fn login(address: &str, name: &str) -> Initiator {
        Initiator::to(address, "vol", name, 1)
    }

    /// Logs in at a volume's target, as a port of that initiator.
    fn to(address: &str, volume: &str, name: &str, port: u8) -> Initiator {
        let mut link = Link::connect(address);
        link.port = port;
        let keys = [
            ("InitiatorName", &*format!("iqn.2026-11.test:{name}")),
            ("TargetName", &*format!("{PREFIX}{volume}")),
            ("SessionType", "Normal"),
            ("InitialR2T", "Yes"),
            ("ImmediateData", "Yes"),
            ("FirstBurstLength", "131072"),
            ("MaxRecvDataSegmentLength", "262144"),
        ];
        assert_eq!(link.say(AT_ONCE, &keys).0, 0, "the login was refused");
        Initiator { link, task: 0, information: 0, answers: true, asked: Vec::new() }
    }

    /// The same, past what it is told first.
    pub fn new(address: &str, name: &str) -> Initiator {
        Initiator::login(address, name).attended()
    }

    fn attended(self) -> Initiator {
        let mut host = self;
        while let Ended::Check(6, _) = host.run(&[0; 6], 0, &[]) {}
        host
    }

    fn send(&mut self, header: &mut Header, data: &[u8]) {
        assert!(self.link.send(header, data), "it is sent");
    }

    /// Sends a command, with its data; gives its task.
    pub fn begin(&mut self, cdb: &[u8], expected: u32, data: &[u8]) -> u32 {
        self.task += 1;
        let mut header = [0; 48];
        header[0] = 0x01;
        header[1] = 0x80;
        header[1] |= if expected > 0 { 0x40 } else { 0 } | if data.is_empty() { 0 } else { 0x20 };
        header[9] = 1;
        header[16..20].copy_from_slice(&self.task.to_be_bytes());
        let expected = expected.max(data.len() as u32);
        header[20..24].copy_from_slice(&expected.to_be_bytes());
        header[32..32 + cdb.len()].copy_from_slice(cdb);
        self.send(&mut header, data);
        self.link.command += 1;
        self.task
    }

    /// The answer that comes next, with its task; None when the connection ends.
    pub fn next(&mut self) -> Option<(u32, Ended)> {
        let mut found = Vec::new();
        loop {
            let (header, data) = self.link.receive()?;
            let task = number(&header[16..20]);
            match header[0] & 0x3f {
                0x25 => {
                    found.extend_from_slice(&data);
                    if header[1] & 1 == 1 {
                        return Some((task, Ended::Good(found)));
                    }
                }
                0x21 => {
                    return Some((
                        task,
                        match header[3] {
                            GOOD => Ended::Good(found),
                            2 => {
                                self.information = number(&data[5..9]);
                                Ended::Check(data[4] & 15, number(&data[14..16]) as u16)
                            }
                            status => Ended::Status(status),
                        },
                    ));
                }
                0x20 => {
                    self.asked.push(header);
                    self.say_hello();
                }
                // A task management response: its answer.
                0x22 => return Some((task, Ended::Status(header[2]))),
                // An asynchronous message: its event.
                0x32 => return Some((task, Ended::Check(0xff, u16::from(header[36])))),
                other => panic!("opcode {other:#x}"),
            }
        }
    }

    /// Answers what the target has asked.
    fn say_hello(&mut self) {
        while self.answers
            && let Some(question) = self.asked.pop()
        {
            let mut header = [0; 48];
            (header[0], header[1]) = (0x40, 0x80);
            header[8..24].copy_from_slice(&question[8..24]);
            self.send(&mut header, &[]);
        }
    }

    /// Waits until the target asks whether it is there.
    pub fn is_asked(&mut self) -> bool {
        let Some((header, _)) = self.link.receive() else { return false };
        let asked = header[0] & 0x3f == 0x20;
        self.asked.push(header);
        self.say_hello();
        asked
    }

    pub fn run(&mut self, cdb: &[u8], expected: u32, data: &[u8]) -> Ended {
        let task = self.begin(cdb, expected, data);
        let (answered, ended) = self.next().expect("an answer");
        assert_eq!(answered, task);
        ended
    }

    /// Task management.
    pub fn manage(&mut self, function: u8) -> u8 {
        self.task += 1;
        let mut header = [0; 48];
        header[0] = 0x42;
        header[1] = 0x80 | function;
        header[9] = 1;
        header[16..20].copy_from_slice(&self.task.to_be_bytes());
        header[20..24].fill(0xff);
        self.send(&mut header, &[]);
        self.say_hello();
        match self.next() {
            Some((task, Ended::Status(answer))) if task == self.task => answer,
            other => panic!("{other:?}"),
        }
    }

    pub fn ready(&mut self) -> Ended {
        self.run(&[0; 6], 0, &[])
    }

    /// One block.
    pub fn write(&mut self, block: u8, byte: u8) -> Ended {
        self.run(&[0x2a, 0, 0, 0, 0, block, 0, 0, 1, 0], 0, &[byte; 512])
    }

    pub fn read(&mut self, block: u8) -> Ended {
        self.run(&[0x28, 0, 0, 0, 0, block, 0, 0, 1, 0], 512, &[])
    }

    /// PERSISTENT RESERVE OUT.
    pub fn out(&mut self, action: u8, kind: u8, key: u64, other: u64) -> Ended {
        let mut data = [0; 24];
        data[..8].copy_from_slice(&key.to_be_bytes());
        data[8..16].copy_from_slice(&other.to_be_bytes());
        self.run(&[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], 0, &data)
    }

    /// PERSISTENT RESERVE IN.
    pub fn tell(&mut self, action: u8) -> Vec<u8> {
        self.run(&[0x5e, action, 0, 0, 0, 0, 0, 4, 0, 0], 1024, &[]).data()
    }

    pub fn keys(&mut self) -> Vec<u64> {
        let data = self.tell(0);
        data[8..]
            .chunks(8)
            .map(|key| key.iter().fold(0, |sum, b| sum << 8 | u64::from(*b)))
            .collect()
    }

    /// The type of the reservation; 0: there is none.
    pub fn held(&mut self) -> u8 {
        self.tell(1).get(21).copied().unwrap_or(0)
    }

    /// (tag, is optimized) of the portal groups.
    pub fn groups(&mut self) -> Vec<(u16, bool)> {
        let data = self.run(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0], 1024, &[]).data();
        let group = |group: &[u8]| (number(&group[2..4]) as u16, group[0] & 0x0f == 0);
        data[4..].chunks(12).map(group).collect()
    }
}

/// A session's own part of its identity.
static PORT: AtomicU8 = AtomicU8::new(1);

/// How a command has failed: its sense key, its additional code, its information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense(pub u8, pub u16, pub u32);

/// One that asks for more than a block at a time.
pub struct Iscsi(Initiator);

impl Iscsi {
    /// A session with the volume's target, past what it is told first.
    pub fn connect(address: &str, volume: &str) -> Iscsi {
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        Iscsi(Initiator::to(address, volume, "host", port).attended())
    }

    /// A command that gives `expected` bytes, or brings `data`. Sent again if it was told something
    /// in place of being carried out.
    pub fn run(&mut self, cdb: &[u8; 16], expected: u32, data: &[u8]) -> Result<Vec<u8>, Sense> {
        loop {
            match self.0.run(cdb, expected, data) {
                Ended::Good(data) => return Ok(data),
                Ended::Check(6, _) => {}
                Ended::Check(key, code) => return Err(Sense(key, code, self.0.information)),
                other @ Ended::Status(_) => panic!("{other:?}"),
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
