//! The `moat` command.

use std::process::ExitCode;

/// A call allocates often, and what is written down of it is freed by another thread than the one that made it: with glibc's
/// allocator a call takes a tenth more of the bridge's processor time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    moat_host_bridge::cli::main()
}
