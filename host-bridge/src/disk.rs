//! Files that must never be seen half-written, nor by anybody else.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Replaces a file by `contents`, 0600: temporary file, fsync, rename, fsync of the directory. After a crash at any
/// moment the file holds the old contents or the new. The caller holds the lock that makes it the only writer.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    prepare(path, contents)?;
    commit(path)?;
    sync_directory_of(path)
}

/// The first third of [`replace`]: the new contents, durable beside the file.
pub(crate) fn prepare(path: &Path, contents: &[u8]) -> io::Result<()> {
    let temporary = temporary(path)?;
    let mut file = private(OpenOptions::new().write(true).create(true).truncate(true)).open(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()
}

/// The second: the new contents get the file's name.
pub(crate) fn commit(path: &Path) -> io::Result<()> {
    std::fs::rename(temporary(path)?, path)
}

/// The third: what was renamed and removed beside `path` stays so.
pub(crate) fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

fn temporary(path: &Path) -> io::Result<std::path::PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file"));
    };
    let mut temporary = name.to_owned();
    temporary.push(".new");
    Ok(parent.join(temporary))
}

/// Opens a file for appending, made with 0600 if it is not there; a symbolic link in its place is refused.
pub(crate) fn append(path: &Path) -> io::Result<File> {
    private(OpenOptions::new().append(true).create(true)).open(path)
}

/// Opens a file to hold a lock on. Its contents are left as they are.
pub(crate) fn lock_file(path: &Path) -> io::Result<File> {
    private(OpenOptions::new().read(true).write(true).create(true).truncate(false)).open(path)
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600).custom_flags(libc::O_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn replaces_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// Written in place, a crash or a reader in the middle would see half of it.
    #[test]
    fn the_old_contents_are_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("file"), dir.path().join("old"));
        replace(&path, b"the old contents").unwrap();
        std::fs::hard_link(&path, &old).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&old).unwrap(), b"the old contents");
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn what_cannot_be_written_whole_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        replace(&path, b"the old contents").unwrap();
        std::fs::create_dir(dir.path().join("file.new")).unwrap();
        assert!(replace(&path, b"new").is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"the old contents");
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::fs::write(&target, "kept").unwrap();
        symlink(&target, dir.path().join("log")).unwrap();
        assert!(append(&dir.path().join("log")).is_err());
        symlink(&target, dir.path().join("file.new")).unwrap();
        assert!(replace(&dir.path().join("file"), b"x").is_err());
        assert_eq!(std::fs::read(&target).unwrap(), b"kept");
    }
}
