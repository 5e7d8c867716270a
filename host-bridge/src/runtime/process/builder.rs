//! `moat __sandbox`: builds the sandbox from outside, then watches its PID 1. One thread, no runtime: it may fork.
//!
//! ```text
//! moat run ──spawns──► builder ──forks into new namespaces──► PID 1 (see `inside`)
//!     │ spec               │ file system, maps ── go ─────────►│ exec moat-sidecar
//!     ◄──── report, descriptors of stdio or terminal ──────────┤
//!     ├── startup, when the run is registered ────────────────►│ what PID 1 does
//!     └── alive ──────────►│ signals, exit code ◄─────────────►│
//! ```
//!
//! `moat run` registers the run meanwhile: PID 1 is the sidecar early, and waits for its startup.
//!
//! It dies with its holder, by signal and by the end of `alive`, and PID 1 dies with it.

use std::{
    fs,
    io::{self, Write},
    os::fd::{AsFd, OwnedFd, RawFd},
    path::Path,
    process::Command,
};

use moat_shared::{exit, limits};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid, setgroups, setsid},
};

use super::{
    idmap,
    ids::{Line, Maps, Users},
    inside::{self, Inside},
    network::Pasta,
    spec::{BuildError, Doing, Spec},
    sys, tree,
};

/// The descriptors that `moat run` hands over, by number.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Descriptors {
    /// The [`Spec`], to be read
    #[arg(long)]
    spec_fd: RawFd,
    /// What PID 1 is told, in the end; handed on unread
    #[arg(long)]
    startup_fd: RawFd,
    /// Where reports go
    #[arg(long)]
    status_fd: RawFd,
    /// Ends when the holder does
    #[arg(long)]
    alive_fd: RawFd,
}

/// Builds, starts, waits. The exit code is PID 1's.
pub(crate) fn main(descriptors: Descriptors) -> u8 {
    // Without the socket there is nobody to tell.
    let Ok(status) = sys::inherited(descriptors.status_fd) else { return exit::SETUP };
    match start(descriptors, &status) {
        Ok(running) => {
            drop(status);
            running.watch().unwrap_or(exit::SETUP)
        }
        Err(error) => {
            let _nobody_listens = error.report().send(&status, &[]);
            exit::SETUP
        }
    }
}

fn start(descriptors: Descriptors, status: &OwnedFd) -> Result<Running, BuildError> {
    let inherit = |number| sys::inherited(number).doing(|| "taking over descriptors".to_owned());
    let (alive, startup) = (inherit(descriptors.alive_fd)?, inherit(descriptors.startup_fd)?);
    let spec = read_spec(inherit(descriptors.spec_fd)?)?;
    sys::close_on_exec_from_3().doing(|| "closing descriptors".to_owned())?;
    // No terminal of the user's may signal this process, and it ends when `moat run` does.
    setsid().doing(|| "starting a session".to_owned())?;
    die_with_parent(&alive)?;
    let (mask, signals) = block_signals()?;
    // While the host's root is the root, and this is the user who will own the sandbox's user namespace.
    let mut pasta = spec.pasta.as_deref().map(Pasta::fork).transpose()?;

    let sidecar = inside::sidecar()?;
    become_builder(&spec.users)?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|error| refused(error, "a mount namespace"))?;
    tree::build(&spec)?;

    let (go, gone) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)
        .doing(|| "making a socket pair".to_owned())?;
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    let Some(child) = sys::fork(namespaces).map_err(|error| refused(error, "the sandbox's namespaces"))?
    else {
        drop((go, alive, signals));
        // The builder's to end. Its descriptor is closed by exec.
        std::mem::forget(pasta);
        let inside = Inside { spec, status, startup, sidecar, go: gone };
        inside.become_pid_1()
    };
    drop((gone, startup, sidecar));
    let mut running = Running { child, alive, signals, go: fs::File::from(go), _mask: mask, pasta: None };
    let proc = format!("{}/proc", tree::OLD);
    idmap::apply(&proc, child, &spec.users.inner())
        .doing(|| "mapping the sandbox's users".to_owned())
        .and_then(|()| pasta.as_mut().map_or(Ok(()), |pasta| pasta.connect(child, Path::new(&proc))))
        .and_then(|()| running.go.write_all(b"!").doing(|| "starting the sandbox".to_owned()))
        .inspect_err(|_| running.kill())?;
    running.pasta = pasta;
    Ok(running)
}

fn read_spec(fd: OwnedFd) -> Result<Spec, BuildError> {
    let doing = || "reading what to build".to_owned();
    let mut file = fs::File::from(fd);
    let length = file.metadata().doing(doing)?.len();
    if length > limits::PLAN as u64 {
        return Err(BuildError::new("what to build is too long"));
    }
    let mut text = Vec::new();
    io::Read::read_to_end(&mut file, &mut text).doing(doing)?;
    serde_json::from_slice(&text).map_err(io::Error::from).doing(doing)
}

/// SIGKILL when the parent dies. It may have died before: then `alive` has ended.
pub(super) fn die_with_parent(alive: &OwnedFd) -> Result<(), BuildError> {
    prctl::set_pdeathsig(Signal::SIGKILL).doing(|| "tying the sandbox to its holder".to_owned())?;
    if ended(alive) { Err(BuildError::new("the holder is gone")) } else { Ok(()) }
}

/// Is the other end of a pipe or socket closed?
fn ended(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::empty())];
    let hung_up = PollFlags::POLLHUP | PollFlags::POLLERR;
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
        && fds[0].revents().is_some_and(|e| e.intersects(hung_up))
}

/// Signals arrive in order on a descriptor, from before there is a child on.
fn block_signals() -> Result<(SigSet, SignalFd), BuildError> {
    let mut mask = SigSet::empty();
    for signal in FORWARDED.into_iter().chain([Signal::SIGCHLD]) {
        mask.add(signal);
    }
    let doing = || "setting up signals".to_owned();
    mask.thread_block().doing(doing)?;
    Ok((mask, SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).doing(doing)?))
}

const FORWARDED: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Gets the rights to build: root has them, a user gets them in a user namespace of its own.
fn become_builder(users: &Users) -> Result<(), BuildError> {
    let drop_groups = || setgroups(&[]).doing(|| "leaving the user's groups".to_owned());
    match users {
        Users::Root { .. } => drop_groups(),
        Users::Range { maps } => {
            map_with_helpers(maps)?;
            drop_groups()
        }
        Users::Single { uid, gid } => {
            unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| refused(error, "a user namespace"))?;
            // A user may map no groups while it could still drop one that forbids it something.
            let line = |outside: u32| vec![Line { inside: super::ids::AGENT, outside }];
            fs::write("/proc/self/setgroups", "deny")
                .and_then(|()| idmap::apply("/proc", getpid(), &Maps { uids: line(*uid), gids: line(*gid) }))
                .doing(|| "mapping the user".to_owned())
        }
    }
}

/// newuidmap and newgidmap have to be called from outside of the new namespace.
fn map_with_helpers(maps: &Maps) -> Result<(), BuildError> {
    let doing = || "mapping the user's range".to_owned();
    let target = getpid();
    let (mut ready, entered) = io::pipe().doing(doing)?;
    let Some(helper) = sys::fork(CloneFlags::empty()).doing(doing)? else {
        drop(entered);
        let mut byte = [0];
        let there = io::Read::read_exact(&mut ready, &mut byte).is_ok();
        let mapped =
            there && map_range("newuidmap", target, &maps.uids) && map_range("newgidmap", target, &maps.gids);
        sys::exit_now(u8::from(!mapped));
    };
    drop(ready);
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| refused(error, "a user namespace"))?;
    let mut entered = entered;
    entered.write_all(b"!").doing(doing)?;
    match waitpid(helper, None).doing(doing)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        _ => Err(BuildError::new("newuidmap or newgidmap refused to map the user's range").with_hint(
            "check this user's lines in /etc/subuid and /etc/subgid, and that both programs are set-uid root",
        )),
    }
}

fn map_range(program: &str, target: Pid, lines: &[Line]) -> bool {
    let numbers = lines.iter().flat_map(|l| [l.inside, l.outside, 1]).map(|number| number.to_string());
    let status = Command::new(program).arg(target.to_string()).args(numbers).status();
    status.is_ok_and(|status| status.success())
}

/// Namespaces are refused for one of a few reasons, each with its remedy.
fn refused(error: impl Into<io::Error>, what: &str) -> BuildError {
    let error = error.into();
    let set = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let hint = if set("/proc/sys/user/max_user_namespaces") == Some(0) {
        Some("user namespaces are switched off: sysctl -w user.max_user_namespaces=15000")
    } else if set("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        Some("user namespaces are for root only here: sysctl -w kernel.unprivileged_userns_clone=1")
    } else if set("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        Some(
            "AppArmor restricts user namespaces: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give moat a profile that allows userns",
        )
    } else if error.raw_os_error() == Some(libc::EPERM) {
        Some(
            "this process may not make namespaces; inside a container, it must be started with the right to (or use --runtime docker on its host)",
        )
    } else {
        None
    };
    let failed = BuildError::new(format!("the kernel refuses {what}")).with_source(error);
    match hint {
        Some(hint) => failed.with_hint(hint),
        None => failed,
    }
}

/// PID 1, watched.
struct Running {
    child: Pid,
    alive: OwnedFd,
    signals: SignalFd,
    /// Its end tells PID 1, until it is the sidecar, that the builder is gone.
    go: fs::File,
    _mask: SigSet,
    /// Takes the network away with the builder.
    pasta: Option<Pasta>,
}

impl Running {
    fn kill(&self) {
        let _already_gone = kill(self.child, Signal::SIGKILL);
    }

    /// Hands signals on until PID 1 is gone.
    fn watch(self) -> io::Result<u8> {
        let mut held = true;
        loop {
            while let Some(info) = self.signals.read_signal()? {
                let number = i32::try_from(info.ssi_signo).map_err(io::Error::other)?;
                let signal = Signal::try_from(number)?;
                if signal == Signal::SIGCHLD {
                    if let Some(code) = self.exited()? {
                        return Ok(code);
                    }
                } else {
                    let _already_gone = kill(self.child, signal);
                }
            }
            let holder = if held { PollFlags::POLLIN } else { PollFlags::empty() };
            let mut fds = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.alive.as_fd(), holder),
            ];
            let fds = if held { &mut fds[..] } else { &mut fds[..1] };
            match poll(fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if held && ended(&self.alive) {
                held = false;
                self.kill();
            }
        }
    }

    fn exited(&self) -> io::Result<Option<u8>> {
        Ok(match waitpid(self.child, Some(WaitPidFlag::WNOHANG))? {
            WaitStatus::Exited(_, code) => Some(u8::try_from(code).unwrap_or(exit::FAILURE)),
            WaitStatus::Signaled(_, signal, _) => {
                Some(exit::from_signal(u8::try_from(signal as i32).unwrap_or_default()))
            }
            _ => None,
        })
    }
}
