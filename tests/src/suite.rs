//! The official conformance suite: what it is run against, how it is run, how its results are read and published.

mod catalog;
pub mod client;
mod patient;
pub mod report;
pub mod run;
pub mod server;
pub mod table;
