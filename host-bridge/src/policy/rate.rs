//! The counters of `rateCount`: one store per run and server, so that no reload and no second rule refills a budget.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::cel::Rates;

/// Keys of one store; one more is an error of the expression (P15).
const KEYS: usize = 100_000;
/// Hits of one key that are counted.
const HITS: usize = 100_000;
/// Hits of all keys together.
const TOTAL: usize = 1_000_000;
/// Bytes of one key.
const KEY_LENGTH: usize = 4096;
/// The longest window there is.
const LONGEST: SignedDuration = SignedDuration::from_hours(24);

/// All counters.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<Store>);

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Store {
    hits: HashMap<String, VecDeque<Timestamp>>,
    #[serde(skip)]
    total: usize,
    #[serde(skip)]
    changed: bool,
}

impl Counters {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be written down, if something changed since the last time.
    pub(crate) fn changed(&self) -> Option<Store> {
        let mut store = self.store();
        std::mem::take(&mut store.changed).then(|| store.clone())
    }

    /// All of it.
    pub(crate) fn snapshot(&self) -> Store {
        self.store().clone()
    }

    /// Takes back what was written down.
    pub(crate) fn restore(&self, mut stored: Store) {
        stored.total = stored.hits.values().map(VecDeque::len).sum();
        *self.store() = stored;
    }
}

impl Store {
    fn count(&mut self, key: &str, window: SignedDuration, now: Timestamp, add: bool) -> Result<i64, String> {
        if key.len() > KEY_LENGTH {
            return Err(format!("rate: a key longer than {KEY_LENGTH} bytes"));
        }
        if add {
            if self.total >= TOTAL || (self.hits.len() >= KEYS && !self.hits.contains_key(key)) {
                self.forget(now);
            }
            if self.hits.len() >= KEYS && !self.hits.contains_key(key) {
                return Err("rate: too many keys".to_owned());
            }
            if self.total >= TOTAL {
                return Err("rate: too many hits".to_owned());
            }
            let hits = self.hits.entry(key.to_owned()).or_default();
            hits.push_back(now);
            self.total += 1;
            if hits.len() > HITS {
                hits.pop_front();
                self.total -= 1;
            }
            self.changed = true;
        }
        let Some(hits) = self.hits.get(key) else { return Ok(0) };
        // A clock that goes back must not hide hits.
        let count = hits.iter().rev().take_while(|at| now.duration_since(**at) < window).count();
        Ok(i64::try_from(count).unwrap_or(i64::MAX))
    }

    /// Drops what no window reaches.
    fn forget(&mut self, now: Timestamp) {
        for hits in self.hits.values_mut() {
            while hits.front().is_some_and(|at| now.duration_since(*at) >= LONGEST) {
                hits.pop_front();
            }
        }
        self.hits.retain(|_, hits| !hits.is_empty());
        self.total = self.hits.values().map(VecDeque::len).sum();
    }
}

/// The counters as one call sees them: where two policies judge it, what the first counted the second only reads (P41).
#[derive(Debug)]
pub(crate) struct Turn<'c> {
    counters: &'c Counters,
    counted: RefCell<HashSet<String>>,
    second: bool,
}

impl<'c> Turn<'c> {
    pub(crate) fn new(counters: &'c Counters) -> Self {
        Self { counters, counted: RefCell::default(), second: false }
    }

    /// Another policy's turn.
    pub(crate) fn next(&mut self) {
        self.second = true;
    }
}

impl Rates for Turn<'_> {
    fn count(&self, key: &str, window: SignedDuration, now: Timestamp) -> Result<i64, String> {
        let add = !self.second || !self.counted.borrow().contains(key);
        let count = self.counters.store().count(key, window, now, add)?;
        if add && !self.second {
            self.counted.borrow_mut().insert(key.to_owned());
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn a_window_slides() {
        let counters = Counters::default();
        let minute = SignedDuration::from_secs(60);
        let count = |second| Turn::new(&counters).count("k", minute, at(second)).unwrap();
        assert_eq!([count(0), count(10), count(59), count(60), count(200)], [1, 2, 3, 3, 1]);
    }

    #[test]
    fn p15_at_the_cap_a_new_key_is_an_error_and_an_old_one_counts() {
        let counters = Counters::default();
        let hour = SignedDuration::from_hours(1);
        let turn = Turn::new(&counters);
        for key in 0..KEYS {
            turn.count(&key.to_string(), hour, at(0)).unwrap();
        }
        assert!(turn.count("another", hour, at(1)).is_err());
        assert_eq!(turn.count("7", hour, at(1)), Ok(2));
        assert_eq!(turn.count("another", hour, at(90_000)), Ok(1), "old hits are forgotten");
    }

    #[test]
    fn p41_what_one_policy_counted_the_other_reads() {
        let counters = Counters::default();
        let minute = SignedDuration::from_secs(60);
        let mut turn = Turn::new(&counters);
        assert_eq!(turn.count("k", minute, at(0)), Ok(1));
        assert_eq!(turn.count("k", minute, at(0)), Ok(2), "two rules of one policy both count");
        turn.next();
        assert_eq!(turn.count("k", minute, at(0)), Ok(2));
        assert_eq!(turn.count("new", minute, at(0)), Ok(1));
    }

    #[test]
    fn p43_a_restart_refills_no_budget() {
        let (before, after) = (Counters::default(), Counters::default());
        let minute = SignedDuration::from_secs(60);
        Turn::new(&before).count("k", minute, at(0)).unwrap();
        let text = serde_json::to_string(&before.changed().unwrap()).unwrap();
        assert!(before.changed().is_none());
        after.restore(serde_json::from_str(&text).unwrap());
        assert_eq!(Turn::new(&after).count("k", minute, at(1)), Ok(2));
    }
}
