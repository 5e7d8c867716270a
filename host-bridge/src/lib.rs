//! The host's side of moat: the command line, the bridge daemon, the runtimes and the stores.
//!
//! ```text
//! cli ──► config, credentials, run ──► runtime          (the short-lived command)
//!  └────► control ──► bridge ──► registry, tunnel ──► pipeline ──► upstream     (the daemon)
//! ```

/// A door for benchmarks.
#[doc(hidden)]
pub mod bench {
    pub use crate::pipeline::bench::Served;
}
pub(crate) mod bridge;
pub(crate) mod build;
pub mod cli;
pub(crate) mod config;
pub(crate) mod control;
pub(crate) mod credentials;
pub(crate) mod disk;
#[cfg(test)]
mod docs;
pub(crate) mod env;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub(crate) mod home;
pub(crate) mod identity;
pub(crate) mod jsonl;
pub(crate) mod oauth;
pub(crate) mod pipeline;
pub(crate) mod policy;
pub(crate) mod process;
pub(crate) mod record;
pub(crate) mod registry;
pub(crate) mod run;
pub(crate) mod runtime;
pub(crate) mod server;
pub(crate) mod tunnel;
pub(crate) mod upstream;
