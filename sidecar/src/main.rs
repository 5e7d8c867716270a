//! The static binary in the sandbox.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(moat_sidecar::cli::run(std::env::args_os().skip(1)))
}
