//! Takes the plan and the run's key from where the runtime left them, and wipes that place.
//!
//! Two ways in: an inherited descriptor (a pipe or a memfd; closed after reading), or a file that only its owner,
//! who is us, may touch (overwritten and removed after reading). Nothing of the content appears in an error.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::RawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use moat_shared::{limits, plan::Startup, secret::Secret};

use crate::sys;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum StartupError {
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
    let mut file = File::from(sys::take_fd(fd).map_err(StartupError::Read)?);
    parse(&read(&mut file)?)
}

/// Reads the plan from a file and removes it.
///
/// # Errors
/// When the file is not safe, cannot be read or removed, or is not a plan.
pub fn from_file(path: &Path) -> Result<Startup, StartupError> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)
        .map_err(StartupError::Read)?;
    let about = file.metadata().map_err(StartupError::Read)?;
    let text = if about.is_file() { read(&mut file) } else { Ok(Secret::new(Vec::new())) };
    // Whatever is wrong with it: it holds a key and has to go.
    let wiped = wipe(path, about.len());
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
    wiped.map_err(|source| StartupError::Wipe { path: path.to_owned(), source })?;
    parse(&text?)
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
