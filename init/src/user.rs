//! From what PID 1 may do to what the agent (or the relay) may do, in the child that will become it.
//!
//! Where the sandbox has one uid only, nothing changes hands; capabilities, no-new-privs and the closed memory of
//! PID 1 and relay are then what separates them.

use std::io;

use moat_shared::plan::Ids;
use nix::{
    errno::Errno,
    unistd::{self, Gid, Uid},
};

use crate::sys;

/// A step of becoming somebody else, for the message when it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    BoundingSet,
    Groups,
    Group,
    User,
    Regained,
    Capabilities,
    NoNewPrivileges,
}

impl Step {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::BoundingSet => "giving up the bounding set",
            Self::Groups => "leaving the groups",
            Self::Group => "taking the group",
            Self::User => "taking the user",
            Self::Regained => "making sure that the user cannot be changed back",
            Self::Capabilities => "giving up the capabilities",
            Self::NoNewPrivileges => "refusing new privileges",
        }
    }
}

/// Gives up everything but `ids`, for good. Irreversible also when it fails half-way: the process must end then.
pub(crate) fn become_user(ids: Ids) -> Result<(), (Step, io::Error)> {
    let at = |step: Step| move |error: io::Error| (step, error);
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));

    sys::empty_bounding_set().map_err(at(Step::BoundingSet))?;
    leave_groups(uid, gid).map_err(at(Step::Groups))?;
    unistd::setresgid(gid, gid, gid).map_err(|error| (Step::Group, error.into()))?;
    unistd::setresuid(uid, uid, uid).map_err(|error| (Step::User, error.into()))?;
    sys::empty_capability_sets().map_err(at(Step::Capabilities))?;
    nix::sys::prctl::set_no_new_privs().map_err(|error| (Step::NoNewPrivileges, error.into()))?;
    verify(uid, gid).map_err(at(Step::Regained))
}

/// An unprivileged user namespace may forbid setgroups; the groups it then has give access to nothing that the
/// invoking user has not. In a container without a capability nobody becomes somebody else: the groups that PID 1 has
/// are its user's own.
fn leave_groups(uid: Uid, gid: Gid) -> io::Result<()> {
    let stays = unistd::geteuid() == uid && unistd::getegid() == gid;
    match unistd::setgroups(&[]) {
        Err(Errno::EPERM) if stays || unistd::getgroups()?.is_empty() => Ok(()),
        Err(Errno::EPERM) if std::fs::read("/proc/self/setgroups")?.starts_with(b"deny") => Ok(()),
        outcome => outcome.map_err(io::Error::from),
    }
}

/// The kernel's word that it is done, and a try to undo it.
fn verify(uid: Uid, gid: Gid) -> io::Result<()> {
    let users = unistd::getresuid()?;
    let groups = unistd::getresgid()?;
    let mut held = [users.real, users.effective, users.saved].iter().all(|held| *held == uid)
        && [groups.real, groups.effective, groups.saved].iter().all(|held| *held == gid);
    if !uid.is_root() {
        held &= unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_err();
    }
    if gid.as_raw() != 0 {
        held &= unistd::setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0)).is_err();
    }
    if held { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}
