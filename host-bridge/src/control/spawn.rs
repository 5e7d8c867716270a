//! Starts the bridge when none runs: exactly one, whoever else wants one at the same time.
//!
//! ```text
//! connect ──ok──► done
//!    └─ nobody ──► spawn.lock ──► connect again ──► spawn ──► connect until it answers
//! ```

use std::{
    borrow::Cow,
    fs::{File, TryLockError},
    io,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use moat_shared::hint::Hint;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep},
};

use super::{
    api::{Register, Registered},
    client::{Client, ClientError},
};
use crate::{
    bridge::log,
    disk,
    env::Environment,
    home::{Home, private_dir},
    run::detach,
};

/// From the spawn to the first answer.
const START: Duration = Duration::from_secs(10);
/// Somebody else's start, and the drain of a bridge that is leaving.
const LOCK: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(5);
/// What is one command's own and not the bridge's.
const OF_A_COMMAND: [&str; 2] = ["MOAT_PROFILE", detach::VARIABLE];
/// How much of the log is shown when it does not start.
const TAIL: u64 = 2048;

/// No bridge could be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another moat command has been starting the bridge for {} seconds", LOCK.as_secs())]
    Locked,
    #[error("starting the bridge")]
    Spawn(#[source] io::Error),
    #[error("the bridge did not start ({how})\n{tail}")]
    Start { how: String, log: PathBuf, tail: String },
}

impl Hint for SpawnError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Client(error) => error.hint(),
            Self::Start { log, .. } => Some(format!("the whole log is {}", log.display()).into()),
            Self::File { .. } | Self::Locked | Self::Spawn(_) => None,
        }
    }
}

/// The bridge that runs, or one that is started now.
pub(crate) async fn ensure(home: &Home, env: &Environment) -> Result<Client, SpawnError> {
    if let Some(client) = connect(home).await? {
        return Ok(client);
    }
    let _lock = spawn_lock(home).await?;
    if let Some(client) = connect(home).await? {
        return Ok(client);
    }
    let child = spawn(home, env)?;
    wait_for(home, child).await
}

/// Registers a run with the bridge that runs or one that is started now. A bridge that leaves at this very moment
/// is replaced by the next.
pub(crate) async fn register(
    home: &Home,
    env: &Environment,
    run: &Register,
) -> Result<(Client, Registered), SpawnError> {
    let mut tries = 3;
    loop {
        tries -= 1;
        let client = ensure(home, env).await?;
        match client.register(run).await {
            Ok(registered) => return Ok((client, registered)),
            Err(error) if tries > 0 && error.is_passing() => {}
            Err(error) => return Err(error.into()),
        }
    }
}

async fn connect(home: &Home) -> Result<Option<Client>, ClientError> {
    match Client::connect(home).await {
        Ok(client) => Ok(Some(client)),
        Err(error) if error.is_passing() => Ok(None),
        Err(error) => Err(error),
    }
}

async fn spawn_lock(home: &Home) -> Result<File, SpawnError> {
    let path = home.spawn_lock();
    let failed = |what| {
        let path = path.clone();
        move |source| SpawnError::File { what, path, source }
    };
    private_dir(&home.proxy()).map_err(failed("making the directory of"))?;
    let file = disk::lock_file(&path).map_err(failed("opening"))?;
    let deadline = Instant::now() + LOCK;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(POLL).await,
            Err(TryLockError::WouldBlock) => return Err(SpawnError::Locked),
            Err(TryLockError::Error(error)) => return Err(failed("locking")(error)),
        }
    }
}

fn spawn(home: &Home, env: &Environment) -> Result<Child, SpawnError> {
    let path = home.daemon_log();
    let log = log::open(home).map_err(|source| SpawnError::File { what: "opening", path, source })?;
    Command::new(executable().map_err(SpawnError::Spawn)?)
        .arg0("moat")
        .args(["__bridge", "--detach"])
        .env_clear()
        .envs(env.iter().filter(|(name, _)| !OF_A_COMMAND.iter().any(|own| *name == own)))
        .env("MOAT_HOME", home.root())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(SpawnError::Spawn)
}

/// This very program, even if its file has been replaced since.
pub(crate) fn executable() -> io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok(PathBuf::from("/proc/self/exe")) } else { std::env::current_exe() }
}

async fn wait_for(home: &Home, mut child: Child) -> Result<Client, SpawnError> {
    let deadline = Instant::now() + START;
    loop {
        if let Some(client) = connect(home).await? {
            return Ok(client);
        }
        // Code 0: it found that another bridge runs, which is about to answer.
        let ended = child.try_wait().map_err(SpawnError::Spawn)?.filter(|status| !status.success());
        if ended.is_some() || Instant::now() >= deadline {
            return Err(not_started(home, ended));
        }
        sleep(POLL).await;
    }
}

fn not_started(home: &Home, ended: Option<ExitStatus>) -> SpawnError {
    let log = home.daemon_log();
    let how = match ended {
        Some(status) => status.to_string(),
        None => format!("no answer within {} seconds", START.as_secs()),
    };
    let tail = tail(&log).unwrap_or_else(|error| format!("its log cannot be read: {error}"));
    SpawnError::Start { how, log, tail }
}

/// The last lines of a file.
fn tail(path: &std::path::Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let whole = if length > TAIL { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    Ok(whole.trim_end().to_owned())
}
