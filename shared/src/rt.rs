//! What both ends run their tasks with: pauses between attempts, drain, an executor that owns what it spawns, the tunnel's HTTP/2 settings,
//! the socket and what lies between it and TLS, and the sockets between a guest and its host.

pub mod backoff;
pub mod drain;
pub mod exec;
pub mod gulp;
pub mod h2;
pub mod stream;
pub mod vsock;
mod watch;
