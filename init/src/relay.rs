//! The relay as PID 1 sees it: what it is told, how it is started, and when it is ready.

use moat_shared::{
    id::{RunId, ServerName},
    plan::{Identity, Tunnel},
};
use serde::{Deserialize, Serialize};

/// The argument that makes the sidecar's binary the relay.
pub const ARGUMENT: &str = "relay";
/// The relay's listening socket on 127.0.0.1. PID 1 keeps it as well, so that a restart loses no connection.
pub const LISTENER_FD: i32 = 3;
/// Where the relay writes one line: [`READY`] after its first hello, or [`FAILED`] and a text.
pub const READY_FD: i32 = 4;
/// The tunnel stands.
pub const READY: &str = "ready\n";
/// The tunnel will not stand; what follows up to the end of the line says why.
pub const FAILED: &str = "failed: ";

/// What the relay is told: JSON on its stdin, up to the end of the stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayStart {
    /// The run, for logs.
    pub run: RunId,
    /// Where the bridge is.
    pub tunnel: Tunnel,
    /// The servers that it knows, for its own answers while the tunnel is down.
    pub servers: Vec<ServerName>,
    /// The port of the listener, to check Host headers against.
    pub relay_port: u16,
    /// The run's certificate and key.
    pub identity: Identity,
}
