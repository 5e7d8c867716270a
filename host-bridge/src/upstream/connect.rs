//! Connecting to an upstream: name, TCP, TLS, under one deadline, and in one word why it failed.

use std::{
    future::Future,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use moat_shared::rt::gulp::Gulp;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::{TcpSocket, TcpStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower_service::Service;

use super::lanes::{Lanes, Settings, Streams};

/// TCP keepalive, so that a dead peer of a silent stream is noticed (R19 has no idle limit).
const KEEPALIVE: Duration = Duration::from_secs(30);
/// What is read at once of a large answer, and held: a TLS record.
const RECORD: usize = 16 * 1024;
/// How long one address may keep the next one waiting.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);

/// Why no connection came to be. The words are for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectFailure {
    #[error("its name cannot be resolved")]
    Dns,
    #[error("connection refused")]
    Refused,
    #[error("not reachable")]
    Unreachable,
    #[error("TLS failed: {0}")]
    Tls(String),
    #[error("timed out while connecting")]
    Timeout,
}

/// Makes connections for the pool.
#[derive(Clone)]
pub(super) struct Connector {
    tls: Arc<ClientConfig>,
    patience: Duration,
    lanes: Lanes,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl Connector {
    pub(super) fn new(tls: Arc<ClientConfig>, patience: Duration, lanes: Lanes) -> Self {
        Self { tls, patience, lanes }
    }
}

impl Service<Uri> for Connector {
    type Response = Link;
    type Error = ConnectFailure;
    type Future = Pin<Box<dyn Future<Output = Result<Link, ConnectFailure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectFailure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let attempt = tokio::time::timeout(this.patience, connect(&this.tls, &this.lanes, &uri));
            let result = attempt.await.unwrap_or(Err(ConnectFailure::Timeout));
            if let (Err(failure), Some(authority)) = (&result, uri.authority()) {
                this.lanes.failed(authority.as_str(), failure);
            }
            result
        })
    }
}

async fn connect(tls: &Arc<ClientConfig>, lanes: &Lanes, uri: &Uri) -> Result<Link, ConnectFailure> {
    let secure = uri.scheme_str() == Some("https");
    let host = uri.host().ok_or(ConnectFailure::Dns)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let tcp = dial(bare, port, secure).await?;
    if !secure {
        return Ok(Link::Plain(TokioIo::new(tcp)));
    }
    let name = ServerName::try_from(bare.to_owned()).map_err(|_| ConnectFailure::Dns)?;
    let stream = TlsConnector::from(tls.clone())
        .connect(name, Gulp::new(tcp, RECORD))
        .await
        .map_err(|e| tls_failure(&e))?;
    let authority = uri.authority().map_or(host, http::uri::Authority::as_str).to_owned();
    let settings = if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        Some(Settings::new(authority, lanes.clone()))
    } else {
        lanes.learn(&authority, Streams::None);
        None
    };
    Ok(Link::Tls(TokioIo::new(Box::new(stream)), settings))
}

/// Tries the addresses of a name, the next one while the last one still hangs.
async fn dial(host: &str, port: u16, secure: bool) -> Result<TcpStream, ConnectFailure> {
    let addresses = tokio::net::lookup_host((host, port)).await.map_err(|_| ConnectFailure::Dns)?;
    // Plain HTTP stays on this machine, whatever a resolver says.
    let addresses: Vec<_> = addresses.filter(|address| secure || address.ip().is_loopback()).collect();
    let mut waiting = addresses.into_iter();
    let mut attempts = futures_util::stream::FuturesUnordered::new();
    let mut failure = ConnectFailure::Dns;
    loop {
        match waiting.next() {
            Some(address) => attempts.push(dial_one(address)),
            None if attempts.is_empty() => return Err(failure),
            None => {}
        }
        let pause = if waiting.len() == 0 { Duration::MAX } else { NEXT_ADDRESS };
        let next = tokio::time::timeout(pause, futures_util::StreamExt::next(&mut attempts)).await;
        match next {
            Ok(Some(Ok(stream))) => return Ok(stream),
            Ok(Some(Err(error))) => {
                failure = if error.kind() == io::ErrorKind::ConnectionRefused {
                    ConnectFailure::Refused
                } else {
                    ConnectFailure::Unreachable
                };
            }
            Ok(None) | Err(_) => {}
        }
    }
}

async fn dial_one(address: std::net::SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_nodelay(true)?;
    let stream = socket.connect(address).await?;
    let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 2);
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

/// What rustls says, without any names or addresses of ours.
fn tls_failure(error: &io::Error) -> ConnectFailure {
    let text = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(reason)) => match reason {
            rustls::CertificateError::NotValidForName
            | rustls::CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for another name".to_owned()
            }
            rustls::CertificateError::UnknownIssuer => {
                "the certificate's issuer is not trusted on this machine".to_owned()
            }
            rustls::CertificateError::Expired | rustls::CertificateError::ExpiredContext { .. } => {
                "the certificate has expired".to_owned()
            }
            _ => "the certificate is not valid".to_owned(),
        },
        Some(_) => "the handshake was refused".to_owned(),
        None => "the connection ended during the handshake".to_owned(),
    };
    ConnectFailure::Tls(text)
}

/// What is read at once from an upstream without TLS, as much as a TLS record: it is held at once, by as many streams as
/// nobody reads.
const SIP: usize = 16 * 1024;

/// Reads not too much at once, and shows it.
fn sip(
    mut stream: impl AsyncRead + Unpin,
    cx: &mut Context<'_>,
    buf: &mut ReadBufCursor<'_>,
    show: impl FnOnce(&[u8]),
) -> Poll<io::Result<()>> {
    let mut bytes = [const { MaybeUninit::uninit() }; SIP];
    let most = buf.remaining().min(SIP);
    let mut sip = ReadBuf::uninit(&mut bytes[..most]);
    ready!(Pin::new(&mut stream).poll_read(cx, &mut sip))?;
    show(sip.filled());
    buf.put_slice(sip.filled());
    Poll::Ready(Ok(()))
}

/// A connection to an upstream.
#[derive(Debug)]
pub(super) enum Link {
    Plain(TokioIo<TcpStream>),
    /// And what is still to be read in passing.
    Tls(TokioIo<Box<TlsStream<Gulp<TcpStream>>>>, Option<Settings>),
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        match self {
            Self::Tls(stream, _) if stream.inner().get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            _ => Connected::new(),
        }
    }
}

impl Read for Link {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => sip(stream.inner_mut(), cx, &mut buf, |_| ()),
            Self::Tls(stream, settings @ Some(_)) => sip(stream.inner_mut(), cx, &mut buf, |bytes| {
                settings.take_if(|settings| settings.push(bytes));
            }),
            Self::Tls(stream, _) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl Write for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream, _) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream, _) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }
}
