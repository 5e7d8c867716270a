//! Sandboxes: what makes them, attaches to them and ends them.
//!
//! ```text
//! Runtime ──create──► Created ──build──► Built ──start──► Running ──wait──► exit code
//!                       │ view: what the plan must say       └─ signal, kill
//! ```
//!
//! A runtime knows nothing of servers, credentials or moat.yaml.

pub(crate) mod apple;
pub(crate) mod choose;
pub(crate) mod docker;
pub(crate) mod embed;
mod image;
mod owner;
#[cfg(target_os = "linux")]
pub(crate) mod process;
#[cfg(target_os = "linux")]
mod seccomp;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    fs::File,
    future::Future,
    io,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use moat_shared::{
    endpoint::Endpoint,
    hint::Hint,
    plan::{Filter, Ids, Startup, Tunnel, User},
};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::{
    config::{ContainerOptions, NetworkMode},
    env::Environment,
    home::Home,
};

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
    /// Empty: the image's own.
    pub(crate) command: Vec<String>,
    /// The command is an agent's, which works in the workspace and needs nothing of the image's.
    pub(crate) is_agent: bool,
    /// The container's image, if one is named.
    pub(crate) image: Option<String>,
    pub(crate) container: ContainerOptions,
    /// `None`: the runtime's default.
    pub(crate) network: Option<NetworkMode>,
    /// `None`: the first of the runtime's [`Carriers`].
    pub(crate) tunnel: Option<TunnelKind>,
}

/// How a sandbox and the bridge come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TunnelKind {
    /// The bridge's unix socket is mounted into the sandbox, which needs no network.
    Unix,
    /// The sandbox listens, the engine publishes the port on this machine's loopback (Apple's containers: a unix socket), the
    /// bridge connects.
    Published,
    /// The bridge listens at this machine's address on the container's network, the sandbox connects.
    Gateway,
}

/// The ways in which a sandbox and the bridge can come together.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Carriers {
    /// Those that are taken without being asked for, the best first; none where there is nothing to choose.
    pub(crate) by_themselves: Vec<TunnelKind>,
    /// Those that somebody has to ask for.
    pub(crate) when_asked_for: Vec<TunnelKind>,
}

impl TunnelKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Published => "published",
            Self::Gateway => "gateway",
        }
    }
}

/// How the sandbox will look from inside: what the plan must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) workspace: PathBuf,
    /// Where the program starts.
    pub(crate) directory: PathBuf,
    /// The program, complete; never empty.
    pub(crate) command: Vec<String>,
    /// What the program finds in its environment before the user's own variables are added.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) user: User,
    pub(crate) relay_user: Ids,
    /// See [`moat_shared::plan::Plan::image_user`].
    pub(crate) image_user: Option<String>,
    /// What PID 1 is to forbid everybody.
    pub(crate) filters: Vec<Filter>,
    pub(crate) tunnel: Way,
    /// See [`moat_shared::plan::Plan::grace_ms`].
    pub(crate) grace_ms: u64,
}

/// From the first signal to SIGKILL, in milliseconds; an engine that is told to stop a container gives it ten seconds.
pub(crate) const GRACE_MS: u64 = 5_000;

/// How the sandbox and the bridge find each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    Known(Tunnel),
    /// The sandbox comes over its network, where this machine has this address; the bridge says at which port.
    Gateway(IpAddr),
}

/// The holder's ends of what the sandbox reads and writes.
#[derive(Debug)]
pub(crate) enum Io {
    /// Bytes both ways, and the window that they are shown in.
    Terminal {
        bytes: File,
        window: Box<dyn Window>,
    },
    Pipes {
        stdin: File,
        stdout: File,
        stderr: File,
    },
}

/// The size of the sandbox's terminal.
pub(crate) trait Window: fmt::Debug + Send {
    fn resize(&self, size: Size) -> io::Result<()>;
}

/// Makes sandboxes of one kind.
pub(crate) trait Runtime {
    type Created: Created;
    /// As `runtime:` and `--runtime` spell it.
    fn name(&self) -> &'static str;
    /// How such a sandbox and the bridge can come together.
    fn carriers(&self, order: &Order) -> Carriers;
    /// Checks and decides everything. Nothing exists yet.
    fn create(&self, order: Order) -> impl Future<Output = Result<Self::Created, RuntimeError>>;
}

/// Decided, nothing exists.
pub(crate) trait Created {
    type Built: Built;
    fn view(&self) -> View;
    /// The socket of the engine, or the command, that keeps the sandbox, when it lives on without the process that started
    /// it: the bridge removes it then.
    fn engine(&self) -> Option<PathBuf> {
        None
    }
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
    /// What the runtime calls the sandbox: a container's id, or the pid of a process whose end is the sandbox's.
    fn id(&self) -> String;
    /// Where the bridge has to go, if the sandbox cannot come to it.
    fn dial(&self) -> Option<Endpoint> {
        None
    }
    /// To PID 1.
    fn signal(&self, signal: Signal) -> impl Future<Output = io::Result<()>>;
    /// Without asking.
    fn kill(&mut self) -> impl Future<Output = io::Result<()>>;
    /// The exit code. May be called again after it was cancelled.
    fn wait(&mut self) -> impl Future<Output = io::Result<u8>>;
}

/// Where no bridge has ever run, its directory for tunnels is not there yet; the mode is the bridge's to open.
fn make_tunnel_dir(path: &Path) -> Result<(), RuntimeError> {
    let mut new = std::fs::DirBuilder::new();
    new.recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| RuntimeError::Io { doing: "making the tunnel's directory".to_owned(), source })
}

/// Removes the sandboxes of this installation that are kept there and whose holders have died: a socket is an engine's, a
/// program Apple's. Returns how many there were.
pub(crate) async fn sweep(keeper: &Path, env: &Environment, home: &Home) -> Result<usize, RuntimeError> {
    match std::fs::metadata(keeper) {
        Ok(about) if about.is_file() => Ok(apple::removal::sweep(keeper, env, home).await?),
        _ => Ok(docker::removal::sweep(keeper, home).await?),
    }
}

/// The sandbox cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    #[error("invalid runtime {0:?}: must be 'process', 'docker', 'podman' or 'apple'")]
    Unknown(String),
    #[error("network mode '{mode}' is not supported yet on the {runtime} runtime")]
    Network { mode: &'static str, runtime: &'static str },
    #[error("network mode 'open' needs pasta, which is not on this machine")]
    NoPasta,
    #[error("the {0} runtime has no tunnel '{1}'")]
    Tunnel(&'static str, &'static str),
    #[error("the tunnel '{0}' needs a network, and network.mode is 'none'")]
    NoNetwork(&'static str),
    #[error(
        "the tunnel 'gateway' needs an engine on this very machine, and this one runs in a machine of its own"
    )]
    GatewayApart,
    #[error("the network '{0}' of the engine has no gateway")]
    NoGateway(String),
    #[error("no command")]
    NoCommand,
    #[error("no image is named for the {0} runtime")]
    NoImage(&'static str),
    #[error("the process runtime has no images")]
    NoEngine,
    #[error("'moat image' needs Docker or podman")]
    NoBuilder,
    #[error(transparent)]
    Engine(#[from] docker::EngineError),
    #[error(transparent)]
    Apple(#[from] apple::AppleError),
    #[error("{doing}")]
    Io {
        doing: String,
        #[source]
        source: io::Error,
    },
    /// What the builder said.
    #[error("{text}")]
    Refused { text: String, hint: Option<String> },
    #[cfg(target_os = "linux")]
    #[error(transparent)]
    Filters(#[from] seccomp::SeccompError),
    #[error(transparent)]
    NoSidecar(#[from] embed::NoSidecar),
}

impl RuntimeError {
    /// Another carrier may do.
    pub(crate) const fn is_the_carriers(&self) -> bool {
        matches!(self, Self::Engine(docker::EngineError::NoPort))
    }
}

impl Hint for RuntimeError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Network { runtime: "process", .. } => Some(
                "network.mode may be 'none', which is the default, or 'open', where pasta is installed".into(),
            ),
            Self::NoPasta => Some(
                "install the package passt, or leave network.mode out: the sandbox has no network but lo then"
                    .into(),
            ),
            Self::Network { .. } => {
                Some("network.mode may be 'none', or 'open', which is the default".into())
            }
            Self::Tunnel("apple", _) => Some("leave --tunnel (MOAT_TUNNEL) out, or use published or unix".into()),
            Self::Tunnel(..) => Some("leave --tunnel (MOAT_TUNNEL) out: it is for containers".into()),
            Self::GatewayApart | Self::NoGateway(_) => Some("use --tunnel published".into()),
            Self::NoNetwork(_) => Some("leave network.mode out, or use --tunnel unix where the engine runs on this very machine".into()),
            Self::NoCommand => Some("give one after --, or 'command:' in moat.yaml".into()),
            Self::NoImage(_) => {
                Some("name one: --image NAME, or 'image:' in moat.yaml; build moat's own: moat image build (base for `moat run`, claude, \
                      codex, gemini); or use --runtime process".into())
            }
            Self::NoEngine => Some("use --runtime docker or podman".into()),
            Self::NoBuilder => Some(
                "build it with --runtime docker or podman, and take it over: docker save -o IMAGE.tar NAME; \
                 container image load --input IMAGE.tar"
                    .into(),
            ),
            Self::Engine(error) => error.hint(),
            Self::Apple(error) => error.hint(),
            Self::Refused { hint, .. } => hint.as_deref().map(Cow::from),
            Self::NoSidecar(error) => error.hint(),
            #[cfg(target_os = "linux")]
            Self::Filters(_) => None,
            Self::Unknown(_) | Self::Io { .. } => None,
        }
    }
}
