//! Who may log in to a target, and what has to be shown for it.

use std::fmt;
use std::sync::Arc;

/// A secret of CHAP. It is printed nowhere, which is why it has a type of its own.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Least and most bytes: 96 bits, as RFC 7143 (9.2.1) demands, and what every initiator takes.
    pub const LENGTHS: std::ops::RangeInclusive<usize> = 12..=255;

    /// None unless it is of a length that is allowed.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Secret> {
        Self::LENGTHS.contains(&bytes.len()).then(|| Secret(bytes.into()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// A name of CHAP with its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub secret: Secret,
}

/// What has to be shown at a login.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// By the initiator; None: nothing but its name.
    pub chap: Option<Credentials>,
    /// By the target in turn, if the initiator asks. Its secret is another one.
    pub mutual: Option<Credentials>,
}

/// What an initiator of some name finds at a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// There is no such target.
    Absent,
    /// It is not for this initiator.
    Closed,
    /// It may log in, if it shows that.
    Open(Arc<Demand>),
}

/// Bytes that nobody can foresee: of a challenge, and of its identifier.
pub type Nonce = [u8; 33];

/// What targets there are.
pub trait Targets {
    /// The iSCSI names of all that this initiator may log in to, with the addresses of their
    /// portals (`host:port,tag`).
    fn all(&self, initiator: &str) -> Vec<(String, Vec<String>)>;
    /// What this initiator finds at the target of that name.
    fn door(&self, target: &str, initiator: &str) -> Door;
    /// None when the system has no random bytes.
    fn nonce(&self) -> Option<Nonce>;
}
