//! Who may change a T1 object by what is there: one operation at a time for each object, of all loops.
//! While one has its turn, plain writes to its range wait, whoever sent them: this is where all of them
//! meet if there is no mirror above.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::rangelock::Holder;

#[derive(Clone, Copy)]
struct Turn {
    /// Whose, and which of those that it has had.
    name: Name,
    start: u64,
    end: u64,
}

/// An operation with a number of its choice: what is said to it of an earlier turn must not be
/// taken for this one's.
pub type Name = (Holder, u64);

/// One object's: who has the turn, who waits for it, which writes wait for its end.
struct Line {
    now: Turn,
    next: VecDeque<Turn>,
    writes: Vec<Name>,
}

/// All objects'.
#[derive(Default)]
pub struct Turns {
    lines: Mutex<HashMap<String, Line>>,
    /// How many objects have a line: what a write has to look at if there is none.
    open: AtomicUsize,
}

/// Who can go on now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// First: writes that have waited. Those that come later wait for `next`.
    pub writes: Vec<Name>,
    pub next: Option<Name>,
}

impl Turns {
    /// True if it is that operation's turn at once; otherwise it waits in line.
    pub fn take(&self, t1: &str, start: u64, length: u64, name: Name) -> bool {
        let turn = Turn { name, start, end: start + length };
        let mut lines = self.lock();
        if let Some(line) = lines.get_mut(t1) {
            line.next.push_back(turn);
            return false;
        }
        let line = Line { now: turn, next: VecDeque::new(), writes: Vec::new() };
        lines.insert(t1.to_owned(), line);
        self.open.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// True if a write to the range has to wait.
    pub fn blocks(&self, t1: &str, start: u64, length: u64) -> bool {
        self.open.load(Ordering::SeqCst) > 0
            && self.lock().get(t1).is_some_and(|line| line.meets(start, length))
    }

    /// The same, and if so the operation is told when it is over.
    pub fn wait(&self, t1: &str, start: u64, length: u64, name: Name) -> bool {
        if self.open.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let mut lines = self.lock();
        let line = lines.get_mut(t1).filter(|line| line.meets(start, length));
        if let Some(line) = line {
            line.writes.push(name);
            return true;
        }
        false
    }

    /// Gives up the operation's turn, or its place in the line.
    pub fn give_up(&self, t1: &str, name: Name) -> Freed {
        let mut lines = self.lock();
        let Some(line) = lines.get_mut(t1) else { return Freed::default() };
        if line.now.name != name {
            line.next.retain(|turn| turn.name != name);
            return Freed::default();
        }
        let writes = std::mem::take(&mut line.writes);
        match line.next.pop_front() {
            Some(turn) => {
                line.now = turn;
                Freed { writes, next: Some(turn.name) }
            }
            None => {
                lines.remove(t1);
                self.open.fetch_sub(1, Ordering::SeqCst);
                Freed { writes, next: None }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Line>> {
        // A panic in a loop aborts the process, so the state is never seen torn.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn meets(&self, start: u64, length: u64) -> bool {
        self.now.start < start + length && start < self.now.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::Token;

    fn holder(index: u32) -> Name {
        ((0, Token { index, generation: 0 }), 1)
    }

    #[test]
    fn turns_go_in_their_order_and_writes_wait_for_the_one_that_they_met() {
        let turns = Turns::default();
        assert!(!turns.wait("t", 0, 4096, holder(9)));
        assert!(turns.take("t", 0, 512, holder(1)));
        assert!(turns.take("u", 0, 512, holder(2)), "another object");
        assert!(!turns.take("t", 4096, 512, holder(3)));
        assert!(!turns.take("t", 0, 512, holder(4)));
        assert!(turns.blocks("t", 511, 1) && !turns.blocks("t", 512, 8192));
        assert!(turns.wait("t", 0, 4096, holder(5)));
        let nobody = Freed::default();
        assert_eq!(turns.give_up("t", holder(4)), nobody, "it only stood in line");
        let freed = turns.give_up("t", holder(1));
        assert_eq!(freed, Freed { writes: vec![holder(5)], next: Some(holder(3)) });
        assert_eq!(turns.give_up("t", holder(1)), nobody, "it has none any more");
        assert!(!turns.blocks("t", 0, 512) && turns.blocks("t", 4096, 1));
        assert_eq!(turns.give_up("t", holder(3)), nobody);
        assert_eq!(turns.give_up("u", holder(2)), nobody);
        assert!(!turns.blocks("t", 4096, 1) && turns.take("t", 0, 1, holder(6)));
    }
}
