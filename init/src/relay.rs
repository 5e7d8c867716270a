//! The relay as PID 1 sees it: what it is told, how it is started, and when it is ready.
//!
//! ```text
//! bind 127.0.0.1 ──► start: exec of this same binary as the relay's user
//!                      0: what it is told   1: /dev/null   2: pipe to PID 1   3: listener   4: readiness
//!                      5: the socket that the bridge dials, if it dials one
//! ```
//!
//! PID 1 keeps the listener (and that socket): while a relay that died is replaced, connections wait in its queue, and nobody else can
//! take the port. Where relay and agent share a uid, the new one comes from an image that cannot be read. What the
//! relay writes to stderr goes to PID 1's own until the agent runs, then to [`LOG`].

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use moat_shared::{
    id::RunId,
    plan::{Identity, Ids, Plan, Tunnel},
    secret::Secret,
};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    unistd::{self, Pid},
};
use serde::{Deserialize, Serialize};

use crate::{
    closed_image, say, socket,
    spawn::{self, Program, Session, StartError},
    supervise::Event,
};

/// The argument that makes the sidecar's binary the relay.
pub const ARGUMENT: &str = "relay";
/// The relay's listening socket on 127.0.0.1. PID 1 keeps it as well, so that a restart loses no connection.
pub const LISTENER_FD: i32 = 3;
/// Where the relay writes one line: [`READY`] after its first hello, or [`FAILED`] and a text.
pub const READY_FD: i32 = 4;
/// The unix socket that the bridge dials, where it does.
pub const SOCKET_FD: i32 = 5;
/// The tunnel stands.
pub const READY: &str = "ready\n";
/// The tunnel will not stand; what follows up to the end of the line says why.
pub const FAILED: &str = "failed: ";
/// What the relay writes to stderr while the agent runs; root's alone.
pub const LOG: &str = "/run/moat/relay.log";

/// The relay's log starts anew when it is this long.
const LOG_BYTES: u64 = 256 * 1024;
/// What is read of the readiness line; a reason is one sentence.
const LINE_BYTES: usize = 1024;

/// What the relay is told: JSON on its stdin, up to the end of the stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayStart {
    /// The run, for logs.
    pub run: RunId,
    /// Where the bridge is.
    pub tunnel: Tunnel,
    /// The port of the listener, to check Host headers against.
    pub relay_port: u16,
    /// The run's certificate and key.
    pub identity: Identity,
}

/// Why there is no relay.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("the relay cannot listen on 127.0.0.1:{port}")]
    Listen { port: u16, source: io::Error },
    #[error("nobody can listen at {path}, where the bridge would dial")]
    Socket { path: PathBuf, source: io::Error },
    #[error("the relay cannot be told what to do")]
    Tell(#[source] io::Error),
    #[error("the relay cannot be closed to an agent of the same uid")]
    Image(#[source] io::Error),
    #[error("the relay cannot be started")]
    Start(#[from] StartError),
}

/// The relay, running or to be started again.
#[derive(Debug)]
pub(crate) struct Relay {
    listener: OwnedFd,
    socket: Option<OwnedFd>,
    /// [`RelayStart`], key included.
    told: Secret<Vec<u8>>,
    user: Ids,
    /// The agent has the same uid.
    shares_uid: bool,
    pid: Option<Pid>,
    ready: Option<OwnedFd>,
    line: Vec<u8>,
    stderr: Option<OwnedFd>,
    log: Option<File>,
}

impl Relay {
    /// Takes the port.
    pub(crate) fn bind(plan: &Plan, identity: Identity) -> Result<Self, RelayError> {
        let port = plan.relay_port;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .map_err(|source| RelayError::Listen { port, source })?;
        let socket = plan.tunnel.dialled_socket().map(|path| {
            let refused = |source| RelayError::Socket { path: path.to_owned(), source };
            socket::listen(path).map(OwnedFd::from).map_err(refused)
        });
        let start =
            RelayStart { run: plan.run.clone(), tunnel: plan.tunnel.clone(), relay_port: port, identity };
        let told = serde_json::to_vec(&start).map_err(|error| RelayError::Tell(error.into()))?;
        Ok(Self {
            listener: listener.into(),
            socket: socket.transpose()?,
            told: Secret::new(told),
            user: plan.relay_user,
            shares_uid: plan.relay_user.uid == plan.user.ids.uid,
            pid: None,
            ready: None,
            line: Vec::new(),
            stderr: None,
            log: None,
        })
    }

    pub(crate) fn pid(&self) -> Option<Pid> {
        self.pid
    }

    /// Starts it, or starts it again. `among_others`: the hook or the agent may be running.
    pub(crate) fn start(&mut self, among_others: bool) -> Result<(), RelayError> {
        let tell = |error: nix::Error| RelayError::Tell(error.into());
        let (stdin, to_stdin) = unistd::pipe2(OFlag::O_CLOEXEC).map_err(tell)?;
        let (ready, ready_end) = unistd::pipe2(OFlag::O_CLOEXEC).map_err(tell)?;
        let (stderr, stderr_end) = unistd::pipe2(OFlag::O_CLOEXEC).map_err(tell)?;
        let null = OpenOptions::new().write(true).open("/dev/null").map_err(RelayError::Tell)?;
        // All of it fits into the pipe, so that a relay that does not read cannot hold PID 1.
        let length = i32::try_from(self.told.expose().len()).unwrap_or(i32::MAX);
        fcntl(&to_stdin, FcntlArg::F_SETPIPE_SZ(length.max(4096))).map_err(tell)?;
        File::from(to_stdin).write_all(self.told.expose()).map_err(RelayError::Tell)?;
        for fd in [&ready, &stderr] {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(tell)?;
        }
        let listener = self.listener.try_clone().map_err(RelayError::Tell)?;
        let mut descriptors = vec![
            (stdin, 0),
            (null.into(), 1),
            (stderr_end, 2),
            (listener, LISTENER_FD),
            (ready_end, READY_FD),
        ];
        if let Some(socket) = &self.socket {
            descriptors.push((socket.try_clone().map_err(RelayError::Tell)?, SOCKET_FD));
        }
        let (_image, image) = if among_others && self.shares_uid {
            closed_image::make().map(|(fd, path)| (Some(fd), Some(path))).map_err(RelayError::Image)?
        } else {
            (None, None)
        };
        let pid = spawn::start(&Program {
            argv: vec!["/proc/self/exe".into(), ARGUMENT.into()],
            image,
            env: Vec::new(),
            user: self.user,
            directory: Path::new("/"),
            session: Session::Own,
            descriptors,
        })?;
        (self.pid, self.ready, self.stderr) = (Some(pid), Some(ready), Some(stderr));
        self.line.clear();
        Ok(())
    }

    /// What it says does not matter any more.
    pub(crate) fn silence(&mut self) {
        self.stderr = None;
    }

    /// It was reaped. What it wrote last is still in the pipes.
    pub(crate) fn ended(&mut self, agent_runs: bool) {
        self.read_stderr(agent_runs);
        (self.pid, self.stderr) = (None, None);
    }

    pub(crate) fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ready.as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn stderr_fd(&self) -> Option<BorrowedFd<'_>> {
        self.stderr.as_ref().map(AsFd::as_fd)
    }

    /// Reads of the readiness line what is there; an event when it is complete.
    pub(crate) fn read_ready(&mut self) -> Option<Event> {
        let fd = self.ready.as_ref()?;
        let mut chunk = [0; 256];
        match unistd::read(fd, &mut chunk) {
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => return None,
            // Closed without a word: its end, which follows, is the news.
            Ok(0) | Err(_) => self.ready = None,
            Ok(length) => self.line.extend(chunk.iter().take(length)),
        }
        let event = parse_line(&self.line)?;
        self.ready = None;
        Some(event)
    }

    /// Passes on what it wrote to stderr: to our own until the agent runs, then to the log.
    pub(crate) fn read_stderr(&mut self, agent_runs: bool) {
        let Some(fd) = self.stderr.as_ref() else { return };
        let mut chunk = [0; 4096];
        // A flood must not hold PID 1: some now, the rest after the next poll.
        for _ in 0..16 {
            match unistd::read(fd, &mut chunk) {
                Ok(0) => {
                    self.stderr = None;
                    return;
                }
                Ok(length) => {
                    let bytes = chunk.get(..length).unwrap_or_default();
                    let _nowhere_to_tell =
                        if agent_runs { append(&mut self.log, bytes) } else { io::stderr().write_all(bytes) };
                }
                Err(_) => return,
            }
        }
    }

    /// Makes the log, before anybody hostile runs. Without one, what the relay says later is lost, not shown.
    pub(crate) fn open_log(&mut self) {
        if unistd::getpid().as_raw() == 1 {
            self.log = open_log(Path::new(LOG)).ok();
        }
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        match DirBuilder::new().mode(0o711).create(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(path)
}

fn append(log: &mut Option<File>, bytes: &[u8]) -> io::Result<()> {
    let Some(file) = log else { return Ok(()) };
    if file.metadata()?.len() > LOG_BYTES {
        file.set_len(0)?;
    }
    file.write_all(bytes)
}

fn parse_line(line: &[u8]) -> Option<Event> {
    if line.starts_with(READY.as_bytes()) {
        return Some(Event::Ready);
    }
    let end = line
        .iter()
        .position(|byte| *byte == b'\n')
        .or_else(|| (line.len() > LINE_BYTES).then_some(LINE_BYTES))?;
    let line = String::from_utf8_lossy(line.get(..end).unwrap_or_default());
    Some(match line.strip_prefix(FAILED) {
        Some(reason) => Event::NotReady(reason.chars().filter(|c| !c.is_control()).collect()),
        None => Event::NotReady("the relay does not speak this version's words".into()),
    })
}

/// Tells why the relay could not be started again; there is only its log to tell it to.
pub(crate) fn note(relay: &mut Relay, error: &RelayError) {
    let _nowhere_to_tell = append(&mut relay.log, format!("{}\n", say::chain(error)).as_bytes());
}

/// Reads what PID 1 tells the relay. Only after [`crate::harden_process`].
///
/// # Errors
/// When it cannot be read or understood; the error says nothing of its content.
pub fn read_start(from: impl Read) -> io::Result<RelayStart> {
    let mut bytes = Vec::new();
    let bound = u64::try_from(2 * moat_shared::limits::PLAN).unwrap_or(u64::MAX);
    let outcome = from.take(bound).read_to_end(&mut bytes);
    let bytes = Secret::new(bytes);
    outcome?;
    serde_json::from_slice(bytes.expose())
        .map_err(|error| io::Error::other(format!("not a relay's start (column {})", error.column())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(b"" => None; "nothing yet")]
    #[test_case(b"rea" => None; "half")]
    #[test_case(b"ready\n" => Some(Event::Ready); "ready")]
    #[test_case(b"failed: version 3 is needed\n" => Some(Event::NotReady("version 3 is needed".into())); "failed")]
    #[test_case(b"failed: \x1b[31mred\n" => Some(Event::NotReady("[31mred".into())); "no control characters")]
    #[test_case(b"hello\n" => Some(Event::NotReady("the relay does not speak this version's words".into())); "unknown")]
    fn readiness(line: &[u8]) -> Option<Event> {
        parse_line(line)
    }

    #[test]
    fn the_log_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("moat/relay.log");
        let mut log = Some(open_log(&path).unwrap());
        for _ in 0..1000 {
            append(&mut log, &[b'x'; 1000]).unwrap();
        }
        assert!(std::fs::metadata(path).unwrap().len() <= LOG_BYTES + 1000);
    }
}
