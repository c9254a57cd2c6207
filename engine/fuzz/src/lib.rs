//! What is fuzzed, each by its target; `engine/wire/tests/fuzzed.rs` runs the same over the corpus.

mod entries;

pub use entries::{cdb, login, pdu, session};
