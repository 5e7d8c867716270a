//! Pauses between a dialler's attempts: doubling, bounded, with jitter so that many sandboxes do not knock at the same moment.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(50);
/// Where nobody listens an attempt costs next to nothing, and a bridge that comes back is to be found at once.
const NOBODY: Duration = Duration::from_millis(250);
/// Somebody answered and it came to nothing: a handshake costs both sides.
const IN_VAIN: Duration = Duration::from_secs(1);
/// A tunnel that stood for so long was a good one; the next pause is the first again.
const PROVEN: Duration = Duration::from_secs(2);

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// A tunnel that stood for so long.
    Stood(Duration),
    /// Nobody listens.
    Nobody,
    /// Somebody answered, and there is no tunnel all the same.
    InVain,
}

/// The pauses of one uplink.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The next pause, after an attempt that ended so.
    #[must_use]
    pub fn pause(&mut self, attempt: Attempt) -> Duration {
        let longest = match attempt {
            Attempt::Stood(stood) if stood >= PROVEN => {
                *self = Self::default();
                NOBODY
            }
            Attempt::Nobody => NOBODY,
            Attempt::Stood(_) | Attempt::InVain => IN_VAIN,
        };
        let pause = self.next.min(longest);
        self.next = pause * 2;
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
    use test_case::test_case;

    #[test_case(Attempt::Nobody => NOBODY; "nobody there")]
    #[test_case(Attempt::InVain => IN_VAIN; "somebody there")]
    #[test_case(Attempt::Stood(Duration::ZERO) => IN_VAIN; "one that does not last")]
    fn grows_to_its_bound_and_starts_again(attempt: Attempt) -> Duration {
        let mut backoff = Backoff::default();
        let (mut bound, mut longest) = (FIRST, FIRST);
        for _ in 0..10 {
            let pause = backoff.pause(attempt);
            longest = longest.max(bound);
            assert!(pause >= bound / 2 && pause <= bound, "{pause:?} of {bound:?}");
            bound = (bound * 2).min(if attempt == Attempt::Nobody { NOBODY } else { IN_VAIN });
        }
        assert!(backoff.pause(Attempt::Stood(PROVEN)) <= FIRST);
        longest
    }

    #[test]
    fn a_bridge_that_is_gone_after_a_refusal_is_looked_for_often() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            let _pause = backoff.pause(Attempt::InVain);
        }
        assert!(backoff.pause(Attempt::Nobody) <= NOBODY);
    }
}
