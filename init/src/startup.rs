//! Takes the plan and the run's key from where the runtime left them, and wipes that place.
//!
//! Three ways in: an inherited descriptor (a pipe or a memfd; closed after reading), a file that only its owner, who is
//! us, may touch (overwritten and removed after reading), or the first bytes of stdin, where nothing is kept anywhere:
//! the way into a container. Nothing of the content appears in an error.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, RawFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use moat_shared::{
    limits,
    plan::{AWAITS_STARTUP, FRAME_DIGITS, Startup},
    secret::Secret,
};

use crate::{sys, terminal};

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
    /// This process cannot be closed to others, so it must not hold a key.
    #[error("cannot close this process to others")]
    Process(#[source] io::Error),
    /// Stdin does not begin with a plan's length.
    #[error("stdin does not begin with a plan: this sidecar is started by moat, not by hand")]
    NoFrame,
    /// It cannot be opened or read.
    #[error("cannot read the plan")]
    Read(#[source] io::Error),
    /// Others than its owner may read or change it, or it is not a plain file of ours.
    #[error("the plan {path} is not safe: {reason}")]
    Unsafe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// It could neither be overwritten nor removed, so the key would stay on disk.
    #[error("the plan {path} cannot be removed")]
    Wipe {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More bytes than a plan has.
    #[error("the plan has more than {} bytes", limits::PLAN)]
    TooLong,
    /// Not a plan of this version. The parser's own words could quote the key, so only the place is told.
    #[error(
        "the plan cannot be understood (line {line}, column {column}); \
         the sidecar in this image may be older than the moat that started it"
    )]
    Form {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
}

/// Reads the plan from an inherited descriptor and closes it.
///
/// # Errors
/// When it cannot be read or is not a plan.
pub fn from_fd(fd: RawFd) -> Result<Startup, StartupError> {
    sys::harden_process().map_err(StartupError::Process)?;
    let mut file = File::from(sys::take_fd(fd).map_err(StartupError::Read)?);
    parse(&read(&mut file)?)
}

/// Reads the plan from a file and removes it.
///
/// # Errors
/// When the file is not safe, cannot be read or removed, or is not a plan.
pub fn from_file(path: &Path) -> Result<Startup, StartupError> {
    sys::harden_process().map_err(StartupError::Process)?;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)
        .map_err(StartupError::Read)?;
    let about = file.metadata().map_err(StartupError::Read)?;
    // What is not a plan as a runtime leaves it is not touched either: it may be anybody's.
    let refused = |reason| StartupError::Unsafe { path: path.to_owned(), reason };
    if !about.is_file() {
        return Err(refused("it is not a plain file"));
    }
    if about.mode() & 0o077 != 0 {
        return Err(refused("group or others have access to it"));
    }
    if about.uid() != nix::unistd::geteuid().as_raw() {
        return Err(refused("it belongs to somebody else"));
    }
    let text = read(&mut file);
    // Whatever is in it: it goes before anything else happens.
    wipe(path, about.len()).map_err(|source| StartupError::Wipe { path: path.to_owned(), source })?;
    parse(&text?)
}

/// Reads the plan from stdin, and not a byte more: what follows is the agent's. On a terminal it says when it is ready
/// ([`AWAITS_STARTUP`]); the terminal neither echoes nor changes what comes, and is then as it was.
///
/// # Errors
/// When it cannot be read or is not a plan.
pub fn from_stdin() -> Result<Startup, StartupError> {
    sys::harden_process().map_err(StartupError::Process)?;
    // Not through std's own stdin: its buffer would swallow what is the agent's, and keep the key.
    let mut stdin = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(StartupError::Read)?);
    let quiet = terminal::quiet(stdin.as_fd()).map_err(StartupError::Read)?;
    if quiet.is_some() {
        stdin.write_all(AWAITS_STARTUP).map_err(StartupError::Read)?;
    }
    let text = read_framed(&mut stdin);
    drop(quiet);
    parse(&text?)
}

fn read_framed(from: &mut impl Read) -> Result<Secret<Vec<u8>>, StartupError> {
    let mut digits = [0; FRAME_DIGITS];
    from.read_exact(&mut digits).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => StartupError::NoFrame,
        _ => StartupError::Read(error),
    })?;
    let digits = std::str::from_utf8(&digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
    let length = digits.and_then(|text| usize::from_str_radix(text, 16).ok()).ok_or(StartupError::NoFrame)?;
    if length > limits::PLAN {
        return Err(StartupError::TooLong);
    }
    let mut bytes = Vec::with_capacity(length);
    let outcome = from.take(u64::try_from(length).unwrap_or(u64::MAX)).read_to_end(&mut bytes);
    let bytes = Secret::new(bytes);
    outcome.map_err(StartupError::Read)?;
    if bytes.expose().len() < length {
        Err(StartupError::Read(io::ErrorKind::UnexpectedEof.into()))
    } else {
        Ok(bytes)
    }
}

fn read(file: &mut File) -> Result<Secret<Vec<u8>>, StartupError> {
    let mut bytes = Vec::with_capacity(16 * 1024);
    let bound = u64::try_from(limits::PLAN).unwrap_or(u64::MAX).saturating_add(1);
    let outcome = file.take(bound).read_to_end(&mut bytes);
    let bytes = Secret::new(bytes);
    outcome.map_err(StartupError::Read)?;
    if bytes.expose().len() > limits::PLAN { Err(StartupError::TooLong) } else { Ok(bytes) }
}

fn parse(text: &Secret<Vec<u8>>) -> Result<Startup, StartupError> {
    serde_json::from_slice(text.expose())
        .map_err(|error| StartupError::Form { line: error.line(), column: error.column() })
}

/// Zeroes over the bytes and the name gone. One of the two is enough: a single mounted file cannot be removed.
fn wipe(path: &Path, length: u64) -> io::Result<()> {
    let overwritten = overwrite(path, length);
    let removed = std::fs::remove_file(path);
    removed.or(overwritten)
}

fn overwrite(path: &Path, length: u64) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(());
    }
    file.seek(SeekFrom::Start(0))?;
    io::copy(&mut io::repeat(0).take(length), &mut file)?;
    file.flush()?;
    file.sync_data()?;
    file.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::os::{fd::IntoRawFd, unix::fs::PermissionsExt};

    use super::*;
    use crate::testing::plan;

    fn startup() -> String {
        let identity = serde_json::json!({"ca_pem": "ca", "certificate_pem": "c", "key_pem": "the-key"});
        serde_json::json!({"plan": plan(), "identity": identity}).to_string()
    }

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn a_file_is_read_and_gone_and_overwritten() {
        let (directory, path) = file(&startup(), 0o600);
        let other_name = directory.path().join("hard-link");
        std::fs::hard_link(&path, &other_name).unwrap();
        assert_eq!(from_file(&path).unwrap().plan, plan());
        assert!(!path.exists());
        assert_eq!(std::fs::read(other_name).unwrap(), b"", "under another name there is nothing left of it");
    }

    #[test]
    fn a_file_that_others_may_touch_is_refused_and_not_touched() {
        for mode in [0o640, 0o604, 0o620, 0o666] {
            let (_directory, path) = file(&startup(), mode);
            assert!(matches!(from_file(&path), Err(StartupError::Unsafe { .. })), "{mode:o}");
            assert_eq!(std::fs::read_to_string(path).unwrap(), startup());
        }
    }

    #[test]
    fn a_link_a_directory_and_a_pipe_are_refused() {
        let (directory, path) = file(&startup(), 0o600);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(from_file(&link).is_err());
        assert!(path.exists());
        assert!(from_file(directory.path()).is_err());
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(from_file(&pipe).is_err());
    }

    #[test]
    fn a_descriptor_is_read_and_closed() {
        let (_directory, path) = file(&startup(), 0o600);
        let fd = File::open(path).unwrap().into_raw_fd();
        assert_eq!(from_fd(fd).unwrap().identity.key_pem.expose(), "the-key");
        // Another test may have been given the number meanwhile, but then not for this file.
        let now = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        assert!(now.is_err() || !now.unwrap().ends_with("plan"));
        for fd in [-1, 0, 1, 2, 1_000_000] {
            assert!(from_fd(fd).is_err(), "{fd}");
        }
    }

    #[test]
    fn of_stdin_only_the_plan_is_taken() {
        let startup: Startup = serde_json::from_str(&startup()).unwrap();
        let framed = moat_shared::plan::framed(&startup).unwrap();
        let mut stdin = framed.expose().clone();
        stdin.extend(b"the agent's");
        let mut rest = stdin.as_slice();
        assert_eq!(parse(&read_framed(&mut rest).unwrap()).unwrap().plan, plan());
        assert_eq!(rest, b"the agent's");
    }

    #[test]
    fn stdin_without_a_plan() {
        for (text, wanted) in
            [("", "begin"), ("hello, world", "begin"), ("+0000010", "begin"), ("7fffffff", "more than")]
        {
            let error = read_framed(&mut text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(wanted), "{text}: {error}");
        }
        assert!(read_framed(&mut b"00000010short".as_slice()).is_err());
    }

    #[test]
    fn what_is_no_plan_is_gone_too_and_its_words_are_not_repeated() {
        for text in ["", "{", "{\"identity\": {\"key_pem\": \"the-key\", \"the-key\": 1}}", "\"the-key\""] {
            let (_directory, path) = file(text, 0o600);
            let error = from_file(&path).unwrap_err();
            assert!(!crate::say::chain(&error).contains("the-key"), "{error}");
            assert!(!path.exists());
        }
        let (_directory, path) = file(&" ".repeat(limits::PLAN + 1), 0o600);
        assert!(matches!(from_file(&path), Err(StartupError::TooLong)));
        assert!(!path.exists());
    }
}
