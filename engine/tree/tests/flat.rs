//! Routing held against a flat array of bytes: whatever the tree, a volume is just that.

mod common;

use common::{BLOCK, leaf, range, spec, tree};
use proptest::prelude::*;
use vs_tree::{Access, Leg, LegState, Node, Piece, ReadChoice, Routed, Target, Tree};

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
            let choice = ReadChoice { pinned: false, avoid: &[], spread };
            tree.route(Access::Read, offset, length, &choice, &mut out);
            let read: Vec<u8> = out.iter().flat_map(|piece| {
                leaves[leaf(piece) as usize][piece.offset as usize..][..piece.length as usize].to_vec()
            }).collect();
            prop_assert_eq!(&read, &flat[offset as usize..(offset + length) as usize]);
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
    fn cover_is_the_smallest_interval(
        root in shapes(),
        cut in any::<u64>(),
        pick in any::<usize>(),
        from in any::<u64>(),
        length in 1u64..20_000,
    ) {
        let Some(whole) = tree(&root, "a") else { return Ok(()) };
        let size = (1 + cut % (whole.size() / BLOCK)) * BLOCK;
        let tree = Tree::compile(spec(root, size, "a")).unwrap();
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
        // By brute force: where the volume's own pieces meet those of the node's range.
        let (mut wanted, mut pieces) = (Vec::new(), Vec::new());
        let choice = ReadChoice::default();
        tree.route_at(path, Access::Write, offset, length, &choice, &mut wanted).unwrap();
        tree.route(Access::Write, 0, tree.size(), &choice, &mut pieces);
        let mut hit: Vec<(u64, u64)> = Vec::new();
        for want in &wanted {
            for piece in pieces.iter().filter(|p| p.target == want.target) {
                let lo = want.offset.max(piece.offset);
                let hi = (want.offset + want.length).min(piece.offset + piece.length);
                if lo < hi {
                    hit.push((piece.at + lo - piece.offset, piece.at + hi - piece.offset));
                }
            }
        }
        let start = hit.iter().map(|h| h.0).min().unwrap_or(size);
        let end = hit.iter().map(|h| h.1).max().unwrap_or(size);
        prop_assert_eq!(tree.cover(path, offset, length), Ok((start, end - start)));
    }

    #[test]
    fn a_leaf_that_failed_is_left_out_or_there_is_no_leg(
        root in shapes(),
        failed in prop::collection::hash_set(0u32..12, 0..5),
        from in any::<u64>(),
        length in 1u64..60_000,
        spread in any::<u64>(),
    ) {
        let Some(tree) = tree(&root, "a") else { return Ok(()) };
        let (offset, length) = range(tree.size(), from, length);
        let avoid: Vec<u32> = failed.into_iter().collect();
        let choice = ReadChoice { pinned: false, avoid: &avoid, spread };
        let mut out = Vec::new();
        match tree.route(Access::Status, offset, length, &choice, &mut out) {
            Routed::Ready => {
                let mut end = 0;
                for piece in &out {
                    prop_assert!(!avoid.contains(&leaf(piece)));
                    prop_assert_eq!(piece.at, end);
                    end += piece.length;
                }
                prop_assert_eq!(end, length);
            }
            Routed::NoLeg => {
                let mut all = Vec::new();
                tree.route(Access::Write, offset, length, &ReadChoice::default(), &mut all);
                prop_assert!(all.iter().any(|piece| avoid.contains(&leaf(piece))));
            }
            Routed::Parked => prop_assert!(false, "no hole, no parking"),
        }
        for byte in [offset, offset + length - 1] {
            let (mut read, mut all) = (Vec::new(), Vec::new());
            let routed = tree.route(Access::Read, byte, 1, &choice, &mut read);
            tree.route(Access::Write, byte, 1, &ReadChoice::default(), &mut all);
            if all.iter().all(|piece| avoid.contains(&leaf(piece))) {
                prop_assert_eq!(routed, Routed::NoLeg);
            }
            if !all.iter().any(|piece| avoid.contains(&leaf(piece))) {
                prop_assert_eq!(routed, Routed::Ready);
            }
        }
    }

    #[test]
    fn a_non_owners_span_reaches_every_byte_once(root in shapes(), from in any::<u64>(), length in 1u64..80_000) {
        let Some(tree) = tree(&root, "b") else { return Ok(()) };
        let (offset, length) = range(tree.size(), from, length);
        let mut out = Vec::new();
        let routed = tree.route(Access::Span, offset, length, &ReadChoice::default(), &mut out);
        prop_assert_eq!(routed, Routed::Ready);
        prop_assert_eq!(out.iter().map(|piece| piece.length).sum::<u64>(), length);
        let mirrored: Vec<_> = tree.leaves().iter().enumerate().filter(|(index, _)| {
            let mut path = Vec::new();
            under_mirror(&tree.spec().root, *index as u32, &mut 0, &mut path)
        }).map(|(index, _)| Target::Leaf(index as u32)).collect();
        prop_assert!(out.iter().all(|piece| !mirrored.contains(&piece.target)));
        for piece in out.iter().filter(|piece| piece.target == Target::Owner) {
            prop_assert!(offset <= piece.offset && piece.offset + piece.length <= offset + length);
        }
    }
}

/// True if leaf `wanted` (counted left to right) has a mirror above it.
fn under_mirror(node: &Node, wanted: u32, next: &mut u32, above: &mut Vec<bool>) -> bool {
    let (mirror, children): (bool, Vec<&Node>) = match node {
        Node::Leaf { .. } => {
            *next += 1;
            return *next - 1 == wanted && above.contains(&true);
        }
        Node::Hole { .. } => return false,
        Node::Mirror { legs } => (true, legs.iter().map(|leg| &leg.node).collect()),
        Node::Stripe { columns, .. } => (false, columns.iter().collect()),
        Node::Concat { parts } => (false, parts.iter().collect()),
    };
    above.push(mirror);
    let found = children.into_iter().any(|child| under_mirror(child, wanted, next, above));
    above.pop();
    found
}
