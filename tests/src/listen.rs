//! A listener on a free port of 127.0.0.1 that serves HTTP over plain TCP or TLS until it is dropped.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    task::{AbortHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use crate::{Outcome, Trouble};

/// What a server's body may fail with; the connection is then cut.
pub type Cut = std::io::Error;
/// A server's answer.
pub type Answer = Response<UnsyncBoxBody<Bytes, Cut>>;

/// The runtime of all servers of this process.
///
/// # Errors
/// When the system has no threads left.
pub fn runtime() -> Outcome<&'static Runtime> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let make = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().ok();
    RUNTIME.get_or_init(make).as_ref().ok_or_else(|| Trouble::new("no runtime for the servers"))
}

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Listening {
    address: SocketAddr,
    task: AbortHandle,
}

impl Listening {
    /// Where it listens.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.address.port()
    }

    /// Serves HTTP with `answer`.
    ///
    /// # Errors
    /// When no port is free.
    pub fn http<F>(
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) -> Outcome<Self>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        Self::http_at(0, tls, answer)
    }

    /// The same on a given port.
    ///
    /// # Errors
    /// When it is taken.
    pub fn http_at<F>(
        port: u16,
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    ) -> Outcome<Self>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let acceptor = tls.map(TlsAcceptor::from);
        Self::tcp_at(port, move |stream| {
            let (acceptor, answer) = (acceptor.clone(), answer.clone());
            async move {
                match acceptor {
                    None => serve(stream, answer).await,
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            serve(stream, answer).await;
                        }
                    }
                }
            }
        })
    }

    /// Hands every connection to `handle`.
    ///
    /// # Errors
    /// When no port is free.
    pub fn tcp<F>(handle: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Outcome<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::tcp_at(0, handle)
    }

    fn tcp_at<F>(port: u16, handle: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Outcome<Self>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = runtime()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", port)))?;
        let address = listener.local_addr()?;
        let task = runtime.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => {
                        if stream.set_nodelay(true).is_ok() {
                            connections.spawn(handle(stream));
                        }
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Ok(Self { address, task: task.abort_handle() })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) where
    F: Future<Output = Answer> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = answer(request);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http2()
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .timer(hyper_util::rt::TokioTimer::new());
    // A connection that fails was cut on purpose, by this server or by its peer.
    let _ended = server.serve_connection(TokioIo::new(stream), service).await;
}
