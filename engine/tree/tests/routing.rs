//! Single cases of compiling and routing, each told as an example.

mod common;

use common::{BLOCK, leaf, leaf_of, mirror_of, spec};
use vs_tree::{Access, Leg, LegState, Node, Piece, Place, ReadChoice, Routed, Target, Tree};

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

fn routed(tree: &Tree, access: Access, at: u64, length: u64, choice: ReadChoice) -> Vec<Piece> {
    let mut out = Vec::new();
    assert_eq!(tree.route(access, at, length, &choice, &mut out), Routed::Ready);
    out
}

#[test]
fn reads_prefer_a_leg_that_is_all_local_and_spread_over_several() {
    // Homes go a, b, c, a in turn: legs 0 and 3 are at a.
    let tree = Tree::compile(spec(mirror_of(vec![leaf_of(1); 4]), BLOCK, "a")).unwrap();
    let read = |choice| leaf(&routed(&tree, Access::Read, 0, BLOCK, choice)[0]);
    let by = |spread, avoid| ReadChoice { pinned: false, avoid, spread };
    assert_eq!([0, 1, 2, 3].map(|spread| read(by(spread, &[]))), [0, 3, 0, 3]);
    assert_eq!([0, 1].map(|spread| read(by(spread, &[0, 3]))), [1, 2]);
    assert_eq!(read(ReadChoice { pinned: true, avoid: &[], spread: 3 }), 0);
    let mut out = Vec::new();
    for choice in [by(0, &[0, 1, 2, 3]), ReadChoice { pinned: true, avoid: &[0], spread: 0 }] {
        assert_eq!(tree.route(Access::Read, 0, BLOCK, &choice, &mut out), Routed::NoLeg);
    }
}

#[test]
fn a_failure_elsewhere_in_a_leg_does_not_cost_the_data() {
    // Both legs have lost a leaf, but not the same half.
    let leg = || Node::Concat { parts: vec![leaf_of(1), leaf_of(1)] };
    let tree = Tree::compile(spec(mirror_of(vec![leg(), leg()]), 2 * BLOCK, "a")).unwrap();
    let choice = || ReadChoice { pinned: false, avoid: &[0, 3], spread: 0 };
    assert_eq!(leaf(&routed(&tree, Access::Read, 0, BLOCK, choice())[0]), 2);
    assert_eq!(leaf(&routed(&tree, Access::Read, BLOCK, BLOCK, choice())[0]), 1);
}

#[test]
fn an_unmirrored_leaf_that_failed_has_no_other_leg() {
    let tree = Tree::compile(spec(leaf_of(1), BLOCK, "a")).unwrap();
    let choice = ReadChoice { pinned: false, avoid: &[0], spread: 0 };
    let mut out = Vec::new();
    assert_eq!(tree.route(Access::Read, 0, 1, &choice, &mut out), Routed::NoLeg);
    assert_eq!(tree.route(Access::Write, 0, 1, &choice, &mut out), Routed::Ready);
}

#[test]
fn a_flush_goes_to_every_leaf_and_to_the_owner_of_what_is_mirrored() {
    let root = || Node::Concat { parts: vec![mirror_of(vec![leaf_of(1); 2]), leaf_of(1)] };
    let targets = |owner: &str| -> Vec<Target> {
        Tree::compile(spec(root(), BLOCK, owner)).unwrap().flush_targets().collect()
    };
    let leaves: Vec<Target> = (0..3).map(Target::Leaf).collect();
    assert_eq!(targets("a"), leaves);
    assert_eq!(targets("b"), [&leaves[..], &[Target::Owner]].concat());
}

#[test]
fn a_non_owners_span_waits_only_for_a_hole_in_its_way() {
    let stripe = |columns| Node::Stripe { chunk: BLOCK, columns };
    let mirror = || mirror_of(vec![leaf_of(2); 2]);
    let parts =
        vec![stripe(vec![mirror(), mirror()]), Node::Hole { size: BLOCK }, leaf_of(1), mirror()];
    let tree = Tree::compile(spec(Node::Concat { parts }, 8 * BLOCK, "b")).unwrap();
    let mut out = Vec::new();
    let mut span = |at, length| {
        let routed = tree.route(Access::Span, at, length, &ReadChoice::default(), &mut out);
        (routed, out.iter().map(|p| (p.target, p.offset, p.length)).collect::<Vec<_>>())
    };
    assert_eq!(span(0, 4 * BLOCK), (Routed::Ready, vec![(Target::Owner, 0, 4 * BLOCK)]));
    assert_eq!(span(0, 5 * BLOCK).0, Routed::Parked);
    let after = vec![(Target::Leaf(4), 0, BLOCK), (Target::Owner, 6 * BLOCK, 2 * BLOCK)];
    assert_eq!(span(5 * BLOCK, 3 * BLOCK), (Routed::Ready, after));
    let parts = vec![stripe(vec![mirror(), Node::Hole { size: BLOCK }])];
    let tree = Tree::compile(spec(Node::Concat { parts }, BLOCK, "b")).unwrap();
    let routed = tree.route(Access::Span, 0, BLOCK, &ReadChoice::default(), &mut out);
    assert_eq!(routed, Routed::Parked);
}

#[test]
fn a_t1_object_has_one_place_in_a_tree() {
    let leaf = || Node::Leaf { t1: "t-9".into(), size: BLOCK };
    let mut twice = spec(leaf_of(1), BLOCK, "a");
    twice.root = Node::Concat { parts: vec![leaf(), leaf()] };
    twice.homes.insert("t-9".into(), "a".into());
    let error = Tree::compile(twice).unwrap_err().to_string();
    assert_eq!(error, "/1/: T1 object t-9 stands in the tree twice");
}

#[test]
fn nesting_is_bounded() {
    let deep = (0..40).fold(leaf_of(1), |node, _| Node::Concat { parts: vec![node] });
    let error = Tree::compile(spec(deep, BLOCK, "a")).unwrap_err().to_string();
    assert!(error.ends_with("nested too deeply"), "{error}");
}
