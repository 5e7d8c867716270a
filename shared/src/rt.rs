//! What both ends run their tasks with: drain, an executor that owns what it spawns, the tunnel's HTTP/2 settings.

pub mod drain;
pub mod exec;
pub mod h2;
