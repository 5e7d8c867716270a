//! The other end of the tunnel, real down to the socket, whose answers the test gives.

use std::{
    future::Future,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, request::Parts};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use moat_shared::{
    hello::Hello,
    id::RunId,
    plan::{Identity, Tunnel},
    rpc::OwnError,
    rt::{
        exec::Owned,
        h2::{pulse::Pulse, received::Received, serve::serve},
    },
    secret::Secret,
    tls, wire,
    wire::ErrorKind,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::UnixListener,
    sync::{Notify, mpsc, oneshot},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A certificate authority, the bridge's certificate and a run's.
pub(crate) struct Authority {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["test CA".into()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&key).unwrap().pem();
        Self { ca_pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn run(&self) -> Identity {
        let run: RunId = "run_0123456789ab".parse().unwrap();
        let (certificate_pem, key_pem) = self.certificate(&tls::run_dns_name(&run));
        Identity { ca_pem: self.ca_pem.clone(), certificate_pem, key_pem: Secret::new(key_pem) }
    }

    /// The run's certificate of this authority, but the trust of another.
    pub(crate) fn run_that_trusts(&self, other: &Self) -> Identity {
        Identity { ca_pem: other.ca_pem.clone(), ..self.run() }
    }

    fn certificate(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A bridge. Stopped, it leaves nothing; started again, it is at the same place.
pub(crate) struct Bridge {
    tls: TlsAcceptor,
    path: PathBuf,
    calls: mpsc::UnboundedReceiver<Call>,
    to_test: mpsc::UnboundedSender<Call>,
    /// What it says of itself.
    pub(crate) hello: Arc<Mutex<Hello>>,
    /// Tunnels that said hello, over its whole life.
    pub(crate) greeted: Arc<Mutex<usize>>,
    goodbye: Arc<Notify>,
    tasks: Owned,
    _directory: tempfile::TempDir,
}

impl Bridge {
    /// One that is not started yet.
    pub(crate) fn new(authority: &Authority) -> Self {
        let (certificate, key) = authority.certificate(wire::BRIDGE_DNS_NAME);
        let tls = tls::bridge_config(&authority.ca_pem, &certificate, &key).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (to_test, calls) = mpsc::unbounded_channel();
        Self {
            tls: TlsAcceptor::from(Arc::new(tls)),
            path: directory.path().join("bridge.sock"),
            calls,
            to_test,
            hello: Arc::new(Mutex::new(Hello::ours())),
            greeted: Arc::default(),
            goodbye: Arc::default(),
            tasks: Owned::default(),
            _directory: directory,
        }
    }

    pub(crate) fn tunnel(&self) -> Tunnel {
        Tunnel {
            endpoint: format!("unix:{}", self.path.display()).parse().unwrap(),
            dialler: moat_shared::endpoint::Dialler::Sidecar,
        }
    }

    pub(crate) fn start(&self) {
        let listener = UnixListener::bind(&self.path).unwrap();
        let server = self.server();
        self.tasks.spawn(async move {
            loop {
                server.serve(listener.accept().await.unwrap().0);
            }
        });
    }

    /// Dials, for one tunnel.
    pub(crate) async fn dial(&self, address: std::net::SocketAddr) {
        self.server().serve(tokio::net::TcpStream::connect(address).await.unwrap());
    }

    fn server(&self) -> Server {
        Server {
            tls: self.tls.clone(),
            to_test: self.to_test.clone(),
            hello: Arc::clone(&self.hello),
            greeted: Arc::clone(&self.greeted),
            goodbye: Arc::clone(&self.goodbye),
            tasks: self.tasks.clone(),
        }
    }

    /// Dies, with every tunnel.
    pub(crate) async fn kill(&self) {
        std::fs::remove_file(&self.path).unwrap();
        self.cut().await;
    }

    /// Loses every tunnel.
    pub(crate) async fn cut(&self) {
        self.tasks.abort_all();
        self.tasks.finished().await;
    }

    /// Takes no more requests on the tunnels that there are; what is in flight goes on.
    pub(crate) fn say_goodbye(&self) {
        self.goodbye.notify_waiters();
    }

    /// The next request that comes through the tunnel.
    pub(crate) async fn call(&mut self) -> Call {
        soon(self.calls.recv()).await.unwrap()
    }

    /// Did nothing come through?
    pub(crate) fn is_untouched(&mut self) -> bool {
        self.calls.try_recv().is_err()
    }
}

/// Serves streams of bytes, wherever they come from.
struct Server {
    tls: TlsAcceptor,
    to_test: mpsc::UnboundedSender<Call>,
    hello: Arc<Mutex<Hello>>,
    greeted: Arc<Mutex<usize>>,
    goodbye: Arc<Notify>,
    tasks: Owned,
}

impl Server {
    fn serve(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let (tls, to_test, inner) = (self.tls.clone(), self.to_test.clone(), self.tasks.clone());
        let (hello, greeted) = (Arc::clone(&self.hello), Arc::clone(&self.greeted));
        let goodbye = Arc::clone(&self.goodbye);
        self.tasks.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = move |request| {
                let (to_test, hello, greeted) = (to_test.clone(), Arc::clone(&hello), Arc::clone(&greeted));
                async move { answer(request, &to_test, &hello, &greeted).await }
            };
            let _ended = serve(stream, Pulse::USUAL, goodbye.notified(), &inner, service).await.is_ok();
        });
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

async fn answer(
    request: Request<Received>,
    to_test: &mpsc::UnboundedSender<Call>,
    hello: &Mutex<Hello>,
    greeted: &Mutex<usize>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    if head.uri.path() == wire::HELLO_PATH {
        let theirs: Hello = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
        let ours = hello.lock().unwrap().clone();
        return match moat_shared::hello::negotiate(&theirs, &ours) {
            Ok(_) => {
                *greeted.lock().unwrap() += 1;
                Response::new(whole(serde_json::to_vec(&ours).unwrap()))
            }
            Err(mismatch) => {
                let message = format!("moat: {mismatch}");
                let kind = ErrorKind::VersionMismatch;
                let error =
                    OwnError { id: None, kind, server: None, message: &message, code: OwnError::CODE };
                Response::builder().status(kind.status()).body(whole(error.body().into_bytes())).unwrap()
            }
        };
    }
    let (reply, replied) = oneshot::channel();
    to_test.send(Call { head, body: Some(body), reply }).unwrap();
    replied.await.unwrap_or_else(|_dropped| Response::new(whole(Vec::new())))
}

fn whole(bytes: Vec<u8>) -> Body {
    http_body_util::Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync()
}

/// A request that came through the tunnel.
pub(crate) struct Call {
    pub(crate) head: Parts,
    pub(crate) body: Option<Received>,
    reply: oneshot::Sender<Response<Body>>,
}

impl Call {
    pub(crate) async fn read(&mut self) -> Bytes {
        soon(self.body.take().unwrap().collect()).await.unwrap().to_bytes()
    }

    /// Answers at once and in whole.
    pub(crate) fn reply(self, status: u16, headers: &[(&str, &str)], body: &str) {
        self.answer_with(status, headers, whole(body.to_owned().into()));
    }

    /// Answers with a body that the test feeds.
    pub(crate) fn stream(self, content_type: &str) -> Feed {
        self.stream_with(&[("content-type", content_type)])
    }

    pub(crate) fn stream_with(self, headers: &[(&str, &str)]) -> Feed {
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(1);
        let frames = stream::unfold(receiver, |mut receiver| async {
            let next = receiver.recv().await?;
            Some((next.map(Frame::data), receiver))
        });
        self.answer_with(200, headers, StreamBody::new(frames).boxed_unsync());
        Feed(sender)
    }

    /// Answers with this event, again and again, as fast as it is taken; says how often it was.
    pub(crate) fn flood(self, event: &'static str) -> Arc<AtomicUsize> {
        let taken = Arc::new(AtomicUsize::new(0));
        let frames = stream::unfold(Arc::clone(&taken), move |taken| async move {
            if taken.fetch_add(1, Ordering::Relaxed) % 16 == 0 {
                tokio::task::yield_now().await; // others want to be served by this thread as well
            }
            Some((Ok(Frame::data(Bytes::from_static(event.as_bytes()))), taken))
        });
        self.answer_with(
            200,
            &[("content-type", "text/event-stream")],
            StreamBody::new(frames).boxed_unsync(),
        );
        taken
    }

    fn answer_with(self, status: u16, headers: &[(&str, &str)], body: Body) {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        self.reply.send(response.body(body).unwrap()).unwrap();
    }

    /// Returns when the tunnel's stream was reset before there was a response.
    pub(crate) async fn reset(mut self) {
        soon(self.reply.closed()).await;
    }
}

/// The body of a response.
pub(crate) struct Feed(mpsc::Sender<io::Result<Bytes>>);

impl Feed {
    pub(crate) async fn send(&self, text: impl Into<Bytes>) {
        self.0.send(Ok(text.into())).await.expect("the stream is gone");
    }

    /// Resets the stream.
    pub(crate) async fn lose(self) {
        self.0.send(Err(io::ErrorKind::ConnectionReset.into())).await.unwrap();
    }

    /// Returns when the tunnel's stream was reset.
    pub(crate) async fn reset(&self) {
        soon(self.0.closed()).await;
    }
}

/// What must happen soon.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future).await.expect("this should not take so long")
}
