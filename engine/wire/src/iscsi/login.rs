//! The login phase: who it is, which target it wants, and what is agreed (RFC 7143, 6 and 13).

use std::sync::Arc;

use super::access::{Demand, Door, Targets};
use super::pdu::{Broken, Digests, Header};
use super::security::{Keys, Security};
use super::text::{self, Pairs};
use super::{FIRST_BURST, MAX_BURST, MAX_RECEIVE, opcode};

/// What was agreed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub initiator: String,
    /// None: a discovery session.
    pub target: Option<String>,
    /// What the initiator has shown for it.
    pub shown: Arc<Demand>,
    /// The initiator's part of the session's identity.
    pub isid: [u8; 6],
    pub digests: Digests,
    /// Bytes of data in one PDU that the initiator takes.
    pub max_send: u32,
    pub max_burst: u32,
    pub first_burst: u32,
    pub immediate_data: bool,
    /// Nothing comes without being asked for, but for what is in the command's PDU.
    pub initial_r2t: bool,
    /// ExpCmdSN and StatSN to go on with.
    pub expected: u32,
    pub status: u32,
}

/// Why a login fails: status class and detail (RFC 7143, 11.13.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Initiator = 0x0200,
    Authentication = 0x0201,
    Authorization = 0x0202,
    NotFound = 0x0203,
    Version = 0x0205,
    TooManyConnections = 0x0206,
    Missing = 0x0207,
    SessionType = 0x0209,
    NoSession = 0x020a,
    Invalid = 0x020b,
    Target = 0x0300,
}

impl Refusal {
    /// In a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Refusal::Authentication => "authentication",
            Refusal::Authorization => "authorization",
            Refusal::NotFound => "not_found",
            Refusal::Target => "target",
            _ => "initiator",
        }
    }
}

/// How far it is after a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    More,
    /// The full feature phase has begun.
    Done(Box<Agreed>),
    /// It was told why; the connection ends.
    Refused(Refusal),
}

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL: u8 = 3;

/// A connection that is logging in.
pub struct Login {
    tag: u16,
    agreed: Agreed,
    known: bool,
    discovery: bool,
    /// There once the first request has said who it is and what it wants.
    security: Option<Security>,
    stage: u8,
    /// Keys of a request that is not all there.
    partial: Vec<u8>,
    declared: bool,
    begun: bool,
}

impl Login {
    /// `tag`: the portal group's (RFC 7143, 4.4).
    #[must_use]
    pub fn new(tag: u16) -> Login {
        Login {
            tag,
            agreed: Agreed {
                initiator: String::new(),
                target: None,
                shown: Arc::default(),
                isid: [0; 6],
                digests: Digests::default(),
                max_send: 8192,
                max_burst: 262_144.min(MAX_BURST),
                first_burst: 65_536.min(FIRST_BURST),
                immediate_data: true,
                initial_r2t: true,
                expected: 0,
                status: 0,
            },
            known: false,
            discovery: false,
            security: None,
            stage: SECURITY,
            partial: Vec::new(),
            declared: false,
            begun: false,
        }
    }

    /// Takes a login request with its data; appends the response. `session`: the identifier that a
    /// new session gets, not 0.
    ///
    /// # Errors
    /// When it is none, or no login: the connection is closed.
    pub fn feed(
        &mut self,
        header: &Header,
        data: &[u8],
        session: u16,
        targets: &dyn Targets,
        out: &mut Vec<u8>,
    ) -> Result<Outcome, Broken> {
        if header.opcode() != opcode::LOGIN {
            return Err(Broken::Protocol("something else before the login's end"));
        }
        if self.partial.len() + data.len() > text::MOST {
            return Err(Broken::Protocol("a login of too many bytes"));
        }
        if !self.begun {
            self.begun = true;
            self.agreed.isid.copy_from_slice(&header.0[8..14]);
            self.agreed.expected = header.get(24);
            self.agreed.status = header.get(28);
        }
        let flags = header.0[1];
        let (transit, goes_on) = (flags & 0x80 != 0, flags & 0x40 != 0);
        let (stage, next) = (flags >> 2 & 3, flags & 3);
        self.partial.extend_from_slice(data);
        if goes_on && !transit {
            self.respond(header, stage << 2, 0, 0, &[], out);
            return Ok(Outcome::More);
        }
        let pairs = text::decode(&std::mem::take(&mut self.partial))?;
        let mut answer = Vec::new();
        let refused = self.check(header, stage, transit.then_some(next));
        let refused = refused.and_then(|()| self.keys(&pairs, stage, targets, &mut answer));
        let transit = match refused.and_then(|()| self.moves_on(stage, transit)) {
            Ok(transit) => transit,
            Err(refusal) => {
                self.respond(header, 0, 0, refusal as u16, &[], out);
                return Ok(Outcome::Refused(refusal));
            }
        };
        self.stage = if transit { next } else { stage };
        let done = transit && next == FULL;
        let back = stage << 2 | if transit { 0x80 | next } else { 0 };
        self.respond(header, back, if done { session } else { 0 }, 0, &answer, out);
        if !done {
            return Ok(Outcome::More);
        }
        self.agreed.first_burst = self.agreed.first_burst.min(self.agreed.max_burst);
        Ok(Outcome::Done(Box::new(self.agreed.clone())))
    }

    fn check(&self, header: &Header, stage: u8, next: Option<u8>) -> Result<(), Refusal> {
        if header.0[3] > 0 {
            return Err(Refusal::Version);
        }
        if header.0[14..16] != [0, 0] {
            return Err(Refusal::NoSession);
        }
        let goes = next.is_none_or(|next| next == FULL || next == OPERATIONAL && stage == SECURITY);
        let first = self.security.is_none();
        if stage > OPERATIONAL || stage < self.stage || !first && stage != self.stage || !goes {
            return Err(Refusal::Invalid);
        }
        Ok(())
    }

    /// Whether the stage that was asked for begins: not before everything has been shown.
    fn moves_on(&mut self, stage: u8, transit: bool) -> Result<bool, Refusal> {
        let Some(security) = &self.security else { return Err(Refusal::Missing) };
        if security.is_passed() {
            self.agreed.shown = Arc::clone(security.demand());
            return Ok(transit);
        }
        let waits = stage == SECURITY && (!transit || security.is_under_way());
        if waits { Ok(false) } else { Err(Refusal::Authentication) }
    }

    /// Takes the keys of a request, and says what holds for each.
    fn keys(
        &mut self,
        pairs: &Pairs,
        stage: u8,
        targets: &dyn Targets,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let mut shown = Keys::default();
        for (key, value) in pairs {
            if !shown.take(key, value)? {
                self.key(key, value, out)?;
            }
        }
        if stage != SECURITY && !shown.is_empty() {
            return Err(Refusal::Invalid);
        }
        let mut security = match self.security.take() {
            Some(security) => security,
            None => Security::new(self.introduce(targets, out)?),
        };
        let stepped = security.step(&shown, || targets.nonce(), out);
        self.security = Some(security);
        stepped?;
        if stage == OPERATIONAL && !self.declared {
            self.declared = true;
            text::put(out, "MaxRecvDataSegmentLength", &MAX_RECEIVE.to_string());
        }
        Ok(())
    }

    /// It has said who it is and what it wants; gives what it has to show for that. A discovery
    /// session asks for nothing: what it is told of targets, their names say to whoever they admit.
    fn introduce(
        &mut self,
        targets: &dyn Targets,
        out: &mut Vec<u8>,
    ) -> Result<Arc<Demand>, Refusal> {
        if !self.known {
            return Err(Refusal::Missing);
        }
        if self.discovery {
            self.agreed.target = None;
            return Ok(Arc::default());
        }
        let target = self.agreed.target.as_deref().ok_or(Refusal::Missing)?;
        match targets.door(target, &self.agreed.initiator) {
            Door::Absent => Err(Refusal::NotFound),
            Door::Closed => Err(Refusal::Authorization),
            Door::Open(demand) => {
                text::put(out, "TargetPortalGroupTag", &self.tag.to_string());
                Ok(demand)
            }
        }
    }

    fn key(&mut self, key: &str, value: &str, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let agreed = &mut self.agreed;
        let is = |text: &str| value.split(',').any(|choice| choice == text);
        let number = |least: u32, most: u32| {
            let digits = value.strip_prefix("0x").or(value.strip_prefix("0X"));
            let number = match digits {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => value.parse::<u32>(),
            };
            number.ok().filter(|number| (least..=most).contains(number))
        };
        let yes = match value {
            "Yes" => Some(true),
            "No" => Some(false),
            _ => None,
        };
        let word = |yes: bool| Some(if yes { "Yes" } else { "No" }.to_owned());
        // What it answers; none: "Reject".
        let said = match key {
            "InitiatorName" => {
                if value.is_empty() || value.len() > 223 {
                    return Err(Refusal::Initiator);
                }
                agreed.initiator = value.to_owned();
                self.known = true;
                return Ok(());
            }
            "TargetName" => {
                agreed.target = Some(value.to_owned());
                return Ok(());
            }
            "SessionType" => {
                self.discovery = match value {
                    "Discovery" => true,
                    "Normal" => false,
                    _ => return Err(Refusal::SessionType),
                };
                return Ok(());
            }
            "InitiatorAlias" => return Ok(()),
            "HeaderDigest" | "DataDigest" => {
                let first = value.split(',').find(|choice| matches!(*choice, "CRC32C" | "None"));
                if let Some(first) = first {
                    let on = first == "CRC32C";
                    if key == "HeaderDigest" {
                        agreed.digests.header = on;
                    } else {
                        agreed.digests.data = on;
                    }
                }
                first.map(str::to_owned)
            }
            "MaxRecvDataSegmentLength" => match number(512, (1 << 24) - 1) {
                Some(most) => {
                    agreed.max_send = most;
                    return Ok(());
                }
                None => None,
            },
            "InitialR2T" => yes.and_then(|yes| {
                agreed.initial_r2t = yes;
                word(yes)
            }),
            "ImmediateData" => yes.and_then(|yes| {
                agreed.immediate_data = yes;
                word(yes)
            }),
            "MaxBurstLength" => number(512, (1 << 24) - 1).map(|most| {
                agreed.max_burst = most.min(MAX_BURST);
                agreed.max_burst.to_string()
            }),
            "FirstBurstLength" => number(512, (1 << 24) - 1).map(|most| {
                agreed.first_burst = most.min(FIRST_BURST);
                agreed.first_burst.to_string()
            }),
            "MaxConnections" | "MaxOutstandingR2T" => number(1, 65_535).map(|_| "1".to_owned()),
            "DefaultTime2Wait" => number(0, 3600).map(|seconds| seconds.to_string()),
            "DefaultTime2Retain" => number(0, 3600).map(|_| "0".to_owned()),
            "ErrorRecoveryLevel" => number(0, 2).map(|_| "0".to_owned()),
            "DataPDUInOrder" | "DataSequenceInOrder" => yes.and_then(|_| word(true)),
            "IFMarker" | "OFMarker" => yes.and_then(|_| word(false)),
            "TaskReporting" if is("RFC3720") => Some("RFC3720".to_owned()),
            "iSCSIProtocolLevel" => number(0, 31).map(|level| level.min(1).to_string()),
            _ => Some("NotUnderstood".to_owned()),
        };
        text::put(out, key, said.as_deref().unwrap_or("Reject"));
        Ok(())
    }

    fn respond(
        &mut self,
        request: &Header,
        flags: u8,
        session: u16,
        status: u16,
        data: &[u8],
        out: &mut Vec<u8>,
    ) {
        let mut header = Header::new(opcode::LOGIN_RESPONSE, 0, request.task());
        header.0[1] = flags;
        header.0[8..16].copy_from_slice(&request.0[8..16]);
        header.0[14..16].copy_from_slice(&session.to_be_bytes());
        header.put(24, self.agreed.status);
        header.put(28, self.agreed.expected);
        header.put(32, self.agreed.expected);
        header.0[36..38].copy_from_slice(&status.to_be_bytes());
        self.agreed.status = self.agreed.status.wrapping_add(1);
        super::pdu::emit(out, &header, data, Digests::default());
    }
}
