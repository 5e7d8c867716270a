//! `moat-sidecar exec -- COMMAND`: asks PID 1, waits, ends with the command's code. Without a right of its own: started
//! by an engine as a user whom nothing belongs to, or by `moat` in the namespaces of its sandbox.

use std::{
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
};

use moat_shared::{
    exec::{MESSAGE, SOCKET, Told, Wish},
    exit,
};
use nix::{
    sys::{
        signal::{SigHandler, Signal},
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
    },
    unistd,
};

use crate::{say, sys};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("cannot prepare this process")]
    Process(#[source] io::Error),
    #[error("the sandbox's first process cannot be asked")]
    Ask(#[source] io::Error),
    #[error("the sandbox has ended")]
    Gone,
}

/// Has the command started and returns its exit code. `size`: rows and columns of the terminal, where nobody has said yet.
#[must_use]
pub fn run(argv: Vec<String>, size: Option<(u16, u16)>) -> u8 {
    match ask(argv, size) {
        Ok(Told::Ended(code)) => code,
        Ok(Told::Refused { code, text }) => {
            say::line(&text);
            code
        }
        Err(error) => {
            say::error(&error);
            exit::SETUP
        }
    }
}

fn ask(argv: Vec<String>, size: Option<(u16, u16)>) -> Result<Told, AskError> {
    sys::harden_process().map_err(AskError::Process)?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let terminal = unistd::isatty(stdin.as_fd()).unwrap_or(false);
    if terminal {
        // It is to be the command's, whose session is not ours. To let go of it hangs up on us.
        sys::act_on(Signal::SIGHUP, SigHandler::SigIgn).map_err(AskError::Process)?;
        sys::let_go_of_terminal(stdin.as_fd());
        if let Some((rows, columns)) = size {
            sys::set_size(stdin.as_fd(), rows, columns).map_err(AskError::Process)?;
        }
    }
    let door = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|error| AskError::Ask(error.into()))?;
    let ask = |error: nix::Error| AskError::Ask(error.into());
    connect(door.as_raw_fd(), &UnixAddr::new_abstract(SOCKET).map_err(ask)?).map_err(ask)?;
    let text = serde_json::to_vec(&Wish { argv, terminal }).map_err(|error| AskError::Ask(error.into()))?;
    if text.len() > MESSAGE {
        return Err(AskError::Ask(io::Error::other("the command is too long")));
    }
    sys::send(door.as_fd(), &text, &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
        .map_err(AskError::Ask)?;
    let mut told = vec![0; MESSAGE];
    let length = UnixStream::from(door).read(&mut told).map_err(AskError::Ask)?;
    serde_json::from_slice(told.get(..length).unwrap_or_default()).map_err(|_| AskError::Gone)
}
