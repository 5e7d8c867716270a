//! PID 1 with real processes: this binary starts itself as PID 1 of a fresh namespace, and as the relay in it.
//!
//! ```text
//! test ──unshare──► this binary, `init <plan>` (pid 1) ──► this binary, `relay` (a relay that only says ready)
//!                                                     └──► the agent: a shell script of the test
//! ```
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "all of this is test code, without the test harness's attribute"
)]

mod cases;
mod sandbox;
mod stand_in;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "init", plan] => ExitCode::from(stand_in::init(plan)),
        [_, "relay"] => ExitCode::from(stand_in::relay()),
        _ => libtest_mimic::run(&libtest_mimic::Arguments::from_args(), cases::all()).exit_code(),
    }
}
