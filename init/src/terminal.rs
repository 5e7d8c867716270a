//! The terminal: whose it is, who is in its foreground, and that it echoes no secret.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use moat_shared::plan::Ids;
use nix::{
    errno::Errno,
    sys::{
        stat::{SFlag, fstat},
        termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
    },
    unistd::{self, Gid, Pid, Uid},
};

use crate::sys;

/// Makes stdin's terminal the controlling one of PID 1's session, unless the runtime did.
pub(crate) fn adopt() -> io::Result<()> {
    let stdin = io::stdin();
    if !unistd::isatty(stdin.as_fd())? {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    if unistd::tcgetpgrp(stdin.as_fd()).is_ok() {
        return Ok(());
    }
    // Fails only for the leader of a process group, who is then a session's leader already or keeps the session.
    match unistd::setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    sys::take_terminal(stdin.as_fd())
}

/// A terminal that passes bytes as they are and echoes nothing, until this is dropped.
#[derive(Debug)]
pub(crate) struct Quiet {
    terminal: OwnedFd,
    before: Termios,
}

/// Makes a terminal quiet. `None`: it is none.
pub(crate) fn quiet(fd: BorrowedFd<'_>) -> io::Result<Option<Quiet>> {
    if !unistd::isatty(fd).unwrap_or(false) {
        return Ok(None);
    }
    let before = tcgetattr(fd)?;
    let mut raw = before.clone();
    cfmakeraw(&mut raw);
    tcsetattr(fd, SetArg::TCSANOW, &raw)?;
    Ok(Some(Quiet { terminal: fd.try_clone_to_owned()?, before }))
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _gone = tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}

/// Puts a process group into the foreground. The caller has SIGTTOU blocked. Without a terminal there is no foreground.
pub(crate) fn bring_to_foreground(terminal: BorrowedFd<'_>, group: Pid) -> io::Result<()> {
    match unistd::tcsetpgrp(terminal, group) {
        Ok(()) | Err(Errno::ENOTTY | Errno::ENXIO) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes stdin, stdout and stderr the agent's, so that it can open them by path as well (`/dev/stdout`).
///
/// Pipes, and the sandbox's own terminal. Never a file or a device: those may be the host's.
pub(crate) fn hand_over(to: Ids, terminal: bool) {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for fd in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        if is_pipe(fd) || (terminal && unistd::isatty(fd).unwrap_or(false)) {
            // Best effort: the descriptors themselves work all the same.
            let _still_the_runtimes =
                unistd::fchown(fd, Some(Uid::from_raw(to.uid)), Some(Gid::from_raw(to.gid)));
        }
    }
}

/// A pipe without a name.
fn is_pipe(fd: BorrowedFd<'_>) -> bool {
    use std::os::fd::AsRawFd;
    let fifo = fstat(fd).is_ok_and(|about| about.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFIFO.bits());
    fifo && std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"pipe:"))
}
