//! Tunnels over a real socket, with the sidecar's own TLS at the other end.

use std::{
    future::pending,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use http::{Method, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use moat_shared::{
    endpoint::{Endpoint, hybrid_port},
    hello::Hello,
    id::RunId,
    plan::Identity,
    rt::{
        drain::{self, Drained, Trigger},
        exec::Owned,
    },
    tls, wire,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinSet,
    time::Instant,
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::{
    control::api::{Process, Register},
    home::{Home, private_dir},
    identity::Authority,
    record::Recorder,
    registry::Owner,
};

type Body = Full<Bytes>;

/// `/mcp/hang` never answers, `/mcp/open` never ends, everything else says which run asked.
struct Fake {
    /// Requests that are being answered, and bodies that are open.
    busy: Arc<AtomicUsize>,
}

struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Door for Fake {
    type Body = UnsyncBoxBody<Bytes, BoxError>;

    async fn handle(&self, run: &Arc<Run>, request: Request<Received>) -> Response<Self::Body> {
        let busy = Busy::new(&self.busy);
        match request.uri().path() {
            "/mcp/hang" => pending().await,
            "/mcp/open" => {
                let events = futures_util::stream::unfold((busy, true), |(busy, first)| async move {
                    if !first {
                        pending::<()>().await;
                    }
                    Some((Ok(Frame::data(Bytes::from_static(b"data: 1\n\n"))), (busy, false)))
                });
                Response::new(http_body_util::StreamBody::new(events).boxed_unsync())
            }
            _ => {
                let text = Full::from(run.id.to_string());
                Response::new(text.map_err(|never| match never {}).boxed_unsync())
            }
        }
    }
}

/// A client that has nothing to show.
#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

struct Rig {
    _dir: tempfile::TempDir,
    authority: Authority,
    registry: Registry,
    socket: PathBuf,
    busy: Arc<AtomicUsize>,
    drain: Option<Trigger>,
    _tasks: JoinSet<()>,
}

impl Rig {
    fn new() -> Self {
        Self::patient(limits::HANDSHAKE)
    }

    fn patient(patience: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        private_dir(&home.tunnel_dir()).unwrap();
        let authority = Authority::open(&home).unwrap();
        let (recorder, _) = Recorder::new(100);
        let (asks, asked) = asks();
        let (registry, _notices, owner) =
            Owner::restore(&home, recorder, tokio::sync::mpsc::unbounded_channel().0, asks).unwrap();
        let busy = Arc::default();
        let doors = [&busy, &busy].map(|busy| Fake { busy: Arc::clone(busy) });
        let socket = home.tunnel_socket();
        let tls = authority.server_config().unwrap();
        let tunnels =
            Tunnels::patient(&socket, tls, registry.clone(), asked, doors.into(), patience).unwrap();
        let (trigger, guard) = drain::drain();
        let mut tasks = JoinSet::new();
        tasks.spawn(owner.run());
        tasks.spawn(tunnels.run(guard));
        Self { _dir: dir, authority, registry, socket, busy, drain: Some(trigger), _tasks: tasks }
    }

    async fn run(&self) -> (RunId, Identity) {
        self.run_that_comes_to(None).await
    }

    async fn run_that_comes_to(&self, listen: Option<Endpoint>) -> (RunId, Identity) {
        let wish = Register {
            name: "brave-otter".to_owned(),
            runtime: "process".to_owned(),
            engine: None,
            workspace: "/w".to_owned(),
            servers: Vec::new(),
            profile: None,
            agent: None,
            user: None,
            listen: None,
            holder: Process::current(),
        };
        let run = self.registry.register(wish, listen).await.unwrap();
        let identity = self.authority.issue(&run.id).unwrap();
        (run.id.clone(), identity)
    }

    async fn connect(&self, identity: &Identity) -> Result<Link, BoxError> {
        self.connect_with(tls::sidecar_config(identity)?).await
    }

    async fn connect_with(&self, config: rustls::ClientConfig) -> Result<Link, BoxError> {
        Link::over(UnixStream::connect(&self.socket).await?, config).await
    }

    /// A tunnel that has said hello.
    async fn tunnel(&self, identity: &Identity) -> Link {
        let mut link = self.connect(identity).await.unwrap();
        let (status, body) = link.hello(&Hello::ours()).await.unwrap();
        assert_eq!(status, StatusCode::OK);
        assert_eq!(serde_json::from_str::<Hello>(&body).unwrap(), Hello::ours());
        link
    }

    async fn idle(&self) {
        eventually(|| self.busy.load(Ordering::SeqCst) == 0, "what the run had in flight lives on").await;
    }
}

struct Link {
    sender: SendRequest<Body>,
    tasks: JoinSet<()>,
}

impl Link {
    async fn over(stream: UnixStream, config: rustls::ClientConfig) -> Result<Self, BoxError> {
        let stream = TlsConnector::from(Arc::new(config)).connect(tls::bridge_name(), stream).await?;
        let (sender, connection) = http2::handshake(Owned::default(), TokioIo::new(stream)).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        Ok(Self { sender, tasks })
    }

    async fn send(&mut self, path: &str, body: Vec<u8>) -> Result<Response<Incoming>, BoxError> {
        self.sender.ready().await?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("https://{}{path}", wire::BRIDGE_DNS_NAME))
            .body(Full::from(body))?;
        Ok(self.sender.send_request(request).await?)
    }

    async fn get(&mut self, path: &str, body: Vec<u8>) -> Result<(StatusCode, String), BoxError> {
        let response = soon(self.send(path, body)).await?;
        let status = response.status();
        let body = soon(response.into_body().collect()).await?.to_bytes();
        Ok((status, String::from_utf8(body.to_vec())?))
    }

    async fn hello(&mut self, hello: &Hello) -> Result<(StatusCode, String), BoxError> {
        self.get(wire::HELLO_PATH, serde_json::to_vec(hello)?).await
    }

    /// Returns when the other side has closed the tunnel.
    async fn closed(mut self) {
        soon(self.tasks.join_next()).await;
    }
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(5), future).await.expect("in time")
}

async fn eventually(condition: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_run_is_who_its_certificate_says() {
    let rig = Rig::new();
    let (one, first) = rig.run().await;
    let (two, second) = rig.run().await;
    let mut tunnels = [rig.tunnel(&first).await, rig.tunnel(&second).await];
    assert_eq!(tunnels[0].get("/mcp/x", Vec::new()).await.unwrap(), (StatusCode::OK, one.to_string()));
    assert_eq!(tunnels[1].get("/mcp/x", Vec::new()).await.unwrap(), (StatusCode::OK, two.to_string()));
    let status = rig.registry.runs().await.unwrap();
    assert!(
        status
            .iter()
            .all(|run| run.tunnel.as_ref().is_some_and(|tunnel| tunnel.sidecar == Hello::ours().build))
    );
}

#[tokio::test]
async fn strangers_are_refused() {
    let rig = Rig::new();
    let (run, identity) = rig.run().await;

    // No certificate: with TLS 1.3 the refusal shows at the first read.
    let mut config = tls::sidecar_config(&identity).unwrap();
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let no_certificate = async { rig.connect_with(config).await?.hello(&Hello::ours()).await };
    assert!(no_certificate.await.is_err(), "no certificate");

    // The right name from another CA; and the sidecar does not trust that bridge either.
    let dir = tempfile::tempdir().unwrap();
    let other = Authority::open(&Home::at(dir.path())).unwrap().issue(&run).unwrap();
    assert!(rig.connect(&other).await.is_err(), "the sidecar refuses a bridge of another CA");
    let mixed = Identity { ca_pem: identity.ca_pem.clone(), ..other };
    let foreign = async { rig.connect(&mixed).await?.hello(&Hello::ours()).await };
    assert!(foreign.await.is_err(), "a certificate of another CA");
    assert_eq!(rig.busy.load(Ordering::SeqCst), 0);
    assert!(rig.registry.runs().await.unwrap()[0].tunnel.is_none());
}

#[tokio::test]
async fn a_good_certificate_of_no_run_gets_nowhere() {
    let rig = Rig::new();
    let nobody = RunId::from_random([7; 6]);
    let identity = rig.authority.issue(&nobody).unwrap();
    let mut link = rig.connect(&identity).await.unwrap();
    for path in [wire::HELLO_PATH, "/mcp/x"] {
        let (status, text) = link.get(path, serde_json::to_vec(&Hello::ours()).unwrap()).await.unwrap();
        assert_eq!(status.as_u16(), wire::ErrorKind::RunEnded.status());
        assert!(text.contains("run_ended") && text.contains(nobody.as_str()), "{text}");
    }
}

#[tokio::test]
async fn hello_comes_first_once_and_must_fit() {
    let rig = Rig::new();
    let (_, identity) = rig.run().await;
    let mut link = rig.connect(&identity).await.unwrap();
    let (status, text) = link.get("/mcp/x", Vec::new()).await.unwrap();
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && text.contains("version_mismatch"), "{text}");
    let future = Hello { protocol: 99, oldest: 99, build: "9.9".to_owned() };
    let (status, text) = link.hello(&future).await.unwrap();
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && text.contains("9.9"), "{text}");
    assert!(rig.registry.runs().await.unwrap()[0].tunnel.is_none(), "it takes nobody's place");
    assert_eq!(link.hello(&Hello::ours()).await.unwrap().0, StatusCode::OK);
    assert_eq!(link.hello(&Hello::ours()).await.unwrap().0, StatusCode::BAD_REQUEST);
    assert_eq!(link.get("/mcp/x", Vec::new()).await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn the_end_of_a_run_ends_its_streams_and_its_tunnel() {
    let rig = Rig::new();
    let (run, identity) = rig.run().await;
    let mut link = rig.tunnel(&identity).await;
    let mut open = soon(link.send("/mcp/open", Vec::new())).await.unwrap().into_body();
    assert!(soon(open.frame()).await.unwrap().is_ok());
    let mut hanging = Link { sender: link.sender.clone(), tasks: JoinSet::new() };
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { hanging.send("/mcp/hang", Vec::new()).await.is_err() });
    eventually(|| rig.busy.load(Ordering::SeqCst) == 2, "both arrive").await;

    rig.registry.unregister(run.clone(), "test".to_owned()).await.unwrap();
    assert!(soon(open.frame()).await.unwrap().is_err(), "an open stream is cut, not ended");
    assert!(soon(waiting.join_next()).await.unwrap().unwrap(), "a request that waits fails");
    rig.idle().await;
    link.closed().await;
    // And it does not come back.
    let mut again = rig.connect(&identity).await.unwrap();
    assert_eq!(again.hello(&Hello::ours()).await.unwrap().0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_second_tunnel_is_refused_while_the_first_lives() {
    let rig = Rig::new();
    let (_, identity) = rig.run().await;
    let mut first = rig.tunnel(&identity).await;
    let mut open = soon(first.send("/mcp/open", Vec::new())).await.unwrap().into_body();
    assert!(soon(open.frame()).await.unwrap().is_ok());
    let mut second = rig.connect(&identity).await.unwrap();
    let (status, text) = second.hello(&Hello::ours()).await.unwrap();
    assert!(status == StatusCode::SERVICE_UNAVAILABLE && text.contains("tunnel_down"), "{text}");
    let (status, text) = second.get("/mcp/x", Vec::new()).await.unwrap();
    assert!(
        status == StatusCode::SERVICE_UNAVAILABLE && text.contains("say hello"),
        "not served either: {text}"
    );
    assert_eq!(first.get("/mcp/x", Vec::new()).await.unwrap().0, StatusCode::OK);
    drop((first, open));
    assert_eq!(second.hello(&Hello::ours()).await.unwrap().0, StatusCode::OK, "the place is free");
    assert_eq!(second.get("/mcp/x", Vec::new()).await.unwrap().0, StatusCode::OK);
    assert!(rig.registry.runs().await.unwrap()[0].tunnel.is_some());
}

#[tokio::test]
async fn a_cancelled_request_and_a_lost_tunnel_release_what_they_held() {
    let rig = Rig::new();
    let (_, identity) = rig.run().await;
    let mut link = rig.tunnel(&identity).await;
    let open = soon(link.send("/mcp/open", Vec::new())).await.unwrap();
    assert_eq!(rig.busy.load(Ordering::SeqCst), 1);
    drop(open);
    rig.idle().await;
    let _open = soon(link.send("/mcp/open", Vec::new())).await.unwrap();
    assert_eq!(rig.busy.load(Ordering::SeqCst), 1);
    drop(link);
    rig.idle().await;
}

#[tokio::test]
async fn a_flood_of_half_open_connections_keeps_nobody_out() {
    let rig = Rig::new();
    let (_, identity) = rig.run().await;
    let mut flood = Vec::new();
    for _ in 0..HALF_OPEN + 100 {
        flood.push(UnixStream::connect(&rig.socket).await.unwrap());
    }
    let mut honest = rig.tunnel(&identity).await;
    assert_eq!(honest.get("/mcp/x", Vec::new()).await.unwrap().0, StatusCode::OK);
    // The first ones made room; an honest tunnel that is open never does.
    for mut evicted in flood.drain(..100) {
        let mut byte = [0];
        assert!(matches!(soon(evicted.read(&mut byte)).await, Ok(0) | Err(_)));
    }
    for _ in 0..HALF_OPEN {
        flood.push(UnixStream::connect(&rig.socket).await.unwrap());
    }
    assert_eq!(honest.get("/mcp/x", Vec::new()).await.unwrap().0, StatusCode::OK);
}

#[tokio::test]
async fn who_says_nothing_is_closed_in_time() {
    let rig = Rig::patient(Duration::from_millis(300));
    let (_, identity) = rig.run().await;
    let mut silent = UnixStream::connect(&rig.socket).await.unwrap();
    let mut byte = [0];
    assert!(matches!(soon(silent.read(&mut byte)).await, Ok(0) | Err(_)), "no TLS");
    let link = rig.connect(&identity).await.unwrap();
    let mut tasks = link.tasks;
    soon(tasks.join_next()).await;
}

#[tokio::test]
async fn a_drain_lets_streams_finish_and_says_when_they_do_not() {
    let mut rig = Rig::new();
    let (_, identity) = rig.run().await;
    let mut link = rig.tunnel(&identity).await;
    let open = soon(link.send("/mcp/open", Vec::new())).await.unwrap();
    let drain = rig.drain.take().unwrap();
    assert_eq!(drain.drain(Duration::from_millis(100)).await, Drained::Deadline, "a stream is open");
    assert!(link.send("/mcp/x", Vec::new()).await.is_err(), "GOAWAY: nothing new");
    drop(open);

    let mut rig = Rig::new();
    let (_, identity) = rig.run().await;
    let mut link = rig.tunnel(&identity).await;
    let open = soon(link.send("/mcp/open", Vec::new())).await.unwrap();
    let drain = rig.drain.take().unwrap();
    let (drained, ()) = tokio::join!(drain.drain(Duration::from_secs(5)), async { drop(open) });
    assert_eq!(drained, Drained::Finished);
    assert!(UnixStream::connect(&rig.socket).await.is_err(), "nobody is taken in");
}

/// The device of a guest connects to the socket that is named after its own; the port lasts as long as a run needs it.
#[tokio::test]
async fn a_guest_comes_to_a_port_of_its_device() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let device = dir.path().join("v.sock");
    let at = Endpoint::Hybrid { path: device.clone(), port: 5000 };
    let port = hybrid_port(&device, 5000);
    // As a bridge that was killed leaves it.
    drop(std::os::unix::net::UnixListener::bind(&port).unwrap());
    let (first, identity) = rig.run_that_comes_to(Some(at.clone())).await;
    let (second, _) = rig.run_that_comes_to(Some(at)).await;
    let come = async {
        loop {
            match UnixStream::connect(&port).await {
                Ok(stream) => return stream,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let mut link = Link::over(soon(come).await, tls::sidecar_config(&identity).unwrap()).await.unwrap();
    assert_eq!(link.hello(&Hello::ours()).await.unwrap().0, StatusCode::OK);
    let shown = rig.registry.runs().await.unwrap();
    let shown = shown.iter().find(|run| run.run == first).unwrap();
    assert_eq!(shown.tunnel.as_ref().unwrap().transport, "hybrid vsock");
    assert!(shown.carrier.starts_with("hybrid vsock at vsock:/"), "{}", shown.carrier);
    rig.registry.unregister(first, "test".to_owned()).await.unwrap();
    soon(link.tasks.join_next()).await;
    assert!(UnixStream::connect(&port).await.is_ok(), "the other run needs it");
    rig.registry.unregister(second, "test".to_owned()).await.unwrap();
    eventually(|| !port.exists(), "nobody needs the port, and it is there").await;
}

/// A device that accepts and finds nobody in its guest, one that says nothing, one that has somebody.
#[tokio::test]
async fn the_bridge_goes_to_a_port_of_a_guest() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let device = UnixListener::bind(&path).unwrap();
    let (run, identity) = rig.run().await;
    rig.registry.dial(run, Endpoint::Hybrid { path, port: 19081 }).await.unwrap();
    for answer in [&b""[..], b"OK 19081\n"] {
        let (mut stream, _) = soon(device.accept()).await.unwrap();
        let mut asked = vec![0; b"CONNECT 19081\n".len()];
        soon(stream.read_exact(&mut asked)).await.unwrap();
        assert_eq!(asked, b"CONNECT 19081\n");
        stream.write_all(answer).await.unwrap();
        if answer.is_empty() {
            continue;
        }
        let mut link = Link::over(stream, tls::sidecar_config(&identity).unwrap()).await.unwrap();
        assert_eq!(link.hello(&Hello::ours()).await.unwrap().0, StatusCode::OK);
        let shown = rig.registry.runs().await.unwrap().remove(0);
        assert_eq!(shown.tunnel.unwrap().transport, "hybrid vsock, dialled");
    }
}

/// A device that says nothing holds up one attempt, for as long as a handshake may take.
#[tokio::test(start_paused = true)]
async fn a_device_that_says_nothing_is_asked_again() {
    let rig = Rig::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.sock");
    let device = UnixListener::bind(&path).unwrap();
    let (run, _) = rig.run().await;
    rig.registry.dial(run, Endpoint::Hybrid { path, port: 19081 }).await.unwrap();
    let (_silent, _) = device.accept().await.unwrap();
    let before = tokio::time::Instant::now();
    let _again = device.accept().await.unwrap();
    assert!(before.elapsed() >= limits::HANDSHAKE, "{:?}", before.elapsed());
}
