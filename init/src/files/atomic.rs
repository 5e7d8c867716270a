//! Reads a file whole and replaces it whole.

use std::{
    fs::{DirBuilder, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::FileError;
use crate::agents::Fault;

/// The most that an agent's file may hold; Claude's grows with its history.
const BYTES: u64 = 64 << 20;

/// The file's text, or `None` when there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, FileError> {
    let wrong = |source: io::Error| FileError::Read { path: path.to_owned(), source };
    // Not blocking: a pipe of that name must not hold the start.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A link to nowhere is not "no file": what we write would replace it.
            return if path.is_symlink() { Err(wrong(error)) } else { Ok(None) };
        }
        opened => opened.map_err(wrong)?,
    };
    if !file.metadata().map_err(wrong)?.is_file() {
        return Err(wrong(io::Error::other("it is not a file")));
    }
    let mut bytes = Vec::new();
    file.take(BYTES + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > BYTES {
        return Err(wrong(io::Error::other("it is too long")));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes().iter().take(valid).filter(|byte| **byte == b'\n').count();
        FileError::Fault { path: path.to_owned(), fault: Fault::Broken { line, reason: "not UTF-8".into() } }
    })
}

/// Replaces the file, or the one that it links to: new file, fsync, rename. Directories on the way are made.
///
/// Where there was no file, a loss of power has nothing to take, and nobody waits for the disk.
///
/// `mode`: as it was, or the owner's alone.
pub(crate) fn write(path: &Path, text: &str, mode: Option<u32>) -> Result<(), FileError> {
    write_at(path, text, mode.unwrap_or(0o600))
        .map_err(|source| FileError::Write { path: path.to_owned(), source })
}

fn write_at(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let target = if path.is_symlink() { std::fs::canonicalize(path)? } else { path.to_owned() };
    let parent = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let new = beside(&target)?;
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let replaces = target.exists();
    let written = write_new(&new, text, mode, replaces).and_then(|()| std::fs::rename(&new, &target));
    if written.is_err() {
        // The error that matters is the one above.
        let _left_over = std::fs::remove_file(&new);
    }
    written?;
    if !replaces {
        return Ok(());
    }
    // The rename itself reaches the disk with the directory.
    OpenOptions::new().read(true).open(parent)?.sync_all()
}

fn write_new(path: &Path, text: &str, mode: u32, sync: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(mode))?;
    if sync { file.sync_all() } else { Ok(()) }
}

/// One name, so that what a crash left is replaced by the next start.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(path.with_file_name(format!("{}.moat-new", name.to_string_lossy())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_is_the_owners_alone_and_so_are_its_directories() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/c.json");
        write(&path, "{}", None).unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some("{}"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        write(&path, "{\n}", Some(0o640)).unwrap();
        assert_eq!(mode(&path), 0o640);
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[test]
    fn a_link_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("dotfiles"), directory.path().join("link"));
        std::fs::write(&target, "{}").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        write(&link, "{\n}", None).unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(target).unwrap(), "{\n}");
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let dangling = directory.path().join("dangling");
        std::os::unix::fs::symlink("/nowhere", &dangling).unwrap();
        assert!(read(&dangling).is_err());
        assert!(read(directory.path()).is_err());
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read(&pipe).is_err());
        assert!(matches!(read(&directory.path().join("none")), Ok(None)));
        let binary = directory.path().join("binary");
        std::fs::write(&binary, b"a\n\xff").unwrap();
        assert!(matches!(read(&binary), Err(FileError::Fault { fault: Fault::Broken { line: 2, .. }, .. })));
    }
}
