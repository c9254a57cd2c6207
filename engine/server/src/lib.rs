//! The engine: event loops that serve hosts and peers, and the control calls that change
//! what they serve. `docs/engine.md` is the design.

mod access;
mod active;
mod buffers;
mod change;
mod clock;
mod compare;
mod config;
mod conn;
mod connections;
mod control;
mod control_copy;
mod control_t1;
mod copy;
mod device_part;
mod durable;
mod ending;
mod event_loop;
mod exec;
#[cfg(test)]
mod full_queue;
mod give_up;
mod handover;
mod inflight;
mod inline;
mod iscsi;
mod iscsi_alive;
mod iscsi_reserve;
mod iscsi_sessions;
mod iscsi_targets;
mod lease;
mod legs;
mod mailbox;
mod metrics;
mod nbd_session;
mod op;
mod out;
mod pace;
mod parking;
mod peer_server;
mod rangelock;
mod recent;
mod remote;
mod remote_encode;
mod reserve;
mod settle;
mod shapes;
mod slab;
mod socket;
mod spin;
mod status;
mod swap;
mod sweep;
mod turns;
mod xcopy;

// For tests in here that use the rig of those in tests/.
#[cfg(test)]
extern crate self as vs_server;

pub use config::Config;
pub use control::{Engine, Failure};
pub use control_t1::How;
pub use handover::{Handed, Legacy, Speaks, given};
