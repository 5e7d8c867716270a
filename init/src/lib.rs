//! PID 1 duties and agent configuration files, as a library without an async runtime.
//!
//! ```text
//! startup (plan + key) ──► relay ──► files ──► relay is ready ──► hook ──► agent ──► sweep ──► exit code
//! ```
//!
//! [`run`] is all of it. It knows nothing of MCP, TLS or the tunnel: the relay is this same binary, started again
//! with the argument `relay` ([`relay::RelayStart`] on its stdin).

mod agents;
mod closed_image;
mod environ;
mod escalate;
pub mod exec;
mod files;
mod image_user;
mod pid1;
pub mod relay;
mod say;
mod socket;
mod spawn;
pub mod startup;
mod supervise;
mod sys;
mod terminal;
#[cfg(test)]
mod testing;
mod user;
mod vsock;

use std::io;

use moat_shared::{exit, plan::Startup};

pub use sys::{allow_descriptors, harden_process};

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("cannot prepare this process")]
    Process(#[source] io::Error),
    #[error("the system call filter cannot be installed")]
    Filter(#[source] io::Error),
    #[error("the terminal cannot be taken")]
    Terminal(#[source] io::Error),
    #[error(transparent)]
    User(#[from] image_user::UserError),
    #[error(transparent)]
    Vsock(#[from] vsock::VsockError),
    #[error(transparent)]
    Relay(#[from] relay::RelayError),
    #[error("lost control of the sandbox")]
    Loop(#[source] io::Error),
}

/// Does what the plan says and returns the code to exit with.
#[must_use]
pub fn run(startup: Startup) -> u8 {
    boot(startup).unwrap_or_else(|error| {
        say::error(&error);
        exit::SETUP
    })
}

fn boot(startup: Startup) -> Result<u8, BootError> {
    harden_process().map_err(BootError::Process)?;
    let signals = pid1::take_signals().map_err(BootError::Process)?;
    if !pid1::is_pid_1() {
        nix::sys::prctl::set_child_subreaper(true).map_err(|error| BootError::Process(error.into()))?;
    }
    let Startup { mut plan, identity } = startup;
    sys::install(&plan.filters).map_err(BootError::Filter)?;
    image_user::settle(&mut plan)?;
    vsock::check(&plan.tunnel.endpoint)?;
    if plan.terminal {
        terminal::adopt().map_err(BootError::Terminal)?;
    }
    // Outside of a sandbox (tests) the name would not be this run's own.
    let door = pid1::is_pid_1().then(exec::Door::open).transpose().map_err(BootError::Process)?;
    let relay = relay::Relay::bind(&plan, identity)?;
    let mut pid1 = pid1::Pid1::new(&plan, relay, signals, door);
    let code = pid1.run().map_err(BootError::Loop);
    if pid1.has_put_files_in() {
        match files::take_out(&plan) {
            Ok(()) | Err(files::FileError::Told) => {}
            Err(error) => say::error(&error),
        }
    }
    code
}
