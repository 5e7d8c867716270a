//! One tunnel: handshake and hello under a deadline, then streams until the run is over or somebody leaves.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use moat_shared::{
    hello::{self, Hello},
    id::RunId,
    limits,
    rpc::OwnError,
    rt::{drain::Drain, exec::Owned, gulp::Gulp, h2, stream::Stream},
    wire::{self, ErrorKind},
};
use tokio::{
    sync::mpsc,
    task::yield_now,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_rustls::server::TlsStream;

use super::{
    BoxError, Door, Shared,
    budget::{Budget, Paced},
    carrier::Origin,
    ending::{self, Ending},
    half_open::Guard,
};
use crate::{
    control::api::TunnelStatus,
    identity,
    registry::{Place, RegistryError, Ticket},
};

/// A hello is a few dozen bytes.
const HELLO_SIZE: usize = 4096;

/// A connection that was accepted.
pub(super) struct Connection<D> {
    shared: Arc<Shared<D>>,
    half_open: Guard,
    drain: Drain,
    deadline: Instant,
    origin: Origin,
    /// How it came about, for people.
    via: &'static str,
}

/// What the streams of a tunnel share.
struct Session<D> {
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
struct Unanswered<'a>(&'a AtomicUsize);

impl<'a> Unanswered<'a> {
    const MANY: usize = 256;

    fn of(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }

    fn are_many(&self) -> bool {
        self.0.load(Ordering::Relaxed) > Self::MANY
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a tunnel that was open ended.
enum End {
    Closed(Result<(), hyper::Error>),
    RunOver,
    NoHello,
    Evicted,
}

impl<D: Door> Connection<D> {
    pub(super) fn new(
        shared: Arc<Shared<D>>,
        half_open: Guard,
        drain: Drain,
        origin: Origin,
        via: &'static str,
    ) -> Self {
        let deadline = Instant::now() + shared.patience;
        Self { shared, half_open, drain, deadline, origin, via }
    }

    /// Serves it to its end.
    pub(super) async fn serve(mut self, stream: Stream) {
        let handshake =
            timeout_at(self.deadline, self.shared.tls.accept(Gulp::new(stream, limits::TUNNEL_READ)));
        let stream = tokio::select! {
            done = handshake => done,
            () = self.half_open.evicted() => return tracing::debug!("a connection made room before it said who it is"),
            () = self.drain.signalled() => return,
        };
        let stream = match stream {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::warn!(%error, "a tunnel was refused"),
            Err(_) => return tracing::debug!("a connection did not say who it is in time"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let Some(run) = certificate.and_then(identity::run_of) else {
            return tracing::warn!("a tunnel was refused: its certificate names no run");
        };
        if let Origin::Dialled { run: wanted, .. } = &self.origin
            && *wanted != run
        {
            return tracing::warn!(%wanted, found = %run, "a tunnel was refused: another run answers where one was dialled");
        }
        let ticket = match self.shared.registry.admit(run.clone()).await {
            Ok(ticket) => Some(ticket),
            Err(error @ RegistryError::Unknown(_)) => {
                tracing::warn!(%run, %error, "a tunnel is refused");
                None
            }
            Err(error) => return tracing::error!(%run, %error, "a tunnel was refused"),
        };
        self.open(stream, run, ticket).await;
    }

    /// HTTP/2 on it, hello first.
    async fn open(mut self, stream: TlsStream<Gulp<Stream>>, run: RunId, ticket: Option<Ticket>) {
        let (to_us, mut places) = mpsc::channel(1);
        let session = Arc::new(Session {
            shared: Arc::clone(&self.shared),
            run: run.clone(),
            ticket: ticket.clone(),
            asked: AtomicBool::new(false),
            greeted: AtomicBool::new(false),
            via: self.via,
            place: to_us,
            budget: Budget::default(),
            unanswered: AtomicUsize::new(0),
        });
        let service = service_fn(move |request| {
            let session = Arc::clone(&session);
            // In a box: hyper moves a stream's future several times before it runs, and keeps its place for as long as
            // the answer streams.
            Box::pin(async move { Ok::<_, std::convert::Infallible>(session.serve(request).await) })
        });
        let tasks = Owned::default();
        // Declared before the connection and so dropped after it: whatever ends this ends every stream.
        let _streams = tasks.abort_on_drop();
        let mut connection = pin!(h2::bridge(tasks).serve_connection(TokioIo::new(stream), service));

        let mut half_open = Some(self.half_open);
        // While this lives the run has no other tunnel.
        let mut _place: Option<Place> = None;
        let mut draining = false;
        let end = loop {
            tokio::select! {
                biased; // what revokes comes before what serves
                () = revoked(ticket.clone()) => break End::RunOver,
                Some(taken) = places.recv() => {
                    _place = Some(taken);
                    half_open = None;
                }
                () = self.drain.signalled(), if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = evicted(&mut half_open) => break End::Evicted,
                () = sleep_until(self.deadline), if half_open.is_some() => break End::NoHello,
                done = connection.as_mut() => break End::Closed(done),
            }
        };
        report(&run, &end);
    }
}

async fn revoked(ticket: Option<Ticket>) {
    match ticket {
        Some(mut ticket) => ticket.revoked().await,
        None => std::future::pending().await,
    }
}

async fn evicted(half_open: &mut Option<Guard>) {
    match half_open {
        Some(guard) => guard.evicted().await,
        None => std::future::pending().await,
    }
}

fn report(run: &RunId, end: &End) {
    match end {
        End::Closed(Ok(())) => tracing::info!(%run, "tunnel closed"),
        End::Closed(Err(error)) => {
            tracing::info!(%run, error = %crate::cli::with_causes(error), "tunnel lost");
        }
        End::RunOver => tracing::info!(%run, "tunnel closed: the run is over"),
        End::NoHello => tracing::warn!(%run, "tunnel closed: no hello in time"),
        End::Evicted => tracing::warn!(%run, "tunnel closed: too many that did not say hello"),
    }
}

type Body = UnsyncBoxBody<Bytes, BoxError>;
type Answer = Response<Body>;

impl<D: Door> Session<D> {
    /// Answers one request. What that takes is boxed, so that it is not there before, nor afterwards, while the answer's
    /// body streams for hours.
    async fn serve(&self, request: Request<Incoming>) -> Response<Paced<Body>> {
        let Some(admitted) = self.budget.admit(&request) else {
            let mut refused = own_error(
                ErrorKind::TooLarge,
                "moat: too many requests of this run have long headers: let some of them finish first",
            );
            *refused.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return refused.map(|body| Paced::new(body, &self.budget, None));
        };
        let unanswered = Unanswered::of(&self.unanswered);
        if unanswered.are_many() {
            // Of a storm of requests that are cancelled at once nothing but this point is reached: hyper looks for a
            // reset before it comes back.
            yield_now().await;
        }
        let answer = Box::pin(self.answer(request)).await;
        answer.map(|body| Paced::new(body, &self.budget, Some(admitted)))
    }

    /// The registry is asked each time: the ticket is its word.
    async fn answer(&self, request: Request<Incoming>) -> Answer {
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

    async fn hello(&self, ticket: &Ticket, request: Request<Incoming>) -> Answer {
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
