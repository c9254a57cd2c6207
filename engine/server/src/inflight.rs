//! Requests of one session that are not answered yet, by their id on the wire.

use crate::slab::{Slab, Token};

struct Entry<T> {
    sequence: u64,
    value: T,
}

/// Finds by id at once, and keeps the order in which they came.
pub struct InFlight<T> {
    entries: Slab<Entry<T>>,
    next: u64,
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        InFlight { entries: Slab::default(), next: 0 }
    }
}

impl<T> InFlight<T> {
    /// Adds one, and gives it an id.
    pub fn insert(&mut self, value: T) -> u64 {
        self.next += 1;
        self.entries.insert(Entry { sequence: self.next, value }).pack(0)
    }

    /// None for an id that is not in flight, whoever made it up.
    pub fn get(&self, id: u64) -> Option<&T> {
        let (tag, token) = Token::unpack(id);
        if tag != 0 { None } else { self.entries.get(token).map(|entry| &entry.value) }
    }

    pub fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let (tag, token) = Token::unpack(id);
        if tag != 0 { None } else { self.entries.get_mut(token).map(|entry| &mut entry.value) }
    }

    pub fn remove(&mut self, id: u64) -> Option<T> {
        let (tag, token) = Token::unpack(id);
        if tag != 0 { None } else { self.entries.remove(token).map(|entry| entry.value) }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.len() == 0
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|(_, entry)| &entry.value)
    }

    /// The ids of those that `which` picks, oldest first.
    pub fn ids(&self, which: impl Fn(&T) -> bool) -> Vec<u64> {
        let picked = self.entries.iter().filter(|(_, entry)| which(&entry.value));
        let mut found: Vec<(u64, u64)> =
            picked.map(|(token, entry)| (entry.sequence, token.pack(0))).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_coming_whatever_slots_are_used_again() {
        let mut all = InFlight::default();
        let ids: Vec<u64> = (0..4).map(|n| all.insert(n)).collect();
        assert_eq!(all.remove(ids[0]), Some(0));
        assert_eq!(all.remove(ids[2]), Some(2));
        let (four, five) = (all.insert(4), all.insert(5));
        assert_eq!(all.ids(|_| true), [ids[1], ids[3], four, five]);
        assert_eq!(all.ids(|n| n % 2 == 1), [ids[1], ids[3], five]);
        assert_eq!(all.get(ids[0]), None, "a reused slot");
        assert_eq!(all.remove(ids[2]), None);
        assert_eq!(all.get(four | 1 << 60), None);
        assert_eq!(all.values().sum::<i32>(), 13);
        assert!(!all.is_empty());
    }
}
