//! Every state of the small protocol is right, and no rule of it can be left out.

use vs_space::{Budget, Report, Rules, search};

/// Far more states than any of these searches has.
const MOST: usize = 300_000_000;

/// One crash of each SP, one of them left behind and back, rightly or not.
const BUDGET: Budget =
    Budget { writes: 3, crashes: [1, 1], ejects: 1, rejoins: 1, moves: 0, again: 0, reads: false };

fn passes(budget: Budget) -> Report {
    let report = search(&Rules::ALL, budget, MOST);
    println!("{budget:?}: {} states, depth {}", report.states, report.depth);
    if let Some(found) = report.found {
        panic!("{}\n{}", found.why, found.steps.join("\n"));
    }
    assert!(report.states < MOST, "not all of it was seen");
    assert!(report.quiet > 0);
    report
}

#[test]
fn three_writes_with_one_crash_of_each() {
    let report = passes(BUDGET);
    let wanted = ["reaches leg", "lands late on leg", "is stale at leg", "is too late for leg"];
    for step in wanted.iter().chain(&["has what it missed: leg", "a copy reaches leg"]) {
        assert!(report.taken.contains_key(step), "never: {step}");
    }
}

#[test]
fn reads_beside_two_writes() {
    let report = passes(Budget { writes: 2, reads: true, ..BUDGET });
    assert!(report.taken.contains_key("answers a read: SP"));
}

#[test]
fn a_write_that_is_sent_again_over_the_other_path() {
    passes(Budget { writes: 2, crashes: [1, 0], again: 1, reads: true, ..BUDGET });
    passes(Budget { writes: 2, crashes: [0, 1], again: 1, reads: true, ..BUDGET });
}

#[test]
fn the_owner_is_moved() {
    passes(Budget { writes: 1, moves: 1, again: 1, reads: true, ..BUDGET });
}

/// Minutes; `make soak` runs it.
#[test]
#[ignore = "takes minutes"]
fn reads_beside_three_writes() {
    passes(Budget { reads: true, ..BUDGET });
}

/// Minutes; `make soak` runs it.
#[test]
#[ignore = "takes minutes"]
fn two_writes_and_everything_else() {
    passes(Budget { writes: 2, again: 1, moves: 1, reads: true, ..BUDGET });
}

#[test]
fn no_rule_can_be_left_out() {
    let all = Rules::ALL;
    let small = Budget { writes: 2, again: 1, moves: 1, reads: true, ..BUDGET };
    let without: [(&str, Rules); 16] = [
        ("fence_returning", Rules { fence_returning: false, ..all }),
        ("fence", Rules { fence: false, ..all }),
        ("await_lease", Rules { await_lease: false, ..all }),
        ("lease", Rules { lease: false, ..all }),
        ("all_legs", Rules { all_legs: false, ..all }),
        ("lock", Rules { lock: false, ..all }),
        ("intent", Rules { intent: false, ..all }),
        ("keep_map", Rules { keep_map: false, ..all }),
        ("resync", Rules { resync: false, ..all }),
        ("pin", Rules { pin: false, made_alike: false, ..all }),
        ("made_alike", Rules { made_alike: false, ..all }),
        ("settled", Rules { settled: false, ..all }),
        ("torn", Rules { torn: false, ..all }),
        ("write_only", Rules { write_only: false, ..all }),
        ("expiry", Rules { expiry: false, ..all }),
        ("hello", Rules { hello: false, ..all }),
    ];
    let mut missed = Vec::new();
    for (name, rules) in without {
        let report = search(&rules, small, 60_000_000);
        match report.found {
            Some(found) => println!("{name}: {} ({} steps)", found.why, found.steps.len()),
            None => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "nothing goes wrong without {missed:?}");
}
