//! A server on the host: rmcp behind an optional demand for a header, over TLS or plain. Records every request.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use crate::{
    Outcome,
    authorization::{Gate, is_active},
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

    /// The MCP server `name` over HTTPS; it takes the tokens that the gate's authorization server calls good, and says
    /// where they are to be had.
    ///
    /// # Errors
    /// When no port is free.
    pub fn gated(name: &str, authority: &Authority, gate: &Gate) -> Outcome<Self> {
        let (service, seen) = (tools::service(name), Seen::default());
        let (noted, gate) = (seen.clone(), gate.clone());
        let tls = authority.server(&["localhost"], false)?;
        let listening = Listening::http(Some(tls), move |request| {
            admitted(service.clone(), noted.clone(), gate.clone(), request)
        })?;
        Ok(Self { listening, scheme: "https", seen })
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

async fn admitted(service: Service, seen: Seen, gate: Gate, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let noted = SeenRequest::of(&head);
    let host = noted.values("host").first().map(|host| (*host).to_owned()).unwrap_or_default();
    let token = noted
        .values("authorization")
        .first()
        .and_then(|value| value.strip_prefix("Bearer "))
        .map(str::to_owned);
    seen.note(Event::Request(noted));
    if head.uri.path() == "/.well-known/oauth-protected-resource/mcp" {
        let issuer = gate.get().map(|(issuer, _)| issuer.as_str()).unwrap_or_default();
        let document = serde_json::json!({
            "resource": format!("https://{host}/mcp"), "authorization_servers": [issuer],
            "scopes_supported": ["mcp:read", "mcp:write"],
        });
        let mut answer = plain(StatusCode::OK, &document.to_string());
        answer.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        return answer;
    }
    let good = match token {
        Some(token) => {
            tokio::task::spawn_blocking(move || is_active(&gate, &token)).await.unwrap_or_default()
        }
        None => false,
    };
    if !good {
        let mut refusal = plain(StatusCode::UNAUTHORIZED, "the token is missing or no longer good");
        let place =
            format!("Bearer resource_metadata=\"https://{host}/.well-known/oauth-protected-resource/mcp\"");
        if let Ok(challenge) = HeaderValue::try_from(place) {
            refusal.headers_mut().insert(http::header::WWW_AUTHENTICATE, challenge);
        }
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
