//! Requests that the engine's library cannot make for us: attach and its like, whose bytes must come and go untouched, and wait,
//! of which we must know that it stands before the container is started.

use std::{
    io,
    path::Path,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use moat_shared::{plan::AWAITS_STARTUP, secret::Secret};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::engine::EngineError;

/// Of a container that is not started yet.
pub(super) const NEXT_EXIT: &str = "next-exit";
/// Of one that was.
pub(super) const NOT_RUNNING: &str = "not-running";

/// What detaches, where the engine is told nothing, is Ctrl-P Ctrl-Q, which are the program's. These bytes are in no text
/// and on no keyboard.
const NO_KEYS: &str = "%FF,%FE,%FF,%FE,%FF,%FE,%FF,%FE";
/// For an engine that is there to take a request, or to begin to answer.
const HEAD: Duration = Duration::from_secs(30);
/// Larger answers are none.
const ANSWER: usize = 64 * 1024;
/// For PID 1 to come up.
const FIRST_WORD: Duration = Duration::from_secs(30);

/// A container's stdin, stdout and stderr.
#[derive(Debug)]
pub(super) struct Attached {
    /// Bytes that have come already.
    pub(super) first: Vec<u8>,
    pub(super) from: OwnedReadHalf,
    pub(super) to: OwnedWriteHalf,
}

/// Somebody waits for a container's end.
pub(super) struct Waiting(Answer);

/// An answer whose body, or what comes after it, is still to come; and what makes it come.
struct Answer {
    response: Response<Incoming>,
    connection: Connection,
}

type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// What a wait ends with.
#[derive(Debug, Deserialize)]
struct Exited {
    #[serde(rename = "StatusCode")]
    code: i64,
}

/// What an engine says when it says no.
#[derive(Debug, Deserialize)]
struct Said {
    message: String,
}

/// Attaches to a container.
pub(super) async fn attach(socket: &Path, id: &str) -> Result<Attached, EngineError> {
    const DOING: &str = "attaching to the container";
    let path = format!("/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1&detachKeys={NO_KEYS}");
    hijacked(DOING, send(socket, DOING, &path, Wanted::Stream(Bytes::new())).await?).await
}

/// Starts a command that was prepared, with its stdin, stdout and stderr.
pub(super) async fn start_exec(socket: &Path, id: &str, terminal: bool) -> Result<Attached, EngineError> {
    const DOING: &str = "starting the command";
    let body = serde_json::json!({"Detach": false, "Tty": terminal}).to_string();
    let answer = send(socket, DOING, &format!("/exec/{id}/start"), Wanted::Stream(body.into())).await?;
    hijacked(DOING, answer).await
}

async fn hijacked(doing: &'static str, answer: Answer) -> Result<Attached, EngineError> {
    let Answer { response, mut connection } = answer;
    let upgraded = driven(&mut connection, hyper::upgrade::on(response)).await.map_err(raw(doing))?;
    let parts = upgraded
        .downcast::<TokioIo<UnixStream>>()
        .map_err(|_| EngineError::Refused { doing, message: "another kind of connection".to_owned() })?;
    let (from, to) = parts.io.into_inner().into_split();
    Ok(Attached { first: parts.read_buf.to_vec(), from, to })
}

/// Begins to wait for a container's end. When this returns, the engine waits.
pub(super) async fn wait(socket: &Path, id: &str, condition: &str) -> Result<Waiting, EngineError> {
    let path = format!("/containers/{id}/wait?condition={condition}");
    send(socket, "waiting for the container", &path, Wanted::Answer).await.map(Waiting)
}

impl Waiting {
    /// The exit code, when there is one.
    pub(super) async fn code(self) -> Result<u8, EngineError> {
        const DOING: &str = "waiting for the container";
        let body = self.0.body(DOING).await?;
        let exited: Exited = serde_json::from_slice(&body).map_err(raw(DOING))?;
        Ok(u8::try_from(exited.code).unwrap_or(moat_shared::exit::FAILURE))
    }
}

impl Attached {
    /// Tells PID 1 what to do, through a pipe.
    pub(super) async fn told(mut self, frame: &Secret<Vec<u8>>) -> Self {
        if let Err(error) = self.to.write_all(frame.expose()).await {
            // It has ended already; what it printed says why, and its exit code follows.
            tracing::info!("PID 1 did not take its plan: {error}");
        }
        self
    }

    /// Tells PID 1 what to do once its terminal is quiet: before that it would echo every byte.
    pub(super) async fn told_on_a_terminal(mut self, frame: &Secret<Vec<u8>>) -> Result<Self, EngineError> {
        let silent = || EngineError::Refused {
            doing: "telling PID 1 what to do",
            message: format!("it did not say that it is ready within {} s", FIRST_WORD.as_secs()),
        };
        let waiting = async {
            loop {
                if let Some(at) = memchr::memmem::find(&self.first, AWAITS_STARTUP) {
                    self.first.drain(at..at + AWAITS_STARTUP.len());
                    return true;
                }
                // The end: what it printed says why.
                if self.first.len() > ANSWER || !matches!(self.from.read_buf(&mut self.first).await, Ok(1..))
                {
                    return false;
                }
            }
        };
        match timeout(FIRST_WORD, waiting).await {
            Ok(true) => Ok(self.told(frame).await),
            Ok(false) => Ok(self),
            Err(_) => Err(silent()),
        }
    }
}

impl Answer {
    async fn body(mut self, doing: &'static str) -> Result<Bytes, EngineError> {
        let body = Limited::new(self.response.into_body(), ANSWER).collect();
        let body = driven(&mut self.connection, body).await;
        Ok(body.map_err(|source| EngineError::Raw { doing, source })?.to_bytes())
    }
}

/// What a request is for.
enum Wanted {
    /// An answer of the usual kind.
    Answer,
    /// This body, and from then on bytes both ways.
    Stream(Bytes),
}

async fn send(socket: &Path, doing: &'static str, path: &str, wanted: Wanted) -> Result<Answer, EngineError> {
    let upgrade = matches!(wanted, Wanted::Stream(_));
    let asked = timeout(HEAD, ask(socket, doing, path, wanted)).await;
    // As one that is away: it may be asked again.
    let answer = asked.map_err(|_| raw(doing)(io::Error::from(io::ErrorKind::TimedOut)))??;
    match answer.response.status() {
        StatusCode::SWITCHING_PROTOCOLS if upgrade => Ok(answer),
        StatusCode::OK if !upgrade => Ok(answer),
        StatusCode::NOT_FOUND => Err(EngineError::Gone),
        status => {
            let said = serde_json::from_slice::<Said>(&answer.body(doing).await?).map(|said| said.message);
            Err(EngineError::Refused { doing, message: said.unwrap_or_else(|_| status.to_string()) })
        }
    }
}

async fn ask(socket: &Path, doing: &'static str, path: &str, wanted: Wanted) -> Result<Answer, EngineError> {
    let stream = UnixStream::connect(socket).await.map_err(raw(doing))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(raw(doing))?;
    let mut connection: Connection = Box::pin(connection.with_upgrades());
    let mut request = Request::builder().method(Method::POST).uri(path).header(header::HOST, "engine");
    let body = match wanted {
        Wanted::Answer => Bytes::new(),
        Wanted::Stream(body) => {
            request = request.header(header::CONNECTION, "Upgrade").header(header::UPGRADE, "tcp");
            request = request.header(header::CONTENT_TYPE, "application/json");
            body
        }
    };
    let request = request.body(Full::new(body)).map_err(raw(doing))?;
    let response = driven(&mut connection, sender.send_request(request)).await.map_err(raw(doing))?;
    Ok(Answer { response, connection })
}

/// Work that a connection has to be driven for. The connection may end first: what it brought is still there.
async fn driven<T>(connection: &mut Connection, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let ended = tokio::select! {
        biased;
        done = &mut work => return done,
        ended = connection.as_mut() => ended,
    };
    if let Err(error) = ended {
        tracing::debug!("the engine's connection: {error}");
    }
    *connection = Box::pin(std::future::pending());
    work.await
}

fn raw<E: std::error::Error + Send + Sync + 'static>(doing: &'static str) -> impl Fn(E) -> EngineError {
    move |error| EngineError::Raw { doing, source: Box::new(error) }
}
