//! A copy of this binary that may be executed but not read: a process made from it is closed to others from its
//! first instruction on, before it can close itself.
//!
//! Needed where relay and agent have one uid and the agent is running: between an exec and the first call of
//! [`crate::harden_process`] the agent could otherwise take hold of the relay's memory. (The kernel makes a process
//! whose image its user cannot read "not dumpable", see `would_dump` in its `fs/exec.c`.)

use std::{
    fs::{File, Permissions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
};

use nix::{
    errno::Errno,
    sys::memfd::{MFdFlags, memfd_create},
};

/// `MFD_EXEC`: says that the file is there to be executed, where the kernel wants that said (since 6.3).
const MFD_EXEC: u32 = 0x10;

/// The copy, in memory, and the path under which an exec finds it.
pub(crate) fn make() -> io::Result<(OwnedFd, String)> {
    let flags = MFdFlags::MFD_CLOEXEC;
    let name = c"moat-sidecar";
    let memory = match memfd_create(name, flags | MFdFlags::from_bits_retain(MFD_EXEC)) {
        Err(Errno::EINVAL) => memfd_create(name, flags)?,
        made => made?,
    };
    let mut copy = File::from(memory);
    io::copy(&mut File::open("/proc/self/exe")?, &mut copy)?;
    copy.set_permissions(Permissions::from_mode(0o111))?;
    let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok((copy.into(), path))
}
