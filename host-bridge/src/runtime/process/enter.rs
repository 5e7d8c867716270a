//! `moat __enter`: from outside into a sandbox that runs, to ask its PID 1 for a further command. One thread: it forks.
//!
//! ```text
//! moat exec ──spawns──► __enter ──joins the namespaces──forks──► PID 1's ids ─► stdio ─► no rights ─► exec the sidecar's
//!     ◄── report, descriptors ──────────────────────────────────┘                                     asking half
//! ```
//!
//! Nothing of the agent's runs in here, and what is executed comes from this binary. The command itself is a child of
//! PID 1, never of this.

use std::{
    convert::Infallible,
    ffi::CString,
    fs, io,
    os::fd::{AsFd, OwnedFd, RawFd},
};

use caps::CapsHashSet;
use moat_shared::exit;
use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sched::{CloneFlags, setns},
    sys::{
        prctl,
        stat::{Mode, umask},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid, execveat, setgroups, setresgid, setresuid, setsid},
};

use super::{
    builder::die_with_parent,
    inside,
    spec::{BuildError, Doing},
    sys::{self, Size},
};

/// What `moat exec` hands over.
#[derive(Debug, clap::Args)]
pub(crate) struct Entering {
    /// Where reports go
    #[arg(long)]
    status_fd: RawFd,
    /// Ends when `moat exec` does
    #[arg(long)]
    alive_fd: RawFd,
    /// The sandbox's builder, whose child PID 1 is
    #[arg(long)]
    builder: i32,
    /// Of a terminal; else three pipes
    #[arg(long, requires = "columns")]
    rows: Option<u16>,
    #[arg(long, requires = "rows")]
    columns: Option<u16>,
    /// The command
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Joins, asks, waits. The exit code is the command's.
pub(crate) fn main(entering: &Entering) -> u8 {
    // Without the socket there is nobody to tell.
    let Ok(status) = sys::inherited(entering.status_fd) else { return exit::SETUP };
    match join(entering, &status) {
        Ok(asker) => {
            drop(status);
            ended(asker)
        }
        Err(error) => {
            let _nobody_listens = error.report().send(&status, &[]);
            exit::SETUP
        }
    }
}

fn join(entering: &Entering, status: &OwnedFd) -> Result<Pid, BuildError> {
    let alive = sys::inherited(entering.alive_fd).doing(|| "taking over descriptors".to_owned())?;
    sys::close_on_exec_from_3().doing(|| "closing descriptors".to_owned())?;
    setsid().doing(|| "starting a session".to_owned())?;
    prctl::set_dumpable(false).doing(|| "closing this process to others".to_owned())?;
    die_with_parent(&alive)?;
    let sidecar = inside::sidecar()?;
    let first = first_process(entering.builder)?;
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET;
    setns(&first, namespaces).doing(|| "joining the sandbox's namespaces".to_owned())?;
    let child = sys::fork(CloneFlags::empty()).doing(|| "making a process".to_owned())?;
    if let Some(asker) = child {
        return Ok(asker);
    }
    let Err(error) = become_asker(entering, &alive, status, &sidecar);
    let _nobody_listens = error.report().send(status, &[]);
    sys::exit_now(exit::SETUP)
}

/// PID 1, held so that its number cannot become somebody else's.
fn first_process(builder: i32) -> Result<OwnedFd, BuildError> {
    let gone = || BuildError::new("the sandbox has ended");
    let children = fs::read_to_string(format!("/proc/{builder}/task/{builder}/children")).unwrap_or_default();
    // The builder may have other children (what connects the sandbox to a network), none of them anybody's first process.
    let is_first = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        let numbers: Vec<&str> = numbers.split_whitespace().collect();
        numbers.len() > 1 && numbers.last() == Some(&"1")
    };
    let pid =
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_first).ok_or_else(gone)?;
    let held = sys::pidfd(Pid::from_raw(pid)).doing(|| "holding the sandbox's first process".to_owned())?;
    // Only now that it is held: is it still the builder's child?
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|_| gone())?;
    let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok());
    if parent == Some(builder) { Ok(held) } else { Err(gone()) }
}

fn become_asker(
    entering: &Entering,
    alive: &OwnedFd,
    status: &OwnedFd,
    sidecar: &OwnedFd,
) -> Result<Infallible, BuildError> {
    become_first()?;
    prctl::set_dumpable(false).doing(|| "closing this process to others".to_owned())?;
    // A fork and another user have cleared it.
    die_with_parent(alive)?;
    setsid().doing(|| "starting a session".to_owned())?;
    match entering.rows.zip(entering.columns) {
        Some((rows, columns)) => inside::terminal(status, Size { rows, columns })?,
        None => inside::pipes(status)?,
    }
    inside::keep_rights(&CapsHashSet::new())?;
    umask(Mode::from_bits_truncate(0o022));
    sys::default_signals();
    let doing = || "starting the sidecar".to_owned();
    let words = ["moat-sidecar", "exec", "--"].into_iter().chain(entering.command.iter().map(String::as_str));
    let words: Vec<CString> =
        words.map(CString::new).collect::<Result<_, _>>().map_err(io::Error::from).doing(doing)?;
    let environment: [&std::ffi::CStr; 0] = [];
    execveat(sidecar.as_fd(), c"", &words, &environment, AtFlags::AT_EMPTY_PATH).doing(doing)
}

/// Takes the ids of PID 1, which are not the agent's where there are more than one.
fn become_first() -> Result<(), BuildError> {
    let doing = || "becoming the sandbox's first user".to_owned();
    let status = fs::read_to_string("/proc/1/status").doing(doing)?;
    let id = |name: &str| -> Option<u32> {
        status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    let (Some(uid), Some(gid)) = (id("Uid:"), id("Gid:")) else { return Err(BuildError::new(doing())) };
    match setgroups(&[]) {
        // Where the user's range is one id, the kernel forbids it.
        Ok(()) | Err(Errno::EPERM) => {}
        Err(error) => return Err(error).doing(doing),
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setresgid(gid, gid, gid).doing(doing)?;
    setresuid(uid, uid, uid).doing(doing)
}

fn ended(asker: Pid) -> u8 {
    loop {
        match waitpid(asker, None) {
            Err(Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, code)) => return u8::try_from(code).unwrap_or(exit::FAILURE),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return exit::from_signal(u8::try_from(signal as i32).unwrap_or_default());
            }
            Ok(_) => {}
            Err(_) => return exit::SETUP,
        }
    }
}
