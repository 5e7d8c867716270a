//! The descriptors that PID 1 leaves to the relay: the crate's only unsafe code.

#![expect(unsafe_code, reason = "std cannot take over an inherited descriptor without it")]

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

/// Takes over an inherited descriptor, once, before anything else in this process has opened one.
///
/// # Errors
/// When there is no such descriptor.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD and F_SETFD take integers and touch no memory of ours. CLOEXEC, because it is ours alone now.
    let known = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    if known == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and by the contract of relay mode it was left to us and nobody else holds it:
    // the caller takes each number once, at the start.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
