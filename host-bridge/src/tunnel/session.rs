//! What the streams of a tunnel share: the run's word, its hello, its budget; and how one request is answered.
//!
//! ```text
//! request ──► admitted ──► answering: run valid? hello? ──► door ──► paced body
//!    │           └── too many wait ──► parked, until it was seen whether it was reset ──► answering
//!    └── long heads ──► 431
//! ```

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use jiff::Timestamp;
use moat_shared::{
    hello::{self, Hello},
    id::RunId,
    rpc::OwnError,
    rt::h2::{received::Received, send::Sending},
    wire::{self, ErrorKind},
};
use tokio::{sync::mpsc, task::yield_now};

use super::{
    BoxError, Door, Shared,
    budget::{Budget, Paced},
    ending::{self, Ending},
};
use crate::{
    control::api::TunnelStatus,
    registry::{Place, RegistryError, Ticket},
};

/// A hello is a few dozen bytes.
const HELLO_SIZE: usize = 4096;
/// Requests of a tunnel that wait for their answers' heads. What comes beyond is looked at twice.
const MANY: usize = 256;

/// What the streams of a tunnel share.
pub(super) struct Session<D> {
    shared: Arc<Shared<D>>,
    run: RunId,
    /// `None`: the certificate is good and the run is not, which every request is told.
    ticket: Option<Ticket>,
    /// A hello is being answered, or was.
    asked: AtomicBool,
    /// It was answered well.
    greeted: AtomicBool,
    via: &'static str,
    /// To the connection, which watches over it.
    place: mpsc::Sender<Place>,
    /// A run has one tunnel, so this is the run's.
    budget: Budget,
    unanswered: AtomicUsize,
}

/// Counts a request until its answer's head is there.
struct Unanswered<D>(Arc<Session<D>>);

impl<D> Unanswered<D> {
    /// And are there many?
    fn of(session: &Arc<Session<D>>) -> (Self, bool) {
        let before = session.unanswered.fetch_add(1, Ordering::Relaxed);
        (Self(Arc::clone(session)), before >= MANY)
    }
}

impl<D> Drop for Unanswered<D> {
    fn drop(&mut self) {
        self.0.unanswered.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How far a request has come before its task runs. Either is in a box that is gone when the answer's head is there.
enum Begun<A> {
    Refused,
    Parked(Box<Request<Received>>),
    Answering(Pin<Box<A>>),
}

pub(super) type Body = UnsyncBoxBody<Bytes, BoxError>;
type Answer = Response<Body>;

impl<D: Door> Session<D> {
    pub(super) fn new(
        shared: Arc<Shared<D>>,
        run: RunId,
        ticket: Option<Ticket>,
        via: &'static str,
        place: mpsc::Sender<Place>,
    ) -> Arc<Self> {
        Arc::new(Self {
            shared,
            run,
            ticket,
            asked: AtomicBool::new(false),
            greeted: AtomicBool::new(false),
            via,
            place,
            budget: Budget::default(),
            unanswered: AtomicUsize::new(0),
        })
    }

    /// Answers one request. The future is no larger than what sends the answer, whose place it keeps for hours. What the
    /// answer takes is in a box, into which the request goes at once, unless too many others wait for theirs.
    pub(super) fn serve(
        self: &Arc<Self>,
        request: Request<Received>,
    ) -> impl Future<Output = Response<Paced<Body>>> + Send + use<D> {
        let admitted = self.budget.admit(&request);
        let (unanswered, many) = Unanswered::of(self);
        let begun = match (&admitted, many) {
            (None, _) => Begun::Refused,
            (Some(_), true) => Begun::Parked(Box::new(request)),
            (Some(_), false) => Begun::Answering(Box::pin(Arc::clone(self).answer(request))),
        };
        let answered = async move {
            let session = &unanswered.0;
            let answering = match begun {
                Begun::Refused => return too_long().map(|body| Paced::new(body, &session.budget, None)),
                Begun::Parked(request) => {
                    // Of a storm of requests that are cancelled at once nothing but this point is reached: a stream that
                    // waits is looked at for a reset before it goes on.
                    yield_now().await;
                    Box::pin(Arc::clone(session).answer(*request))
                }
                Begun::Answering(answering) => answering,
            };
            answering.await.map(|body| Paced::new(body, &session.budget, admitted))
        };
        debug_assert!(
            size_of_val(&answered) <= size_of::<Sending<Paced<Body>>>(),
            "an idle stream holds what its request took"
        );
        answered
    }

    /// The registry is asked each time: the ticket is its word.
    async fn answer(self: Arc<Self>, request: Request<Received>) -> Answer {
        let Some(ticket) = self.ticket.as_ref().filter(|ticket| ticket.is_valid()) else {
            return own_error(
                ErrorKind::RunEnded,
                &format!("moat: the bridge does not know {} (any more)", self.run),
            );
        };
        if request.uri().path() == wire::HELLO_PATH {
            return self.hello(ticket, request).await;
        }
        if !self.greeted.load(Ordering::Acquire) {
            return own_error(ErrorKind::VersionMismatch, "moat: the sidecar did not say hello");
        }
        let in_order = ending::takes_trailers(request.headers());
        let response = self.shared.door.handle(&ticket.run, request).await;
        response.map(|body| {
            let body = body.map_err(Into::into).boxed_unsync();
            if in_order { Ending::new(body).boxed_unsync() } else { body }
        })
    }

    async fn hello(&self, ticket: &Ticket, request: Request<Received>) -> Answer {
        if request.method() != Method::POST {
            return own_error(ErrorKind::MethodNotAllowed, "moat: a hello is a POST");
        }
        let body = Limited::new(request.into_body(), HELLO_SIZE).collect().await;
        let theirs = body.ok().and_then(|body| serde_json::from_slice::<Hello>(&body.to_bytes()).ok());
        let Some(theirs) = theirs else {
            return own_error(ErrorKind::VersionMismatch, "moat: the sidecar's hello cannot be read");
        };
        let ours = Hello::ours();
        if let Err(mismatch) = hello::negotiate(&theirs, &ours) {
            tracing::warn!(run = %self.run, error = %mismatch, "a tunnel is refused");
            return own_error(ErrorKind::VersionMismatch, &format!("moat: {mismatch}"));
        }
        if self.asked.swap(true, Ordering::AcqRel) {
            return own_error(ErrorKind::BadRequest, "moat: a second hello");
        }
        let sidecar: String = theirs.build.chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
        let status = TunnelStatus {
            since: Timestamp::now(),
            sidecar: sidecar.clone(),
            transport: self.via.to_owned(),
        };
        match self.shared.registry.attach(ticket, status).await {
            Ok(place) => {
                self.greeted.store(true, Ordering::Release);
                // The connection is gone if it does not take it; so is this stream then.
                drop(self.place.send(place).await);
            }
            Err(error) => {
                tracing::warn!(run = %self.run, %error, "a tunnel is refused");
                // The next hello may find the place free.
                self.asked.store(false, Ordering::Release);
                let kind = match error {
                    RegistryError::Taken(_) => ErrorKind::TunnelDown,
                    _ => ErrorKind::RunEnded,
                };
                return own_error(kind, &format!("moat: {error}"));
            }
        }
        tracing::info!(run = %self.run, %sidecar, protocol = theirs.protocol, "tunnel open");
        json(StatusCode::OK, serde_json::to_vec(&ours).unwrap_or_default())
    }
}

fn too_long() -> Answer {
    let mut refused = own_error(
        ErrorKind::TooLarge,
        "moat: too many requests of this run have long headers: let some of them finish first",
    );
    *refused.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    refused
}

fn own_error(kind: ErrorKind, message: &str) -> Answer {
    let error = OwnError { id: None, kind, server: None, message, code: OwnError::code_of(kind) };
    let status = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, error.body().into_bytes())
}

fn json(status: StatusCode, body: Vec<u8>) -> Answer {
    let mut response = Response::new(Full::from(body).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
