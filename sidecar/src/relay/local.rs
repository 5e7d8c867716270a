//! What the relay answers itself.

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use moat_shared::{
    hello,
    id::{RunId, ServerName},
    rpc::{OwnError, RawId},
    wire::ErrorKind,
};

use super::{answer::Answer, lost::Loss};
use crate::uplink::link::{Link, Tunnel};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A JSON-RPC error of the relay's own.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    kind: ErrorKind,
    message: String,
}

impl Refused {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, kind, message: message.into() }
    }

    /// Headers over the limit: the one kind that has two statuses (T6).
    pub(crate) fn headers_too_large(message: impl Into<String>) -> Self {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        Self { status, ..Self::new(ErrorKind::TooLarge, message) }
    }

    pub(crate) fn answer(&self, id: Option<&RawId>, server: Option<&ServerName>) -> Response<Answer> {
        let error = OwnError {
            id,
            kind: self.kind,
            server: server.map(ServerName::as_str),
            message: &self.message,
            code: OwnError::code_of(self.kind),
        };
        let mut response = json(self.status, error.body());
        if self.kind == ErrorKind::MethodNotAllowed {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST, GET, DELETE"));
        }
        response
    }
}

impl From<Loss> for Refused {
    fn from(loss: Loss) -> Self {
        Self::new(loss.kind, loss.message)
    }
}

/// What OAuth probes get: plain JSON that says there is nothing, so that no client starts a flow of its own.
pub(crate) fn no_oauth() -> Response<Answer> {
    json(StatusCode::NOT_FOUND, r#"{"error":"not_found"}"#.to_owned())
}

/// The relay's state, for people and health checks.
pub(crate) fn health(run: &RunId, tunnel: &Tunnel) -> Response<Answer> {
    let (state, why, bridge, protocol) = match tunnel.state() {
        Link::Open(opened) => ("open", None, Some(opened.bridge), Some(opened.protocol)),
        Link::Down(why) => ("down", Some(why.to_string()), None, None),
        Link::Refused(refusal) => ("refused", Some(refusal.message.clone()), None, None),
        Link::Draining => ("draining", None, None, None),
    };
    let body = serde_json::json!({
        "run": run,
        "tunnel": state,
        "why": why,
        "protocol": protocol,
        "sidecar": hello::Hello::ours(),
        "bridge": bridge.as_deref(),
    });
    json(StatusCode::OK, body.to_string())
}

fn json(status: StatusCode, body: String) -> Response<Answer> {
    let mut response = Response::new(Answer::whole(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}
