//! What the pipeline's tests share: runs, a pipeline in a throw-away home, and upstreams on loopback that do what a
//! test says.

use std::{collections::BTreeSet, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response, request};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Frame, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use moat_shared::secret::Secret;
use rustls::RootCertStore;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};

use super::{Body, News, Notice, Parts, Pipeline};
use crate::{
    credentials::{Credential, Store},
    env::Environment,
    home::Home,
    policy::{
        bound::{Bound, Source},
        file::{self, Scopes},
    },
    record::{AuditEvent, Exchange, Record, Recorder},
    registry::Run,
    upstream::Patience,
};

/// A server: name, URL, and grant with header.
type Entry<'a> = (&'a str, &'a str, Option<(&'a str, &'a str)>);

/// A run with these servers.
pub(super) fn run(servers: &[Entry<'_>]) -> Arc<Run> {
    run_named("run_000000000001", servers)
}

pub(super) fn run_named(id: &str, servers: &[Entry<'_>]) -> Arc<Run> {
    let servers: Vec<serde_json::Value> = servers
        .iter()
        .map(|(name, url, auth)| {
            let mut server = serde_json::json!({"name": name, "url": url});
            if let Some((grant, header)) = auth {
                server["auth"] = serde_json::json!({"grant": grant, "header": header});
            }
            server
        })
        .collect();
    let run = serde_json::json!({
        "run_id": id,
        "name": "test",
        "runtime": "process",
        "workspace": "/w",
        "mcp_servers": servers,
        "holder": {"pid": 1, "started": 1},
        "registered": "2026-01-01T00:00:00Z",
    });
    Arc::new(serde_json::from_value(run).unwrap())
}

/// A run whose server `x` has this policy.
pub(super) fn with_policy(upstream: &str, bound: &Bound) -> Arc<Run> {
    let mut run = Run::clone(&run(&[("x", upstream, None)]));
    run.servers[0].policy = Some(bound.clone());
    Arc::new(run)
}

/// A policy from the text of a rule file without its scope.
pub(super) fn rules(yaml: &str) -> Bound {
    let loaded = file::read(&format!("scope: x\n{yaml}"), "x.yaml", &Scopes::of_server("x")).unwrap();
    Bound::new(Source::Inline, &loaded.policy.set)
}

/// The credential that every test injects.
pub(super) const TOKEN: &str = "sk-live/Zm9v+\"secret\"";
pub(super) const STUB: &str = "moat-stub-mcp-x";

/// A pipeline, and the other ends of what it writes to.
pub(super) struct Rig {
    pub(super) pipeline: Arc<Pipeline>,
    records: mpsc::Receiver<Record>,
    notices: mpsc::Receiver<Notice>,
    _home: tempfile::TempDir,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(RootCertStore::empty(), Patience::default())
    }

    pub(super) fn with_token(token: &str) -> Self {
        Self::made(RootCertStore::empty(), Patience::default(), token)
    }

    pub(super) fn with(roots: RootCertStore, patience: Patience) -> Self {
        Self::made(roots, patience, TOKEN)
    }

    fn made(roots: RootCertStore, patience: Patience, token: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let env = Environment::from([("MOAT_KEYRING_BACKEND", "file")]);
        let hosts = BTreeSet::from(["127.0.0.1".to_owned(), "localhost".to_owned()]);
        let token = Secret::new(token.to_owned());
        let credential = Credential::new("mcp-x".parse().unwrap(), token, hosts, jiff::Timestamp::now());
        Store::open(&home, &env, None).put(&credential).unwrap();
        let (recorder, records) = Recorder::new(1024);
        let (sender, notices) = mpsc::channel(16);
        let http = crate::oauth::http::Http::new(Arc::new(roots.clone())).unwrap();
        // Nothing here flies: what needs a renewal says that there is none.
        let (renewals, ..) = crate::oauth::renewals::renewals(http);
        let pipeline = Pipeline::new(Parts {
            home,
            env,
            recorder,
            notices: sender,
            session_key: Secret::new([7; 32]),
            roots: Arc::new(roots),
            patience,
            renewals,
        })
        .unwrap();
        Self { pipeline: Arc::new(pipeline), records, notices, _home: dir }
    }

    /// Sends a request to the server `x` of a run that has the credential.
    pub(super) async fn send(&self, upstream: &str, request: Request<Full<Bytes>>) -> Response<Body> {
        self.pipeline.handle(&with_credential(upstream), request).await
    }

    /// What was recorded since the last call.
    pub(super) fn recorded(&mut self) -> (Vec<Exchange>, Vec<AuditEvent>) {
        let (mut exchanges, mut audit) = (Vec::new(), Vec::new());
        while let Ok(record) = self.records.try_recv() {
            match record {
                Record::Exchange(_, exchange) => exchanges.push(exchange),
                Record::Audit(_, line) => audit.push(line.event),
                Record::Mark(_) => {}
            }
        }
        (exchanges, audit)
    }

    /// The next exchange that is recorded, in good time.
    pub(super) async fn next_exchange(&mut self) -> Exchange {
        loop {
            let next = tokio::time::timeout(Duration::from_secs(5), self.records.recv()).await;
            if let Some(Record::Exchange(_, exchange)) = next.expect("a record in good time") {
                return exchange;
            }
        }
    }

    pub(super) fn notice(&mut self) -> Option<String> {
        match self.notices.try_recv().ok()?.news {
            News::Trouble(text) => Some(text),
            News::Mended => Some("mended".to_owned()),
        }
    }
}

pub(super) fn with_credential(upstream: &str) -> Arc<Run> {
    run(&[("x", upstream, Some(("mcp-x", "X-Api-Key")))])
}

pub(super) fn without_credential(upstream: &str) -> Arc<Run> {
    run(&[("x", upstream, None)])
}

pub(super) const NOTE: &str = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{}}"#;
pub(super) const CALL: &str = r#"{"jsonrpc":"2.0","id":"c-1","method":"tools/call","params":{"name":"add"}}"#;

/// A POST of JSON to the server `x`.
pub(super) fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("/mcp/x")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(Full::new(body.into()))
        .unwrap()
}

pub(super) fn get() -> Request<Full<Bytes>> {
    Request::get("/mcp/x").header("accept", "text/event-stream").body(Full::default()).unwrap()
}

/// The whole body, or that it is not complete.
pub(super) async fn text(response: Response<Body>) -> Result<String, String> {
    let collecting = tokio::time::timeout(Duration::from_secs(10), response.into_body().collect());
    match collecting.await.expect("an end in good time") {
        Ok(body) => Ok(String::from_utf8(body.to_bytes().to_vec()).unwrap()),
        Err(error) => Err(error.to_string()),
    }
}

/// The JSON-RPC error in a body: id, code, kind, message.
pub(super) async fn error_in(response: Response<Body>) -> (serde_json::Value, i64, String, String) {
    assert_eq!(response.headers()["content-type"], "application/json");
    let body: serde_json::Value = serde_json::from_str(&text(response).await.unwrap()).unwrap();
    let error = &body["error"];
    assert_eq!(error["data"]["source"], "moat");
    (
        body["id"].clone(),
        error["code"].as_i64().unwrap(),
        error["data"]["kind"].as_str().unwrap().to_owned(),
        error["message"].as_str().unwrap().to_owned(),
    )
}

pub(super) type Answer = UnsyncBoxBody<Bytes, io::Error>;

pub(super) fn whole(text: impl Into<Bytes>) -> Answer {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that the test feeds; an error cuts the connection.
pub(super) fn fed() -> (mpsc::Sender<Result<Bytes, io::Error>>, Answer) {
    let (sender, receiver) = mpsc::channel(16);
    (sender, fed_by(receiver))
}

/// A body of these chunks.
pub(super) fn fed_by(mut receiver: mpsc::Receiver<Result<Bytes, io::Error>>) -> Answer {
    let stream = futures_util::stream::poll_fn(move |cx| {
        receiver.poll_recv(cx).map(|item: Option<Result<Bytes, io::Error>>| item.map(|r| r.map(Frame::data)))
    });
    StreamBody::new(stream).boxed_unsync()
}

/// What an upstream got.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) head: request::Parts,
    pub(super) body: Bytes,
}

/// A server on loopback. Dropped, it is gone with all its connections.
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    pub(super) got: mpsc::Receiver<Got>,
    secure: bool,
    _tasks: JoinSet<()>,
}

pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Upstream {
    pub(super) fn url(&self) -> String {
        format!("{}://127.0.0.1:{}/mcp", if self.secure { "https" } else { "http" }, self.address.port())
    }

    /// Answers every request with what the function makes of it.
    pub(super) async fn answering<F>(answer: F) -> Self
    where
        F: Fn(&Got) -> Response<Answer> + Send + Sync + 'static,
    {
        Self::start(None, None, answer).await
    }

    /// The same over TLS, HTTP/2 if the client can.
    pub(super) async fn secure<F>(tls: rustls::ServerConfig, answer: F) -> Self
    where
        F: Fn(&Got) -> Response<Answer> + Send + Sync + 'static,
    {
        Self::start(Some(tls), None, answer).await
    }

    /// The same over HTTP/2, with no more than so many streams on a connection.
    pub(super) async fn narrow<F>(tls: rustls::ServerConfig, streams: u32, answer: F) -> Self
    where
        F: Fn(&Got) -> Response<Answer> + Send + Sync + 'static,
    {
        Self::start(Some(tls), Some(streams), answer).await
    }

    async fn start<F>(tls: Option<rustls::ServerConfig>, streams: Option<u32>, answer: F) -> Self
    where
        F: Fn(&Got) -> Response<Answer> + Send + Sync + 'static,
    {
        let (sender, got) = mpsc::channel(64);
        let answer = Arc::new(answer);
        let secure = tls.is_some();
        let tls = tls.map(|config| tokio_rustls::TlsAcceptor::from(Arc::new(config)));
        let mut upstream = Self::raw(move |tcp| {
            let (answer, sender, tls) = (answer.clone(), sender.clone(), tls.clone());
            Box::pin(async move {
                let io: Box<dyn Io> = match tls {
                    None => Box::new(tcp),
                    Some(tls) => match tls.accept(tcp).await {
                        Ok(stream) => Box::new(stream),
                        Err(_) => return,
                    },
                };
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (answer, sender) = (answer.clone(), sender.clone());
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
                        let got = Got { head, body };
                        let response = answer(&got);
                        sender.send(got).await.map_err(io::Error::other)?;
                        Ok::<_, io::Error>(response)
                    }
                });
                let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                builder.http2().max_concurrent_streams(streams);
                // Its error is a client that went away, which is what some tests are about.
                let _ended = builder.serve_connection(TokioIo::new(io), service).await.is_ok();
            })
        })
        .await;
        upstream.got = got;
        upstream.secure = secure;
        upstream
    }

    /// Does with each connection what the function says.
    pub(super) async fn raw<F>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> BoxFuture<'static, ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(serve(stream));
            }
        });
        Self { address, got: mpsc::channel(1).1, secure: false, _tasks: tasks }
    }

    /// The next request, in good time.
    pub(super) async fn next(&mut self) -> Got {
        within(self.got.recv()).await.expect("a request")
    }
}

/// Whom to trust, and a server with a certificate for this name.
pub(super) fn tls(name: &str, alpn: &[&[u8]]) -> (rustls::RootCertStore, rustls::ServerConfig) {
    let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certified.cert.der().clone()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let mut config = rustls::ServerConfig::builder_with_provider(moat_shared::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    (roots, config)
}

/// What must happen in good time.
pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    let future: Pin<Box<dyn Future<Output = T> + '_>> = Box::pin(future);
    Box::pin(tokio::time::timeout(Duration::from_secs(10), future)).await.expect("in good time")
}
