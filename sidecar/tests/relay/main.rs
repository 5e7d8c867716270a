//! The relay and the uplink against a real tunnel: TLS and HTTP/2 on a unix socket, HTTP/1.1 on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says so by ending")]

mod agent;
mod binary;
mod bridge;
mod dialled;
mod doors;
mod forwarding;
mod handover;
mod load;
mod losses;
mod streaming;
