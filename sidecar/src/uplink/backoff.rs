//! Pauses between attempts: doubling, bounded, with jitter so that many sandboxes do not knock at the same moment.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(50);
/// A bridge that comes back is found again within this time.
const LONGEST: Duration = Duration::from_secs(1);
/// A tunnel that stood for so long was a good one; the next pause is the first again.
const PROVEN: Duration = Duration::from_secs(2);

/// The pauses of one uplink.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The next pause, after a tunnel that stood for `stood` (zero if none did).
    pub(crate) fn pause(&mut self, stood: Duration) -> Duration {
        if stood >= PROVEN {
            *self = Self::default();
        }
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        // Between half and all of it.
        let jitter = u32::try_from(random() % 512).unwrap_or(0);
        pause * (512 + jitter) / 1024
    }
}

/// std's hash keys are the one source of randomness that needs neither a crate nor a file.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_bound_and_starts_again() {
        let mut backoff = Backoff::default();
        let mut bound = FIRST;
        for _ in 0..10 {
            let pause = backoff.pause(Duration::ZERO);
            assert!(pause >= bound / 2 && pause <= bound, "{pause:?} of {bound:?}");
            bound = (bound * 2).min(LONGEST);
        }
        assert_eq!(bound, LONGEST);
        assert!(backoff.pause(PROVEN) <= FIRST);
    }
}
