//! The binary in the sandbox: PID 1 in init mode, the agents' MCP servers in relay mode.
//!
//! ```text
//! moat-sidecar init ──starts──► moat-sidecar relay
//!    (moat-init)                  relay: HTTP on 127.0.0.1 ──► uplink: one tunnel to the bridge
//! ```
//!
//! It holds no credential and judges nothing: who may call what is decided on the other side of the tunnel.

pub mod body;
mod chain;
pub mod cli;
mod mode;
pub mod relay;
mod sys;
pub mod telemetry;
pub mod uplink;
