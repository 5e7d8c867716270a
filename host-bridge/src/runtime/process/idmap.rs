//! Showing root's files as the agent's, where root starts a sandbox for a workspace of its own.
//!
//! The agent's id outside is nobody's, so it could not write there. An id-mapped mount translates: uid 0 on disk is
//! the agent in the mount, and what the agent makes is root's on disk. Set-id files cannot be made (see
//! [`crate::runtime::seccomp`]). Everything outside of such mounts stays closed to the agent.

use std::{
    fs,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
};

use nix::{sched::CloneFlags, sys::wait::waitpid, unistd::Pid};

use super::{
    ids::{Line, Maps, Users},
    spec::{BuildError, Doing},
    sys,
};

/// How the mounts of this sandbox show their owners.
pub(super) struct Disguise(Option<OwnedFd>);

impl Disguise {
    /// Nothing to do unless root started this.
    pub(super) fn new(users: &Users) -> Result<Self, BuildError> {
        let Users::Root { disguise: true, .. } = users else { return Ok(Self(None)) };
        let agent = users.as_built(Users::agent());
        // Everybody else stays who they are: a file with an owner or group that has no place in the map can't be
        // written at all. The agent's own id lies above.
        let (others, count) = (1, super::ids::HIGH_FIRST - 1);
        let map = |agent| [(0, agent, 1), (others, others, count)];
        namespace(&map(agent.uid), &map(agent.gid))
            .map(|fd| Self(Some(fd)))
            .doing(|| "making the map of the workspace's owner".to_owned())
    }

    /// Adds flags to a tree, and disguises it if root owns it.
    pub(super) fn restrict(
        &self,
        tree: &OwnedFd,
        source: &Path,
        meta: &fs::Metadata,
        flags: u64,
    ) -> Result<(), BuildError> {
        let map = self.0.as_ref().filter(|_| meta.uid() == 0);
        sys::restrict_tree(tree, flags, map).map_err(|error| {
            let failed = BuildError::new(format!("mounting {}", source.display()));
            match (map, error.raw_os_error()) {
                (Some(_), Some(libc::EINVAL | libc::EPERM | libc::EOPNOTSUPP)) => BuildError::new(format!(
                    "{} belongs to root, and its file system cannot show it as the agent's",
                    source.display()
                ))
                .with_hint(format!(
                    "give it to an ordinary user: chown -R <user> {} (or start moat as that user)",
                    source.display()
                )),
                _ => failed.with_source(error),
            }
        })
    }
}

/// A user namespace with this map, and nobody in it.
fn namespace(uids: &[(u32, u32, u32)], gids: &[(u32, u32, u32)]) -> io::Result<OwnedFd> {
    let (mut until, held) = io::pipe()?;
    let Some(child) = sys::fork(CloneFlags::CLONE_NEWUSER)? else {
        drop(held);
        let mut nothing = [0];
        let _until_the_other_end_closes = until.read(&mut nothing);
        sys::exit_now(0);
    };
    let made = write_maps("/proc", child, uids, gids)
        .and_then(|()| fs::File::open(format!("/proc/{child}/ns/user")).map(OwnedFd::from));
    drop(held);
    waitpid(child, None)?;
    made
}

/// Gives the namespace of process `pid` its maps, each line `(inside, outside, count)`.
fn write_maps(proc: &str, pid: Pid, uids: &[(u32, u32, u32)], gids: &[(u32, u32, u32)]) -> io::Result<()> {
    for (file, lines) in [("uid_map", uids), ("gid_map", gids)] {
        let text: String =
            lines.iter().map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect();
        // One write: the kernel takes a map as a whole.
        fs::OpenOptions::new()
            .write(true)
            .open(format!("{proc}/{pid}/{file}"))?
            .write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Gives the namespace of process `pid` the sandbox's maps.
pub(super) fn apply(proc: &str, pid: Pid, maps: &Maps) -> io::Result<()> {
    let lines = |lines: &[Line]| lines.iter().map(|l| (l.inside, l.outside, 1)).collect::<Vec<_>>();
    write_maps(proc, pid, &lines(&maps.uids), &lines(&maps.gids))
}
