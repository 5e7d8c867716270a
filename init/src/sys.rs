//! System calls that std and nix do not offer safely. The only file with `unsafe` in this crate.
#![expect(unsafe_code, reason = "PID 1 forks, takes inherited descriptors and empties capability sets")]

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
};

use libc::{c_int, c_ulong};
use moat_shared::plan::{Filter, Instruction};
use nix::{
    sys::{
        signal::{SigHandler, Signal},
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
    },
    unistd::Pid,
};

use crate::supervise::Ended;

/// Closes this process to everyone who is not root: no ptrace, no core file, and `/proc/<pid>/{mem,environ,fd}` shut.
///
/// An exec undoes it, so PID 1 and the relay call it first of all, before any secret is read.
///
/// # Errors
/// When the kernel refuses; nothing secret may be read then.
pub fn harden_process() -> io::Result<()> {
    nix::sys::prctl::set_dumpable(false)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)?;
    Ok(())
}

/// Lets this process have as many descriptors as it may: each stream of an agent takes one.
///
/// # Errors
/// When the kernel refuses.
pub fn allow_descriptors() -> io::Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// Takes over a descriptor that this process was started with.
pub(crate) fn take_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: fcntl takes integers and checks that the descriptor is open.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open (checked above) and nobody else in this process owns it: its number came by argument.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs `child` in a new process, which ends with the code that it returns.
///
/// Only for a process with one thread: the child may then do all that its parent may, allocate for one.
pub(crate) fn fork(child: impl FnOnce() -> u8) -> io::Result<Pid> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("this process has threads and cannot fork"));
    }
    // SAFETY: with one thread (checked above) no lock is held by anybody who is missing in the child.
    match check(unsafe { libc::fork() })? {
        0 => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(moat_shared::exit::SETUP);
            // SAFETY: ends this process without its parent's exit handlers; touches no memory.
            unsafe { libc::_exit(c_int::from(code)) }
        }
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// What waiting for children gave.
#[derive(Debug)]
pub(crate) enum Waited {
    Ended(Pid, Ended),
    Stopped(Pid, c_int),
    /// Children, but nothing new of them.
    Nothing,
    /// No children.
    NoChild,
}

/// Looks for a child (`None`: any) that ended or stopped; `wait`: until there is one.
pub(crate) fn wait(child: Option<Pid>, wait: bool) -> io::Result<Waited> {
    let mut status: c_int = 0;
    let flags = libc::WUNTRACED | if wait { 0 } else { libc::WNOHANG };
    // SAFETY: `status` outlives the call, which writes one integer to it.
    let pid = match check(unsafe { libc::waitpid(child.map_or(-1, Pid::as_raw), &raw mut status, flags) }) {
        Ok(0) => return Ok(Waited::Nothing),
        Ok(pid) => Pid::from_raw(pid),
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => return Ok(Waited::NoChild),
        Err(error) if error.raw_os_error() == Some(libc::EINTR) => return Ok(Waited::Nothing),
        Err(error) => return Err(error),
    };
    let byte = |number: c_int| u8::try_from(number & 0xff).unwrap_or_default();
    Ok(if libc::WIFEXITED(status) {
        Waited::Ended(pid, Ended::Code(byte(libc::WEXITSTATUS(status))))
    } else if libc::WIFSIGNALED(status) {
        Waited::Ended(pid, Ended::Signal(byte(libc::WTERMSIG(status))))
    } else if libc::WIFSTOPPED(status) {
        Waited::Stopped(pid, libc::WSTOPSIG(status))
    } else {
        Waited::Nothing
    })
}

/// Sends any signal, real-time ones included; nobody there is not an error.
pub(crate) fn kill(pid: Pid, signal: c_int) -> io::Result<()> {
    // SAFETY: integers only.
    match check(unsafe { libc::kill(pid.as_raw(), signal) }) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}

/// Every signal back to its default action, those included that the C library keeps for itself and would leave
/// ignored if somebody above us ignored them. The mask is not touched.
pub(crate) fn default_signal_actions() {
    // The kernel's `struct sigaction`, all zeroes: SIG_DFL, no flags, an empty mask.
    let default = [0u64; 4];
    for signal in 1..=64 as c_int {
        // SAFETY: the kernel reads at most 32 bytes, a mask of 8 bytes is what it has; the default action runs no
        // code of ours. SIGKILL and SIGSTOP are refused, rightly.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8usize,
            )
        };
    }
}

/// Puts system call filters on this process and all that it becomes (seccomp(2)); nothing takes them off again.
pub(crate) fn install(filters: &[Filter]) -> io::Result<()> {
    if filters.is_empty() {
        return Ok(());
    }
    nix::sys::prctl::set_no_new_privs()?;
    for Filter(program) in filters {
        let mut steps: Vec<libc::sock_filter> = program
            .iter()
            .map(|Instruction(code, jt, jf, k)| libc::sock_filter { code: *code, jt: *jt, jf: *jf, k: *k })
            .collect();
        let length = u16::try_from(steps.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let program = libc::sock_fprog { len: length, filter: steps.as_mut_ptr() };
        // SAFETY: the kernel reads the program, whose length is given, and keeps a copy.
        let outcome =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes `fd` appear as `number` across an exec.
pub(crate) fn place(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == number {
        // SAFETY: integers only; the borrow keeps the descriptor open.
        return check(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: integers only. Called between fork and exec, where what had that number is not used any more.
    check(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// Every descriptor from `first` on will be closed by an exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: integers only; marks descriptors, closes none now.
    let outcome = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the terminal `fd` the controlling terminal of this session leader.
pub(crate) fn take_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes an integer; the borrow keeps the descriptor open.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Sets a terminal's size.
pub(crate) fn set_size(fd: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    let window = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call; the borrow keeps the descriptor open.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const window) }).map(drop)
}

/// Gives the controlling terminal up, if it is one.
pub(crate) fn let_go_of_terminal(fd: BorrowedFd<'_>) {
    // SAFETY: the request takes no argument; the borrow keeps the descriptor open. Without one there is nothing to give up.
    let _none = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCNOTTY) };
}

/// Sets what a signal does.
pub(crate) fn act_on(signal: Signal, handler: SigHandler) -> io::Result<()> {
    // SAFETY: only SIG_IGN and SIG_DFL are used in this crate, which run no code of ours.
    unsafe { nix::sys::signal::signal(signal, handler) }?;
    Ok(())
}

/// Sends one message and descriptors with it.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(message)], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one message and the descriptors that came with it, without waiting.
pub(crate) fn receive(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut room = nix::cmsg_space!([RawFd; 3]);
    let mut slices = [IoSliceMut::new(into)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut room), flags)?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just made these descriptors for us.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::other("the message is too long"));
    }
    Ok((message.bytes, descriptors))
}

/// Takes every capability out of the bounding and the ambient set. Needs CAP_SETPCAP where there is something to take.
pub(crate) fn empty_bounding_set() -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })?;
    for capability in 0..=63 as c_ulong {
        // SAFETY: integers only.
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) } {
            // SAFETY: integers only.
            1 => check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }).map(drop)?,
            0 => {}
            // The kernel knows no more.
            _ => break,
        }
    }
    Ok(())
}

/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID`, `_IO(7, 0xb9)`.
const GET_LOCAL_CID: libc::Ioctl = 0x07b9;

/// This machine's CID, as `/dev/vsock` says it.
pub(crate) fn local_cid(device: &std::fs::File) -> io::Result<u32> {
    let mut cid: u32 = 0;
    // SAFETY: the request writes one u32, which outlives the call; the borrow keeps the descriptor open. Any other
    // device refuses a number that it does not know.
    check(unsafe { libc::ioctl(device.as_raw_fd(), GET_LOCAL_CID, &raw mut cid) })?;
    Ok(cid)
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

/// `_LINUX_CAPABILITY_VERSION_3`: two words per set.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Empties the effective, permitted and inheritable sets, and looks whether they are.
pub(crate) fn empty_capability_sets() -> io::Result<()> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut sets = [0u32; 6];
    // SAFETY: header and sets have the layout of version 3 (three words, twice) and outlive the call.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; the kernel writes six words.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    if sets == [0; 6] { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

fn check(outcome: c_int) -> io::Result<c_int> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}
