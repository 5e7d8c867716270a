//! `moat exec`: how a further command reaches PID 1, which starts it as it started the agent.
//!
//! ```text
//! moat-sidecar exec ──[Wish + stdin, stdout, stderr]──► PID 1 ──[Told]──► its exit code
//! ```
//!
//! A socket in the sandbox's own abstract namespace. Every process of the sandbox may ask: what it gets is a process
//! with the agent's user, environment and rights, which is what it has already.

use serde::{Deserialize, Serialize};

/// The socket's name, without the zero that makes it abstract. One message each way (SEQPACKET).
pub const SOCKET: &[u8] = b"moat/exec";
/// The longest message.
pub const MESSAGE: usize = 128 * 1024;
/// Who asks in a container where moat's own users differ from the agent: nobody that anything belongs to.
pub const ASKER: u32 = 64_644;

/// What is to be started, with the three descriptors that come along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// The command and its arguments.
    pub argv: Vec<String>,
    /// The descriptors are a terminal, which becomes its own.
    pub terminal: bool,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// It ended with this code.
    Ended(u8),
    /// It did not start.
    Refused {
        /// The code to end with instead.
        code: u8,
        /// Why.
        text: String,
    },
}
