//! The server that fails: HTTP/1.1 written byte for byte, so that every byte can be the wrong one.
//!
//! `/<fault>/<kind>` fails as [`super::upstream`] says, in the form that fits the kind of request. `/<fault>` alone is an MCP server
//! of 2025-06-18 for real clients: all is well until a tool is called; the tool's name is the kind.

use std::{io::Write, sync::Arc, time::Duration};

use flate2::{Compression, write::GzEncoder};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::Kind;
use crate::{
    Outcome, Trouble, clock,
    listen::Listening,
    pki::Authority,
    seen::{Event, Request, Seen},
};

/// A server that fails, and is running.
#[derive(Debug)]
pub struct Broken {
    listening: Listening,
    scheme: &'static str,
    /// What reached it.
    pub seen: Seen,
}

impl Broken {
    /// Over TLS, for these names.
    ///
    /// # Errors
    /// When no port is free.
    pub fn tls(authority: &Authority, names: &[&str]) -> Outcome<Self> {
        Self::with(authority.server(names, false)?)
    }

    /// Over TLS with this configuration.
    ///
    /// # Errors
    /// When no port is free.
    pub fn with(tls: Arc<ServerConfig>) -> Outcome<Self> {
        let acceptor = TlsAcceptor::from(tls);
        let seen = Seen::default();
        let noted = seen.clone();
        let listening = Listening::tcp(move |stream| {
            let (acceptor, seen) = (acceptor.clone(), noted.clone());
            async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream, seen).await;
                }
            }
        })?;
        Ok(Self { listening, scheme: "https", seen })
    }

    /// Over plain TCP.
    ///
    /// # Errors
    /// When no port is free.
    pub fn plain() -> Outcome<Self> {
        let seen = Seen::default();
        let noted = seen.clone();
        let listening = Listening::tcp(move |stream| serve(stream, noted.clone()))?;
        Ok(Self { listening, scheme: "http", seen })
    }

    /// Its root.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.listening.port())
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.listening.port()
    }
}

/// A connection whose TCP half can be reached: only that can be reset.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {
    fn tcp(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Wire for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// One step of an answer.
enum Act {
    /// These bytes, at once.
    Send(Vec<u8>),
    /// These bytes, one by one.
    Drip(Vec<u8>),
    /// These bytes, again and again, until the peer goes.
    Forever(Vec<u8>),
    /// Nothing, until the peer goes.
    Hold,
    /// The end of the connection as it should be: in TLS with its goodbye.
    Shutdown,
    /// The end of the connection: FIN.
    Drop,
    /// The end of the connection: RST.
    Reset,
}

fn send(text: impl Into<Vec<u8>>) -> Act {
    Act::Send(text.into())
}

/// Between bytes that come one by one.
const DRIP: Duration = Duration::from_millis(2);
/// Between pieces of what never ends: slow enough for a machine that has other things to do.
const PIECE: Duration = Duration::from_millis(10);

async fn serve(mut wire: impl Wire, seen: Seen) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut wire, &mut buffer).await {
        let target = request.target.clone();
        let acts = acts_for(&request);
        seen.note(Event::Request(request));
        for act in acts {
            if !perform(&mut wire, act, &seen, &target).await {
                return;
            }
        }
    }
}

/// False when the connection is over.
async fn perform(wire: &mut impl Wire, act: Act, seen: &Seen, target: &str) -> bool {
    let gone = || seen.note(Event::Gone { at: clock::now(), target: target.to_owned() });
    match act {
        Act::Send(bytes) => write(wire, &bytes).await,
        Act::Drip(bytes) => {
            for byte in bytes {
                if !write(wire, &[byte]).await {
                    return false;
                }
                tokio::time::sleep(DRIP).await;
            }
            true
        }
        Act::Forever(bytes) => {
            while write(wire, &bytes).await {
                tokio::time::sleep(PIECE).await;
            }
            gone();
            false
        }
        Act::Hold => {
            let mut rest = [0; 1024];
            while wire.read(&mut rest).await.is_ok_and(|count| count > 0) {}
            gone();
            false
        }
        Act::Shutdown => {
            let _gone_before = wire.shutdown().await;
            false
        }
        Act::Drop => false,
        Act::Reset => {
            let _reset_anyway = nix::sys::socket::setsockopt(
                wire.tcp(),
                nix::sys::socket::sockopt::Linger,
                &nix::libc::linger { l_onoff: 1, l_linger: 0 },
            );
            false
        }
    }
}

async fn write(wire: &mut impl Wire, bytes: &[u8]) -> bool {
    wire.write_all(bytes).await.is_ok() && wire.flush().await.is_ok()
}

/// Reads one request with its body; `None` when the peer has no more.
async fn read_request(wire: &mut impl Wire, buffer: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(at) = memchr::memmem::find(buffer, b"\r\n\r\n") {
            break at + 4;
        }
        more(wire, buffer).await?;
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end);
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut request = Request { at: clock::now(), method, target, headers, body: Vec::new() };
    if request.values("transfer-encoding").concat().contains("chunked") {
        while let Some(size) = line(wire, buffer).await {
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let chunk = exactly(wire, buffer, size + 2).await?;
            request.body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else if let Some(size) = request.values("content-length").first().and_then(|size| size.parse().ok()) {
        request.body = exactly(wire, buffer, size).await?;
    }
    Some(request)
}

async fn more(wire: &mut impl Wire, buffer: &mut Vec<u8>) -> Option<()> {
    let mut block = vec![0; 16 * 1024];
    let count = wire.read(&mut block).await.ok().filter(|count| *count > 0)?;
    buffer.extend_from_slice(&block[..count]);
    Some(())
}

async fn exactly(wire: &mut impl Wire, buffer: &mut Vec<u8>, size: usize) -> Option<Vec<u8>> {
    while buffer.len() < size {
        more(wire, buffer).await?;
    }
    Some(buffer.drain(..size).collect())
}

async fn line(wire: &mut impl Wire, buffer: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(at) = memchr::memmem::find(buffer, b"\r\n") {
            let line = exactly(wire, buffer, at + 2).await?;
            return Some(String::from_utf8_lossy(&line[..at]).into_owned());
        }
        more(wire, buffer).await?;
    }
}

/// What to do about a request.
fn acts_for(request: &Request) -> Vec<Act> {
    let path = request.target.split('?').next().unwrap_or_default();
    let mut segments = path.trim_matches('/').split('/');
    let fault = segments.next().unwrap_or_default();
    let message: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let kind = match segments.next() {
        Some(kind) => Kind::named(kind),
        None => match mcp(&request.method, &message) {
            Ok(acts) => return acts,
            Err(kind) => Some(kind),
        },
    };
    let Some(kind) = kind else { return vec![send(head(404, "Content-Length: 0\r\n"))] };
    Asked { kind, id: message["id"].clone() }.fail(fault)
}

/// A server in good order, up to the call of a tool: that one's name is a kind.
fn mcp(method: &str, message: &Value) -> Result<Vec<Act>, Kind> {
    let result = |result: Value| {
        let response = json!({"jsonrpc": "2.0", "id": message["id"], "result": result});
        Ok(vec![send(document(200, "application/json", "", response.to_string().as_bytes()))])
    };
    match (method, message["method"].as_str().unwrap_or_default()) {
        ("GET", _) => Ok(vec![send(document(405, "text/plain", "", b"no stream here"))]),
        ("DELETE", _) => Ok(vec![send(document(200, "text/plain", "", b""))]),
        (_, "initialize") => result(json!({
            "protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
            "serverInfo": {"name": "broken", "version": "1"},
        })),
        (_, "ping") => result(json!({})),
        (_, "tools/list") => {
            let tool = |kind: Kind| json!({"name": kind.name(), "inputSchema": {"type": "object"}});
            result(json!({"tools": [tool(Kind::Call), tool(Kind::Stream)]}))
        }
        (_, "tools/call") => {
            Err(message["params"]["name"].as_str().and_then(Kind::named).unwrap_or(Kind::Call))
        }
        (_, name) if name.starts_with("notifications/") => Ok(vec![send(head(202, "Content-Length: 0\r\n"))]),
        _ => {
            let error = json!({"code": -32601, "message": "no such method"});
            let response = json!({"jsonrpc": "2.0", "id": message["id"], "error": error});
            Ok(vec![send(document(200, "application/json", "", response.to_string().as_bytes()))])
        }
    }
}

/// A head with its empty line.
fn head(status: u16, headers: &str) -> String {
    let reason = http::StatusCode::from_u16(status).ok().and_then(|s| s.canonical_reason()).unwrap_or("X");
    format!("HTTP/1.1 {status} {reason}\r\n{headers}\r\n")
}

/// An answer of known length.
fn document(status: u16, media: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes =
        head(status, &format!("Content-Type: {media}\r\nContent-Length: {}\r\n{more}", body.len()))
            .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    // Into memory: it cannot fail.
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.unwrap_or_default()
}

/// What has to be answered.
struct Asked {
    kind: Kind,
    id: Value,
}

impl Asked {
    /// The whole body of an answer in good order. It names the kind, so that no other request's passes for it.
    fn good(&self) -> Vec<u8> {
        let response =
            json!({"jsonrpc": "2.0", "id": self.id, "result": {"content": [], "kind": self.kind.name()}});
        match self.kind {
            Kind::Call => response.to_string().into_bytes(),
            Kind::Stream => [self.first_event(), event(&response)].concat(),
            Kind::Get | Kind::Listen => self.first_event(),
            Kind::Notification | Kind::Delete => Vec::new(),
        }
    }

    fn first_event(&self) -> Vec<u8> {
        event(&json!({"jsonrpc": "2.0", "method": "notifications/progress",
            "params": {"progressToken": self.kind.name(), "progress": 1}}))
    }

    const fn media(&self) -> &'static str {
        if self.kind.streams() { "text/event-stream" } else { "application/json" }
    }

    /// The status of an answer in good order.
    const fn status(&self) -> u16 {
        if matches!(self.kind, Kind::Notification) { 202 } else { 200 }
    }

    /// The head of a chunked answer.
    fn chunked(&self, more: &str) -> Act {
        let media = self.media();
        send(head(200, &format!("Content-Type: {media}\r\nTransfer-Encoding: chunked\r\n{more}")))
    }

    /// The start of an answer: of a stream an event, of a document its first half.
    fn start(&self) -> Act {
        let part = if self.kind.streams() { self.first_event() } else { b"{\"jsonrpc\":\"2.0\",".to_vec() };
        send(chunk(&part))
    }

    /// An answer in good order, in chunks; a stream that stays open stays open.
    fn well(&self) -> Vec<Act> {
        if matches!(self.kind, Kind::Notification | Kind::Delete) {
            return vec![send(head(self.status(), "Content-Length: 0\r\n"))];
        }
        let mut acts = vec![self.chunked(""), send(chunk(&self.good()))];
        acts.push(if matches!(self.kind, Kind::Get | Kind::Listen) { Act::Hold } else { send(LAST_CHUNK) });
        acts
    }

    fn fail(&self, fault: &str) -> Vec<Act> {
        if let Some(rest) = fault.strip_prefix("status-").or_else(|| fault.strip_prefix("open-")) {
            return self.refuse(rest);
        }
        let huge = |bytes: usize| {
            let line = format!("X-Fill: {}\r\n", "f".repeat(8000));
            vec![send(head(self.status(), &(line.repeat(bytes / 8000) + "Content-Length: 0\r\n")))]
        };
        match fault {
            "well" => self.well(),
            "reset" => vec![Act::Reset],
            "close" => vec![Act::Shutdown],
            "half-head" => vec![send("HTTP/1.1 200 OK\r\nContent-Ty"), Act::Drop],
            "not-http" => vec![send("SSH-2.0-OpenSSH_9.9\r\n\r\n"), Act::Hold],
            "headers-1m" => huge(1 << 20),
            "headers-100k" => huge(100_000),
            "two-lengths" => vec![send(head(200, "Content-Length: 3\r\nContent-Length: 5\r\n")), send("[]")],
            "hang" => vec![Act::Hold],
            "early-hints" => {
                let mut acts = vec![send("HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n")];
                acts.extend(self.well());
                acts
            }
            "redirect-here" => vec![send(head(307, "Location: /elsewhere\r\nContent-Length: 0\r\n"))],
            "redirect-away" => {
                vec![send(head(302, "Location: https://elsewhere.example/?k=v\r\nContent-Length: 0\r\n"))]
            }
            _ => self.fail_later(fault),
        }
    }

    /// Faults after the head.
    fn fail_later(&self, fault: &str) -> Vec<Act> {
        let encoded = |coding: &str, bytes: &[u8]| {
            vec![send(document(200, self.media(), &format!("Content-Encoding: {coding}\r\n"), bytes))]
        };
        let zipped = gzip(&self.good());
        match fault {
            "cut" => vec![self.chunked(""), self.start(), Act::Drop],
            "cut-reset" => vec![self.chunked(""), self.start(), Act::Reset],
            "cut-inside" => {
                vec![self.chunked(""), self.start(), send(chunk(b"data: {\"jsonrpc\":\"2.0\",")), Act::Drop]
            }
            "cut-resumable" => vec![self.chunked(""), send(chunk(b"id: 1\ndata:\n\n")), Act::Drop],
            "half-chunk" => vec![self.chunked(""), self.start(), send("ff\r\ndata: {\"half"), Act::Drop],
            "short" => {
                let long = format!("Content-Type: {}\r\nContent-Length: 9999\r\n", self.media());
                vec![send(head(200, &long)), send(self.good()), Act::Drop]
            }
            "no-goodbye" => {
                let until_close = format!("Content-Type: {}\r\nConnection: close\r\n", self.media());
                vec![send(head(200, &until_close)), send(self.good()), Act::Drop]
            }
            "until-close" => {
                let until_close = format!("Content-Type: {}\r\nConnection: close\r\n", self.media());
                vec![send(head(200, &until_close)), send(self.good()), Act::Shutdown]
            }
            "no-response" => {
                let first = if self.kind.streams() { chunk(&self.first_event()) } else { Vec::new() };
                vec![self.chunked(""), send(first), send(LAST_CHUNK)]
            }
            "accepted" => vec![send(head(202, "Content-Length: 0\r\n"))],
            "no-content" => vec![send(head(204, ""))],
            "hang-stream" => vec![self.chunked(""), self.start(), Act::Hold],
            "gzip" => encoded("gzip", &zipped),
            "gzip-cut" => encoded("gzip", &zipped[..zipped.len() / 2]),
            "gzip-broken" => encoded("gzip", b"this is not compressed at all"),
            "brotli" => encoded("br", &self.good()),
            "html" => vec![send(document(200, "text/html", "", b"<h1>Please log in</h1>"))],
            "no-type" => {
                let body = self.good();
                vec![send(head(200, &format!("Content-Length: {}\r\n", body.len()))), send(body)]
            }
            "surplus" => {
                let mut acts = vec![send(document(200, self.media(), "", &self.good()))];
                acts.push(send(document(200, self.media(), "", b"{\"stolen\":true}")));
                acts
            }
            "endless" => vec![self.chunked(""), self.start(), Act::Forever(chunk(&self.piece()))],
            "endless-event" => vec![self.chunked(""), self.start(), Act::Forever(chunk(&[b'm'; 16 * 1024]))],
            "drip" => {
                let body = self.good();
                let lines = format!("Content-Type: {}\r\nContent-Length: {}\r\n", self.media(), body.len());
                vec![send(head(self.status(), &lines)), Act::Drip(body)]
            }
            _ => vec![send(document(404, "text/plain", "", b"no such fault"))],
        }
    }

    /// Of what never ends.
    fn piece(&self) -> Vec<u8> {
        if self.kind.streams() { self.first_event().repeat(100) } else { vec![b' '; 16 * 1024] }
    }

    /// `<status>[-empty]`.
    fn refuse(&self, what: &str) -> Vec<Act> {
        let (status, empty) = what.strip_suffix("-empty").map_or((what, false), |status| (status, true));
        let status: u16 = status.parse().unwrap_or(418);
        let more = "Retry-After: 7\r\nWWW-Authenticate: Bearer realm=\"upstream\"\r\n";
        if empty {
            return vec![send(head(status, &format!("{more}Content-Length: 0\r\n")))];
        }
        let error = json!({"code": -32001, "message": "upstream says no"});
        let body = json!({"jsonrpc": "2.0", "id": self.id, "error": error}).to_string();
        vec![send(document(status, "application/json", more, body.as_bytes()))]
    }
}

fn event(message: &Value) -> Vec<u8> {
    format!("event: message\ndata: {message}\n\n").into_bytes()
}

/// A listener that takes no more connections: the next one waits for ever.
#[derive(Debug)]
pub struct Full {
    _listener: std::net::TcpListener,
    _waiting: Vec<std::net::TcpStream>,
    port: u16,
}

impl Full {
    /// With its queue filled.
    ///
    /// # Errors
    /// When no port is free.
    pub fn new() -> Outcome<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        // A shorter queue than the standard library's: said again, the last word counts.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1)?)?;
        let address = listener.local_addr()?;
        let mut waiting = Vec::new();
        for _ in 0..16 {
            match std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
                Ok(stream) => waiting.push(stream),
                Err(_) => return Ok(Self { _listener: listener, _waiting: waiting, port: address.port() }),
            }
        }
        Err(Trouble::new("the queue of a listener does not fill"))
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}
