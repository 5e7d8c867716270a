//! From the fork into the sandbox's namespaces to the sidecar as its PID 1.
//!
//! ```text
//! wait for the maps ─► be init's user ─► proc, devpts ─► move in ─► stdio ─► give up rights ─► exec
//! ```
//!
//! Whatever fails is reported and ends the sandbox before anything of the user's has run.

use std::{
    convert::Infallible,
    ffi::CString,
    fs,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use caps::{CapSet, Capability, CapsHashSet};
use moat_shared::exit;
use nix::{
    fcntl::{AtFlags, FcntlArg, FdFlag, OFlag, SealFlag, fcntl, open},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        memfd::{MFdFlags, memfd_create},
        prctl,
        signal::SigSet,
        socket::{AddressFamily, SockFlag, SockType, socket},
        stat::{Mode, umask},
    },
    unistd::{
        Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execveat, pipe2, pivot_root, setgroups,
        sethostname, setresgid, setresuid, setsid,
    },
};

use super::{
    builder::die_with_parent,
    ids::Users,
    spec::{BuildError, Doing, Report, Spec},
    sys::{self, Size},
    tree,
};
use crate::runtime::{embed, seccomp};

/// What PID 1 is started with.
pub(super) struct Inside<'a> {
    pub(super) spec: Spec,
    pub(super) status: &'a OwnedFd,
    pub(super) startup: OwnedFd,
    pub(super) sidecar: OwnedFd,
    /// A byte when the maps are there; its end when the builder is gone.
    pub(super) go: OwnedFd,
}

/// What PID 1 needs: to be the agent and the relay, to give them their files, and to end them.
const KEPT: [Capability; 7] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
];

/// The embedded sidecar as a file that nobody can change.
pub(super) fn sidecar() -> Result<OwnedFd, BuildError> {
    let bytes = embed::sidecar().map_err(|error| BuildError::new(error.to_string()))?.bytes;
    let doing = || "unpacking the sidecar".to_owned();
    // From Linux 6.3 on a memfd may have to say that it is to be executed; before, it must not.
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let executable = MFdFlags::from_bits_retain(libc::MFD_EXEC);
    let fd = memfd_create(c"moat-sidecar", flags | executable)
        .or_else(|_| memfd_create(c"moat-sidecar", flags))
        .doing(doing)?;
    let mut file = fs::File::from(fd);
    file.write_all(bytes).doing(doing)?;
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).doing(doing)?;
    Ok(file.into())
}

impl Inside<'_> {
    /// Does not return: this process is the sidecar afterwards, or gone.
    pub(super) fn become_pid_1(self) -> ! {
        let status = self.status;
        let Err(error) = self.prepare_and_exec();
        let _nobody_listens = error.report().send(status, &[]);
        sys::exit_now(exit::SETUP)
    }

    fn prepare_and_exec(self) -> Result<Infallible, BuildError> {
        die_with_parent(&self.go)?;
        let mut go = fs::File::from(self.go.try_clone().doing(|| "waiting for the maps".to_owned())?);
        go.read_exact(&mut [0]).doing(|| "waiting for the maps".to_owned())?;
        become_init(&self.spec.users)?;
        // Changing the user has cleared it.
        die_with_parent(&self.go)?;
        setsid().doing(|| "starting a session".to_owned())?;
        sethostname(&self.spec.hostname).doing(|| "setting the host name".to_owned())?;
        loopback()?;
        mounts()?;
        move_in()?;
        match self.spec.terminal {
            Some(size) => terminal(self.status, size)?,
            None => pipes(self.status)?,
        }
        give_up_rights(&self.spec.users)?;
        self.exec()
    }

    fn exec(self) -> Result<Infallible, BuildError> {
        let doing = || "starting the sidecar".to_owned();
        umask(Mode::from_bits_truncate(0o022));
        sys::default_signals();
        SigSet::empty().thread_set_mask().doing(doing)?;
        fcntl(&self.startup, FcntlArg::F_SETFD(FdFlag::empty())).doing(doing)?;
        let number =
            CString::new(self.startup.as_raw_fd().to_string()).map_err(io::Error::from).doing(doing)?;
        let arguments = [c"moat-sidecar", c"init", c"--startup-fd", number.as_c_str()];
        let environment: [&std::ffi::CStr; 0] = [];
        execveat(&self.sidecar, c"", &arguments, &environment, AtFlags::AT_EMPTY_PATH).doing(doing)
    }
}

/// Takes the ids of the sandbox's PID 1. It has every right in this user namespace, and none outside of it.
fn become_init(users: &Users) -> Result<(), BuildError> {
    let ids = users.init();
    let doing = || "becoming the sandbox's init".to_owned();
    if !matches!(users, Users::Single { .. }) {
        setgroups(&[]).doing(doing)?;
    }
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    setresgid(gid, gid, gid).doing(doing)?;
    setresuid(uid, uid, uid).doing(doing)
}

fn loopback() -> Result<(), BuildError> {
    let doing = || "taking the loopback interface up".to_owned();
    let socket =
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).doing(doing)?;
    sys::loopback_up(socket.as_fd()).doing(doing)
}

/// The file systems that belong to the new namespaces.
fn mounts() -> Result<(), BuildError> {
    let place = |path: &str| format!("{}{path}", tree::NEW);
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let proc = place("/proc");
    mount(Some("proc"), &*proc, Some("proc"), quiet | MsFlags::MS_NODEV, None::<&str>).map_err(|error| {
        BuildError::new("mounting /proc").with_source(error).with_hint(
            "where parts of /proc are hidden, as in most containers, the kernel allows no new one: \
             start moat outside of the container",
        )
    })?;
    // The agent gets no namespaces of its own: in one it would have rights that it does not have here.
    fs::write(format!("{proc}/sys/user/max_user_namespaces"), "0")
        .doing(|| "forbidding user namespaces".to_owned())?;
    let options = "newinstance,ptmxmode=0666,mode=0620";
    mount(Some("devpts"), &*place("/dev/pts"), Some("devpts"), quiet, Some(options))
        .doing(|| "mounting /dev/pts".to_owned())
}

/// Makes the new root the root, and lets go of everything else.
fn move_in() -> Result<(), BuildError> {
    let doing = || "moving into the new root".to_owned();
    // What was copied from the builder is locked in its place; a mount of our own may become the root.
    let itself = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(tree::NEW), tree::NEW, None::<&str>, itself, None::<&str>).doing(doing)?;
    chdir(tree::NEW).doing(doing)?;
    pivot_root(".", ".").doing(doing)?;
    umount2(".", MntFlags::MNT_DETACH).doing(doing)?;
    chdir("/").doing(doing)
}

/// A terminal of the sandbox's own, which becomes the controlling one; its other end goes to the holder.
pub(super) fn terminal(status: &OwnedFd, size: Size) -> Result<(), BuildError> {
    let doing = || "making a terminal".to_owned();
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = open(Path::new("/dev/pts/ptmx"), flags, Mode::empty()).doing(doing)?;
    let slave = sys::open_peer(master.as_fd(), size).doing(doing)?;
    sys::take_terminal(slave.as_fd()).doing(doing)?;
    stdio(&slave, &slave, &slave).doing(doing)?;
    Report::Io.send(status, &[master.as_raw_fd()]).doing(doing)
}

/// Three pipes that belong to the sandbox's init, so that the agent may open /dev/stdout; their ends go to the holder.
pub(super) fn pipes(status: &OwnedFd) -> Result<(), BuildError> {
    let doing = || "making pipes".to_owned();
    let pipe = || pipe2(OFlag::O_CLOEXEC).doing(doing);
    let ((stdin, to), (from_out, stdout), (from_err, stderr)) = (pipe()?, pipe()?, pipe()?);
    stdio(&stdin, &stdout, &stderr).doing(doing)?;
    Report::Io.send(status, &[to.as_raw_fd(), from_out.as_raw_fd(), from_err.as_raw_fd()]).doing(doing)
}

fn stdio(stdin: &OwnedFd, stdout: &OwnedFd, stderr: &OwnedFd) -> nix::Result<()> {
    dup2_stdin(stdin)?;
    dup2_stdout(stdout)?;
    dup2_stderr(stderr)
}

/// Only what PID 1 needs stays in reach, and nothing can be gained by executing a file.
fn give_up_rights(users: &Users) -> Result<(), BuildError> {
    keep_rights(&match users {
        Users::Single { .. } => CapsHashSet::new(),
        Users::Root { .. } | Users::Range { .. } => KEPT.into_iter().collect(),
    })
}

/// Gives up every other capability, and what the filters take.
pub(super) fn keep_rights(kept: &CapsHashSet) -> Result<(), BuildError> {
    let doing = || "giving up rights".to_owned();
    let caps = |error: caps::errors::CapsError| io::Error::other(error.to_string());
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").doing(doing)?;
    let last: u8 = last.trim().parse().map_err(io::Error::other).doing(doing)?;
    for capability in caps::all().into_iter().filter(|c| c.index() <= last && !kept.contains(c)) {
        caps::drop(None, CapSet::Bounding, capability).map_err(caps).doing(doing)?;
    }
    caps::clear(None, CapSet::Ambient).map_err(caps).doing(doing)?;
    caps::clear(None, CapSet::Inheritable).map_err(caps).doing(doing)?;
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, kept).map_err(caps).doing(doing)?;
    }
    prctl::set_no_new_privs().doing(doing)?;
    seccomp::install().map_err(|error| BuildError::new(crate::cli::with_causes(&error)))
}
