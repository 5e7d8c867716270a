//! The unix socket that the bridge dials: in a directory that PID 1 makes and keeps to itself, before anybody else runs.
//!
//! Who carries the bridge's connection into the sandbox is root there (a virtual machine's own first process). Nobody else
//! comes past the directory, so that the agent cannot put a socket of its own in this one's place.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::Path,
};

/// Listens there. A socket of a start before this one goes.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => keep_to_us(directory)?,
        made => made?,
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// One that was there: only if it is ours, and no way to somewhere else.
fn keep_to_us(directory: &Path) -> io::Result<()> {
    let about = fs::symlink_metadata(directory)?;
    if !about.is_dir() || about.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::other("its directory is somebody else's"));
    }
    fs::set_permissions(directory, Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn it_is_listened_to_again_after_a_restart_and_is_nobody_elses() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("own/tunnel.sock");
        drop(listen(&path).unwrap());
        fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
        let listener = listen(&path).unwrap();
        let _stream = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
    }

    #[test]
    fn a_link_in_the_directorys_place_is_refused() {
        let place = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/tmp", place.path().join("own")).unwrap();
        assert!(listen(&place.path().join("own/moat-never.sock")).is_err());
    }
}
