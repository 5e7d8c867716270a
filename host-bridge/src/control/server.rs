//! The bridge's end of the control socket.
//!
//! Same user only: the socket is 0600 in a 0700 directory, and the peer's uid is checked for each connection all the same.

use std::{convert::Infallible, io, path::Path, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Either, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use moat_shared::{
    endpoint::Endpoint,
    hint::Hint,
    id::RunId,
    rt::{drain::Drain, vsock},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Notify,
    task::JoinSet,
    time::{interval, timeout},
};

use super::api::{Accept, Dial, GrantChange, GrantNews, PolicyState, Problem, Register, Registered, Status};
use crate::{
    build,
    cli::with_causes,
    identity::Authority,
    oauth::renewals::{Renewals, Standing},
    record::{AuditEvent, Recorder},
    registry::{Hold, Registry, RegistryError},
    tunnel::Ports,
};

const HEAD: Duration = Duration::from_secs(10);
const BODY: Duration = Duration::from_secs(10);
const BODY_SIZE: usize = 4 << 20;
/// How often a holder hears something; see the client.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The control socket, bound.
#[derive(Debug)]
pub(crate) struct Control {
    listener: UnixListener,
    state: Arc<State>,
}

/// What the requests need.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) registry: Registry,
    pub(crate) authority: Authority,
    pub(crate) recorder: Recorder,
    pub(crate) renewals: Renewals,
    pub(crate) ports: Ports,
    pub(crate) started: jiff::Timestamp,
    pub(crate) endpoint: String,
    pub(crate) unreadable: Vec<String>,
    /// Somebody wants the bridge to leave.
    pub(crate) shutdown: Notify,
}

impl Control {
    /// Takes the socket at `path`. Whoever calls this holds the lock that says no other bridge does.
    pub(crate) fn bind(path: &Path, state: Arc<State>) -> io::Result<Self> {
        Ok(Self { listener: crate::bridge::listen(path, 0o600)?, state })
    }

    /// Answers until the drain has been signalled and every connection is done.
    pub(crate) async fn run(self, mut drain: Drain) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased; // a drain must win over a ready listener
                () = drain.signalled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) if is_ours(&stream) => {
                    connections.spawn(serve(stream, Arc::clone(&self.state), drain.clone()));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(%error, "accepting a control connection failed");
                    tokio::select! {
                        () = drain.signalled() => break,
                        () = tokio::time::sleep(Duration::from_millis(100)) => {}
                    }
                }
            }
        }
        drop(self.listener);
        while connections.join_next().await.is_some() {}
    }
}

/// Is the peer the user whose bridge this is?
fn is_ours(stream: &UnixStream) -> bool {
    let ours = nix::unistd::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == ours => true,
        Ok(peer) => {
            tracing::warn!(
                uid = peer.uid(),
                pid = peer.pid(),
                "a control connection of another user was refused"
            );
            false
        }
        Err(error) => {
            tracing::warn!(%error, "a control connection was refused: nobody knows whose it is");
            false
        }
    }
}

async fn serve(stream: UnixStream, state: Arc<State>, mut drain: Drain) {
    let for_requests = drain.clone();
    let service = service_fn(move |request| {
        let (state, drain) = (Arc::clone(&state), for_requests.clone());
        async move { Ok::<_, Infallible>(answer(&state, drain, request).await.unwrap_or_else(Refusal::response)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let done = tokio::select! {
        done = connection.as_mut() => done,
        () = drain.signalled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = done {
        tracing::debug!(error = %with_causes(&error), "a control connection broke off");
    }
}

type Body = Either<Full<Bytes>, UnsyncBoxBody<Bytes, Infallible>>;

/// Why a request is refused.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    problem: Problem,
}

impl Refusal {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, problem: Problem { error: error.into(), hint: None } }
    }

    fn of(status: StatusCode, error: &(impl Hint + 'static)) -> Self {
        let hint = error.hint().map(std::borrow::Cow::into_owned);
        Self { status, problem: Problem { error: with_causes(error), hint } }
    }

    fn response(self) -> Response<Body> {
        tracing::warn!(status = %self.status, error = %self.problem.error, "a control request was refused");
        json(self.status, &self.problem)
    }
}

impl From<RegistryError> for Refusal {
    fn from(error: RegistryError) -> Self {
        let status = match error {
            RegistryError::Unknown(_) => StatusCode::NOT_FOUND,
            RegistryError::Duplicate(_) => StatusCode::BAD_REQUEST,
            RegistryError::NothingToAccept(_) | RegistryError::Taken(_) => StatusCode::CONFLICT,
            RegistryError::Write { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            RegistryError::Leaving => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::of(status, &error)
    }
}

async fn answer(state: &State, drain: Drain, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let path = request.uri().path().to_owned();
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match (request.method(), segments.as_slice()) {
        (&Method::GET, ["v1", "status"]) => Ok(json(StatusCode::OK, &status(state).await?)),
        (&Method::POST, ["v1", "runs"]) => register(state, read(request).await?).await,
        (&Method::GET, ["v1", "runs", run, "hold"]) => {
            let hold = state.registry.hold(run_id(run)?).await?;
            Ok(Response::new(Either::Right(events(hold, drain))))
        }
        (&Method::POST, ["v1", "runs", run, "stop"]) => {
            state.registry.stop(run_id(run)?).await?;
            Ok(empty(StatusCode::ACCEPTED))
        }
        (&Method::POST, ["v1", "runs", run, "dial"]) => {
            let run = run_id(run)?;
            let Dial { endpoint } = read(request).await?;
            state.registry.dial(run, endpoint).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (&Method::DELETE, ["v1", "runs", run]) => {
            state.registry.unregister(run_id(run)?, "its command ended it".to_owned()).await?;
            // Whoever asks for the run's trace next finds all of it.
            state.recorder.written().await;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (&Method::GET, ["v1", "runs", run, "policies"]) => {
            Ok(json(StatusCode::OK, &policies(state, &run_id(run)?).await?))
        }
        (&Method::POST, ["v1", "runs", run, "policies"]) => {
            let run = run_id(run)?;
            let Accept { server, sha256 } = read(request).await?;
            state.registry.accept(run, server, sha256).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (&Method::POST, ["v1", "grants"]) => {
            note(state, read(request).await?).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        (&Method::POST, ["v1", "shutdown"]) => {
            tracing::info!("asked to leave");
            state.shutdown.notify_one();
            Ok(empty(StatusCode::ACCEPTED))
        }
        (method, _) => {
            Err(Refusal::new(StatusCode::NOT_FOUND, format!("this bridge does not know {method} {path}")))
        }
    }
}

async fn register(state: &State, wish: Register) -> Result<Response<Body>, Refusal> {
    // Open until the run itself needs it, or there is none.
    let opened = match wish.listen.clone() {
        Some(wanted) => Some(state.ports.open(wanted.clone()).await.map_err(|error| {
            let text = format!("listening for the sandbox at {wanted}: {error}");
            let hint = match wanted {
                Endpoint::Tcp(_) => {
                    Some("is that an address of this machine? use --tunnel unix, or published")
                }
                Endpoint::Vsock { .. } => vsock::hint(&error),
                Endpoint::Unix(_) | Endpoint::Hybrid { .. } => None,
            };
            let mut refusal = Refusal::new(StatusCode::CONFLICT, text);
            refusal.problem.hint = hint.map(str::to_owned);
            refusal
        })?),
        None => None,
    };
    let listen = opened.as_ref().map(|opened| opened.at.clone());
    let run = state.registry.register(wish, listen.clone()).await?;
    match state.authority.issue(&run.id) {
        Ok(identity) => Ok(json(StatusCode::CREATED, &Registered { run: run.id.clone(), identity, listen })),
        Err(error) => {
            state.registry.unregister(run.id.clone(), "no certificate could be made".to_owned()).await?;
            Err(Refusal::of(StatusCode::INTERNAL_SERVER_ERROR, &error))
        }
    }
}

/// Writes what a command did to a grant into the audit log of each run that uses it.
async fn note(state: &State, news: GrantNews) -> Result<(), Refusal> {
    let GrantNews { grant, profile, change } = news;
    for run in state.registry.users(grant.clone(), profile).await? {
        let grant = grant.clone();
        let event = match change.clone() {
            GrantChange::Granted { issuer, generation, expires_at } => {
                AuditEvent::CredentialGranted { grant, issuer, generation, expires_at }
            }
            GrantChange::Revoked { remote } => AuditEvent::CredentialRevoked { grant, remote },
        };
        state.recorder.audit(&run, event);
    }
    Ok(())
}

/// The policies of a run, with what waits to be accepted.
async fn policies(state: &State, run: &RunId) -> Result<Vec<PolicyState>, Refusal> {
    let known = state.registry.runs().await?.iter().any(|status| status.run == *run);
    if !known {
        return Err(RegistryError::Unknown(run.clone()).into());
    }
    let servers = state.registry.policies().await?.into_iter().filter(|(owner, _)| owner == run);
    Ok(servers.filter_map(|(_, server)| PolicyState::of(&server)).collect())
}

async fn status(state: &State) -> Result<Status, Refusal> {
    Ok(Status {
        pid: nix::unistd::getpid().as_raw(),
        version: build::VERSION.to_owned(),
        commit: build::COMMIT.to_owned(),
        started: state.started,
        endpoint: state.endpoint.clone(),
        records_lost: state.recorder.lost(),
        unreadable: state.unreadable.clone(),
        runs: state.registry.runs().await?,
        grants: state.renewals.standings().into_iter().map(Standing::into_status).collect(),
    })
}

/// The holder's stream: an event a line, and an empty line now and then.
fn events(hold: Hold, drain: Drain) -> UnsyncBoxBody<Bytes, Infallible> {
    let mut keep_alive = interval(KEEP_ALIVE);
    keep_alive.reset();
    let events =
        stream::unfold((hold, drain, keep_alive), |(mut hold, mut drain, mut keep_alive)| async move {
            let line = tokio::select! {
                event = hold.next() => serde_json::to_vec(&event?).ok()?,
                _ = keep_alive.tick() => Vec::new(),
                () = drain.signalled() => return None,
            };
            let line: Bytes = [line, b"\n".to_vec()].concat().into();
            Some((Ok(Frame::data(line)), (hold, drain, keep_alive)))
        });
    BodyExt::boxed_unsync(StreamBody::new(events))
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refusal> {
    let body = timeout(BODY, Limited::new(request.into_body(), BODY_SIZE).collect()).await;
    let refused = |text: String| Refusal::new(StatusCode::BAD_REQUEST, text);
    let bytes = match body {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return Err(refused(format!("reading the request: {error}"))),
        Err(_) => return Err(refused("the request did not arrive in time".to_owned())),
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        let mut refusal = refused(format!("the bridge does not understand the request: {error}"));
        refusal.problem.hint = Some("if moat was updated: moat proxy restart".to_owned());
        refusal
    })
}

fn run_id(text: &str) -> Result<RunId, Refusal> {
    text.parse().map_err(|error: moat_shared::id::InvalidRunId| {
        Refusal::new(StatusCode::BAD_REQUEST, error.to_string())
    })
}

fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    // These types hold strings, numbers and lists only.
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(body))));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}
