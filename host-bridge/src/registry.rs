//! The runs that the bridge serves. One task owns them; a run is on disk before anybody hears of it.
//!
//! ```text
//!            write, fsync, rename                 unregistered, or holder gone
//! register ─────────────────────► served, held ───────────────────────────────► revoked ──► off the disk
//! ```
//!
//! [`Registry`] is the narrow handle of everybody else. A [`Ticket`] says for as long as it lives whether its run is
//! still served; a [`Place`] that its tunnel is the run's, and the only one. When the owner is gone, every ticket is revoked.

mod durable;
mod owner;

use std::{borrow::Cow, io, path::PathBuf, sync::Arc};

use moat_shared::{
    endpoint::Endpoint,
    grant::GrantName,
    hint::Hint,
    id::{RunId, ServerName},
    limits,
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::timeout,
};

pub(crate) use durable::LoadError;
pub(crate) use owner::Owner;

use crate::{
    control::api::{HoldEvent, Process, Register, RunStatus, TunnelStatus},
    home::Profile,
    server::Server,
};

/// A run, as runs.json knows it. What it may use never changes while it lives. An unknown key is an error: it may
/// restrict the run in a way that this version cannot keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Run {
    #[serde(rename = "run_id")]
    pub(crate) id: RunId,
    pub(crate) name: String,
    pub(crate) runtime: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) engine: Option<PathBuf>,
    pub(crate) workspace: String,
    #[serde(rename = "mcp_servers")]
    pub(crate) servers: Vec<Server>,
    #[serde(rename = "cred_profile", default, skip_serializing_if = "Option::is_none")]
    pub(crate) profile: Option<Profile>,
    /// `claude` and so on, for policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) agent: Option<String>,
    /// The host user's name, for policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// The port where the run's sidecar comes to, if it cannot to the bridge's own socket.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        alias = "gateway",
        deserialize_with = "durable::listen"
    )]
    pub(crate) listen: Option<Endpoint>,
    /// Where the bridge dials the run's sidecar, if it has to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dial: Option<Endpoint>,
    pub(crate) holder: Process,
    pub(crate) registered: jiff::Timestamp,
}

/// Why the registry says no.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("no such run: {0}")]
    Unknown(RunId),
    #[error("mcp server {0} is listed twice")]
    Duplicate(ServerName),
    #[error("writing {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("MCP server '{0}' has no changed policy that waits, or it has changed again")]
    NothingToAccept(ServerName),
    #[error("another tunnel of {0} is open")]
    Taken(RunId),
    #[error("the bridge is leaving")]
    Leaving,
}

impl Hint for RegistryError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Write { .. } => Some("is the disk full, or the directory not writable?".into()),
            Self::Leaving => Some("try again: a new bridge starts by itself".into()),
            Self::NothingToAccept(_) => Some("look at it again: moat policy reload".into()),
            Self::Unknown(_) | Self::Duplicate(_) | Self::Taken(_) => None,
        }
    }
}

/// Asks the owner of the runs.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    owner: mpsc::Sender<Ask>,
}

/// What the owner is asked.
#[derive(Debug)]
enum Ask {
    Register(Box<Register>, Option<Endpoint>, Reply<Arc<Run>>),
    Unregister(RunId, String, Reply<()>),
    Admit(RunId, Reply<Ticket>),
    Attach(RunId, TunnelStatus, Reply<oneshot::Receiver<()>>),
    Hold(RunId, Reply<Hold>),
    Stop(RunId, Reply<()>),
    Runs(oneshot::Sender<Vec<RunStatus>>),
    /// The runs that use a profile's grant.
    Users(GrantName, Option<Profile>, oneshot::Sender<Vec<RunId>>),
    /// Every server that has a policy.
    Policies(oneshot::Sender<Vec<(RunId, Server)>>),
    /// The sandbox of a run is to be dialled here.
    Dial(RunId, Endpoint, Reply<()>),
    /// The policy that waits for a server, and has this hash, is accepted.
    Accept(RunId, ServerName, String, Reply<()>),
    /// Leave, unless `only_if_idle` and there are runs; nothing is registered afterwards.
    Leave {
        only_if_idle: bool,
        answer: oneshot::Sender<bool>,
    },
}

type Reply<T> = oneshot::Sender<Result<T, RegistryError>>;

impl Registry {
    /// Registers a run, which comes to this port if to any. It is on disk when this returns.
    pub(crate) async fn register(
        &self,
        wish: Register,
        listen: Option<Endpoint>,
    ) -> Result<Arc<Run>, RegistryError> {
        self.ask(|reply| Ask::Register(Box::new(wish), listen, reply)).await
    }

    /// Ends a run: its tickets are revoked at once; it is off the disk when this returns.
    pub(crate) async fn unregister(&self, run: RunId, reason: String) -> Result<(), RegistryError> {
        self.ask(|reply| Ask::Unregister(run, reason, reply)).await
    }

    /// May this run be served?
    pub(crate) async fn admit(&self, run: RunId) -> Result<Ticket, RegistryError> {
        self.ask(|reply| Ask::Admit(run, reply)).await
    }

    /// Makes a tunnel the run's, if there is none: whoever has the key of a run that is served takes nobody's place.
    pub(crate) async fn attach(&self, ticket: &Ticket, tunnel: TunnelStatus) -> Result<Place, RegistryError> {
        let run = &ticket.run.id;
        let seat = timeout(limits::SEAT, Arc::clone(&ticket.seat).acquire_owned()).await;
        // It is never closed.
        let seat =
            seat.map_err(|_| RegistryError::Taken(run.clone()))?.map_err(|_| RegistryError::Leaving)?;
        let shown = self.ask(|reply| Ask::Attach(run.clone(), tunnel, reply)).await?;
        Ok(Place { _shown: shown, _seat: seat })
    }

    /// Holds a run for as long as the [`Hold`] lives.
    pub(crate) async fn hold(&self, run: RunId) -> Result<Hold, RegistryError> {
        self.ask(|reply| Ask::Hold(run, reply)).await
    }

    /// Tells the holder of a run that it is to stop; one that comes back after a restart is told then.
    pub(crate) async fn stop(&self, run: RunId) -> Result<(), RegistryError> {
        self.ask(|reply| Ask::Stop(run, reply)).await
    }

    /// Has the sandbox of a run dialled, now and after every restart. It is on disk when this returns.
    pub(crate) async fn dial(&self, run: RunId, endpoint: Endpoint) -> Result<(), RegistryError> {
        self.ask(|reply| Ask::Dial(run, endpoint, reply)).await
    }

    /// All runs, oldest first.
    pub(crate) async fn runs(&self) -> Result<Vec<RunStatus>, RegistryError> {
        let (answer, runs) = oneshot::channel();
        self.owner.send(Ask::Runs(answer)).await.map_err(|_| RegistryError::Leaving)?;
        runs.await.map_err(|_| RegistryError::Leaving)
    }

    /// The runs that use a profile's grant.
    pub(crate) async fn users(
        &self,
        grant: GrantName,
        profile: Option<Profile>,
    ) -> Result<Vec<RunId>, RegistryError> {
        let (answer, runs) = oneshot::channel();
        self.owner.send(Ask::Users(grant, profile, answer)).await.map_err(|_| RegistryError::Leaving)?;
        runs.await.map_err(|_| RegistryError::Leaving)
    }

    /// Every server that has a policy, of every run.
    pub(crate) async fn policies(&self) -> Result<Vec<(RunId, Server)>, RegistryError> {
        let (answer, servers) = oneshot::channel();
        self.owner.send(Ask::Policies(answer)).await.map_err(|_| RegistryError::Leaving)?;
        servers.await.map_err(|_| RegistryError::Leaving)
    }

    /// Accepts the policy that waits for a server, if it is the one that was shown. It is on disk when this returns, and
    /// in force from then on.
    pub(crate) async fn accept(
        &self,
        run: RunId,
        server: ServerName,
        sha256: String,
    ) -> Result<(), RegistryError> {
        self.ask(|reply| Ask::Accept(run, server, sha256, reply)).await
    }

    /// No run is registered or dropped from now on, and what was registered is on disk when this returns.
    pub(crate) async fn leave(&self) {
        let _gone_already = self.ask_to_leave(false).await;
    }

    /// The same, but only if there is no run.
    pub(crate) async fn leave_if_idle(&self) -> bool {
        self.ask_to_leave(true).await
    }

    async fn ask_to_leave(&self, only_if_idle: bool) -> bool {
        let (answer, left) = oneshot::channel();
        self.owner.send(Ask::Leave { only_if_idle, answer }).await.is_err() || left.await.unwrap_or(true)
    }

    async fn ask<T>(&self, ask: impl FnOnce(Reply<T>) -> Ask) -> Result<T, RegistryError> {
        let (reply, answer) = oneshot::channel();
        self.owner.send(ask(reply)).await.map_err(|_| RegistryError::Leaving)?;
        answer.await.unwrap_or(Err(RegistryError::Leaving))
    }
}

/// A run that is served, until it is not.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    pub(crate) run: Arc<Run>,
    /// The owner holds the other end and drops it to revoke.
    alive: watch::Receiver<()>,
    /// The place of the run's one tunnel.
    seat: Arc<Semaphore>,
}

impl Ticket {
    /// Is the run still served? Asked for every request.
    pub(crate) fn is_valid(&self) -> bool {
        self.alive.has_changed().is_ok()
    }

    /// Returns when the run is no longer served.
    pub(crate) async fn revoked(&mut self) {
        while self.alive.changed().await.is_ok() {}
    }
}

/// That a tunnel is the run's, and the only one. Dropping it says that the tunnel is gone.
#[derive(Debug)]
pub(crate) struct Place {
    /// For as long as the run is shown with a tunnel; dropped first.
    _shown: oneshot::Receiver<()>,
    _seat: OwnedSemaphorePermit,
}

/// That somebody holds a run, and what the holder is told.
#[derive(Debug)]
pub(crate) struct Hold {
    events: mpsc::Receiver<HoldEvent>,
    /// Dropped after `events`, so that the owner sees the hold closed when it hears of its end.
    _alive: oneshot::Sender<()>,
}

impl Hold {
    /// The next event; `None` when the run is over or the registry is gone.
    pub(crate) async fn next(&mut self) -> Option<HoldEvent> {
        self.events.recv().await
    }
}
