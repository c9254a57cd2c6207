//! The logical tree as the engine runs it: compiled from a T2 object, it routes a request
//! to leaves. Pure: no sockets, files, clocks or threads.

pub mod spec;

pub use spec::{Leg, LegState, Node, Spec};
