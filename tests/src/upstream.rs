//! A server on the host: rmcp behind an optional demand for a header, over TLS or plain. Records every request.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use crate::{
    Outcome,
    listen::{Answer, Listening},
    pki::Authority,
    seen::{Event, Request as SeenRequest, Seen},
    tools::{self, Service},
};

/// A running server.
#[derive(Debug)]
pub struct Upstream {
    listening: Listening,
    scheme: &'static str,
    /// What reached it.
    pub seen: Seen,
}

/// The header that a server demands.
#[derive(Debug, Clone)]
pub struct Demand {
    /// Its name.
    pub header: String,
    /// Its one value.
    pub value: String,
}

impl Demand {
    /// This header with this value.
    #[must_use]
    pub fn new(header: &str, value: &str) -> Self {
        Self { header: header.to_owned(), value: value.to_owned() }
    }
}

impl Upstream {
    /// The MCP server `name` over plain HTTP, open to all.
    ///
    /// # Errors
    /// When no port is free.
    pub fn plain(name: &str, demand: Option<Demand>) -> Outcome<Self> {
        Self::start(tools::service(name), None, demand)
    }

    /// The MCP server `name` over HTTPS as `localhost`.
    ///
    /// # Errors
    /// When no port is free.
    pub fn tls(name: &str, authority: &Authority, http2: bool, demand: Option<Demand>) -> Outcome<Self> {
        Self::start(tools::service(name), Some(authority.server(&["localhost"], http2)?), demand)
    }

    /// As agents of today like it ([`tools::unprimed`]); over HTTPS where there is an authority.
    ///
    /// # Errors
    /// When no port is free.
    pub fn unprimed(name: &str, authority: Option<&Authority>, demand: Option<Demand>) -> Outcome<Self> {
        let tls = authority.map(|authority| authority.server(&["localhost"], false)).transpose()?;
        Self::start(tools::unprimed(name), tls, demand)
    }

    fn start(
        service: Service,
        tls: Option<Arc<rustls::ServerConfig>>,
        demand: Option<Demand>,
    ) -> Outcome<Self> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let seen = Seen::default();
        let noted = seen.clone();
        let listening = Listening::http(tls, move |request| {
            answer(service.clone(), noted.clone(), demand.clone(), request)
        })?;
        Ok(Self { listening, scheme, seen })
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://localhost:{}/mcp", self.scheme, self.listening.port())
    }
}

async fn answer(service: Service, seen: Seen, demand: Option<Demand>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let noted = SeenRequest::of(&head);
    let admitted = demand.is_none_or(|demand| noted.values(&demand.header) == [demand.value.as_str()]);
    seen.note(Event::Request(noted));
    if head.uri.path().trim_end_matches('/') != "/mcp" {
        return plain(StatusCode::NOT_FOUND, "no such path");
    }
    if !admitted {
        let mut refusal = plain(StatusCode::UNAUTHORIZED, "the credential is missing or wrong");
        let challenge =
            HeaderValue::from_static("Bearer resource_metadata=\"https://localhost/never-to-be-seen\"");
        refusal.headers_mut().insert(http::header::WWW_AUTHENTICATE, challenge);
        return refusal;
    }
    service
        .handle(Request::from_parts(head, body))
        .await
        .map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

/// An answer with a short text.
#[must_use]
pub fn plain(status: StatusCode, text: &str) -> Answer {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    answer
}
