//! How many connections to an HTTP/2 upstream: one carries as many streams as the upstream allows on it, and where these
//! are used up, by streams that stay open for hours, the next call gets a further connection instead of waiting.
//!
//! ```text
//! first request ──► lane 0 ──connected──► SETTINGS: so many streams ──┐
//! further ones  ──► wait for that ◄───────────────────────────────────┘
//!                    └──► the first lane with room ──► none: wait until a stream ends
//! ```
//!
//! No run takes more places than it leaves to others: alone it has half of them, and the next one half of what is left,
//! so that a run with thousands of open streams makes nobody wait but itself.
//!
//! A lane is a pool of its own that holds one connection per origin. What an upstream allows is read from its first
//! SETTINGS as they pass (RFC 9113, section 6.5.2); the client keeps to later ones by itself. HTTP/1.1 has no use for
//! lanes: each request in flight has its own connection there.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use moat_shared::id::RunId;
use tokio::sync::Notify;

use super::connect::ConnectFailure;

/// Connections to one origin, at most.
pub(super) const LANES: usize = 16;

/// What is known of the origins, and which lanes are in use.
#[derive(Debug, Clone, Default)]
pub(super) struct Lanes(Arc<Mutex<HashMap<String, Origin>>>);

#[derive(Debug, Default)]
struct Origin {
    streams: Streams,
    used: [usize; LANES],
    /// The same by run; those that use none are not in it.
    used_by: HashMap<RunId, usize>,
    /// Connections that did not come to be, and why the last one did not.
    failures: u64,
    failure: Option<ConnectFailure>,
    /// A lane has room again, or it is known how much there is.
    room: Arc<Notify>,
}

/// How many streams one connection carries.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Streams {
    /// Nobody has connected so far.
    #[default]
    Unknown,
    /// HTTP/1.1.
    None,
    AtMost(usize),
}

impl Lanes {
    /// A place for a run's request to this origin; waits while there is none. Who waits for the first connection has its fate:
    /// where that one cannot be made, nobody tries in turn, each for as long as connecting may take.
    pub(super) async fn enter(&self, authority: &str, run: &RunId) -> Result<Place, ConnectFailure> {
        let mut waited_since: Option<u64> = None;
        loop {
            let room = {
                let mut origins = self.origins();
                let origin = origins.entry(authority.to_owned()).or_default();
                let since = *waited_since.get_or_insert(origin.failures);
                if let (Streams::Unknown, Some(failure)) = (origin.streams, &origin.failure)
                    && origin.failures > since
                {
                    return Err(failure.clone());
                }
                if let Some(lane) = origin.lane(run) {
                    origin.used[lane] += 1;
                    *origin.used_by.entry(run.clone()).or_default() += 1;
                    let (authority, run) = (authority.to_owned(), run.clone());
                    return Ok(Place { lane, authority, run, lanes: self.clone() });
                }
                // Made under the lock: whoever makes room later is heard.
                Arc::clone(&origin.room).notified_owned()
            };
            room.await;
        }
    }

    /// What a connection showed.
    pub(super) fn learn(&self, authority: &str, streams: Streams) {
        if let Some(origin) = self.origins().get_mut(authority) {
            origin.streams = streams;
            origin.room.notify_waiters();
        }
    }

    /// A connection could not be made.
    pub(super) fn failed(&self, authority: &str, failure: &ConnectFailure) {
        if let Some(origin) = self.origins().get_mut(authority) {
            origin.failures += 1;
            origin.failure = Some(failure.clone());
            origin.room.notify_waiters();
        }
    }

    fn origins(&self) -> MutexGuard<'_, HashMap<String, Origin>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origin {
    fn lane(&self, run: &RunId) -> Option<usize> {
        match self.streams {
            // One finds out for all.
            Streams::Unknown => (self.used[0] == 0).then_some(0),
            Streams::None => Some(0),
            Streams::AtMost(most) => {
                let free = most.saturating_mul(LANES).saturating_sub(self.used.iter().sum());
                let own = self.used_by.get(run).copied().unwrap_or_default();
                self.used.iter().position(|used| *used < most).filter(|_| own < free)
            }
        }
    }

    fn leave(&mut self, lane: usize, run: &RunId) {
        self.used[lane] = self.used[lane].saturating_sub(1);
        if let Some(own) = self.used_by.get_mut(run) {
            *own -= 1;
            if *own == 0 {
                self.used_by.remove(run);
            }
        }
        self.room.notify_waiters();
    }
}

/// A request's place in a lane, until its answer is over.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) lane: usize,
    authority: String,
    run: RunId,
    lanes: Lanes,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(origin) = self.lanes.origins().get_mut(&self.authority) {
            origin.leave(self.lane, &self.run);
        }
    }
}

/// An answer's body, which has its place for as long as it is read.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Incoming,
    _place: Option<Place>,
}

impl Answer {
    pub(super) fn new(body: Incoming, place: Option<Place>) -> Self {
        Self { body, _place: place }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Reads the first frame of an HTTP/2 server as it passes.
#[derive(Debug)]
pub(super) struct Settings {
    bytes: Vec<u8>,
    authority: String,
    lanes: Lanes,
}

/// Length, type, flags and stream of a frame.
const FRAME_HEAD: usize = 9;
const SETTINGS: u8 = 4;
const MAX_CONCURRENT_STREAMS: u16 = 3;
/// Longer SETTINGS are not read; six settings are known.
const LONGEST: usize = 1024;

impl Settings {
    pub(super) fn new(authority: String, lanes: Lanes) -> Self {
        Self { bytes: Vec::new(), authority, lanes }
    }

    /// The next bytes of the connection. True when nothing more is of interest.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(LONGEST)]);
        let Some(streams) = streams(&self.bytes) else { return false };
        self.lanes.learn(&self.authority, Streams::AtMost(streams));
        true
    }
}

/// What the first frame says, once it is whole. A server that says nothing allows any number.
fn streams(bytes: &[u8]) -> Option<usize> {
    let (head, rest) = bytes.split_at_checked(FRAME_HEAD)?;
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    if head[3] != SETTINGS || length > LONGEST {
        return Some(usize::MAX);
    }
    let payload = rest.get(..length)?;
    let said = payload.chunks_exact(6).rfind(|one| one[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes());
    let most = said.map_or(u32::MAX, |one| u32::from_be_bytes([one[2], one[3], one[4], one[5]]));
    Some(usize::try_from(most).unwrap_or(usize::MAX).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use test_case::test_case;

    #[test_case(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x05" => Some(5); "the setting alone")]
    #[test_case(b"\0\0\x0c\x04\0\0\0\0\0\0\x04\0\0\xff\xff\0\x03\0\0\0\x64....." => Some(100); "among others, more follows")]
    #[test_case(b"\0\0\x00\x04\0\0\0\0\0" => Some(u32::MAX as usize); "none")]
    #[test_case(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x00" => Some(1); "zero, for now")]
    #[test_case(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0" => None; "not whole")]
    #[test_case(b"\0\0" => None; "not even its head")]
    #[test_case(b"HTTP/1.1 400 Bad Request\r\n" => Some(usize::MAX); "something else")]
    fn first_frames(bytes: &[u8]) -> Option<usize> {
        streams(bytes)
    }

    fn run(number: u8) -> RunId {
        RunId::from_random([number; 6])
    }

    #[tokio::test(start_paused = true)]
    async fn places() {
        let lanes = Lanes::default();
        let mut runs = (0..).map(run);
        let mut waits = |authority: &'static str| {
            let (lanes, run) = (lanes.clone(), runs.next().unwrap());
            async move { tokio::time::timeout(Duration::from_secs(1), lanes.enter(authority, &run)).await }
        };
        let scout = waits("a").await.unwrap().unwrap();
        assert!(waits("a").await.is_err(), "until it is known");
        assert!(waits("b").await.is_ok(), "another origin");
        drop(scout);
        let scout = waits("a").await.unwrap().unwrap();
        lanes.learn("a", Streams::AtMost(2));
        let mut places = vec![scout];
        for number in 1..2 * LANES {
            places.push(waits("a").await.unwrap().unwrap());
            assert_eq!(places[number].lane, number / 2);
        }
        assert!(waits("a").await.is_err(), "all are used up");
        let left = places.swap_remove(7);
        let (place, ()) = tokio::join!(waits("a"), async { drop(left) });
        assert_eq!(place.unwrap().unwrap().lane, 3, "the one that has room");
        lanes.learn("a", Streams::None);
        assert_eq!(waits("a").await.unwrap().unwrap().lane, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_leaves_places_to_others() {
        let lanes = Lanes::default();
        drop(lanes.enter("a", &run(0)).await.unwrap());
        lanes.learn("a", Streams::AtMost(4));
        let mut places = Vec::new();
        let mut taken = async |number| {
            let before = places.len();
            let soon = Duration::from_secs(1);
            while let Ok(place) = tokio::time::timeout(soon, lanes.enter("a", &run(number))).await {
                places.push(place.unwrap());
            }
            places.len() - before
        };
        assert_eq!([taken(1).await, taken(2).await, taken(3).await], [32, 16, 8], "of 64");
        drop(places);
        assert!(lanes.origins()["a"].used_by.is_empty(), "who uses none is not kept");
        assert_eq!(lanes.origins()["a"].used, [0; LANES]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_connection_that_fails_fails_with_it() {
        let lanes = Lanes::default();
        let run = run(0);
        let enter = || lanes.enter("a", &run);
        let scout = enter().await.unwrap();
        let fate = async {
            tokio::task::yield_now().await;
            lanes.failed("a", &ConnectFailure::Timeout);
            drop(scout);
        };
        let (one, other, ()) = tokio::join!(enter(), enter(), fate);
        assert_eq!((one.err(), other.err()), (Some(ConnectFailure::Timeout), Some(ConnectFailure::Timeout)));
        assert!(enter().await.is_ok(), "who comes later tries again");
    }
}
