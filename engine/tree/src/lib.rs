//! The logical tree as the engine runs it: compiled from a T2 object, it routes a request
//! to leaves. Pure: no sockets, files, clocks or threads.

mod compile;
mod cover;
mod route;
pub mod spec;

pub use compile::{LeafRef, Peer, Place, Tree, TreeError};
pub use route::{Access, Piece, ReadChoice, Routed, Target};
pub use spec::{Leg, LegState, Node, Spec};
