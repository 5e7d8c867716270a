//! Whether the other side of the tunnel still lives: HTTP/2 pings (RFC 9113, section 6.7) where nothing else is heard.
//!
//! ```text
//! heard lately ──an interval of silence──► asked ──pong──► heard lately
//!                                            └── nothing at all, longer than patience ──► dead
//! ```
//!
//! Whose answers arrive lives, however late its pong is behind them.

use std::{
    future::pending,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ::h2::{Ping, PingPong};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::limits;

/// When something came last.
#[derive(Debug, Clone)]
pub struct Heard(Arc<Last>);

#[derive(Debug)]
struct Last {
    begun: Instant,
    /// Milliseconds after that.
    at: AtomicU64,
}

impl Default for Heard {
    /// Just now.
    fn default() -> Self {
        Self(Arc::new(Last { begun: Instant::now(), at: AtomicU64::new(0) }))
    }
}

impl Heard {
    /// Something came.
    pub fn note(&self) {
        let at = u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.at.store(at, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.0.begun + Duration::from_millis(self.0.at.load(Ordering::Relaxed))
    }
}

/// How often is asked, and how long an answer may take.
#[derive(Debug, Clone, Copy)]
pub struct Pulse {
    interval: Duration,
    patience: Duration,
}

impl Pulse {
    /// On a carrier of this machine's, or the network's.
    pub const USUAL: Self = Self { interval: limits::PING_INTERVAL, patience: limits::PING_TIMEOUT };
    /// In a guest.
    pub const GUEST: Self =
        Self { interval: limits::GUEST_PING_INTERVAL, patience: limits::GUEST_PING_TIMEOUT };

    /// Ends when the other side is dead.
    pub async fn stops(self, mut pings: PingPong, heard: Heard) {
        loop {
            while heard.last() + self.interval > Instant::now() {
                sleep_until(heard.last() + self.interval).await;
            }
            let mut asked = Instant::now();
            let mut pong = pin!(pings.ping(Ping::opaque()));
            loop {
                match timeout_at(asked + self.patience, &mut pong).await {
                    Ok(Ok(_pong)) => break,
                    // The connection is over, and says so itself.
                    Ok(Err(_)) => return pending().await,
                    Err(_elapsed) if heard.last() > asked => asked = heard.last(),
                    Err(_elapsed) => return,
                }
            }
            heard.note();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::h2::{client, server};
    use bytes::Bytes;
    use std::future::poll_fn;
    use tokio::{
        io::{DuplexStream, duplex},
        time::sleep,
    };

    const PULSE: Pulse = Pulse { interval: Duration::from_secs(10), patience: Duration::from_secs(20) };
    const HOUR: Duration = Duration::from_secs(3600);

    async fn both() -> (client::Connection<DuplexStream, Bytes>, server::Connection<DuplexStream, Bytes>) {
        let (ours, theirs) = duplex(1 << 16);
        let (here, there) = tokio::join!(client::handshake(ours), server::handshake(theirs));
        let ((sender, here), there) = (here.unwrap(), there.unwrap());
        // With the last sender a connection closes itself.
        std::mem::forget(sender);
        (here, there)
    }

    /// How long until the pulse stops, if it does within an hour.
    async fn stops(
        heard: Heard,
        there_answers: bool,
        meanwhile: impl Future<Output = ()>,
    ) -> Option<Duration> {
        let (mut here, mut there) = both().await;
        let pings = here.ping_pong().unwrap();
        let begun = Instant::now();
        let serve = async {
            match there_answers {
                true => drop(poll_fn(|context| there.poll_closed(context)).await),
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = PULSE.stops(pings, heard) => Some(begun.elapsed()),
            _ = here => panic!("the connection is over"),
            () = serve => panic!("the other side is over"),
            () = async { meanwhile.await; sleep(HOUR).await } => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_lives() {
        assert_eq!(stops(Heard::default(), true, async {}).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_dead_after_an_interval_and_all_patience() {
        let dead = stops(Heard::default(), false, async {}).await;
        assert_eq!(dead, Some(PULSE.interval + PULSE.patience));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_begins_with_what_came_last() {
        let (heard, late) = (Heard::default(), PULSE.interval / 2);
        let comes = async {
            sleep(late).await;
            heard.note();
        };
        let dead = stops(heard.clone(), false, comes).await;
        assert_eq!(dead, Some(late + PULSE.interval + PULSE.patience));
    }

    #[tokio::test(start_paused = true)]
    async fn whose_answers_come_lives_without_a_pong() {
        let heard = Heard::default();
        let until = Duration::from_secs(600);
        let comes = async {
            let begun = Instant::now();
            while begun.elapsed() < until {
                sleep(PULSE.patience - Duration::from_secs(1)).await;
                heard.note();
            }
        };
        let dead = stops(heard.clone(), false, comes).await.unwrap();
        assert!(dead > until && dead <= until + 2 * PULSE.patience, "{dead:?}");
    }
}
