//! The server behind all peers, in a process of its own: this program again, with other arguments.
//!
//! As fast as hyper is, so that it is never what is measured. It answers `initialize`, `tools/list` and notifications,
//! and `tools/call` by the tool's name; a GET is a stream on which nothing happens. Who does not bring the credential
//! gets 401: a peer that forgets to inject it is not measured, it fails.

use std::{
    convert::Infallible,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Frame, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use moat_tests::{Outcome, Trouble, listen::runtime, pki, pki::Authority};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

/// The first argument that makes this program the server.
pub(crate) const ROLE: &str = "upstream";
/// What a request must bring.
pub(crate) const CREDENTIAL: &str = "bench-4f1c9a7d2e8b6035d7a9c1e3f5b70246";
/// The tools: a short answer; an event at once and one a little later; a body of [`BIG`] bytes, as JSON and as events.
pub(crate) const ECHO: &str = "echo";
pub(crate) const EVENTS: &str = "events";
pub(crate) const LARGE: &str = "large";
pub(crate) const LARGE_EVENTS: &str = "large_events";
/// Bytes of a large answer's text.
pub(crate) const BIG: usize = 256 << 20;
/// Between the first event and the last one: whoever buffers shows the first one late.
pub(crate) const LAST_EVENT: Duration = Duration::from_millis(20);

const SESSION: &str = "6f9d1c2e-5b7a-4e83-9c10-2a4b6c8d0e1f";
const BLOCK: usize = 64 * 1024;

/// The running server.
pub(crate) struct Upstream {
    child: Child,
    /// HTTPS, HTTP/1.1 only; HTTPS with HTTP/2; plain.
    pub(crate) ports: [u16; 3],
}

impl Upstream {
    /// Starts it with a certificate for `localhost`; its files go into `directory`.
    pub(crate) fn start(authority: &Authority, directory: &Path) -> Outcome<Self> {
        let (certificate, key) = (directory.join("upstream.pem"), directory.join("upstream.key"));
        authority.write_server(&["localhost"], &certificate, &key)?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg(ROLE)
            .args([&certificate, &key])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line)?;
        }
        let ports: Vec<u16> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let ports = ports.try_into().map_err(|_| Trouble::new("the upstream did not come up"))?;
        Ok(Self { child, ports })
    }

    /// The URL of the server that speaks HTTP/1.1 over TLS, or HTTP/2.
    pub(crate) fn url(&self, http2: bool) -> String {
        format!("https://localhost:{}/mcp", self.ports[usize::from(http2)])
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _gone = self.child.kill().and_then(|()| self.child.wait()).is_ok();
    }
}

/// The server itself: says its ports on stdout and serves until its stdin ends.
pub(crate) fn serve(arguments: &[String]) -> Outcome {
    let [certificate, key] = arguments else { return Err(Trouble::new("upstream CERTIFICATE KEY")) };
    let (certificate, key) = (PathBuf::from(certificate), PathBuf::from(key));
    let one = Arc::new(pki::server_config(&certificate, &key, &["http/1.1"])?);
    let two = Arc::new(pki::server_config(&certificate, &key, &["h2"])?);
    let mut doors = JoinSet::new();
    runtime()?.block_on(async {
        let mut ports = Vec::new();
        for tls in [Some(one), Some(two), None] {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
            ports.push(listener.local_addr()?.port().to_string());
            doors.spawn(accept(listener, tls.map(TlsAcceptor::from)));
        }
        writeln!(std::io::stdout(), "{}", ports.join(" "))?;
        Ok::<_, Trouble>(())
    })?;
    let mut nothing = [0];
    while std::io::stdin().read(&mut nothing)? > 0 {}
    runtime()?.block_on(doors.shutdown());
    Ok(())
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                if stream.set_nodelay(true).is_ok() {
                    connections.spawn(connection(stream, tls.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, tls: Option<TlsAcceptor>) {
    match tls {
        None => talk(stream).await,
        Some(tls) => {
            // Who breaks the handshake off has gone.
            if let Ok(stream) = tls.accept(stream).await {
                talk(stream).await;
            }
        }
    }
}

async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = service_fn(|request| async { Ok::<_, Infallible>(answer(request).await) });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(None);
    server.http2().max_concurrent_streams(20_000).timer(TokioTimer::new());
    // Peers close when they are done.
    let _ended = server.serve_connection(TokioIo::new(stream), service).await;
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(request: Request<Incoming>) -> Answer {
    let authorization = request.headers().get(header::AUTHORIZATION);
    if authorization.is_none_or(|value| value.as_bytes() != CREDENTIAL.as_bytes()) {
        return short(StatusCode::UNAUTHORIZED, Bytes::new());
    }
    if request.method() == Method::GET {
        return events(stream::pending());
    }
    // Peers close sessions when they are done.
    let Ok(body) = request.into_body().collect().await else {
        return short(StatusCode::BAD_REQUEST, Bytes::new());
    };
    let body = body.to_bytes();
    let says = |what: &str| memchr::memmem::find(&body, what.as_bytes()).is_some();
    let Some(id) = id(&body) else { return short(StatusCode::ACCEPTED, Bytes::new()) };
    if says("\"initialize\"") {
        let mut answer = result(
            &id,
            r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"bench","version":"1"}}"#,
        );
        answer.headers_mut().insert("mcp-session-id", HeaderValue::from_static(SESSION));
        return answer;
    }
    if says("\"tools/list\"") {
        return result(&id, r#"{"tools":[{"name":"echo","inputSchema":{"type":"object"}}]}"#);
    }
    if !says("\"tools/call\"") {
        return result(&id, "{}");
    }
    if says(LARGE_EVENTS) {
        return large_events(id);
    }
    if says(LARGE) {
        return large(id);
    }
    if says(EVENTS) { two_events(id) } else { result(&id, TEXT) }
}

/// The short answer of `tools/call`.
const TEXT: &str = r#"{"content":[{"type":"text","text":"The quick brown fox jumps over the lazy dog, and the answer is forty-two."}],"isError":false}"#;

/// The request's id, as it stands there. Our own clients write JSON without spaces, and so does mcp-proxy.
fn id(body: &[u8]) -> Option<Bytes> {
    let start = memchr::memmem::find(body, b"\"id\":")? + 5;
    let end = start + memchr::memchr2(b',', b'}', &body[start..])?;
    Some(Bytes::copy_from_slice(&body[start..end]))
}

fn result(id: &[u8], result: &str) -> Answer {
    let mut body = BytesMut::with_capacity(result.len() + id.len() + 40);
    body.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
    body.extend_from_slice(id);
    body.extend_from_slice(b",\"result\":");
    body.extend_from_slice(result.as_bytes());
    body.extend_from_slice(b"}");
    short(StatusCode::OK, body.freeze())
}

fn short(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body).boxed_unsync());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn events(pieces: impl stream::Stream<Item = Bytes> + Send + 'static) -> Answer {
    let mut answer = of_pieces(pieces);
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer
}

fn of_pieces(pieces: impl stream::Stream<Item = Bytes> + Send + 'static) -> Answer {
    let frames = stream::StreamExt::map(pieces, |piece| Ok::<_, Infallible>(Frame::data(piece)));
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn event(id: &[u8]) -> Bytes {
    let mut event = BytesMut::from(&b"event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":"[..]);
    event.extend_from_slice(id);
    event.extend_from_slice(b",\"result\":");
    event.extend_from_slice(TEXT.as_bytes());
    event.extend_from_slice(b"}\n\n");
    event.freeze()
}

fn two_events(id: Bytes) -> Answer {
    const PROGRESS: &[u8] =
        b"event: message\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\
        \"params\":{\"progressToken\":1,\"progress\":1,\"total\":2}}\n\n";
    events(stream::unfold(0, move |step| {
        let id = id.clone();
        async move {
            match step {
                0 => Some((Bytes::from_static(PROGRESS), 1)),
                1 => {
                    tokio::time::sleep(LAST_EVENT).await;
                    Some((event(&id), 2))
                }
                _ => None,
            }
        }
    }))
}

/// Text as tools return it, with no line break and nothing that JSON escapes.
fn prose() -> Bytes {
    const WORDS: &str = "commit 9b1f4e issue-4711 The relay carries every byte of base64 dGhlIGJ5dGVz and eyJhbGciOiJIUzI1NiJ9 \
        at https://example.org/a?b=c&d=%20e, then 1234567890 lines of src/main.rs; ";
    WORDS.bytes().cycle().take(BLOCK).collect::<Vec<_>>().into()
}

fn large(id: Bytes) -> Answer {
    let block = prose();
    let mut start = BytesMut::from(&b"{\"jsonrpc\":\"2.0\",\"id\":"[..]);
    start.extend_from_slice(&id);
    start.extend_from_slice(b",\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"");
    let blocks = std::iter::repeat_n(block, BIG / BLOCK);
    let end = Bytes::from_static(b"\"}]}}");
    of_pieces(stream::iter(std::iter::once(start.freeze()).chain(blocks).chain([end])))
}

fn large_events(id: Bytes) -> Answer {
    let mut one = BytesMut::from(&b"event: message\ndata: "[..]);
    one.extend_from_slice(&prose());
    one.extend_from_slice(b"\n\n");
    let blocks = std::iter::repeat_n(one.freeze(), BIG / BLOCK);
    events(stream::iter(blocks.chain([event(&id)])))
}
