//! The keys of one object, to find one that comes twice, also in another case. Not the keys themselves: hashes of them.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher as _, RandomState},
};

use super::{Fault, fold::fold_into};

/// Of so many keys, looking at each is faster than a table.
const FEW: usize = 16;

/// Hashes keys. Keyed at random: nobody can make two keys collide, and a collision only refuses.
#[derive(Debug, Default)]
pub(super) struct Hasher {
    state: RandomState,
    folded: String,
}

/// What is remembered of a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    folded: u64,
    exact: u64,
}

impl Hasher {
    pub(super) fn key(&mut self, key: &str) -> Key {
        fold_into(key, &mut self.folded);
        let hash = |text: &str| {
            let mut hasher = self.state.build_hasher();
            hasher.write(text.as_bytes());
            hasher.finish()
        };
        let folded = hash(&self.folded);
        // Most keys are their own folded form.
        let exact = if self.folded == key { folded } else { hash(key) };
        Key { folded, exact }
    }
}

/// The keys of an object so far.
#[derive(Debug, Default)]
pub(super) struct Keys {
    few: Vec<Key>,
    /// Beyond those, by their folded form.
    many: HashMap<u64, u64>,
}

impl Keys {
    pub(super) fn len(&self) -> usize {
        self.few.len() + self.many.len()
    }

    /// Adds a key that must not be there.
    pub(super) fn insert(&mut self, key: Key) -> Result<(), Fault> {
        let known = self.few.iter().find(|known| known.folded == key.folded).map(|known| known.exact);
        let known = known.or_else(|| self.many.get(&key.folded).copied());
        match known {
            Some(exact) if exact == key.exact => Err(Fault::DuplicateKey),
            Some(_) => Err(Fault::KeyCase),
            None if self.few.len() < FEW => {
                self.few.push(key);
                Ok(())
            }
            None => {
                self.many.insert(key.folded, key.exact);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_hundredth_are_found_alike() {
        let (mut hasher, mut keys) = (Hasher::default(), Keys::default());
        for number in 0..100 {
            assert_eq!(keys.insert(hasher.key(&format!("key{number}"))), Ok(()));
        }
        assert_eq!(keys.len(), 100);
        for number in 0..100 {
            assert_eq!(keys.insert(hasher.key(&format!("key{number}"))), Err(Fault::DuplicateKey));
            assert_eq!(keys.insert(hasher.key(&format!("Key{number}"))), Err(Fault::KeyCase));
            assert_eq!(keys.insert(hasher.key(&format!("\u{212a}ey{number}"))), Err(Fault::KeyCase));
        }
        assert_eq!(keys.len(), 100);
    }
}
