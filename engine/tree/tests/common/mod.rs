//! Trees to test with: leaf n is T1 object `t-n`, and homes go a, b, c in turn.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashMap;

use vs_tree::{Leg, LegState, Node, Piece, Spec, Target, Tree};

pub const BLOCK: u64 = 4096;

fn name(node: &mut Node, next: &mut u32) {
    match node {
        Node::Leaf { t1, .. } => {
            *t1 = format!("t-{next}");
            *next += 1;
        }
        Node::Hole { .. } => {}
        Node::Mirror { legs } => legs.iter_mut().for_each(|leg| name(&mut leg.node, next)),
        Node::Stripe { columns, .. } => columns.iter_mut().for_each(|n| name(n, next)),
        Node::Concat { parts } => parts.iter_mut().for_each(|n| name(n, next)),
    }
}

pub fn spec(mut root: Node, size: u64, owner: &str) -> Spec {
    let mut count = 0;
    name(&mut root, &mut count);
    let sps = ["a", "b", "c"];
    let homes = (0..count).map(|n| (format!("t-{n}"), sps[n as usize % 3].to_owned())).collect();
    let peers = ["b", "c"].map(|sp| (sp.to_owned(), format!("{sp}:1")));
    Spec {
        volume: "v".into(),
        name: "v".into(),
        size,
        version: 1,
        epoch: 1,
        sp: "a".into(),
        owner: owner.into(),
        root,
        homes,
        peers: HashMap::from(peers),
    }
}

/// A tree over the whole of its root, or None where a stripe has no full chunk.
pub fn tree(root: &Node, owner: &str) -> Option<Tree> {
    let probe = Tree::compile(spec(root.clone(), BLOCK, owner)).ok()?;
    let size = probe.node_size(&[]).ok()?;
    Tree::compile(spec(root.clone(), size, owner)).ok()
}

pub fn range(size: u64, from: u64, length: u64) -> (u64, u64) {
    let offset = from % size;
    (offset, (length % (size - offset)).max(1))
}

pub fn leaf(piece: &Piece) -> u32 {
    match piece.target {
        Target::Leaf(index) => index,
        Target::Owner => panic!("{piece:?} at the owner"),
    }
}

pub fn leaf_of(n: u64) -> Node {
    Node::Leaf { t1: String::new(), size: n * BLOCK }
}

pub fn mirror_of(legs: Vec<Node>) -> Node {
    let in_sync = |node| Leg { state: LegState::InSync, node };
    Node::Mirror { legs: legs.into_iter().map(in_sync).collect() }
}
