//! Routing held against a flat array of bytes: whatever the tree, a volume is just that.

use std::collections::HashMap;

use proptest::prelude::*;
use vs_tree::{Access, Leg, LegState, Node, Piece, Place, ReadChoice, Routed, Spec, Target, Tree};

const BLOCK: u64 = 4096;

/// Trees whose leaves have unlike sizes; names are given afterwards.
fn shapes() -> impl Strategy<Value = Node> {
    let leaf = (1u64..6).prop_map(|n| Node::Leaf { t1: String::new(), size: n * BLOCK });
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec((inner.clone(), any::<bool>()), 1..4).prop_map(|legs| {
                let legs = legs.into_iter().enumerate().map(|(index, (node, sync))| {
                    let in_sync = sync || index == 0;
                    let state = if in_sync { LegState::InSync } else { LegState::WriteOnly };
                    Leg { state, node }
                });
                Node::Mirror { legs: legs.collect() }
            }),
            (prop::collection::vec(inner.clone(), 1..4), 0u32..2)
                .prop_map(|(columns, shift)| Node::Stripe { chunk: BLOCK << shift, columns }),
            prop::collection::vec(inner, 1..4).prop_map(|parts| Node::Concat { parts }),
        ]
    })
}

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

fn spec(mut root: Node, size: u64, owner: &str) -> Spec {
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
fn tree(root: &Node, owner: &str) -> Option<Tree> {
    let probe = Tree::compile(spec(root.clone(), BLOCK, owner)).ok()?;
    let size = probe.node_size(&[]).ok()?;
    Tree::compile(spec(root.clone(), size, owner)).ok()
}

fn range(size: u64, from: u64, length: u64) -> (u64, u64) {
    let offset = from % size;
    (offset, (length % (size - offset)).max(1))
}

fn leaf(piece: &Piece) -> u32 {
    match piece.target {
        Target::Leaf(index) => index,
        Target::Owner => panic!("{piece:?} at the owner"),
    }
}

proptest! {
    #[test]
    fn a_volume_is_a_flat_array(
        root in shapes(),
        writes in prop::collection::vec((any::<u64>(), 0u64..40_000, any::<u8>()), 1..12),
        spread in any::<u64>(),
    ) {
        let Some(tree) = tree(&root, "a") else { return Ok(()) };
        let mut flat = vec![0u8; tree.size() as usize];
        let mut leaves: Vec<Vec<u8>> =
            tree.leaves().iter().map(|leaf| vec![0; leaf.size as usize]).collect();
        let mut out = Vec::new();
        for (from, length, byte) in writes {
            let (offset, length) = range(tree.size(), from, length);
            let span = byte % 3 == 0;
            let data: Vec<u8> = (0..length).map(|n| if span { byte } else { byte ^ n as u8 }).collect();
            flat[offset as usize..(offset + length) as usize].copy_from_slice(&data);
            let access = if span { Access::Span } else { Access::Write };
            let routed = tree.route(access, offset, length, &ReadChoice::default(), &mut out);
            prop_assert_eq!(routed, Routed::Ready);
            for piece in &out {
                let to = &mut leaves[leaf(piece) as usize]
                    [piece.offset as usize..(piece.offset + piece.length) as usize];
                if span {
                    to.fill(byte);
                } else {
                    to.copy_from_slice(&data[piece.at as usize..(piece.at + piece.length) as usize]);
                }
            }
            for pinned in [false, true] {
                let choice = ReadChoice { pinned, avoid: &[], spread };
                let routed = tree.route(Access::Read, 0, tree.size(), &choice, &mut out);
                prop_assert_eq!(routed, Routed::Ready);
                let mut read = vec![0xEE; tree.size() as usize];
                let mut end = 0;
                for piece in &out {
                    prop_assert_eq!(piece.at, end, "read pieces partition the buffer in order");
                    end += piece.length;
                    read[piece.at as usize..end as usize].copy_from_slice(
                        &leaves[leaf(piece) as usize]
                            [piece.offset as usize..(piece.offset + piece.length) as usize],
                    );
                }
                prop_assert_eq!(&read, &flat);
            }
        }
        for path in tree.mirrors() {
            let size = tree.node_size(&path).unwrap();
            for index in 0..tree.legs(&path).unwrap().len() {
                let mut below = path.clone();
                below.push(index);
                let read = |path: &[usize]| {
                    let mut out = Vec::new();
                    tree.route_at(path, Access::Read, 0, size, &ReadChoice::default(), &mut out).unwrap();
                    let parts = out.iter().map(|piece| {
                        leaves[leaf(piece) as usize][piece.offset as usize..][..piece.length as usize].to_vec()
                    });
                    parts.collect::<Vec<_>>().concat()
                };
                prop_assert_eq!(read(&below), read(&path), "every leg holds every write");
            }
        }
    }

    #[test]
    fn a_non_owner_sends_what_is_mirrored_to_the_owner(root in shapes(), from in any::<u64>(), length in 0u64..80_000) {
        let (Some(owner), Some(other)) = (tree(&root, "a"), tree(&root, "b")) else { return Ok(()) };
        let (offset, length) = range(owner.size(), from, length);
        let (mut direct, mut sent) = (Vec::new(), Vec::new());
        owner.route(Access::Write, offset, length, &ReadChoice::default(), &mut direct);
        other.route(Access::Write, offset, length, &ReadChoice::default(), &mut sent);
        for byte in 0..length {
            let at = |pieces: &[Piece]| -> Vec<Piece> {
                pieces.iter().filter(|p| p.at <= byte && byte < p.at + p.length).copied().collect()
            };
            let (by_owner, by_other) = (at(&direct), at(&sent));
            prop_assert_eq!(by_other.len(), 1, "one place for every byte");
            match by_other[0].target {
                Target::Owner => prop_assert_eq!(by_other[0].offset, offset + by_other[0].at),
                Target::Leaf(index) => prop_assert_eq!(
                    (index, by_other[0].offset + byte - by_other[0].at),
                    (leaf(&by_owner[0]), by_owner[0].offset + byte - by_owner[0].at)
                ),
            }
        }
    }

    #[test]
    fn cover_is_the_smallest_interval(root in shapes(), pick in any::<usize>(), from in any::<u64>(), length in 1u64..20_000) {
        let Some(tree) = tree(&root, "a") else { return Ok(()) };
        let mut paths = vec![vec![]];
        let mut index = 0;
        while index < paths.len() {
            let path: Vec<usize> = paths[index].clone();
            for child in 0.. {
                let mut below = path.clone();
                below.push(child);
                if tree.node_size(&below).is_err() { break; }
                paths.push(below);
            }
            index += 1;
        }
        let path = &paths[pick % paths.len()];
        let (offset, length) = range(tree.node_size(path).unwrap(), from, length);
        let (start, covered) = tree.cover(path, offset, length).unwrap();
        let mut wanted = Vec::new();
        tree.route_at(path, Access::Write, offset, length, &ReadChoice::default(), &mut wanted).unwrap();
        let mut pieces = Vec::new();
        tree.route(Access::Write, 0, tree.size(), &ReadChoice::default(), &mut pieces);
        let mut hit: Vec<u64> = Vec::new();
        for want in &wanted {
            for piece in pieces.iter().filter(|p| p.target == want.target) {
                let lo = want.offset.max(piece.offset);
                let hi = (want.offset + want.length).min(piece.offset + piece.length);
                if lo < hi {
                    hit.push(piece.at + lo - piece.offset);
                    hit.push(piece.at + hi - piece.offset - 1);
                }
            }
        }
        if let (Some(first), Some(last)) = (hit.iter().min(), hit.iter().max()) {
            prop_assert!(start <= *first && *last < start + covered);
        }
    }

    #[test]
    fn a_leg_that_failed_is_left_out(root in shapes()) {
        let Some(tree) = tree(&root, "a") else { return Ok(()) };
        let mut out = Vec::new();
        for (index, _) in tree.leaves().iter().enumerate() {
            let avoid = [index as u32];
            let choice = ReadChoice { pinned: false, avoid: &avoid, spread: 0 };
            if tree.route(Access::Read, 0, tree.size(), &choice, &mut out) == Routed::Ready && tree.has_mirror() {
                let under_mirror = tree.mirrors().iter().any(|path| {
                    tree.leaves_under(path).unwrap().contains(&avoid[0])
                });
                if under_mirror {
                    prop_assert!(out.iter().all(|piece| leaf(piece) != avoid[0]));
                }
            }
        }
    }
}

#[test]
fn a_hole_parks_only_what_touches_it() {
    let leaf = |n: u64| Node::Leaf { t1: String::new(), size: n * BLOCK };
    let root = Node::Concat { parts: vec![leaf(2), Node::Hole { size: BLOCK }, leaf(1)] };
    let tree = Tree::compile(spec(root, 4 * BLOCK, "a")).unwrap();
    let mut out = Vec::new();
    let mut route = |offset, length| {
        tree.route(Access::Write, offset, length, &ReadChoice::default(), &mut out)
    };
    assert_eq!(route(0, 2 * BLOCK), Routed::Ready);
    assert_eq!(route(0, 2 * BLOCK + 1), Routed::Parked);
    assert_eq!(route(3 * BLOCK, BLOCK), Routed::Ready);
    assert!(tree.has_hole());
}

#[test]
fn leaves_know_their_place() {
    let leaf = || Node::Leaf { t1: String::new(), size: BLOCK };
    let tree =
        Tree::compile(spec(Node::Concat { parts: vec![leaf(), leaf()] }, BLOCK, "a")).unwrap();
    assert_eq!(tree.leaves()[0].place, Place::Local);
    let Place::Remote(peer) = tree.leaves()[1].place else { panic!("t-1 is at b") };
    assert_eq!(tree.peers()[peer as usize].sp, "b");
}

#[test]
fn bad_trees_are_named() {
    let leaf = |size| Node::Leaf { t1: String::new(), size };
    let fails = |root, size| Tree::compile(spec(root, size, "a")).unwrap_err().to_string();
    assert_eq!(fails(leaf(100), BLOCK), "/: size 100 is not a positive multiple of 4096");
    let stripe = Node::Stripe { chunk: 5000, columns: vec![leaf(BLOCK)] };
    assert_eq!(fails(stripe, BLOCK), "/: a stripe's chunk is a power of two from 4096");
    let mirror = Node::Mirror { legs: vec![Leg { state: LegState::WriteOnly, node: leaf(BLOCK) }] };
    assert_eq!(fails(mirror, BLOCK), "/: a mirror needs a leg in sync");
    assert!(fails(leaf(BLOCK), 2 * BLOCK).contains("above the 4096 bytes"));
    let mut no_home = spec(leaf(BLOCK), BLOCK, "a");
    no_home.homes.clear();
    assert_eq!(
        Tree::compile(no_home).unwrap_err().to_string(),
        "no home is given for T1 object t-0"
    );
}
