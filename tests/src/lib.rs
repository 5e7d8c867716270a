//! What tests and the demo are made of: real servers, real clients, the real `moat`, and faults on purpose.
//!
//! ```text
//! Rig ── a throw-away home, the real `moat` binary, its bridge; its sandboxes are made in one [`place::Place`]
//!  ├── Upstream ── an MCP server made with rmcp, or a faulty one, over TLS or plain; records what reached it
//!  └── Console ── a program inside the sandbox that does what the test says: requests, MCP calls, searches
//! ```
#![forbid(unsafe_code)]

pub mod apple;
pub mod authorization;
pub mod clock;
pub mod console;
pub mod corpus;
pub mod engine;
pub mod faults;
pub mod foreign;
pub mod guest;
pub mod inside;
pub mod listen;
pub mod matrix;
pub mod measure;
pub mod model;
pub mod needles;
pub mod parts;
pub mod pki;
pub mod place;
mod processes;
pub mod quirks;
pub mod relay;
pub mod release;
pub mod rig;
pub mod seen;
pub mod suite;
pub mod tools;
pub mod trouble;
pub mod upstream;
pub mod world;

pub use trouble::{Outcome, Trouble};
