//! What both ends run their tasks with: pauses between attempts, drain, an executor that owns what it spawns, the tunnel's HTTP/2 settings,
//! what lies between TLS and a socket, and the sockets between a guest and its host.

pub mod backoff;
pub mod drain;
pub mod exec;
pub mod gulp;
pub mod h2;
pub mod vsock;
