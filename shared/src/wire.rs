//! The tunnel's vocabulary: paths, header names, and the kinds of errors with their HTTP status.

use serde::{Deserialize, Serialize};

/// Every MCP server of a run lies below this path: `/mcp/<server>[/<rest>]`.
pub const MCP_PREFIX: &str = "/mcp/";
/// Where the sidecar says hello, on the tunnel only.
pub const HELLO_PATH: &str = "/.moat/hello";
/// The relay's own state, for people and health checks.
pub const HEALTH_PATH: &str = "/healthz";
/// The handle of a legacy message endpoint below a server's prefix (mcp-relay section 4).
pub const LEGACY_MESSAGE_SEGMENT: &str = ".message";
/// The trailer that ends an answer which is not complete, where the relay understands it: it says `te: trailers`. Unlike
/// a reset, which throws away what is still on its way, it comes behind everything that was sent (T3).
pub const INCOMPLETE: &str = "moat-incomplete";
/// The name that bridge certificates carry.
pub const BRIDGE_DNS_NAME: &str = "bridge.moat.internal";
/// What a run's certificate names it by: `<run id>.run.moat.internal`.
pub const RUN_DNS_SUFFIX: &str = ".run.moat.internal";
/// Where the sidecar waits in its container for the bridge, where that has to come.
pub const TUNNEL_PORT: u16 = 19081;
/// The port on which the relay listens inside the sandbox, unless the plan says otherwise.
pub const RELAY_PORT: u16 = 19080;

/// Why the relay or the bridge answered instead of the upstream: `error.data.kind` of the JSON-RPC error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The run has no such server, or the path leads to none.
    NotConfigured,
    /// The tunnel stayed down for longer than a request may wait.
    TunnelDown,
    /// Sidecar and bridge have no protocol in common.
    VersionMismatch,
    /// The tunnel broke while the request was in flight. It is never sent twice.
    TunnelLost,
    /// The upstream cannot be connected to: refused, DNS, TLS.
    UpstreamUnreachable,
    /// The upstream did not connect or answer in time.
    UpstreamTimeout,
    /// The upstream's answer ended before the response was complete.
    UpstreamLost,
    /// The upstream answered 401 or 403 although a credential was injected.
    UpstreamRejectedCredential,
    /// The upstream's answer cannot be relayed (unknown content coding, malformed HTTP).
    UpstreamInvalid,
    /// The upstream redirects elsewhere; a credential never follows.
    RedirectRefused,
    /// The grant is missing or cannot be decrypted.
    NoCredential,
    /// The OAuth grant cannot be renewed any more: a person has to sign in again.
    NeedsGrant,
    /// The OAuth token has expired and could not be renewed now; it may work later.
    RefreshUnavailable,
    /// The upstream wants scopes that the OAuth grant does not have.
    InsufficientScope,
    /// The policy cannot be loaded or evaluated.
    PolicyUnavailable,
    /// A policy refuses the request.
    Denied,
    /// The configured header holds something that is not the stub (R7).
    ForeignCredential,
    /// The request cannot be read without ambiguity.
    BadRequest,
    /// Body or headers exceed a limit.
    TooLarge,
    /// Foreign Host or Origin (R4).
    HostRefused,
    /// A method other than POST, GET and DELETE (R10).
    MethodNotAllowed,
    /// A session id that this run did not get from this server (R15).
    SessionUnknown,
    /// The run was unregistered.
    RunEnded,
    /// A fault of moat itself.
    Internal,
}

impl ErrorKind {
    /// The HTTP status that goes with this kind. 400, 404 and 405 are never invented for trouble behind the
    /// relay (R12).
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest | Self::ForeignCredential => 400,
            Self::HostRefused => 403,
            Self::NotConfigured | Self::SessionUnknown => 404,
            Self::MethodNotAllowed => 405,
            Self::TooLarge => 413,
            Self::Denied => 200,
            Self::Internal => 500,
            Self::TunnelLost
            | Self::UpstreamUnreachable
            | Self::UpstreamLost
            | Self::UpstreamRejectedCredential
            | Self::UpstreamInvalid
            | Self::RedirectRefused
            | Self::NoCredential
            | Self::NeedsGrant
            | Self::InsufficientScope => 502,
            Self::TunnelDown
            | Self::VersionMismatch
            | Self::RunEnded
            | Self::RefreshUnavailable
            | Self::PolicyUnavailable => 503,
            Self::UpstreamTimeout => 504,
        }
    }
}
