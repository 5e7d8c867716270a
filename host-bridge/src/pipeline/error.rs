//! Why a request was answered here instead of by its upstream, and how: the one place that maps an error to HTTP
//! status, kind and words.
//!
//! Messages never hold a secret, an upstream's URL with its query, or the value of a refused header.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use moat_shared::{
    grant::GrantName,
    id::ServerName,
    rpc::{OwnError, RawId},
    wire::ErrorKind,
};

use super::{
    Body,
    decide::{Refusal, Unjudgeable},
    parse::Fault,
};
use crate::{record::Failure, upstream::ConnectFailure};

/// Everything that can keep a request from its upstream's answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PipelineError {
    /// No such server in this run. The name is [`printable`].
    #[error("MCP server '{name}' not configured. Available servers: {}. Check moat.yaml.{}", servers.len(), listed(servers))]
    NotConfigured { name: String, servers: Vec<ServerName> },
    /// The path is none that leads to a server.
    #[error("this path leads to no MCP server")]
    NoSuchPath,
    #[error("the path or query cannot be joined below the configured URL: {0}")]
    Unconfined(&'static str),
    #[error("method not allowed: an MCP server is reached with POST, GET and DELETE")]
    Method,
    #[error("the request body is refused: {0}")]
    Body(Fault),
    /// What a policy would judge cannot be held.
    #[error(
        "too many long requests and answers of this run are held to be judged by a policy; let some finish, and send it again"
    )]
    TooMuchHeld,
    #[error("the header {header} does not agree with the request body")]
    HeaderMismatch { header: &'static str },
    #[error("the request header {0} is given twice")]
    HeaderTwice(&'static str),
    /// The agent went away while it sent its request.
    #[error("the request ended early")]
    RequestLost,
    #[error("session not found")]
    ForeignSession,
    #[error(
        "the header {header} for MCP server '{server}' must hold the stub that moat gave, or be absent; what it held \
         was refused and not forwarded"
    )]
    ForeignCredential { server: String, header: String },
    /// The text is made where the store's reason is known; it names the command that helps.
    #[error("{text}")]
    NoCredential { text: String },
    #[error("Failed to connect to MCP server '{server}' ({cause})")]
    Connect { server: String, cause: ConnectFailure },
    #[error("MCP server '{server}' did not answer in time")]
    FirstByte { server: String },
    #[error("MCP server '{server}' closed the connection before its answer was complete")]
    Lost { server: String },
    #[error(
        "MCP server '{server}' redirects to {target}; moat does not follow, since the credential would follow too"
    )]
    Redirect { server: String, target: String },
    #[error("MCP server '{server}' rejected the injected credential ({status}). Run: {}", grant.command())]
    Rejected { server: String, grant: GrantName, status: u16 },
    #[error("grant '{grant}' needs a new authorization. On the host run: {}", grant.command())]
    NeedsGrant { grant: GrantName },
    #[error("the token of '{grant}' could not be renewed ({class}); next try in {seconds} s")]
    RefreshUnavailable { grant: GrantName, class: &'static str, seconds: u64 },
    /// The token was refused and renewed, but not all of the request was at hand.
    #[error(
        "MCP server '{server}' refused the token, which was renewed meanwhile; send the request once more"
    )]
    TooLongToRepeat { server: String },
    /// The scopes are fit for a command line, or absent.
    #[error("server '{server}' asks for more rights. On the host run: {}{}", grant.command(), scopes.as_ref().map(|s| format!(" --scopes \"{s}\"")).unwrap_or_default())]
    InsufficientScope { server: String, grant: GrantName, scopes: Option<String> },
    /// There is a policy, and two readers could take the body for different calls.
    #[error("MCP request blocked — invalid JSON body: {0}")]
    Unjudgeable(Unjudgeable),
    /// The policy that the run was registered with cannot be had.
    #[error(
        "the policy of MCP server '{server}' is not available, so nothing passes: {reason}. Start the run anew"
    )]
    PolicyUnavailable { server: String, reason: String },
    /// A rule refuses it.
    #[error("{0}")]
    Denied(Box<Refusal>),
    #[error("the answer of MCP server '{server}' cannot be relayed: {what}")]
    Invalid { server: String, what: &'static str },
}

/// Status, kind, JSON-RPC code and the trace's word for an error.
fn answer(error: &PipelineError) -> (ErrorKind, i32, Failure) {
    use PipelineError as E;
    match error {
        E::NotConfigured { .. } | E::NoSuchPath => {
            (ErrorKind::NotConfigured, OwnError::CODE, Failure::NotConfigured)
        }
        E::Unconfined(_) | E::HeaderTwice(_) => {
            (ErrorKind::BadRequest, OwnError::INVALID, Failure::BadRequest)
        }
        E::RequestLost => (ErrorKind::BadRequest, OwnError::INVALID, Failure::Cancelled),
        E::Method => (ErrorKind::MethodNotAllowed, OwnError::INVALID, Failure::BadRequest),
        E::Body(fault) if fault.is_size() => (ErrorKind::TooLarge, OwnError::INVALID, Failure::TooLarge),
        E::TooMuchHeld => (ErrorKind::TooLarge, OwnError::CODE, Failure::TooLarge),
        E::Body(fault) if fault.is_syntax() => (ErrorKind::BadRequest, OwnError::PARSE, Failure::BadRequest),
        E::Body(_) => (ErrorKind::BadRequest, OwnError::INVALID, Failure::BadRequest),
        E::HeaderMismatch { .. } => (ErrorKind::BadRequest, OwnError::HEADER_MISMATCH, Failure::BadRequest),
        E::ForeignSession => (ErrorKind::SessionUnknown, OwnError::CODE, Failure::Denied),
        E::ForeignCredential { .. } => {
            (ErrorKind::ForeignCredential, OwnError::CODE, Failure::ForeignCredential)
        }
        E::NoCredential { .. } => (ErrorKind::NoCredential, OwnError::CODE, Failure::NoCredential),
        E::Connect { cause, .. } => match cause {
            ConnectFailure::Timeout => (ErrorKind::UpstreamTimeout, OwnError::CODE, Failure::Timeout),
            ConnectFailure::Dns => (ErrorKind::UpstreamUnreachable, OwnError::CODE, Failure::Dns),
            ConnectFailure::Tls(_) => (ErrorKind::UpstreamUnreachable, OwnError::CODE, Failure::Tls),
            ConnectFailure::Refused | ConnectFailure::Unreachable => {
                (ErrorKind::UpstreamUnreachable, OwnError::CODE, Failure::Refused)
            }
        },
        E::FirstByte { .. } => (ErrorKind::UpstreamTimeout, OwnError::CODE, Failure::Timeout),
        E::Lost { .. } => (ErrorKind::UpstreamLost, OwnError::CODE, Failure::Lost),
        E::Unjudgeable(_) => (ErrorKind::BadRequest, OwnError::INVALID, Failure::BadRequest),
        E::PolicyUnavailable { .. } => (ErrorKind::PolicyUnavailable, OwnError::CODE, Failure::Denied),
        E::Denied(_) => (ErrorKind::Denied, OwnError::CODE, Failure::Denied),
        E::Redirect { .. } => (ErrorKind::RedirectRefused, OwnError::CODE, Failure::Redirect),
        E::Rejected { .. } => {
            (ErrorKind::UpstreamRejectedCredential, OwnError::CODE, Failure::RejectedCredential)
        }
        E::NeedsGrant { .. } => (ErrorKind::NeedsGrant, OwnError::CODE, Failure::NeedsGrant),
        E::RefreshUnavailable { .. } | E::TooLongToRepeat { .. } => {
            (ErrorKind::RefreshUnavailable, OwnError::CODE, Failure::RefreshUnavailable)
        }
        E::InsufficientScope { .. } => {
            (ErrorKind::InsufficientScope, OwnError::CODE, Failure::InsufficientScope)
        }
        E::Invalid { .. } => (ErrorKind::UpstreamInvalid, OwnError::CODE, Failure::Invalid),
    }
}

impl PipelineError {
    /// Of an answer that began and cannot be completed.
    pub(super) fn incomplete(failure: Failure, server: String) -> Self {
        match failure {
            Failure::Invalid => Self::Invalid { server, what: "its body is not what its headers say" },
            _ => Self::Lost { server },
        }
    }

    /// The word of the trace.
    pub(crate) fn failure(&self) -> Failure {
        answer(self).2
    }

    /// Is it the request that is refused, rather than the upstream that failed?
    pub(crate) fn is_denial(&self) -> bool {
        matches!(
            self.failure(),
            Failure::BadRequest
                | Failure::TooLarge
                | Failure::Denied
                | Failure::ForeignCredential
                | Failure::NotConfigured
        )
    }

    /// The text of a message: contract's prefix and one sentence.
    fn message(&self) -> String {
        format!("MOAT: {self}")
    }

    /// The JSON-RPC error as an HTTP response.
    pub(crate) fn response(&self, id: Option<&RawId>, server: Option<&str>) -> Response<Body> {
        let (kind, code, _) = answer(self);
        let message = self.message();
        let body = match self {
            Self::Denied(refusal) => refusal.body(server),
            _ => OwnError { id, kind, server, message: &message, code }.body(),
        };
        let status = match self {
            // The old transport reads no answer of a POST but its status.
            Self::Denied(refusal) if refusal.legacy => StatusCode::FORBIDDEN,
            _ => StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::BAD_GATEWAY),
        };
        let mut response =
            Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Self::RefreshUnavailable { seconds, .. } = self {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(*seconds));
        }
        if matches!(self, Self::Method) {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST, GET, DELETE"));
        }
        response
    }

    /// The same as an event, for a stream that is already open.
    pub(crate) fn event(&self, id: &RawId, server: &str) -> String {
        let (kind, code, _) = answer(self);
        let message = self.message();
        OwnError { id: Some(id), kind, server: Some(server), message: &message, code }.event()
    }
}

/// The servers that there are, for the end of a message.
fn listed(servers: &[ServerName]) -> String {
    if servers.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = servers.iter().take(32).map(ServerName::as_str).collect();
    format!(" Configured: {}.", names.join(", "))
}

/// What somebody else wrote, made fit for a message: printable ASCII, at most 64 characters.
pub(super) fn printable(text: &str) -> String {
    let clean: String =
        text.chars().take(64).map(|c| if c.is_ascii_graphic() && c != '\'' { c } else { '?' }).collect();
    if text.chars().nth(64).is_some() { format!("{clean}...") } else { clean }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("linear" => "linear")]
    #[test_case("a\r\nb' x" => "a??b??x"; "control, quote, space")]
    fn names_are_printable(name: &str) -> String {
        printable(name)
    }

    #[test]
    fn names_are_bounded() {
        assert_eq!(printable(&"x".repeat(5000)).len(), 67);
    }

    #[test]
    fn the_contract_s_words() {
        let error = PipelineError::NotConfigured {
            name: "liner".to_owned(),
            servers: vec!["linear".parse().unwrap()],
        };
        assert_eq!(
            error.message(),
            "MOAT: MCP server 'liner' not configured. Available servers: 1. Check moat.yaml. Configured: linear."
        );
        let error = PipelineError::Connect { server: "context7".to_owned(), cause: ConnectFailure::Refused };
        assert_eq!(error.message(), "MOAT: Failed to connect to MCP server 'context7' (connection refused)");
    }
}
