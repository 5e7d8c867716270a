//! The static binary in the sandbox. It has to run in an image made FROM scratch:
//!
//! ```text
//! RUSTFLAGS="-C target-feature=+crt-static" \
//!     cargo build -p moat-sidecar --profile sidecar --target x86_64-unknown-linux-gnu
//! ```
//!
//! `--target` keeps the flag away from procedural macros, which cannot be static. Nothing in here resolves names, users or
//! groups through libc: static glibc would load the image's own libraries for that.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(moat_sidecar::cli::run(std::env::args_os().skip(1)))
}
