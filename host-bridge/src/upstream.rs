//! The clients that talk to real MCP servers: pooled, with timeouts of their own, never following a redirect.
//!
//! Everything that leaves here was made ready by the pipeline; this knows neither runs nor credentials.

mod connect;
mod lanes;
pub(crate) mod legacy;
pub(crate) mod scan;

use std::{sync::Arc, time::Duration};

use http::{Request, Response, Version};
use hyper_util::{
    client::legacy::{Client, Error},
    rt::TokioTimer,
};
use moat_shared::{id::RunId, limits, rt::exec::Owned};
use rustls::{ClientConfig, RootCertStore};

pub(crate) use self::{connect::ConnectFailure, lanes::Answer};
use self::{
    connect::Connector,
    lanes::{LANES, Lanes},
};
use crate::pipeline::{RequestBody, error::PipelineError};

/// Below what servers and load balancers commonly close idle connections after (section 6.8).
const POOL_IDLE: Duration = Duration::from_secs(45);
/// One stream of an HTTP/2 upstream: an agent that does not read stalls this much and no sibling.
const STREAM_WINDOW: u32 = 128 * 1024;
/// Large enough for thousands of stalled streams.
const CONNECTION_WINDOW: u32 = 1 << 30;
/// Bytes of the read buffer of an HTTP/1.1 upstream. It has to take a head of the longest length.
const HTTP1_BUFFER: usize = limits::HEADER_LIST as usize + 16 * 1024;
/// Bytes of one request that may wait to be sent to an HTTP/2 upstream.
const SEND_BUFFER: usize = 64 * 1024;

/// The certificate authorities that this machine trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` replace them.
pub(crate) fn platform_roots() -> Arc<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some certificate authorities of this machine cannot be read");
    }
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(added, ignored, "certificate authorities of this machine");
    if added == 0 {
        tracing::error!("no certificate authorities found: no https MCP server can be reached");
    }
    Arc::new(roots)
}

/// How long to wait for an upstream (R19). Never for the whole, never for a body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) connect: Duration,
    pub(crate) first_byte: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: limits::UPSTREAM_CONNECT, first_byte: limits::UPSTREAM_FIRST_BYTE }
    }
}

/// Why an upstream gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// Nothing was sent.
    Connect(ConnectFailure),
    /// The connection ended first.
    Lost,
    FirstByte,
    /// The answer is not HTTP, or too large a head.
    Invalid,
}

/// All upstreams. Requests to one origin share connections as far as these carry them, whatever run they come from; nothing of a run is in a
/// connection. A connection lives on the thread that first needed it.
#[derive(Debug)]
pub(crate) struct Upstreams {
    /// One per lane.
    clients: Box<[Client<Connector, RequestBody>; LANES]>,
    lanes: Lanes,
    tls: Arc<ClientConfig>,
    patience: Patience,
}

impl Upstreams {
    pub(crate) fn new(roots: Arc<RootCertStore>, patience: Patience) -> Result<Self, rustls::Error> {
        let mut tls = ClientConfig::builder_with_provider(moat_shared::tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self::with(Arc::new(tls), patience))
    }

    /// The same for another thread, with connections of its own.
    pub(crate) fn beside(&self) -> Self {
        Self::with(Arc::clone(&self.tls), self.patience)
    }

    fn with(tls: Arc<ClientConfig>, patience: Patience) -> Self {
        let lanes = Lanes::default();
        let connector = Connector::new(Arc::clone(&tls), patience.connect, lanes.clone());
        let client = || {
            Client::builder(Owned::default())
                .pool_idle_timeout(POOL_IDLE)
                .pool_timer(TokioTimer::new())
                .timer(TokioTimer::new())
                // Only what was never written, on a connection that had been used before (section 6.8).
                .retry_canceled_requests(true)
                // `Host` is the upstream's authority (R3); over HTTP/2 it is `:authority`.
                .set_host(true)
                .http1_max_buf_size(HTTP1_BUFFER)
                .http1_max_headers(limits::HEADER_COUNT)
                .http2_adaptive_window(false)
                .http2_initial_stream_window_size(STREAM_WINDOW)
                .http2_initial_connection_window_size(CONNECTION_WINDOW)
                .http2_max_send_buf_size(SEND_BUFFER)
                .http2_max_header_list_size(limits::HEADER_LIST)
                .http2_keep_alive_interval(limits::PING_INTERVAL)
                .http2_keep_alive_timeout(limits::PING_TIMEOUT)
                .build(connector.clone())
        };
        let clients = Box::new(std::array::from_fn(|_| client()));
        Self { clients, lanes, tls, patience }
    }

    /// Sends a run's request, whose URI is absolute, and waits for the head of the answer. Dropping the future, or the
    /// answer's body, aborts the request (R17).
    pub(crate) async fn send(
        &self,
        run: &RunId,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Answer>, NoAnswer> {
        *request.version_mut() = Version::HTTP_11;
        let asking = async {
            // Without TLS nobody agrees on HTTP/2.
            let secure = request.uri().scheme_str() == Some("https");
            let authority = request.uri().authority().filter(|_| secure).cloned();
            let place = match &authority {
                Some(authority) => {
                    Some(self.lanes.enter(authority.as_str(), run).await.map_err(NoAnswer::Connect)?)
                }
                None => None,
            };
            let client = &self.clients[place.as_ref().map_or(0, |place| place.lane)];
            let response = client.request(request).await.map_err(|error| classify(&error))?;
            Ok(response.map(|body| Answer::new(body, place)))
        };
        match tokio::time::timeout(self.patience.first_byte, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(NoAnswer::FirstByte),
        }
    }
}

/// Finds the cause in a chain of errors.
fn classify(error: &Error) -> NoAnswer {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(failure) = error.downcast_ref::<ConnectFailure>() {
            return NoAnswer::Connect(failure.clone());
        }
        if error.downcast_ref::<PipelineError>().is_some() {
            // Ours: the body was refused while it passed. The caller knows why.
            return NoAnswer::Lost;
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return NoAnswer::Invalid;
        }
        cause = error.source();
    }
    if error.is_connect() { NoAnswer::Connect(ConnectFailure::Unreachable) } else { NoAnswer::Lost }
}
