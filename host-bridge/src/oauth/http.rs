//! The client of all OAuth requests: one connection each, to an address that was checked, no redirects, bounded in
//! size and time.
//!
//! Nothing is added to a request: no cookies, no credentials, no headers but those it has (O16). Whether a byte of it was
//! written is known, since a refresh token whose request never left may be sent again.

use std::{net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;
use url::Url;

use super::{guard::Guard, refresh::Class};

/// How long a connection may take, whatever the request's own time is.
const CONNECT: Duration = Duration::from_secs(10);

/// A request's body: empty or a form or JSON, whole.
#[derive(Debug, Clone, Default)]
pub(crate) struct Body(Bytes);

impl Body {
    #[cfg(test)]
    pub(crate) fn whole(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// How much, and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) time: Duration,
    pub(crate) bytes: usize,
}

impl Limits {
    /// Metadata (O14, O15).
    pub(crate) const METADATA: Self = Self { time: Duration::from_secs(5), bytes: 256 * 1024 };
    /// The head of an answer: its body may be a stream without an end.
    pub(crate) const HEAD: Self = Self { time: Duration::from_secs(5), bytes: 0 };
    /// Tokens.
    pub(crate) const TOKENS: Self = Self { time: Duration::from_secs(30), bytes: 64 * 1024 };
    /// Revocation and what is as dispensable.
    pub(crate) const COURTESY: Self = Self { time: Duration::from_secs(5), bytes: 64 * 1024 };
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Why there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Not a byte of the request was written.
    NotSent(Class),
    /// Some of it was; the answer did not come, or not whole.
    Lost(Class),
}

impl NoAnswer {
    pub(crate) const fn class(self) -> Class {
        match self {
            Self::NotSent(class) | Self::Lost(class) => class,
        }
    }
}

/// The client.
#[derive(Clone)]
pub(crate) struct Http {
    tls: Arc<ClientConfig>,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Http")
    }
}

impl Http {
    /// # Errors
    /// When the TLS configuration cannot be made.
    pub(crate) fn new(roots: Arc<RootCertStore>) -> Result<Self, rustls::Error> {
        let mut tls = ClientConfig::builder_with_provider(moat_shared::tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: Arc::new(tls) })
    }

    /// Sends one request and takes the whole answer. Its URI is absolute.
    pub(crate) async fn send(
        &self,
        request: Request<Body>,
        guard: Guard,
        limits: Limits,
    ) -> Result<Answer, NoAnswer> {
        let until = Instant::now() + limits.time;
        let not_sent = |class| NoAnswer::NotSent(class);
        let url = Url::parse(&request.uri().to_string()).map_err(|_| not_sent(Class::ForbiddenAddress))?;
        guard.check_url(&url).map_err(|_| not_sent(Class::ForbiddenAddress))?;
        let connect = until.min(Instant::now() + CONNECT);
        let link = timeout_at(connect, self.connect(&url, guard)).await;
        let link = link.map_err(|_| not_sent(Class::Timeout))?.map_err(not_sent)?;
        let request = of_origin_form(request, &url).ok_or_else(|| not_sent(Class::ForbiddenAddress))?;
        match timeout_at(until, exchange(link, request, limits.bytes)).await {
            Ok(answer) => answer,
            Err(_) => Err(NoAnswer::Lost(Class::Timeout)),
        }
    }

    /// Resolves once, checks, and connects to what was checked.
    async fn connect(&self, url: &Url, guard: Guard) -> Result<Box<dyn Link>, Class> {
        let host = url.host_str().ok_or(Class::Name)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_or_known_default().ok_or(Class::Name)?;
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((bare, port)).await.map_err(|_| Class::Name)?.collect();
        let allowed: Vec<&SocketAddr> =
            addresses.iter().filter(|address| guard.check_address(address.ip()).is_ok()).collect();
        if !addresses.is_empty() && allowed.is_empty() {
            return Err(Class::ForbiddenAddress);
        }
        let mut stream = None;
        for address in allowed {
            if let Ok(connected) = TcpStream::connect(address).await {
                stream = Some(connected);
                break;
            }
        }
        let stream = stream.ok_or(Class::Connection)?;
        if url.scheme() != "https" {
            // Plain HTTP stays on this machine, whatever a resolver says.
            let loopback = stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback());
            return if loopback { Ok(Box::new(stream)) } else { Err(Class::ForbiddenAddress) };
        }
        let name = ServerName::try_from(bare.to_owned()).map_err(|_| Class::Name)?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await;
        Ok(Box::new(stream.map_err(|_| Class::Tls)?))
    }
}

trait Link: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Link for S {}

/// With the path as its target, and the host in its header.
fn of_origin_form(request: Request<Body>, url: &Url) -> Option<Request<Full<Bytes>>> {
    let (mut head, body) = request.into_parts();
    let host = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str()?),
        None => url.host_str()?.to_owned(),
    };
    head.uri = head.uri.path_and_query()?.as_str().parse().ok()?;
    head.headers.insert(header::HOST, HeaderValue::try_from(host).ok()?);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    head.headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static("moat"));
    Some(Request::from_parts(head, Full::new(body.0)))
}

async fn exchange(
    link: Box<dyn Link>,
    request: Request<Full<Bytes>>,
    most: usize,
) -> Result<Answer, NoAnswer> {
    let lost = NoAnswer::Lost(Class::Connection);
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(most.max(64 * 1024))
        .handshake::<_, Full<Bytes>>(TokioIo::new(link))
        .await
        .map_err(|_| NoAnswer::NotSent(Class::Connection))?;
    let mut exchange = pin!(async move {
        let answer = sender.send_request(request).await.map_err(|_| lost)?;
        let (head, body) = answer.into_parts();
        if most == 0 {
            return Ok(Answer { status: head.status, headers: head.headers, body: Bytes::new() });
        }
        let collected = Limited::new(body, most).collect().await;
        match collected {
            Ok(body) => Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() }),
            // Too long: it is an answer, and none that can be used.
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                Ok(Answer { status: head.status, headers: head.headers, body: Bytes::new() })
            }
            Err(_) => Err(lost),
        }
    });
    let mut connection = pin!(connection);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection ends first when the peer closes; what it has delivered is still there.
        _ = &mut connection => exchange.await,
    }
}
