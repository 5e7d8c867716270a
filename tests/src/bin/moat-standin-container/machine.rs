//! The machine that a container runs in, and what is asked of one: to start it and what runs in it, to signal its first
//! process, and the far ends of its socket relays.
//!
//! ```text
//! start, exec, kill, relay ──► machine ──┬─► namespaces: of this machine
//!                                        └─► guest: a virtual machine ── vsock ──► first: namespaces, in the guest
//! ```

mod first;
mod guest;
mod namespaces;
mod session;
mod vsock;
mod wire;

use std::{
    io,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    process::{Child, Command},
};

use nix::{sys::signal::Signal, unistd::Pid};
use serde::{Deserialize, Serialize};

use super::{
    Answer,
    store::{Around, Container},
};

/// A program beside a container's first process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Exec {
    pub(crate) words: Vec<String>,
    /// `None`: the container's.
    pub(crate) user: Option<String>,
    pub(crate) directory: String,
}

/// What this program does where it is called by itself, in a machine or around one.
pub(crate) fn own_part(words: &[&str]) -> Option<Answer<u8>> {
    let terminal = |words: &[&str]| words.first().map(|terminal| Path::new(*terminal).to_owned());
    Some(match words {
        ["__machine", directory, rest @ ..] => {
            Err(namespaces::become_it(Path::new(directory), terminal(rest).as_deref()))
        }
        ["__guest", directory, rest @ ..] => guest::run(Path::new(directory), terminal(rest).as_deref()),
        ["__exec", directory, exec, rest @ ..] => {
            guest::run_exec(Path::new(directory), exec, terminal(rest).as_deref())
        }
        ["__first"] => first::run(),
        _ => return None,
    })
}

/// What starts it; its exit status is the container's. `terminal` is its end of one.
pub(crate) fn command(container: &Container, terminal: Option<&Path>) -> Answer<Command> {
    container.save()?;
    let machine = match container.around {
        Around::Guest(_) => guest::command(container, terminal)?,
        Around::Namespaces | Around::Itself => namespaces::command(container, terminal)?,
    };
    Ok(noted(container, &machine))
}

/// The machine's process says itself which it is, or there is none: whoever started it may be gone by then, and so may
/// the container.
fn noted(container: &Container, machine: &Command) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"echo $$ >"$1" && shift && exec "$@""#, "sh"])
        .arg(container.machine())
        .arg(machine.get_program())
        .args(machine.get_args());
    command
}

/// What [`command`] started runs. The process that is alive as long as the machine is.
pub(crate) fn first_process(container: &Container, child: &Child) -> Answer<Pid> {
    match container.around {
        Around::Guest(_) => Ok(Pid::from_raw(i32::try_from(child.id())?)),
        Around::Namespaces | Around::Itself => namespaces::first_process(child),
    }
}

/// What starts a program beside the first process, of which `pid` is what [`first_process`] said.
pub(crate) fn exec(container: &Container, pid: Pid, exec: &Exec, terminal: Option<&Path>) -> Answer<Command> {
    match container.around {
        Around::Guest(_) => guest::exec(container, exec, terminal),
        Around::Namespaces | Around::Itself => Ok(namespaces::exec(container, pid, exec)),
    }
}

/// To the first process.
pub(crate) fn signal(container: &Container, pid: Pid, signal: Signal) -> Answer {
    match container.around {
        Around::Guest(_) => guest::signal(container, pid, signal),
        Around::Namespaces | Around::Itself => Ok(nix::sys::signal::kill(pid, signal)?),
    }
}

/// To a published socket of the machine's, by its number.
pub(crate) fn connect(container: &Container, number: usize) -> io::Result<UnixStream> {
    let (_, guest) = container.wanted.published.get(number).ok_or(io::ErrorKind::NotFound)?;
    match container.around {
        Around::Guest(_) => guest::connect(container, number),
        Around::Namespaces | Around::Itself => namespaces::connect(container, guest),
    }
}

/// Where the machine's end of a socket that is mounted comes to, by its number.
pub(crate) fn listen(container: &Container, number: usize) -> io::Result<UnixListener> {
    let (host, guest) = container.wanted.volumes.get(number).ok_or(io::ErrorKind::NotFound)?;
    match container.around {
        Around::Guest(_) => guest::listen(container, number),
        Around::Namespaces | Around::Itself => namespaces::listen(container, guest, mode(host)?),
    }
}

/// A socket in the machine has the mode bits of the host's.
fn mode(host: &Path) -> io::Result<u32> {
    Ok(std::fs::metadata(host)?.permissions().mode() & 0o777)
}
