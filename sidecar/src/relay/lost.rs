//! How a response ends whose tunnel was lost on the way (R18).
//!
//! A clean end without an answer is the worst of all: agents wait for ever. So the stream is either cut, and the client
//! resumes or asks again, or it gets one JSON-RPC error for the request's id before it ends.

use bytes::Bytes;
use http::Method;
use moat_shared::{id::ServerName, rpc::OwnError, sse::Boundaries, wire::ErrorKind};

use super::events::EventIds;
use crate::body::Noted;

/// The request that opens a stream which never ends (2026-07-28): the client opens it again by itself.
const LISTEN: &str = "subscriptions/listen";

/// What is told to whoever waits for the answer.
const LOST: &str = "moat: the tunnel to the bridge broke while this request was in flight. It is not sent \
                               again, because it may have been carried out: check before you repeat it";

/// What is told to an agent that broke its own request.
const BROKEN: &str = "moat: the request's body is cut or malformed, so it was not carried through";

/// Why there is no answer, or no more of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) kind: ErrorKind,
    pub(crate) message: &'static str,
}

impl Loss {
    /// Whose fault it was: a request whose body breaks resets its stream as well.
    pub(crate) fn of(noted: &Noted) -> Self {
        if noted.is_broken() {
            Self { kind: ErrorKind::BadRequest, message: BROKEN }
        } else {
            Self { kind: ErrorKind::TunnelLost, message: LOST }
        }
    }
}

/// What is known of the request whose response passes.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) server: ServerName,
    pub(crate) noted: Noted,
}

/// An event stream on its way to the agent.
#[derive(Debug, Default)]
pub(crate) struct EventStream {
    boundaries: Boundaries,
    ids: EventIds,
}

impl EventStream {
    pub(crate) fn push(&mut self, chunk: &[u8]) {
        self.boundaries.push(chunk);
        self.ids.push(chunk);
    }

    /// May a comment be written now?
    pub(crate) fn between_events(&self) -> bool {
        self.boundaries.between_events()
    }

    /// The last words of a stream that was lost, or `None`: then it is to be cut.
    pub(crate) fn last_words(&self, asked: &Asked) -> Option<Bytes> {
        if asked.method != Method::POST || self.ids.resumable() || asked.noted.method_is(LISTEN) {
            return None;
        }
        let id = asked.noted.id()?;
        let Loss { kind, message } = Loss::of(&asked.noted);
        let error = OwnError {
            id: Some(&id),
            kind,
            server: Some(asked.server.as_str()),
            message,
            code: OwnError::code_of(kind),
        };
        Some([self.boundaries.closing(), error.event().as_bytes()].concat().into())
    }
}
