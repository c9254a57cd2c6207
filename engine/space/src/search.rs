//! Every state, breadth first.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};

use rustc_hash::{FxHashMap, FxHasher};

use crate::state::{Budget, Rules, State};
use crate::{controller, hosts, owner};

/// One step: what, of which write or value, where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step(&'static str, usize, usize);

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "write {} {} {}", self.1 + 1, self.0, self.2)
    }
}

/// The steps that a state has, with what they lead to.
#[derive(Default)]
pub struct Steps {
    all: Vec<(Step, State)>,
    /// One that changes nothing for any other: whether it comes before or after those, it comes to
    /// the same, so that it may as well come first.
    prompt: Option<usize>,
}

impl Steps {
    pub fn add(
        &mut self,
        what: &'static str,
        write: usize,
        place: usize,
        from: &State,
        change: impl FnOnce(&mut State),
    ) {
        let mut next = *from;
        change(&mut next);
        self.all.push((Step(what, write, place), next));
    }

    /// Adds a step that can't be told from being done at once.
    pub fn at_once(
        &mut self,
        what: &'static str,
        write: usize,
        place: usize,
        from: &State,
        change: impl FnOnce(&mut State),
    ) {
        self.prompt = Some(self.all.len());
        self.add(what, write, place, from, change);
    }
}

fn after(state: &State, rules: &Rules, steps: &mut Steps) {
    steps.all.clear();
    steps.prompt = None;
    hosts::steps(state, rules, steps);
    owner::steps(state, rules, steps);
    controller::steps(state, rules, steps);
    if let Some(index) = steps.prompt {
        steps.all.swap(0, index);
        steps.all.truncate(1);
    }
}

/// What a state must not be, and the steps that lead there.
#[derive(Debug)]
pub struct Found {
    pub why: &'static str,
    pub steps: Vec<String>,
}

/// What a search has come to.
#[derive(Debug)]
pub struct Report {
    pub states: usize,
    pub depth: usize,
    /// How often each step was taken.
    pub taken: FxHashMap<&'static str, u64>,
    /// States in which nothing is under way and all is in sync.
    pub quiet: usize,
    pub found: Option<Found>,
}

fn print(state: &State) -> u64 {
    let mut hasher = FxHasher::default();
    state.hash(&mut hasher);
    // Two rounds, so that similar states do not meet.
    (hasher.finish() ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xff51_afd7_ed55_8ccd)
}

/// Searches all that can happen within the budget, until something is wrong or `most` states were
/// seen. States are told apart by 64 bits of hash.
pub fn search(rules: &Rules, budget: Budget, most: usize) -> Report {
    let begin = State::begin(budget);
    let mut known: FxHashMap<u64, u64> = FxHashMap::default();
    known.insert(print(&begin), 0);
    let mut next = VecDeque::from([(begin, 0usize)]);
    let mut report =
        Report { states: 1, depth: 0, taken: FxHashMap::default(), quiet: 0, found: None };
    let mut steps = Steps::default();
    while let Some((state, depth)) = next.pop_front() {
        report.depth = depth;
        report.quiet += usize::from(state.is_quiet());
        after(&state, rules, &mut steps);
        let from = print(&state);
        for (step, to) in &steps.all {
            *report.taken.entry(step.0).or_default() += 1;
            let name = print(to);
            if known.contains_key(&name) {
                continue;
            }
            known.insert(name, from);
            report.states += 1;
            if let Some(why) = to.wrong() {
                let steps = trace(rules, begin, &known, name);
                report.found = Some(Found { why, steps });
                return report;
            }
            next.push_back((*to, depth + 1));
        }
        if report.states >= most {
            return report;
        }
    }
    report
}

/// The steps from the beginning to a state.
fn trace(rules: &Rules, begin: State, known: &FxHashMap<u64, u64>, end: u64) -> Vec<String> {
    let mut names = vec![end];
    while let Some(&before) = names.last().and_then(|name| known.get(name)).filter(|at| **at != 0) {
        names.push(before);
    }
    let (mut state, mut steps, mut told) = (begin, Steps::default(), Vec::new());
    for name in names.iter().rev().skip(1) {
        after(&state, rules, &mut steps);
        if let Some((step, to)) = steps.all.iter().find(|(_, to)| print(to) == *name) {
            told.push(step.to_string());
            state = *to;
        }
    }
    told
}
