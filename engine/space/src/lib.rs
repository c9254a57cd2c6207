//! The protocol that keeps a mirror's legs the same, in small, and a search through every state
//! that it can get into: two legs at two storage processors, both of which serve hosts, three
//! writes to one block, a crash of each SP, late messages, false suspicion, and a reader.
//!
//! It is a model, not the engine: what it shows is that the rules of `design/coherency.md`, as
//! `docs/engine.md` puts them, hold together, and which of them is needed for what. Every rule
//! can be left out (`Rules`); the tests demand that the search then finds what goes wrong.

mod controller;
mod history;
mod hosts;
mod owner;
mod search;
mod state;

pub use search::{Found, Report, search};
pub use state::{Budget, Rules, State};
