//! The command's end of the control socket: one connection per request, and one for as long as a run is held.

use std::{borrow::Cow, io, path::PathBuf, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use moat_shared::{hint::Hint, id::RunId};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, task::JoinSet, time::timeout};

use super::api::{Accept, Dial, GrantNews, HoldEvent, PolicyState, Problem, Register, Registered, Status};
use crate::{build, home::Home};

/// Longer than any disk needs to take a registration.
const ANSWER: Duration = Duration::from_secs(30);
/// The bridge lets a holder hear something every 15 s.
const SILENCE: Duration = Duration::from_secs(60);
const ANSWER_SIZE: usize = 8 << 20;
const LINE_SIZE: usize = 1 << 20;

/// Speaks to the bridge that runs.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
    /// What the bridge said when it was first asked.
    bridge: Status,
}

/// The bridge cannot be asked, or says no.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("Daemon is not running")]
    NotRunning,
    #[error("connecting to the bridge at {path}")]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the bridge broke off")]
    Lost(#[source] hyper::Error),
    #[error("the bridge did not answer within {} seconds", ANSWER.as_secs())]
    Timeout,
    #[error("{}", problem.error)]
    Refused { status: StatusCode, problem: Problem },
    #[error("the bridge's answer cannot be read")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Hint for ClientError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::NotRunning | Self::Connect { .. } => Some("moat proxy start".into()),
            Self::Timeout | Self::Lost(_) | Self::Answer(_) => Some(
                "see `moat proxy status` and proxy/daemon.log; `moat proxy restart` starts it anew".into(),
            ),
            Self::Refused { problem, .. } => problem.hint.as_deref().map(Into::into),
        }
    }
}

impl ClientError {
    /// Will another try, with a bridge that is started on the way, do better?
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::NotRunning | Self::Lost(_))
            || matches!(self, Self::Refused { status, .. } if *status == StatusCode::SERVICE_UNAVAILABLE)
    }
}

impl Client {
    /// Connects to the bridge and asks how it is.
    pub(crate) async fn connect(home: &Home) -> Result<Self, ClientError> {
        let socket = home.control_socket();
        let bridge = ask(&socket, Method::GET, "/v1/status", None::<&()>).await?;
        Ok(Self { socket, bridge })
    }

    /// What to tell the user when the bridge that runs is of another build than this command.
    pub(crate) fn mismatch(&self) -> Option<String> {
        let theirs = (self.bridge.version.as_str(), self.bridge.commit.as_str());
        (theirs != (build::VERSION, build::COMMIT)).then(|| {
            format!(
                "Warning: the bridge that runs is moat {} ({}), this command is {} ({}).\nTo update it (runs keep \
                 working):\n  moat proxy restart",
                theirs.0,
                theirs.1,
                build::VERSION,
                build::COMMIT
            )
        })
    }

    /// The status that the bridge gave when this client connected.
    pub(crate) fn first_status(&self) -> &Status {
        &self.bridge
    }

    /// Registers a run. It is on disk, and served, when this returns.
    pub(crate) async fn register(&self, run: &Register) -> Result<Registered, ClientError> {
        ask(&self.socket, Method::POST, "/v1/runs", Some(run)).await
    }

    /// Holds a run: it is not dropped for as long as the [`Hold`] lives.
    pub(crate) async fn hold(&self, run: &RunId) -> Result<Hold, ClientError> {
        let path = format!("/v1/runs/{run}/hold");
        let (body, tasks) = open(&self.socket, Method::GET, &path, None::<&()>).await?;
        Ok(Hold { body, buffer: BytesMut::new(), _tasks: tasks })
    }

    /// Ends a run: its tunnel is closed, and it is off the disk when this returns.
    pub(crate) async fn unregister(&self, run: &RunId) -> Result<(), ClientError> {
        ask_nothing(&self.socket, Method::DELETE, &format!("/v1/runs/{run}")).await
    }

    /// Asks the run's holder to stop it.
    pub(crate) async fn stop(&self, run: &RunId) -> Result<(), ClientError> {
        ask_nothing(&self.socket, Method::POST, &format!("/v1/runs/{run}/stop")).await
    }

    /// Has the bridge go to the run's sidecar. That is on disk when this returns.
    pub(crate) async fn dial(&self, run: &RunId, to: &Dial) -> Result<(), ClientError> {
        tell(&self.socket, &format!("/v1/runs/{run}/dial"), to).await
    }

    /// The policies of a run's servers.
    pub(crate) async fn policies(&self, run: &RunId) -> Result<Vec<PolicyState>, ClientError> {
        ask(&self.socket, Method::GET, &format!("/v1/runs/{run}/policies"), None::<&()>).await
    }

    /// Accepts a policy that waits. It is on disk and in force when this returns.
    pub(crate) async fn accept(&self, run: &RunId, wish: &Accept) -> Result<(), ClientError> {
        tell(&self.socket, &format!("/v1/runs/{run}/policies"), wish).await
    }

    /// Tells what a command did to a grant.
    pub(crate) async fn grant_changed(&self, news: &GrantNews) -> Result<(), ClientError> {
        let exchange = open(&self.socket, Method::POST, "/v1/grants", Some(news));
        timeout(ANSWER, exchange).await.map_err(|_| ClientError::Timeout)?.map(drop)
    }

    /// Asks the bridge to drain and leave. Runs stay registered.
    pub(crate) async fn shutdown(&self) -> Result<(), ClientError> {
        ask_nothing(&self.socket, Method::POST, "/v1/shutdown").await
    }
}

/// A run that is held. Dropping it lets go.
#[derive(Debug)]
pub(crate) struct Hold {
    body: Incoming,
    buffer: BytesMut,
    _tasks: JoinSet<()>,
}

impl Hold {
    /// What the holder is told next. After [`HoldEvent::Ended`] nothing follows; `None` without it means that the
    /// bridge went away: the run is still registered, and whoever holds it starts a bridge and holds it again.
    /// May be dropped and called again without losing an event.
    pub(crate) async fn next(&mut self) -> Option<HoldEvent> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                // An event that this version does not know is not for it.
                if let Ok(event) = serde_json::from_slice(&line) {
                    return Some(event);
                }
            }
            let frame = timeout(SILENCE, self.body.frame()).await.ok()??.ok()?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
            if self.buffer.len() > LINE_SIZE {
                return None;
            }
        }
    }
}

async fn tell(socket: &PathBuf, path: &str, what: &impl Serialize) -> Result<(), ClientError> {
    let exchange = open(socket, Method::POST, path, Some(what));
    timeout(ANSWER, exchange).await.map_err(|_| ClientError::Timeout)?.map(drop)
}

async fn ask_nothing(socket: &PathBuf, method: Method, path: &str) -> Result<(), ClientError> {
    let exchange = open(socket, method, path, None::<&()>);
    timeout(ANSWER, exchange).await.map_err(|_| ClientError::Timeout)?.map(drop)
}

async fn ask<T: DeserializeOwned>(
    socket: &PathBuf,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<T, ClientError> {
    let exchange = async {
        let (body, _tasks) = open(socket, method, path, body).await?;
        let bytes = collect(body).await?;
        serde_json::from_slice(&bytes).map_err(|error| ClientError::Answer(error.into()))
    };
    timeout(ANSWER, exchange).await.map_err(|_| ClientError::Timeout)?
}

/// Sends a request and returns the body of a successful answer, with the task that reads it.
async fn open(
    socket: &PathBuf,
    method: Method,
    path: &str,
    body: Option<&impl Serialize>,
) -> Result<(Incoming, JoinSet<()>), ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NotRunning,
        _ => ClientError::Connect { path: socket.clone(), source },
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Lost)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });

    let bytes =
        body.map(serde_json::to_vec).transpose().map_err(|error| ClientError::Answer(error.into()))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "bridge")
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(bytes.unwrap_or_default())))
        .map_err(|error| ClientError::Answer(error.into()))?;
    let response = sender.send_request(request).await.map_err(ClientError::Lost)?;
    let status = response.status();
    if status.is_success() {
        return Ok((response.into_body(), tasks));
    }
    let bytes = collect(response.into_body()).await?;
    let problem = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&bytes);
        Problem { error: format!("the bridge answered {status}: {}", text.trim()), hint: None }
    });
    Err(ClientError::Refused { status, problem })
}

async fn collect(body: Incoming) -> Result<Bytes, ClientError> {
    let collected = Limited::new(body, ANSWER_SIZE).collect().await;
    collected.map(http_body_util::Collected::to_bytes).map_err(ClientError::Answer)
}
