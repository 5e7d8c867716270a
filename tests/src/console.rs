//! What a test says to the program inside the sandbox, and what that answers: JSON lines on its stdin and stdout.

pub mod crowd;
pub mod http;
pub mod mcp;
pub mod search;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A thing to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// The test's number for it.
    pub id: u64,
    /// What.
    pub task: Task,
}

/// What the program can do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Sends a request byte for byte and reports the answer as it arrives.
    Http(http::Call),
    /// Makes many exchanges that end badly.
    Crowd(crowd::Crowd),
    /// Abandons a running task; the answer is the time.
    Abandon(u64),
    /// Connects to an MCP server with rmcp, lists its tools and calls some.
    Mcp(mcp::Visit),
    /// Searches everything that the program may read.
    Search(search::Search),
    /// Runs a program.
    Exec(Exec),
    /// Reads a file.
    Read(String),
    /// Its own environment.
    Environ,
}

/// A program to run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Exec {
    /// It and its arguments.
    pub argv: Vec<String>,
    /// Changes to the environment; `None` removes.
    pub env: BTreeMap<String, Option<String>>,
}

/// Something to report about a task.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// The order's number.
    pub id: u64,
    /// What happened.
    pub event: Event,
}

/// What can happen.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The head of an answer is there.
    Head {
        /// When.
        at: u64,
        /// Its status.
        status: u16,
        /// Its headers; names in lower case.
        headers: Vec<(String, String)>,
    },
    /// A piece of a body is there.
    Data {
        /// When.
        at: u64,
        /// How much.
        bytes: usize,
        /// The piece, unless the call said not to keep it.
        text: String,
    },
    /// The answer's end.
    End {
        /// When.
        at: u64,
        /// As HTTP frames it, or by a broken connection.
        clean: bool,
    },
    /// The task is done.
    Done(Value),
    /// The task failed.
    Failed(String),
}

impl Event {
    /// The same with another time.
    #[must_use]
    pub(crate) fn at(mut self, when: impl Fn(u64) -> u64) -> Self {
        match &mut self {
            Self::Head { at, .. } | Self::Data { at, .. } | Self::End { at, .. } => *at = when(*at),
            Self::Done(_) | Self::Failed(_) => {}
        }
        self
    }
}
