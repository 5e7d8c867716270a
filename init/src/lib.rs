//! PID 1 duties and agent configuration files, as a library without an async runtime.
//!
//! ```text
//! startup (plan + key) ──► files ──► relay ──► ready ──► hook ──► agent ──► sweep ──► exit code
//! ```
//!
//! [`run`] is all of it. It knows nothing of MCP, TLS or the tunnel: the relay is this same binary, started again
//! with the argument `relay` ([`relay::RelayStart`] on its stdin).

pub mod relay;
pub mod startup;
mod sys;

pub use sys::harden_process;

/// Does what the plan says and returns the code to exit with.
#[must_use]
pub fn run(startup: moat_shared::plan::Startup) -> u8 {
    drop(startup);
    moat_shared::exit::SETUP
}
