//! What both ends run their tasks with: pauses between attempts, drain, an executor that owns what it spawns, the tunnel's HTTP/2 settings, and
//! what lies between TLS and a socket.

pub mod backoff;
pub mod drain;
pub mod exec;
pub mod gulp;
pub mod h2;
