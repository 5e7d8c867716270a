//! Wakes the writer, a little after something was recorded.
//!
//! ```text
//! quiet ──recorded──► soon ──LINGER──► rung ──the writer looks──► quiet
//!                      └── somebody waits, or nobody is left to record ──► rung at once
//! ```
//!
//! The pause is a timer of the thread that recorded. So a request does not wake another thread on its way, and the records
//! of one pause are written together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use moat_shared::rt::exec::Owned;
use tokio::{runtime::Handle, sync::Notify, time::sleep};

/// How late a line may be written, so that those of its neighbours go with it.
const LINGER: Duration = Duration::from_millis(5);

/// The recorders' end. When the last one is dropped the writer is woken for the last time.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rings: Arc<Rings>,
    /// One, and those that are over.
    pauses: Owned,
}

/// The writer's end.
#[derive(Debug, Default)]
pub(super) struct Rings {
    /// It rings soon, or has rung and the writer has not looked since.
    soon: AtomicBool,
    rung: Notify,
}

impl Bell {
    pub(super) fn rings(&self) -> Arc<Rings> {
        Arc::clone(&self.rings)
    }

    /// Somebody waits.
    pub(super) fn ring(&self) {
        self.rings.rung.notify_one();
    }

    /// Something was recorded.
    pub(super) fn ring_soon(&self) {
        if self.rings.soon.swap(true, Ordering::AcqRel) {
            return;
        }
        // Where there is no runtime, or it ends, this is dropped, which rings.
        let rings = Ringing(self.rings());
        if Handle::try_current().is_ok() {
            self.pauses.spawn(async move {
                sleep(LINGER).await;
                drop(rings);
            });
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.ring();
    }
}

/// Rings when it is dropped.
struct Ringing(Arc<Rings>);

impl Drop for Ringing {
    fn drop(&mut self) {
        self.0.rung.notify_one();
    }
}

impl Rings {
    /// Waits until there is something to look for. What is recorded from then on rings anew.
    pub(super) async fn rung(&self) {
        self.rung.notified().await;
        // Reads what the last recorder wrote: what it had put into the queue by then is seen.
        self.soon.swap(false, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::{
        runtime::Builder,
        time::{Instant, timeout},
    };

    use super::*;

    /// The clock stands still while anybody has anything to do: how long it took until it rang, if it did.
    async fn rang_after(rings: &Rings) -> Option<Duration> {
        let before = Instant::now();
        timeout(10 * LINGER, rings.rung()).await.ok().map(|()| before.elapsed())
    }

    fn alone<F: Future>(work: F) -> F::Output {
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(work)
    }

    #[tokio::test(start_paused = true)]
    async fn it_rings_once_for_what_comes_together_and_anew_for_what_comes_later() {
        let bell = Bell::default();
        let rings = bell.rings();
        for _ in 0..2 {
            (0..3).for_each(|_| bell.ring_soon());
            let after = rang_after(&rings).await.unwrap();
            assert!((LINGER..2 * LINGER).contains(&after), "{after:?}");
        }
        assert_eq!(rang_after(&rings).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_and_the_last_who_leaves_ring_at_once() {
        let bell = Bell::default();
        let rings = bell.rings();
        bell.ring_soon();
        bell.ring();
        assert_eq!(rang_after(&rings).await, Some(Duration::ZERO));
        bell.ring_soon();
        drop(bell);
        assert_eq!(rang_after(&rings).await, Some(Duration::ZERO));
    }

    #[test]
    fn a_runtime_that_ends_before_the_pause_rings_and_so_does_none_at_all() {
        let bell = Bell::default();
        let rings = bell.rings();
        alone(async { bell.ring_soon() });
        assert_eq!(alone(rang_after(&rings)), Some(Duration::ZERO));
        bell.ring_soon();
        assert_eq!(alone(rang_after(&rings)), Some(Duration::ZERO));
    }
}
