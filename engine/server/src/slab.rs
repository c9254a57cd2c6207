//! A slab whose tokens go stale when their slot is reused.

/// Names one tenancy of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    pub index: u32,
    /// 28 bits, so that a token and a tag fit into epoll's 64 bits.
    pub generation: u32,
}

const GENERATIONS: u32 = (1 << 28) - 1;

impl Token {
    pub fn pack(self, tag: u64) -> u64 {
        tag << 60 | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The token and the tag that were packed.
    pub fn unpack(raw: u64) -> (u64, Token) {
        let generation = (raw >> 32) as u32 & GENERATIONS;
        (raw >> 60, Token { index: raw as u32, generation })
    }
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values by token; slots are reused, so the steady state allocates nothing.
pub struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub fn insert(&mut self, value: T) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.value = Some(value);
        Token { index, generation: slot.generation }
    }

    pub fn get(&self, token: Token) -> Option<&T> {
        let slot = self.slots.get(token.index as usize)?;
        if slot.generation == token.generation { slot.value.as_ref() } else { None }
    }

    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.index as usize)?;
        if slot.generation == token.generation { slot.value.as_mut() } else { None }
    }

    pub fn remove(&mut self, token: Token) -> Option<T> {
        let slot = self.slots.get_mut(token.index as usize)?;
        if slot.generation != token.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = (slot.generation + 1) & GENERATIONS;
        self.free.push(token.index);
        Some(value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Token, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let token = Token { index: index as u32, generation: slot.generation };
            slot.value.as_ref().map(|value| (token, value))
        })
    }

    pub fn tokens(&self) -> Vec<Token> {
        self.iter().map(|(token, _)| token).collect()
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
