//! The `moat` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    moat_host_bridge::cli::main()
}
