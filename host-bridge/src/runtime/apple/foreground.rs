//! The `container start -a` that is held open: what the container reads and writes goes through it, and its exit status is
//! the container's.
//!
//! With a terminal it runs on one of ours, whose size it passes on. That terminal is quiet from the start, so that nothing
//! of the plan is echoed or kept back, whenever the tool makes its own settings. The plan is written when PID 1 says that
//! its own end is quiet too; what came before is the tool's progress.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use moat_shared::{exit, plan::AWAITS_STARTUP, secret::Secret};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::{OpenptyResult, Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
    },
    unistd::{Pid, pipe},
};
use tokio::{process::Child, sync::oneshot};

use super::cli::{AppleError, Cli, refused};
use crate::runtime::{Io, RuntimeError, Size, Window, process::set_size};

/// For a machine to start, and PID 1 in it to come up.
const FIRST_WORD: Duration = Duration::from_secs(60);
/// What is kept of what the tool says before.
const SAID: usize = 64 * 1024;
const DOING: &str = "starting the container";

/// The command, running.
#[derive(Debug)]
pub(super) struct Foreground {
    child: Child,
    has_ended: Arc<AtomicBool>,
}

/// Starts the container, and tells PID 1 what to do.
pub(super) async fn start(
    cli: &Cli,
    id: &str,
    terminal: Option<Size>,
    frame: Secret<Vec<u8>>,
) -> Result<(Foreground, Io), RuntimeError> {
    let (foreground, io) = spawn(cli, &["start", "--attach", "--interactive", id], terminal)?;
    match &io {
        Io::Terminal { bytes, .. } => {
            let bytes = bytes.try_clone().map_err(failed)?;
            beside("startup", move || tell_on_a_terminal(bytes, &frame)).await??;
        }
        Io::Pipes { stdin, .. } => {
            let mut stdin = stdin.try_clone().map_err(failed)?;
            // It may have ended already: what it printed says why, and its exit code follows.
            let told = move || stdin.write_all(frame.expose());
            if let Err(error) = beside("startup", told).await? {
                tracing::info!("PID 1 did not take its plan: {error}");
            }
        }
    }
    Ok((foreground, io))
}

/// Starts a command of the tool with stdin, stdout and stderr of ours.
pub(super) fn spawn(
    cli: &Cli,
    arguments: &[&str],
    terminal: Option<Size>,
) -> Result<(Foreground, Io), RuntimeError> {
    let mut command = cli.command(arguments);
    let has_ended = Arc::new(AtomicBool::new(false));
    let started = |child: io::Result<Child>| {
        child.map_err(|source| AppleError::Start { program: cli.program().to_path_buf(), source })
    };
    let Some(size) = terminal else {
        let ((theirs_in, stdin), (stdout, theirs_out), (stderr, theirs_err)) = (pair()?, pair()?, pair()?);
        command.stdin(Stdio::from(theirs_in)).stdout(Stdio::from(theirs_out)).stderr(Stdio::from(theirs_err));
        let child = started(command.spawn())?;
        // The command keeps what it gave the child.
        drop(command);
        let io = Io::Pipes { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() };
        return Ok((Foreground { child, has_ended }, io));
    };
    let (ours, theirs) = quiet_terminal(size).map_err(failed)?;
    let end = || theirs.try_clone().map(Stdio::from).map_err(failed);
    command.stdin(end()?).stdout(end()?).stderr(end()?);
    let child = started(command.spawn())?;
    drop((command, theirs));
    let bytes = File::from(ours);
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let window = Pane { bytes: bytes.try_clone().map_err(failed)?, pid, has_ended: Arc::clone(&has_ended) };
    Ok((Foreground { child, has_ended }, Io::Terminal { bytes, window: Box::new(window) }))
}

impl Foreground {
    /// The exit code. May be called again.
    pub(super) async fn wait(&mut self) -> io::Result<u8> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().await?;
        self.has_ended.store(true, Ordering::Relaxed);
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        let signal = status.signal().and_then(|signal| u8::try_from(signal).ok()).map(exit::from_signal);
        Ok(code.or(signal).unwrap_or(exit::FAILURE))
    }

    /// Without asking.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.child.start_kill()
    }
}

/// Waits for PID 1's word and writes the plan.
fn tell_on_a_terminal(mut bytes: File, frame: &Secret<Vec<u8>>) -> Result<(), AppleError> {
    let until = Instant::now() + FIRST_WORD;
    let mut said = Vec::new();
    while memchr::memmem::find(&said, AWAITS_STARTUP).is_none() {
        let left = until.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let silent = AppleError::Silent { doing: DOING, within: FIRST_WORD };
        match poll(&mut [PollFd::new(bytes.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(0) => return Err(silent),
            Err(nix::Error::EINTR) => continue,
            _ => {}
        }
        let mut piece = [0; 4096];
        match bytes.read(&mut piece) {
            Ok(length @ 1..) if said.len() < SAID => said.extend(piece.iter().take(length)),
            // Its end (on Linux an error): what it said says why.
            _ => return Err(refused(DOING, &String::from_utf8_lossy(&said))),
        }
    }
    bytes.write_all(frame.expose()).map_err(|error| refused(DOING, &error.to_string()))
}

/// Work that waits for a terminal or a pipe, in a thread that ends when the command does: nobody waits for it longer.
async fn beside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RuntimeError> {
    let (done, outcome) = oneshot::channel();
    let work = move || drop(done.send(work()));
    thread::Builder::new().name(name.to_owned()).spawn(work).map_err(failed)?;
    outcome.await.map_err(|_| failed(io::Error::other("its thread ended")))
}

/// Ours and the command's end.
fn quiet_terminal(Size { rows, columns }: Size) -> io::Result<(OwnedFd, OwnedFd)> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let OpenptyResult { master, slave } = openpty(Some(&size), None)?;
    let mut settings = tcgetattr(&slave)?;
    cfmakeraw(&mut settings);
    tcsetattr(&slave, SetArg::TCSANOW, &settings)?;
    for end in [&master, &slave] {
        use nix::fcntl::{FcntlArg, FdFlag, fcntl};
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok((master, slave))
}

/// What is read, and what is written.
fn pair() -> Result<(OwnedFd, OwnedFd), RuntimeError> {
    let (read, write) = pipe().map_err(|error| failed(error.into()))?;
    for end in [&read, &write] {
        use nix::fcntl::{FcntlArg, FdFlag, fcntl};
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|error| failed(error.into()))?;
    }
    Ok((read, write))
}

fn failed(source: io::Error) -> RuntimeError {
    RuntimeError::Io { doing: DOING.to_owned(), source }
}

/// The size of the command's terminal. It has no controlling terminal that would tell it: it is told.
#[derive(Debug)]
struct Pane {
    bytes: File,
    pid: Option<Pid>,
    has_ended: Arc<AtomicBool>,
}

impl Window for Pane {
    fn resize(&self, size: Size) -> io::Result<()> {
        set_size(self.bytes.as_fd(), size)?;
        match self.pid {
            Some(pid) if !self.has_ended.load(Ordering::Relaxed) => Ok(kill(pid, Signal::SIGWINCH)?),
            _ => Ok(()),
        }
    }
}
