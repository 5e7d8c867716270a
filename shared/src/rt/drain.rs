//! Shutdown: a signal, a held guard, a deadline.
//!
//! ```text
//! Trigger::drain ──signal──► Drain::signalled ──► finish ──drop──► Trigger::drain returns
//!        └── deadline ──► returns all the same and says so
//! ```

use std::time::Duration;

use tokio::sync::watch;

/// Starts the drain and waits for it. Dropping it starts the drain as well.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

/// Tells of the drain, and holds it up while it lives. Drop it when the work is done.
#[derive(Debug, Clone)]
#[must_use = "dropping this tells the drain that the work is finished"]
pub struct Drain(watch::Receiver<bool>);

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// All work was finished.
    Finished,
    /// The deadline came first; what is left is to be dropped.
    Deadline,
}

/// A new drain.
pub fn drain() -> (Trigger, Drain) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Drain(receiver))
}

impl Trigger {
    /// Signals, then waits until every [`Drain`] is dropped or the deadline passes.
    pub async fn drain(self, deadline: Duration) -> Drained {
        self.0.send_replace(true);
        match tokio::time::timeout(deadline, self.0.closed()).await {
            Ok(()) => Drained::Finished,
            Err(_) => Drained::Deadline,
        }
    }
}

impl Drain {
    /// Returns when the drain was signalled, at once if it already was.
    pub async fn signalled(&mut self) {
        // An error means that the trigger is gone: that is a drain too.
        let _gone = self.0.wait_for(|draining| *draining).await.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waits_for_the_last_guard() {
        let (trigger, drain) = drain();
        let mut work = drain.clone();
        drop(drain);
        let worker = async move {
            work.signalled().await;
            drop(work);
        };
        let (how, ()) = tokio::join!(trigger.drain(Duration::from_secs(5)), worker);
        assert_eq!(how, Drained::Finished);
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_it() {
        let (trigger, _held) = drain();
        assert_eq!(trigger.drain(Duration::from_secs(5)).await, Drained::Deadline);
    }
}
