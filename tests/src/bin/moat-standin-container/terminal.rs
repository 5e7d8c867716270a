//! Terminals: one that is made for a program, and this process's own.

use std::{
    fs::{File, OpenOptions},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    pty::openpty,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
    },
    unistd::setsid,
};
use serde::{Deserialize, Serialize};

use super::{Answer, Refusal};

/// Rows and columns, as `stty` writes them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Size(String, String);

/// A terminal for a program.
pub(crate) struct Pair {
    pub(crate) ours: File,
    pub(crate) theirs: OwnedFd,
}

impl Pair {
    pub(crate) fn new() -> Answer<Self> {
        let pair = openpty(None, None)?;
        for end in [&pair.master, &pair.slave] {
            use nix::fcntl::{FcntlArg, FdFlag, fcntl};
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        Ok(Self { ours: pair.master.into(), theirs: pair.slave })
    }

    pub(crate) fn path(&self) -> Answer<PathBuf> {
        Ok(nix::unistd::ttyname(self.theirs.as_fd())?)
    }

    /// The command's three ends are this terminal.
    pub(crate) fn give(&self, command: &mut Command) -> Answer {
        let end = || self.theirs.try_clone().map(Stdio::from);
        command.stdin(end()?).stdout(end()?).stderr(end()?);
        Ok(())
    }
}

/// This process's stdin, raw until this is dropped, if it is a terminal at all.
pub(crate) struct Raw(Option<Termios>);

impl Raw {
    pub(crate) fn new() -> Answer<Self> {
        let before = tcgetattr(std::io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)?;
        }
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _gone = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Of this process's terminal. There is none when stdin is none.
pub(crate) fn own_size() -> Answer<Size> {
    let said = Command::new("stty").arg("size").stdin(Stdio::inherit()).stderr(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let (rows, columns) =
        said.trim().split_once(' ').ok_or_else(|| Refusal::internal("stdin is no terminal"))?;
    Ok(Size(rows.to_owned(), columns.to_owned()))
}

pub(crate) fn set_size(of: &Path, Size(rows, columns): &Size) {
    let _gone = Command::new("stty").arg("-F").arg(of).args(["rows", rows, "cols", columns]).status();
}

/// What tells of the sizes that this process's terminal gets from now on. Before any thread is started.
pub(crate) fn resizes() -> Answer<SignalFd> {
    let mut resized = SigSet::empty();
    resized.add(Signal::SIGWINCH);
    resized.thread_block()?;
    Ok(SignalFd::with_flags(&resized, SfdFlags::SFD_CLOEXEC)?)
}

/// From now on this process has a session of its own, and that terminal.
pub(crate) fn take(terminal: &Path) -> Answer {
    setsid()?;
    // A session's first terminal that is opened is its own.
    OpenOptions::new().read(true).write(true).open(terminal)?;
    Ok(())
}
