//! What both ends of the tunnel agree on: words, limits, and the contract between sidecar and bridge.
//!
//! A thing belongs here only if the bridge on the host and the sidecar in the sandbox must agree on it.
//! Nothing here opens a file or a socket; the features `tls` and `rt` add the TLS configurations and the
//! HTTP/2 settings that both ends use.

pub mod endpoint;
pub mod exec;
pub mod exit;
pub mod grant;
pub mod hello;
pub mod hint;
pub mod id;
pub mod limits;
pub mod plan;
pub mod rpc;
#[cfg(feature = "rt")]
pub mod rt;
pub mod secret;
pub mod sse;
#[cfg(feature = "tls")]
pub mod tls;
pub mod wire;
