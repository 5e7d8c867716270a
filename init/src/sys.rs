//! System calls that std and nix do not offer safely. The only file with `unsafe` in this crate.
#![expect(unsafe_code, reason = "PID 1 forks, takes inherited descriptors and empties capability sets")]

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

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

/// Takes over a descriptor that this process was started with.
pub(crate) fn take_fd(fd: RawFd) -> io::Result<OwnedFd> {
    nix::fcntl::fcntl(
        // SAFETY: the borrow lives for this call, and fcntl checks that the number is open.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(fd.max(0)) },
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC),
    )?;
    if fd <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is open (checked above) and nobody else in this process owns it: its number came by argument.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
