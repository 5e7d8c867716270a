//! The official conformance suite: what it is run against, and how it is run and read.

mod catalog;
pub mod client;
pub mod server;
