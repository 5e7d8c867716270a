//! Tunnels that are not open yet: bounded, and the oldest makes room for the newest.
//!
//! A sandbox can connect as often as it likes without a key. Turning newcomers away would let it keep the others out for
//! as long as a handshake may take; evicting the oldest does not, for an honest handshake takes milliseconds.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

#[derive(Debug, Clone)]
pub(super) struct HalfOpen {
    waiting: Arc<Mutex<Waiting>>,
    room: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// By age. Dropping a sender evicts.
    places: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place among them, until it is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    number: u64,
    waiting: Arc<Mutex<Waiting>>,
    evicted: oneshot::Receiver<()>,
}

impl HalfOpen {
    pub(super) fn new(room: usize) -> Self {
        Self { waiting: Arc::default(), room }
    }

    /// Lets the oldest go, for want of something else than places. True if there was one.
    pub(super) fn evict_oldest(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).places.pop_first().is_some()
    }

    /// Takes a place; the oldest loses its own when there is no room.
    pub(super) fn enter(&self) -> Guard {
        let (place, evicted) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.places.len() >= self.room {
            waiting.places.pop_first();
        }
        let number = waiting.next;
        waiting.next += 1;
        waiting.places.insert(number, place);
        Guard { number, waiting: Arc::clone(&self.waiting), evicted }
    }
}

impl Guard {
    /// Has a newer one taken the place?
    pub(super) fn is_evicted(&mut self) -> bool {
        self.evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    /// Returns when a newer one took the place.
    pub(super) async fn evicted(&mut self) {
        let _dropped = (&mut self.evicted).await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).places.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_makes_room() {
        let half_open = HalfOpen::new(2);
        let mut first = half_open.enter();
        let second = half_open.enter();
        drop(second);
        let _third = half_open.enter();
        assert!(first.evicted.try_recv().is_err_and(|e| e == oneshot::error::TryRecvError::Empty));
        let _fourth = half_open.enter();
        tokio::time::timeout(std::time::Duration::from_secs(5), first.evicted()).await.unwrap();
        assert_eq!(half_open.waiting.lock().unwrap().places.len(), 2);
    }
}
