//! The process that is the host's end of a guest's vsock device: vhost-device-vsock.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::installed;
use crate::{Outcome, Trouble, clock::eventually, rig::PATIENCE};

/// The guest's own CID: of this device's process alone, so that all guests may have the same.
const CID: u32 = 42;
/// The socket whose name the device's ports are made of.
pub const VSOCK: &str = "v.sock";

/// So many have been: each has a name of its own.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// It runs, until this is dropped.
#[derive(Debug)]
pub struct Device {
    child: Child,
    /// Of this process's: a machine has one after another.
    pub(super) name: String,
    /// Where the machine finds it.
    pub socket: PathBuf,
}

/// It does nothing until this is dropped.
#[derive(Debug)]
pub struct Stopped(Pid);

/// The one that `.ci/run` installs.
pub(super) fn program() -> Option<PathBuf> {
    installed().map(|root| root.join("bin/vhost-device-vsock")).filter(|path| path.exists())
}

/// The same, where there has to be one.
///
/// # Errors
/// When there is none.
pub fn installed_program() -> Outcome<PathBuf> {
    program().ok_or_else(|| Trouble::new("no vhost-device-vsock (see .ci/run)"))
}

impl Device {
    pub(super) fn start(directory: &Path) -> Outcome<Self> {
        Self::start_with(Command::new(installed_program()?), directory)
    }

    /// The same, by a command that starts [`installed_program`].
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_with(mut command: Command, directory: &Path) -> Outcome<Self> {
        let ports = directory.join(VSOCK);
        // Of the one before it.
        let _not_there = fs::remove_file(&ports);
        let name = format!("d{}", STARTED.fetch_add(1, Ordering::Relaxed));
        let socket = directory.join(&name);
        let log = fs::File::create(directory.join("device.log"))?;
        let child = command
            .args(["--guest-cid", &CID.to_string(), "--socket"])
            .arg(&socket)
            .arg("--uds-path")
            .arg(ports)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let device = Self { child, name, socket };
        eventually("the vsock device's socket", PATIENCE, || device.socket.exists().then_some(()))?;
        Ok(device)
    }

    pub(super) fn kill(&mut self) -> Outcome {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// From now on it does nothing.
    ///
    /// # Errors
    /// When it is gone.
    pub fn stop(&self) -> Outcome<Stopped> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGSTOP)?;
        Ok(Stopped(pid))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _nobody_waits = self.child.wait();
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _gone = kill(self.0, Signal::SIGCONT);
    }
}
