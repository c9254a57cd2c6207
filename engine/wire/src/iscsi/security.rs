//! The security stage of a login (RFC 7143, 6.3.2, 9.2 and 12.1): whether an initiator is the one
//! that it says it is, and, if it asks, whether the target is.

use std::sync::Arc;

use super::access::{Credentials, Demand, Nonce};
use super::chap::{self, Algorithm};
use super::login::Refusal;
use super::text;

/// How far it is.
enum State {
    /// Nothing is agreed on.
    Begun,
    /// CHAP; which algorithm is not.
    Method,
    /// It was sent this.
    Challenged { algorithm: Algorithm, nonce: Nonce },
    /// Nothing more has to be shown.
    Passed,
}

/// The keys of this stage that came in one request.
#[derive(Default)]
pub struct Keys {
    method: Option<String>,
    algorithms: Option<String>,
    id: Option<String>,
    challenge: Option<String>,
    user: Option<String>,
    response: Option<String>,
}

impl Keys {
    /// Takes a pair if it is of this stage; false if it is not.
    ///
    /// # Errors
    /// When the key has come already.
    pub fn take(&mut self, key: &str, value: &str) -> Result<bool, Refusal> {
        let place = match key {
            "AuthMethod" => &mut self.method,
            "CHAP_A" => &mut self.algorithms,
            "CHAP_I" => &mut self.id,
            "CHAP_C" => &mut self.challenge,
            "CHAP_N" => &mut self.user,
            "CHAP_R" => &mut self.response,
            _ => return Ok(false),
        };
        match place.replace(value.to_owned()) {
            Some(_) => Err(Refusal::Initiator),
            None => Ok(true),
        }
    }

    /// True if none has come.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.method.is_none() && self.is_without_chap()
    }

    fn is_without_chap(&self) -> bool {
        self.algorithms.is_none() && self.is_without_answer()
    }

    fn is_without_answer(&self) -> bool {
        let asked = self.id.is_some() || self.challenge.is_some();
        !asked && self.user.is_none() && self.response.is_none()
    }
}

/// An initiator that has said its name.
pub struct Security {
    demand: Arc<Demand>,
    state: State,
}

impl Security {
    #[must_use]
    pub fn new(demand: Arc<Demand>) -> Security {
        Security { demand, state: State::Begun }
    }

    /// True if the stage may be left, or left out.
    #[must_use]
    pub fn is_passed(&self) -> bool {
        self.demand.chap.is_none() || matches!(self.state, State::Passed)
    }

    /// True if it is under way: then it is the target that says when the stage is over.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        matches!(self.state, State::Method | State::Challenged { .. })
    }

    /// What it asked for and was shown.
    #[must_use]
    pub fn demand(&self) -> &Arc<Demand> {
        &self.demand
    }

    /// Takes a request's keys; appends what they are answered with. `nonce` is asked for what
    /// nobody can foresee.
    ///
    /// # Errors
    /// Whatever is not as CHAP has it, in its order, and right: the initiator is not told which.
    pub fn step(
        &mut self,
        keys: &Keys,
        nonce: impl FnOnce() -> Option<Nonce>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        if keys.is_empty() {
            return Ok(());
        }
        self.state = match (&self.state, &self.demand.chap) {
            (State::Begun, chap) if keys.is_without_chap() => {
                let offered = keys.method.as_deref().unwrap_or_default();
                let wanted = if chap.is_some() { "CHAP" } else { "None" };
                if !offered.split(',').any(|method| method == wanted) {
                    return Err(Refusal::Authentication);
                }
                text::put(out, "AuthMethod", wanted);
                if chap.is_some() { State::Method } else { State::Passed }
            }
            (State::Method, Some(_)) if keys.method.is_none() && keys.is_without_answer() => {
                let offered = keys.algorithms.as_deref().unwrap_or_default();
                let algorithm = Algorithm::first(offered).ok_or(Refusal::Authentication)?;
                let nonce = nonce().ok_or(Refusal::Target)?;
                let (challenge, id) = parts(&nonce);
                text::put(out, "CHAP_A", &(algorithm as u8).to_string());
                text::put(out, "CHAP_I", &id.to_string());
                text::put(out, "CHAP_C", &chap::encode(challenge));
                State::Challenged { algorithm, nonce }
            }
            (State::Challenged { algorithm, nonce }, Some(chap))
                if keys.method.is_none() && keys.algorithms.is_none() =>
            {
                is_right(chap, *algorithm, nonce, keys)?;
                if keys.id.is_some() || keys.challenge.is_some() {
                    let mutual = self.demand.mutual.as_ref();
                    let mutual = mutual.ok_or(Refusal::Authentication)?;
                    respond(mutual, *algorithm, nonce, keys, out)?;
                }
                State::Passed
            }
            _ => return Err(Refusal::Authentication),
        };
        Ok(())
    }
}

/// A challenge and its identifier.
fn parts(nonce: &Nonce) -> (&[u8], u8) {
    let (challenge, id) = nonce.split_at(nonce.len() - 1);
    (challenge, id[0])
}

/// The initiator has the secret.
fn is_right(
    chap: &Credentials,
    algorithm: Algorithm,
    nonce: &Nonce,
    keys: &Keys,
) -> Result<(), Refusal> {
    let (Some(user), Some(response)) = (&keys.user, &keys.response) else {
        return Err(Refusal::Authentication);
    };
    let (challenge, id) = parts(nonce);
    let wanted = algorithm.response(id, &chap.secret, challenge);
    let said = chap::decode(response).unwrap_or_default();
    // Both, so that a wrong name takes as long as a wrong secret.
    let is_user = chap::is_same(user.as_bytes(), chap.user.as_bytes());
    let has_secret = chap::is_same(&said, &wanted);
    if is_user & has_secret { Ok(()) } else { Err(Refusal::Authentication) }
}

/// Shows the initiator, which has shown who it is, that the target has the other secret.
fn respond(
    mutual: &Credentials,
    algorithm: Algorithm,
    nonce: &Nonce,
    keys: &Keys,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let id = keys.id.as_deref().and_then(|id| match id.strip_prefix("0x") {
        Some(digits) => u8::from_str_radix(digits, 16).ok(),
        None => id.parse().ok(),
    });
    let challenge = keys.challenge.as_deref().and_then(chap::decode);
    let (Some(id), Some(challenge)) = (id, challenge) else {
        return Err(Refusal::Authentication);
    };
    // Who gives our own challenge back wants an answer to it, for another login (RFC 7143, 9.2.1).
    if challenge == parts(nonce).0 {
        return Err(Refusal::Authentication);
    }
    let response = algorithm.response(id, &mutual.secret, &challenge);
    text::put(out, "CHAP_N", &mutual.user);
    text::put(out, "CHAP_R", &chap::encode(&response));
    Ok(())
}
