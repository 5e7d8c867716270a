//! Sandboxes: what makes them, attaches to them and ends them.
//!
//! ```text
//! Runtime ──create──► Created ──build──► Built ──start──► Running ──wait──► exit code
//!                       │ view: what the plan must say       └─ signal, kill
//! ```
//!
//! A runtime knows nothing of servers, credentials or moat.yaml.

pub(crate) mod embed;
#[cfg(target_os = "linux")]
pub(crate) mod process;

use std::{borrow::Cow, fs::File, future::Future, io, path::PathBuf};

use moat_shared::{
    hint::Hint,
    plan::{Ids, Startup, Tunnel, User},
};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

pub(crate) use process::Size;

/// A directory or file of the host's that the sandbox gets to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// On the host; canonical.
    pub(crate) source: PathBuf,
    /// In the sandbox; absolute.
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// The sandbox to be.
#[derive(Debug)]
pub(crate) struct Order {
    /// The run's name, which becomes the host name.
    pub(crate) name: String,
    /// On the host; canonical.
    pub(crate) workspace: PathBuf,
    pub(crate) mounts: Vec<Mount>,
    /// A terminal of this size; else three pipes.
    pub(crate) terminal: Option<Size>,
}

/// How the sandbox will look from inside: what the plan must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) workspace: PathBuf,
    pub(crate) user: User,
    pub(crate) relay_user: Ids,
    pub(crate) tunnel: Tunnel,
}

/// The holder's ends of what the sandbox reads and writes.
#[derive(Debug)]
pub(crate) enum Io {
    Terminal(File),
    Pipes { stdin: File, stdout: File, stderr: File },
}

/// Makes sandboxes of one kind.
pub(crate) trait Runtime {
    type Created: Created;
    /// As `runtime:` and `--runtime` spell it.
    fn name(&self) -> &'static str;
    /// Checks and decides everything. Nothing exists yet.
    fn create(&self, order: Order) -> Result<Self::Created, RuntimeError>;
}

/// Decided, nothing exists.
pub(crate) trait Created {
    type Built: Built;
    fn view(&self) -> View;
    /// Has the sandbox built while the caller does something else. What fails there is told by [`Built::start`].
    fn build(self) -> Result<Self::Built, RuntimeError>;
}

/// On its way: PID 1 does nothing until it is told what. Dropping it leaves nothing.
pub(crate) trait Built {
    type Running: Running;
    /// Tells PID 1, once it is there. Dropping the future leaves nothing.
    fn start(self, startup: &Startup) -> impl Future<Output = Result<(Self::Running, Io), RuntimeError>>;
}

/// PID 1 runs. Dropping it ends the sandbox.
pub(crate) trait Running {
    /// A process of the host's whose end is the sandbox's.
    fn pid(&self) -> Option<u32>;
    /// To PID 1.
    fn signal(&self, signal: Signal) -> io::Result<()>;
    /// Without asking.
    fn kill(&mut self) -> io::Result<()>;
    /// The exit code. May be called again after it was cancelled.
    fn wait(&mut self) -> impl Future<Output = io::Result<u8>>;
}

/// The sandbox cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    /// Known, but not here.
    #[error("the {0} runtime is not supported yet")]
    NotYet(String),
    #[error("invalid runtime {0:?}: must be 'process', 'docker', 'podman' or 'apple'")]
    Unknown(String),
    #[error("network mode '{0}' is not supported yet on the process runtime")]
    Network(&'static str),
    #[error("{doing}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
    /// What the builder said.
    #[error("{text}")]
    Refused { text: String, hint: Option<String> },
    #[error(transparent)]
    NoSidecar(#[from] embed::NoSidecar),
}

impl Hint for RuntimeError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::NotYet(_) => Some("use --runtime process (Linux)".into()),
            Self::Network(_) => Some("leave network.mode out: the sandbox has no network but lo".into()),
            Self::Refused { hint, .. } => hint.as_deref().map(Cow::from),
            Self::NoSidecar(error) => error.hint(),
            Self::Unknown(_) | Self::Io { .. } => None,
        }
    }
}
