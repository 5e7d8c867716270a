//! What reached a server, and when its peer went away. Shared between the server and the test.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::request::Parts;

use crate::{Outcome, clock};

/// One request as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// When its head was read.
    pub at: u64,
    /// Its method.
    pub method: String,
    /// Its target: path and query.
    pub target: String,
    /// Its headers in their order; names in lower case.
    pub headers: Vec<(String, String)>,
    /// Its body, where the server read it as a whole.
    pub body: Vec<u8>,
}

impl Request {
    /// From its head.
    #[must_use]
    pub fn of(head: &Parts) -> Self {
        let value = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
        Self {
            at: clock::now(),
            method: head.method.to_string(),
            target: head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string),
            headers: head.headers.iter().map(|(n, v)| (n.as_str().to_owned(), value(v))).collect(),
            body: Vec::new(),
        }
    }

    /// All values of a header.
    #[must_use]
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str()).collect()
    }

    /// Does any header's value hold this text?
    #[must_use]
    pub fn mentions(&self, text: &str) -> usize {
        self.headers.iter().filter(|(_, value)| value.contains(text)).count()
    }
}

/// Something that happened at a server.
#[derive(Debug, Clone)]
pub enum Event {
    /// A request arrived.
    Request(Request),
    /// The peer of a stream went away before its end.
    Gone {
        /// When.
        at: u64,
        /// The stream's target.
        target: String,
    },
}

/// Where events are kept.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<Event>>>, Arc<AtomicU64>);

impl Seen {
    /// Notes an event.
    pub fn note(&self, event: Event) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    /// Notes that one more event of a stream was taken.
    pub fn taken(&self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until no more events of streams are taken: until every stream is full, or at its end. How many were.
    ///
    /// # Errors
    /// When they go on being taken.
    pub fn stands_still(&self, within: Duration) -> Outcome<u64> {
        const STILL: Duration = Duration::from_secs(1);
        let count = || self.1.load(Ordering::Relaxed);
        let mut last = (count(), Instant::now());
        clock::eventually("nothing more is taken", within, || {
            if count() != last.0 {
                last = (count(), Instant::now());
            }
            (last.1.elapsed() >= STILL).then_some(last.0)
        })
    }

    /// Everything so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        let request = |event| if let Event::Request(request) = event { Some(request) } else { None };
        self.events().into_iter().filter_map(request).collect()
    }

    /// The requests so far whose target holds this text.
    #[must_use]
    pub fn requests_to(&self, part: &str) -> Vec<Request> {
        self.requests().into_iter().filter(|request| request.target.contains(part)).collect()
    }

    /// Waits until a stream's peer is gone; when that was.
    ///
    /// # Errors
    /// When it is still there at the deadline.
    pub fn gone(&self, part: &str, within: Duration) -> Outcome<u64> {
        clock::eventually(&format!("the upstream of {part} notices that its peer is gone"), within, || {
            self.events().into_iter().find_map(|event| match event {
                Event::Gone { at, target } if target.contains(part) => Some(at),
                _ => None,
            })
        })
    }

    /// Waits until a request has arrived.
    ///
    /// # Errors
    /// When none has at the deadline.
    pub fn arrived(&self, part: &str, within: Duration) -> Outcome<Request> {
        clock::eventually(&format!("a request to {part}"), within, || self.requests_to(part).pop())
    }
}
