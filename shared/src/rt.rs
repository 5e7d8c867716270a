//! What both ends run their tasks with: drain, an executor that owns what it spawns, the tunnel's HTTP/2 settings, and
//! what lies between TLS and a socket.

pub mod drain;
pub mod exec;
pub mod gulp;
pub mod h2;
