//! The daemon: takes every socket and restores the runs, or stops; then serves until it is told to leave or idle.
//!
//! ```text
//! run                      one JoinSet; nothing is spawned elsewhere
//! ├── records              outlives all others
//! ├── registry
//! ├── left behind
//! ├── tunnels              accepts; threads beside, each with a runtime of its own, serve
//! │   └── worker × few ── tunnel × runs ── stream × in flight
//! └── control
//! ```
//!
//! Leaving: registrations are refused and sockets closed, tunnels get a GOAWAY, streams in flight have until the
//! deadline, what is left is dropped, records are written. Runs stay registered: the next bridge serves them.

mod door;
mod left_behind;
pub(crate) mod lock;
pub(crate) mod log;
mod renewed;

use std::{
    borrow::Cow,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use moat_shared::{
    endpoint::{Endpoint, InvalidEndpoint},
    hint::Hint,
    limits,
    rt::drain::{self, Drained},
};
use tokio::{
    net::UnixListener,
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::timeout,
};

use self::left_behind::LeftBehind;
use crate::{
    control::server::{Control, State},
    env::Environment,
    home::{Home, private_dir},
    identity::{Authority, IdentityError},
    oauth::{
        http::Http,
        renewals::{News, Renewer, renewals},
    },
    pipeline::{Parts, Pipeline},
    policy::follow::{self, Watcher},
    record::{Recorder, Writer},
    registry::{LoadError, Owner},
    tunnel::{self, Tunnels},
    upstream::{self, Patience},
};

/// How long the end waits for renewals: as long as one may take.
const FLIGHTS: Duration = Duration::from_secs(35);

/// What a bridge needs to know.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) home: Home,
    pub(crate) env: Environment,
    /// How long it stays without a run.
    pub(crate) idle: Duration,
}

/// The bridge, with everything in its hands and nothing started.
pub(crate) struct Bridge {
    state: Arc<State>,
    control: Control,
    tunnels: Tunnels,
    owner: Owner,
    renewer: Renewer,
    renewed: mpsc::UnboundedReceiver<News>,
    watcher: Watcher,
    writer: Writer,
    left_behind: LeftBehind,
    sockets: [PathBuf; 2],
    idle: Duration,
    /// Dropped last.
    _lock: lock::Lock,
}

/// Why the bridge does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error(transparent)]
    Lock(#[from] lock::LockError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the directory of the bridge's sockets is too deep: {0}")]
    Path(InvalidEndpoint),
    #[error("{what} {path}")]
    File {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("starting the pipeline")]
    Pipeline(#[source] rustls::Error),
    #[error("waiting for signals")]
    Signals {
        #[source]
        source: io::Error,
    },
}

impl Hint for BindError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Lock(error) => error.hint(),
            Self::Load(error) => error.hint(),
            Self::Identity(error) => error.hint(),
            Self::Path(_) => Some("set MOAT_HOME to a shorter path".into()),
            Self::Pipeline(_) | Self::File { .. } | Self::Signals { .. } => None,
        }
    }
}

/// Why the bridge left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Asked,
    Idle,
    Signal,
}

impl Bridge {
    /// Takes the lock, restores the runs, takes the sockets.
    pub(crate) async fn bind(config: Config) -> Result<Self, BindError> {
        let Config { home, env, idle } = config;
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| BindError::File { what, path, source }
        };
        let sockets = [home.control_socket(), home.tunnel_socket()];
        let endpoint = endpoint(&sockets)?;
        for dir in [home.proxy(), home.tunnel_dir()] {
            private_dir(&dir).map_err(failed("making", &dir))?;
        }
        // A sandbox mounts this directory and its relay, with another uid, passes through it. On the host nobody
        // else comes past `proxy/`.
        let tunnel_dir = home.tunnel_dir();
        fs::set_permissions(&tunnel_dir, fs::Permissions::from_mode(0o711))
            .map_err(failed("opening the mode of", &tunnel_dir))?;
        let lock = lock::Lock::take(&home).await?;
        let authority = Authority::open(&home)?;
        let (recorder, writer) = Recorder::with_writer(home.clone());
        let (left_behind, tell) = LeftBehind::new(home.clone(), env.clone());
        let (asks, asked) = tunnel::asks();
        let (registry, notices, owner) = Owner::restore(&home, recorder.clone(), tell, asks.clone())?;
        let watcher = Watcher {
            registry: registry.clone(),
            recorder: recorder.clone(),
            notices: notices.clone(),
            home: home.clone(),
        };
        let roots = upstream::platform_roots();
        let http = Http::new(roots.clone()).map_err(BindError::Pipeline)?;
        let (renewals, renewer, renewed) = renewals(http);
        let pipeline = Pipeline::new(Parts {
            home: home.clone(),
            env,
            recorder: recorder.clone(),
            notices,
            session_key: authority.session_key().clone(),
            roots,
            patience: Patience::default(),
            renewals: renewals.clone(),
        })
        .map_err(BindError::Pipeline)?;
        let mut doors: Vec<Pipeline> = (1..workers()).map(|_| pipeline.beside()).collect();
        doors.push(pipeline);
        let tunnels = Tunnels::bind(&sockets[1], authority.server_config()?, registry.clone(), asked, doors)
            .map_err(failed("listening at", &sockets[1]))?;
        let state = Arc::new(State {
            registry,
            authority,
            recorder,
            renewals,
            ports: asks.ports,
            started: lock.started(),
            endpoint: endpoint.to_string(),
            unreadable: owner.unreadable(),
            shutdown: Notify::new(),
        });
        // The control socket comes last: whoever can connect to it finds everything there.
        let control =
            Control::bind(&sockets[0], Arc::clone(&state)).map_err(failed("listening at", &sockets[0]))?;
        Ok(Self {
            state,
            control,
            tunnels,
            owner,
            renewer,
            renewed,
            watcher,
            writer,
            left_behind,
            sockets,
            idle,
            _lock: lock,
        })
    }

    /// Serves until a request, `signal` or idleness ends it.
    pub(crate) async fn run(self, signal: impl Future<Output = ()>) -> Reason {
        let count = self.owner.count();
        let home = self.watcher.home.clone();
        tracing::info!(
            runs = *count.borrow(), unreadable = self.state.unreadable.len(), endpoint = %self.state.endpoint, "ready"
        );
        let (trigger, guard) = drain::drain();
        let mut records = JoinSet::new();
        records.spawn(self.writer.run());
        let mut runs = JoinSet::new();
        runs.spawn(self.owner.run());
        // A renewal that is under way is finished: its answer is worth more than the time.
        let mut flights = JoinSet::new();
        flights.spawn(self.renewer.run());
        flights.spawn(renewed::tell(self.renewed, self.state.registry.clone(), self.state.recorder.clone()));
        let mut sweeper = JoinSet::new();
        sweeper.spawn(self.left_behind.run());
        let mut watcher = JoinSet::new();
        watcher.spawn(self.watcher.run());
        let mut doors = JoinSet::new();
        doors.spawn(self.tunnels.run(guard.clone()));
        doors.spawn(self.control.run(guard));

        let registry = self.state.registry.clone();
        let reason = tokio::select! {
            () = self.state.shutdown.notified() => Reason::Asked,
            () = signal => Reason::Signal,
            () = idle(count, self.idle, || registry.leave_if_idle()) => Reason::Idle,
        };
        // Whoever comes now finds nobody and starts the next bridge, which waits for our lock.
        for socket in &self.sockets {
            if let Err(error) = fs::remove_file(socket) {
                tracing::warn!(socket = %socket.display(), %error, "a socket could not be removed");
            }
        }
        registry.leave().await;
        let drained = trigger.drain(limits::DRAIN).await;
        match drained {
            Drained::Finished => tracing::info!(?reason, "leaving; everything in flight was finished"),
            Drained::Deadline => {
                tracing::warn!(
                    ?reason,
                    "leaving; what was still in flight after {:?} is dropped",
                    limits::DRAIN
                );
            }
        }
        doors.shutdown().await;
        sweeper.shutdown().await;
        watcher.shutdown().await;
        for (run, server) in registry.policies().await.unwrap_or_default() {
            if let Some(bound) = &server.policy {
                follow::save(&home, &(run, server.name.clone()), bound);
            }
        }
        // With the last handles gone the registry and then the writer come to their end by themselves.
        drop((registry, self.state));
        let landed = timeout(FLIGHTS, async { while flights.join_next().await.is_some() {} });
        if landed.await.is_err() {
            tracing::error!(
                "a renewal was still under way at the end; its outcome is looked at by the next bridge"
            );
        }
        let written = timeout(limits::DRAIN, async {
            while runs.join_next().await.is_some() {}
            while records.join_next().await.is_some() {}
        });
        if written.await.is_err() {
            tracing::error!("records were still being written at the end and may be lost");
        }
        reason
    }
}

/// Returns when there was no run for `patience` and the registry agrees that there is none.
async fn idle<F: Future<Output = bool>>(
    mut count: watch::Receiver<usize>,
    patience: Duration,
    leave: impl Fn() -> F,
) {
    loop {
        if count.wait_for(|count| *count == 0).await.is_err() {
            // The registry is gone: nothing can be served any more.
            return;
        }
        let busy = timeout(patience, count.wait_for(|count| *count > 0)).await;
        if busy.is_err() && leave().await {
            return;
        }
    }
}

/// How many threads serve tunnels. Two at least: what one run makes the bridge compute (a judged body, a handshake, a
/// scan) must not hold up all the others. Each costs some memory, and there are rarely many sandboxes.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).clamp(2, 8)
}

/// Both paths must fit into a socket address; the tunnel's is the endpoint.
fn endpoint(sockets: &[PathBuf; 2]) -> Result<Endpoint, BindError> {
    let parse = |path: &PathBuf| format!("unix:{}", path.display()).parse().map_err(BindError::Path);
    let _control: Endpoint = parse(&sockets[0])?;
    parse(&sockets[1])
}

/// Listens at `path`, in the place of a socket that a dead bridge left.
pub(crate) fn listen(path: &Path, mode: u32) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}
