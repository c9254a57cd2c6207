//! Who may use a volume: which initiators, with which secrets, and whether NBD.

use std::collections::HashMap;
use std::fmt;
use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Deserialize;
use vs_wire::iscsi::access::{Credentials, Demand, Secret};
use vs_wire::iscsi::login::{Agreed, Refusal};

use crate::conn::Protocol;
use crate::control::{Engine, Failure};
use crate::event_loop::Loop;
use crate::mailbox::Message;

/// The JSON of it; a name that is empty stands for none.
#[derive(Deserialize)]
struct Shape {
    nbd: bool,
    entries: Vec<EntryShape>,
}

#[derive(Deserialize)]
struct EntryShape {
    initiator: String,
    user: String,
    secret: String,
    mutual_user: String,
    mutual_secret: String,
}

/// One volume's.
#[derive(Debug)]
pub struct Access {
    nbd: bool,
    /// By the initiator's name in lower case; none at all: whoever comes.
    entries: HashMap<String, Arc<Demand>>,
}

impl Access {
    /// # Errors
    /// What is said of a value that can't be names the initiator, never the value: it may be a
    /// secret.
    fn parse(text: &str) -> Result<Access, Failure> {
        let shape: Shape = serde_json::from_str(text).map_err(|error| {
            let place = format!("line {} column {}", error.line(), error.column());
            Failure::new("invalid", format!("an access that is none, at {place}"))
        })?;
        let mut entries = HashMap::new();
        for entry in shape.entries {
            let initiator = entry.initiator.to_ascii_lowercase();
            let wrong = |what: &str| Failure::new("invalid", format!("{initiator}: {what}"));
            let one = |user: String, secret: &str| match (user.is_empty(), secret.is_empty()) {
                (true, true) => Ok(None),
                (false, false) => Secret::new(secret.as_bytes())
                    .map(|secret| Some(Credentials { user, secret }))
                    .ok_or_else(|| wrong("a secret has from 12 to 255 bytes")),
                _ => Err(wrong("a name of CHAP goes with a secret")),
            };
            let chap = one(entry.user, &entry.secret)?;
            let mutual = one(entry.mutual_user, &entry.mutual_secret)?;
            let same = |mutual: &Credentials| {
                chap.as_ref().is_none_or(|chap| chap.secret == mutual.secret)
            };
            if mutual.as_ref().is_some_and(same) {
                return Err(wrong("a target shows itself by another secret than the initiator"));
            }
            let demand = Arc::new(Demand { chap, mutual });
            if entries.insert(initiator.clone(), demand).is_some() {
                return Err(Failure::new("invalid", format!("{initiator} is there twice")));
            }
        }
        Ok(Access { nbd: shape.nbd, entries })
    }

    fn demand(&self, initiator: &str) -> Option<Arc<Demand>> {
        if self.entries.is_empty() {
            return Some(Arc::default());
        }
        self.entries.get(&initiator.to_ascii_lowercase()).cloned()
    }
}

/// All that were given, by the volumes' ids.
#[derive(Default)]
pub struct Accesses(RwLock<HashMap<String, Arc<Access>>>);

impl fmt::Debug for Accesses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Accesses")
    }
}

impl Accesses {
    fn of(&self, volume: &str) -> Option<Arc<Access>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(volume).cloned()
    }

    fn set(&self, volume: &str, access: Access) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(volume.to_owned(), Arc::new(access));
    }

    pub fn forget(&self, volume: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(volume);
    }

    /// What this initiator has to show; None: it is not let in.
    pub fn demand(&self, volume: &str, initiator: &str) -> Option<Arc<Demand>> {
        self.of(volume).map_or_else(|| Some(Arc::default()), |access| access.demand(initiator))
    }

    /// True if what was shown at a login is still enough.
    pub fn admits(&self, volume: &str, agreed: &Agreed) -> bool {
        let demand = self.demand(volume, &agreed.initiator);
        demand.is_some_and(|demand| demand.chap.is_none() || demand == agreed.shown)
    }

    /// True if the volume may be had over NBD.
    pub fn has_nbd(&self, volume: &str) -> bool {
        self.of(volume).is_none_or(|access| access.nbd)
    }
}

impl Engine {
    /// Says who may use a volume, from now on and whether or not it is served yet; a volume of which
    /// nothing was said is whoever's. When it returns, sessions that this does not admit have ended.
    ///
    /// # Errors
    /// `invalid` for what can't be, `timeout` when a loop does not answer: what is new is admitted
    /// by the new access all the same.
    pub fn access_set(&self, volume: &str, access: &str) -> Result<(), Failure> {
        self.shared.access.set(volume, Access::parse(access)?);
        self.ask(|ack| Message::Readmit(volume.to_owned(), ack), Self::prompt())?;
        Ok(())
    }
}

impl Loop {
    /// Ends the sessions of a volume that are not admitted any more.
    pub fn readmit(&mut self, id: &str, ack: &Sender<()>) {
        if let Some(&volume) = self.volume_by_id.get(id) {
            let has_nbd = self.shared.access.has_nbd(id);
            for token in self.conns.tokens() {
                let Some(conn) = self.conns.get(token) else { continue };
                match &conn.protocol {
                    Protocol::Iscsi(session)
                        if session.volume == Some(volume)
                            && !self.shared.access.admits(id, session.agreed()) =>
                    {
                        self.close(token);
                    }
                    Protocol::Nbd(session) if session.volume == volume && !has_nbd => {
                        self.close(token);
                    }
                    _ => {}
                }
            }
        }
        let _ = ack.send(());
    }

    /// Counts it.
    pub fn login_refused(&mut self, refusal: Refusal) {
        *self.logins_failed.entry(refusal.word()).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::Access;

    #[test]
    fn what_is_wrong_with_an_access_is_said_without_its_secrets() {
        let entry = |user: &str, secret: &str, mutual: &str, other: &str| {
            format!(
                r#"{{"initiator": "iqn.a", "user": "{user}", "secret": "{secret}",
                    "mutual_user": "{mutual}", "mutual_secret": "{other}"}}"#
            )
        };
        let good = entry("u", "hidden-secret-1", "t", "hidden-secret-2");
        let access = |entries: &str| format!(r#"{{"nbd": true, "entries": [{entries}]}}"#);
        let read = Access::parse(&access(&good)).expect("an access");
        assert!(!format!("{read:?}").contains("hidden"), "{read:?}");
        for wrong in [
            entry("", "hidden-secret-1", "", ""),
            entry("u", "", "", ""),
            entry("u", "hidden", "", ""),
            entry("", "", "t", "hidden-secret-1"),
            entry("u", "hidden-secret-1", "t", "hidden-secret-1"),
            format!("{good}, {good}"),
            r#"{"initiator": "iqn.a", "user": "hidden-secret-1"}"#.to_owned(),
            r#""hidden-secret-1""#.to_owned(),
        ] {
            let failure = Access::parse(&access(&wrong)).expect_err(&wrong);
            assert_eq!(failure.kind, "invalid");
            assert!(!failure.message.contains("hidden"), "{}", failure.message);
        }
    }
}
