//! The user's terminal: raw while the sandbox has it, as it was on every way out.

use std::{
    io::{self, IsTerminal},
    os::fd::AsFd,
};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use crate::runtime::{Size, process};

/// Where nobody says how large a terminal is.
const USUAL: Size = Size { rows: 24, columns: 80 };

/// The size of the user's terminal, if both stdin and stdout are one.
pub(crate) fn size() -> Option<Size> {
    let both = io::stdin().is_terminal() && io::stdout().is_terminal();
    both.then(|| process::size(io::stdout().as_fd()).ok().filter(|size| size.rows > 0).unwrap_or(USUAL))
}

/// Raw until dropped: every key goes to the sandbox, Ctrl-C too.
#[derive(Debug)]
pub(crate) struct Raw(Termios);

impl Raw {
    pub(crate) fn enter() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring. Flushing takes away what was typed for the sandbox.
        let _gone = tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &self.0);
    }
}
