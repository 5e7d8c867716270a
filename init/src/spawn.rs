//! Starts a program as somebody: the one way in which hook, agent and relay come to life.
//!
//! ```text
//! fork ─► default signals ─► group, terminal ─► descriptors ─► drop privileges ─► directory ─► exec
//!                    any failure: its step and errno travel to the parent ─► exit
//! ```
//!
//! The command is looked up by the child, as the user that it has become: what root can see does not count.

use std::{
    ffi::{CString, NulError},
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use moat_shared::{exit, plan::Ids};
use nix::{
    errno::Errno,
    sys::{signal::SigSet, stat::Mode},
    unistd::{self, Pid},
};

use crate::{sys, terminal, user};

/// Descriptors on their way to the program are kept from here on.
const ASIDE: i32 = 64;

/// A program to start.
#[derive(Debug)]
pub(crate) struct Program<'a> {
    pub(crate) argv: Vec<String>,
    /// What is executed, when it is not what the first word says.
    pub(crate) image: Option<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) user: Ids,
    pub(crate) directory: &'a Path,
    pub(crate) session: Session,
    /// Descriptors that it gets besides what PID 1 has at 0 to 2, each under the number given.
    pub(crate) descriptors: Vec<(OwnedFd, i32)>,
}

/// Where it stands towards the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Session {
    /// Its own session without a terminal: the relay.
    Own,
    /// Its own process group.
    Group,
    /// Its own process group, in the terminal's foreground.
    Foreground,
    /// Its own session, with the terminal that it is given: a further command.
    Terminal,
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{0}: command not found")]
    NotFound(String),
    #[error("{command}: cannot be executed: {source}")]
    NotExecutable { command: String, source: io::Error },
    #[error("{command}: cannot be executed: the interpreter that it names is missing")]
    NoInterpreter { command: String },
    #[error("cannot start {command}: {step}: {source}")]
    Setup { command: String, step: &'static str, source: io::Error },
}

impl StartError {
    pub(crate) const fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound(_) => exit::NOT_FOUND,
            Self::NotExecutable { .. } | Self::NoInterpreter { .. } => exit::NOT_EXECUTABLE,
            Self::Setup { .. } => exit::SETUP,
        }
    }
}

/// Starts it. When this returns, the program itself is running.
pub(crate) fn start(program: &Program<'_>) -> Result<Pid, StartError> {
    let command = program.argv.first().cloned().unwrap_or_default();
    let setup = |step: &'static str| {
        let command = command.clone();
        move |source: io::Error| StartError::Setup { command, step, source }
    };
    let image = Image::new(program).map_err(|_| {
        setup("command and environment must not contain a zero byte")(io::ErrorKind::InvalidInput.into())
    })?;
    let (reader, writer) = report_pipe().map_err(setup("making a pipe"))?;
    let pid = sys::fork(|| {
        let failure = become_program(program, &image);
        failure.report(&writer);
        exit::SETUP
    })
    .map_err(setup("making a process"))?;
    drop(writer);
    let mut report = Vec::new();
    std::fs::File::from(reader).read_to_end(&mut report).map_err(setup("watching the start"))?;
    match Failure::read(&report) {
        None => Ok(pid),
        Some(failure) => {
            // Ended already: it is ours to take away.
            sys::wait(Some(pid), true).map_err(setup("watching the start"))?;
            Err(failure.explain(command))
        }
    }
}

/// Its writing end is beyond the numbers that the program's own descriptors get.
fn report_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    Ok((reader, aside(writer.as_fd())?))
}

/// Everything that exec wants, made before the fork.
struct Image {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
}

impl Image {
    fn new(program: &Program<'_>) -> Result<Self, NulError> {
        let command = program.image.as_ref().or_else(|| program.argv.first()).map_or("", String::as_str);
        let path = program.env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value);
        let candidates = candidates(command, path);
        Ok(Self {
            candidates: candidates.into_iter().map(CString::new).collect::<Result<_, _>>()?,
            argv: program.argv.iter().map(|word| CString::new(word.as_str())).collect::<Result<_, _>>()?,
            env: program
                .env
                .iter()
                .map(|(name, value)| CString::new(format!("{name}={value}")))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The paths to try. An empty element of PATH means the working directory to a shell; here it means nothing, since
/// the workspace is whose it is.
fn candidates(command: &str, path: &str) -> Vec<String> {
    if command.contains('/') {
        return vec![command.to_owned()];
    }
    if command.is_empty() {
        return Vec::new();
    }
    path.split(':').filter(|part| part.starts_with('/')).map(|part| format!("{part}/{command}")).collect()
}

/// In the child: all steps up to exec. It returns only when one failed.
fn become_program(program: &Program<'_>, image: &Image) -> Failure {
    match prepare(program) {
        Ok(()) => exec(image),
        Err((step, error)) => Failure { step, errno: error.raw_os_error().unwrap_or(libc::EIO) },
    }
}

fn prepare(program: &Program<'_>) -> Result<(), (FailedStep, io::Error)> {
    let at = |step: FailedStep| move |error: io::Error| (step, error);
    let stdin = io::stdin();
    sys::default_signal_actions();
    match program.session {
        Session::Own | Session::Terminal => {
            unistd::setsid().map_err(|error| (FailedStep::Session, error.into()))?;
        }
        Session::Group | Session::Foreground => {
            unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0))
                .map_err(|error| (FailedStep::Session, error.into()))?;
        }
    }
    if program.session == Session::Foreground {
        terminal::bring_to_foreground(stdin.as_fd(), unistd::getpid()).map_err(at(FailedStep::Terminal))?;
    }
    place(&program.descriptors).map_err(at(FailedStep::Descriptors))?;
    if program.session == Session::Terminal {
        sys::take_terminal(stdin.as_fd()).map_err(at(FailedStep::Terminal))?;
    }
    if program.session != Session::Own {
        let terminal = matches!(program.session, Session::Foreground | Session::Terminal);
        terminal::hand_over(program.user, terminal);
        // Best effort: a kernel without an OOM killer's score has no OOM killer to steer either.
        let _unsteered = prefer_as_victim();
    }
    nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    user::become_user(program.user).map_err(|(step, error)| (FailedStep::User(step), error))?;
    unistd::chdir(program.directory).map_err(|error| (FailedStep::Directory, error.into()))?;
    SigSet::empty().thread_set_mask().map_err(|error| (FailedStep::Signals, error.into()))
}

/// Moves the descriptors to their numbers; no other one stays beyond stderr.
fn place(descriptors: &[(OwnedFd, i32)]) -> io::Result<()> {
    // First out of the way of all targets, then to the targets: none overwrites another.
    let mut moved = Vec::with_capacity(descriptors.len());
    for (fd, number) in descriptors {
        moved.push((aside(fd.as_fd())?, *number));
    }
    for (fd, number) in &moved {
        sys::place(fd.as_fd(), *number)?;
    }
    let first_unused = moved.iter().map(|(_, number)| *number).fold(libc::STDERR_FILENO, i32::max) + 1;
    sys::close_on_exec_from(u32::try_from(first_unused).unwrap_or(3))
}

/// The same descriptor under a high number.
fn aside(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    sys::take_fd(nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(ASIDE))?)
}

/// PID 1's death is the sandbox's: let the kernel pick the agent first.
fn prefer_as_victim() -> io::Result<()> {
    let path = "/proc/self/oom_score_adj";
    let now: i32 = std::fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)?;
    std::fs::write(path, (now + 100).min(1000).to_string())
}

/// Tries the candidates in turn, as execvp does.
fn exec(image: &Image) -> Failure {
    let mut failure = Failure { step: FailedStep::NotFound, errno: libc::ENOENT };
    for candidate in &image.candidates {
        let Err(errno) = unistd::execve(candidate, &image.argv, &image.env);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR if nix::sys::stat::lstat(candidate.as_c_str()).is_err() => {}
            Errno::ENOENT => return Failure { step: FailedStep::Interpreter, errno: libc::ENOENT },
            // There may be a better one further on; if not, this is the reason.
            Errno::EACCES => failure = Failure { step: FailedStep::Exec, errno: libc::EACCES },
            other => return Failure { step: FailedStep::Exec, errno: other as i32 },
        }
    }
    failure
}

/// What failed in the child, as it travels through the pipe: one byte and an errno.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    step: FailedStep,
    errno: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailedStep {
    NotFound,
    Exec,
    Interpreter,
    Session,
    Terminal,
    Descriptors,
    Directory,
    Signals,
    User(user::Step),
}

/// Every step with the byte that stands for it.
const STEPS: [FailedStep; 15] = [
    FailedStep::NotFound,
    FailedStep::Exec,
    FailedStep::Interpreter,
    FailedStep::Session,
    FailedStep::Terminal,
    FailedStep::Descriptors,
    FailedStep::Directory,
    FailedStep::Signals,
    FailedStep::User(user::Step::BoundingSet),
    FailedStep::User(user::Step::Groups),
    FailedStep::User(user::Step::Group),
    FailedStep::User(user::Step::User),
    FailedStep::User(user::Step::Regained),
    FailedStep::User(user::Step::Capabilities),
    FailedStep::User(user::Step::NoNewPrivileges),
];

impl Failure {
    fn report(&self, to: &OwnedFd) {
        let step = STEPS.iter().position(|step| *step == self.step).unwrap_or_default();
        let mut bytes = vec![u8::try_from(step).unwrap_or_default()];
        bytes.extend_from_slice(&self.errno.to_ne_bytes());
        // When even this fails, the exit code that follows tells that the start failed.
        let _unreported = to.try_clone().map(std::fs::File::from).and_then(|mut pipe| pipe.write_all(&bytes));
    }

    fn read(report: &[u8]) -> Option<Self> {
        let (step, errno) = report.split_first()?;
        let step = STEPS.get(usize::from(*step)).copied().unwrap_or(FailedStep::Descriptors);
        let errno = errno.try_into().map(i32::from_ne_bytes).unwrap_or(libc::EIO);
        Some(Self { step, errno })
    }

    fn explain(self, command: String) -> StartError {
        let source = io::Error::from_raw_os_error(self.errno);
        let step = match self.step {
            FailedStep::NotFound => return StartError::NotFound(command),
            FailedStep::Exec => return StartError::NotExecutable { command, source },
            FailedStep::Interpreter => return StartError::NoInterpreter { command },
            FailedStep::Session => "making a process group",
            FailedStep::Terminal => "taking the terminal",
            FailedStep::Descriptors => "arranging the descriptors",
            FailedStep::Directory => "entering the working directory",
            FailedStep::Signals => "unblocking the signals",
            FailedStep::User(step) => step.text(),
        };
        StartError::Setup { command, step, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("sh", "/usr/bin:/bin" => vec!["/usr/bin/sh", "/bin/sh"]; "in order")]
    #[test_case("./sh", "/usr/bin" => vec!["./sh"]; "a path is not looked up")]
    #[test_case("sh", ":.:bin:/bin:" => vec!["/bin/sh"]; "never the working directory")]
    #[test_case("", "/bin" => Vec::<String>::new(); "nothing")]
    fn lookup(command: &str, path: &str) -> Vec<String> {
        candidates(command, path)
    }

    #[test]
    fn every_failure_survives_the_pipe() {
        for step in STEPS {
            let (reader, writer) = unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
            Failure { step, errno: libc::EPERM }.report(&writer);
            drop(writer);
            let mut report = Vec::new();
            std::fs::File::from(reader).read_to_end(&mut report).unwrap();
            assert_eq!(Failure::read(&report), Some(Failure { step, errno: libc::EPERM }));
        }
        assert_eq!(Failure::read(b""), None, "an exec closes the pipe without a word");
    }
}
