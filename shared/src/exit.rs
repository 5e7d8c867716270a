//! Exit codes that this project gives a meaning.
//!
//! A run's own exit code is passed through: a program's code, or 128 and the signal's number.

/// Everything is as it should be.
pub const OK: u8 = 0;
/// An error of moat itself; its text is on stderr.
pub const FAILURE: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// The sandbox could not reach the bridge before the agent was to start, so nothing was started.
pub const NO_TUNNEL: u8 = 121;
/// The sidecar could not prepare the sandbox (plan, files, users), so nothing was started.
pub const SETUP: u8 = 122;
/// The command was found but cannot be executed (POSIX shells use the same code).
pub const NOT_EXECUTABLE: u8 = 126;
/// The command was not found (POSIX shells use the same code).
pub const NOT_FOUND: u8 = 127;

/// The code for a process that died from `signal`.
#[must_use]
pub const fn from_signal(signal: u8) -> u8 {
    128u8.wrapping_add(signal)
}
