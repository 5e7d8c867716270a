//! `proxy/daemon.lock`: one bridge per home. Held for life; says who holds it.

use std::{
    borrow::Cow,
    fs::{File, TryLockError},
    io::{self, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use jiff::Timestamp;
use moat_shared::hint::Hint;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{build, disk, home::Home};

/// A bridge that is leaving drains first.
const PATIENCE: Duration = Duration::from_secs(9);
const POLL: Duration = Duration::from_millis(5);

/// That this is the one bridge of its home.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    started: Timestamp,
}

/// This is not the one bridge.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("another bridge runs")]
    Running,
    #[error("another bridge holds {0} and does not answer")]
    Held(PathBuf),
    #[error("locking {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Hint for LockError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Held(path) => Some(format!("its pid is in {}: end that process", path.display()).into()),
            Self::Running | Self::File { .. } => None,
        }
    }
}

#[derive(Serialize)]
struct Holder<'a> {
    pid: u32,
    sock_path: &'a str,
    started_at: Timestamp,
    commit: &'a str,
}

impl Lock {
    /// Takes it; waits for a bridge that no longer answers because it is leaving.
    pub(crate) async fn take(home: &Home) -> Result<Self, LockError> {
        let path = home.daemon_lock();
        let failed = |source| LockError::File { path: path.clone(), source };
        let mut file = disk::lock_file(&path).map_err(failed)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            if UnixStream::connect(home.control_socket()).is_ok() {
                return Err(LockError::Running);
            }
            if Instant::now() >= deadline {
                return Err(LockError::Held(path));
            }
            sleep(POLL).await;
        }
        let started = Timestamp::now();
        let socket = home.control_socket();
        let holder = Holder {
            pid: std::process::id(),
            sock_path: &socket.to_string_lossy(),
            started_at: started,
            commit: build::COMMIT,
        };
        // In place: the lock is the file's, not the name's.
        let text = serde_json::to_vec(&holder).map_err(io::Error::from).map_err(failed)?;
        file.set_len(0).and_then(|()| file.write_all(&text)).map_err(failed)?;
        Ok(Self { _file: file, started })
    }

    /// Since when this is the bridge.
    pub(crate) fn started(&self) -> Timestamp {
        self.started
    }
}
