//! The T2 object as Python hands it over (`vswitchd/model/codec.py` writes this JSON).

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// One SP's T2 object of one volume. Sizes and offsets are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    pub volume: String,
    pub name: String,
    pub size: u64,
    pub version: u64,
    pub epoch: u64,
    pub sp: String,
    pub owner: String,
    pub root: Node,
    /// T1 id to the SP that is its home.
    pub homes: HashMap<String, String>,
    /// SP to its peer address, for every home and owner other than `sp`.
    pub peers: HashMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Node {
    Leaf { t1: String, size: u64 },
    Hole { size: u64 },
    Mirror { legs: Vec<Leg> },
    Stripe { chunk: u64, columns: Vec<Node> },
    Concat { parts: Vec<Node> },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leg {
    pub state: LegState,
    pub node: Node,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LegState {
    InSync,
    WriteOnly,
    /// Neither read nor written: it has missed writes since it was lost.
    Away,
}
