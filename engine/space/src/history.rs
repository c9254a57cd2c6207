//! Whether what hosts saw could have happened in some order: all ways in which the operations so
//! far may have taken effect, one at a time, each between its beginning and its end. A write that is
//! not answered may take effect more than once, since it is sent again when a path is lost: NBD gives
//! it no name by which an SP could tell.

use crate::state::{Value, WRITES};

const VALUES: usize = WRITES + 1;
const SETS: usize = 1 << WRITES;
/// A read that has not taken effect.
const UNREAD: usize = VALUES;
const WAYS: usize = VALUES * SETS * (VALUES + 1);
const WORDS: usize = WAYS.div_ceil(64);

/// A set of ways: (what the block holds, writes that took effect, what the open read got).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct History {
    ways: [u64; WORDS],
    /// Writes that have begun and not ended, by bit.
    open: u8,
    reading: bool,
}

fn way(value: usize, done: usize, read: usize) -> usize {
    (read * SETS + done) * VALUES + value
}

impl History {
    pub fn begin() -> History {
        let mut history = History { ways: [0; WORDS], open: 0, reading: false };
        history.add(way(0, 0, UNREAD));
        history
    }

    pub fn write_begins(&mut self, value: Value) {
        self.open |= 1 << (value - 1);
        self.settle();
    }

    pub fn write_ends(&mut self, value: Value) {
        let bit = 1 << (value - 1);
        self.open &= !bit;
        self.keep(|_, done, _| done & usize::from(bit) != 0);
    }

    pub fn read_begins(&mut self) {
        self.reading = true;
        self.settle();
    }

    /// Some: it gave that. None: it was given up.
    pub fn read_ends(&mut self, value: Option<Value>) {
        self.reading = false;
        if let Some(value) = value {
            self.keep(|_, _, read| read == usize::from(value));
        }
        let before = *self;
        self.ways = [0; WORDS];
        before.each(|value, done, _| self.add(way(value, done, UNREAD)));
    }

    pub fn is_impossible(&self) -> bool {
        self.ways == [0; WORDS]
    }

    fn add(&mut self, way: usize) {
        self.ways[way / 64] |= 1 << (way % 64);
    }

    fn each(&self, mut of: impl FnMut(usize, usize, usize)) {
        for (word, bits) in self.ways.iter().enumerate() {
            let mut bits = *bits;
            while bits != 0 {
                let at = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                of(at % VALUES, at / VALUES % SETS, at / VALUES / SETS);
            }
        }
    }

    fn keep(&mut self, which: impl Fn(usize, usize, usize) -> bool) {
        let before = *self;
        self.ways = [0; WORDS];
        before.each(|value, done, read| {
            if which(value, done, read) {
                self.add(way(value, done, read));
            }
        });
    }

    /// Lets what is open take effect in every way.
    fn settle(&mut self) {
        loop {
            let before = *self;
            before.each(|value, done, read| {
                for write in (0..WRITES).filter(|write| before.open & 1 << write != 0) {
                    // Again and again, until it is answered: it may have been sent twice.
                    self.add(way(write + 1, done | 1 << write, read));
                }
                if self.reading && read == UNREAD {
                    self.add(way(value, done, value));
                }
            });
            if *self == before {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(history: &mut History, value: Value) {
        history.read_begins();
        history.read_ends(Some(value));
    }

    #[test]
    fn a_read_beside_a_write_may_see_either_but_not_the_old_after_the_new() {
        let mut history = History::begin();
        history.write_begins(1);
        read(&mut history, 0);
        read(&mut history, 1);
        assert!(!history.is_impossible());
        read(&mut history, 0);
        assert!(history.is_impossible());
    }

    #[test]
    fn an_open_write_may_take_effect_twice_and_an_answered_one_not() {
        let mut history = History::begin();
        history.write_begins(1);
        read(&mut history, 1);
        history.write_begins(2);
        history.write_ends(2);
        read(&mut history, 2);
        history.write_ends(1);
        read(&mut history, 1);
        assert!(!history.is_impossible());
        read(&mut history, 2);
        assert!(history.is_impossible());
    }

    #[test]
    fn what_was_acknowledged_is_read_until_something_else_may_be() {
        let mut history = History::begin();
        history.write_begins(1);
        history.write_begins(2);
        history.write_ends(1);
        let mut other = history;
        read(&mut other, 0);
        assert!(other.is_impossible());
        history.write_ends(2);
        read(&mut history, 1);
        read(&mut history, 2);
        assert!(history.is_impossible(), "one order for all");
    }

    #[test]
    fn a_long_read_may_see_what_changed_meanwhile() {
        let mut history = History::begin();
        history.read_begins();
        history.write_begins(1);
        history.write_ends(1);
        let mut other = history;
        history.read_ends(Some(0));
        other.read_ends(Some(1));
        assert!(!history.is_impossible() && !other.is_impossible());
    }
}
