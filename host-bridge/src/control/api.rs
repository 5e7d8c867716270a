//! What command and bridge say to each other. JSON over HTTP; every error is a [`Problem`] and keeps its text.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1/runs` [`Register`] | 201 [`Registered`], after the run is on disk |
//! | `GET /v1/runs/<id>/hold` | 200, JSON lines of [`HoldEvent`] for as long as the command holds the run |
//! | `POST /v1/runs/<id>/stop` | 202; the holder is told |
//! | `POST /v1/runs/<id>/dial` [`Dial`] | 204; where the run's sidecar waits is on disk, and the bridge goes there |
//! | `DELETE /v1/runs/<id>` | 204; its tunnels are closed |
//! | `GET /v1/runs/<id>/policies` | 200, a list of [`PolicyState`] |
//! | `POST /v1/runs/<id>/policies` [`Accept`] | 204; the policy that waited is on disk and in force |
//! | `POST /v1/grants` [`GrantNews`] | 204; the runs that use the grant have it in their audit log |
//! | `GET /v1/status` | 200 [`Status`] |
//! | `POST /v1/shutdown` | 202; drains and leaves |

use std::path::PathBuf;

use jiff::Timestamp;
use moat_shared::{
    endpoint::Endpoint,
    grant::GrantName,
    id::{RunId, ServerName},
    plan::Identity,
};
use serde::{Deserialize, Serialize};

use crate::{home::Profile, policy::model::RuleSet, record::Remote, server::Server};

/// Why the bridge says no.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Problem {
    pub(crate) error: String,
    /// The remedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

/// A run to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Register {
    /// Its name, for people.
    pub(crate) name: String,
    /// The runtime's name.
    pub(crate) runtime: String,
    /// The socket of the container engine that keeps the sandbox; the bridge removes what is left there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) engine: Option<PathBuf>,
    /// The workspace on the host, for people.
    pub(crate) workspace: String,
    /// What it may use.
    pub(crate) servers: Vec<Server>,
    /// Whose credentials.
    pub(crate) profile: Option<Profile>,
    /// The agent's name, and that of the host's user: for policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) agent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
    /// Where the sandbox comes to, if it cannot to the bridge's own socket: an address of this machine's on the sandbox's
    /// network (port 0: any), or a port that a guest dials over vsock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<Endpoint>,
    /// The process that holds the run. When it is gone and nobody else holds the run, the run is over.
    pub(crate) holder: Process,
}

/// Where the sidecar of a run waits to be dialled.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dial {
    /// As the host sees it.
    pub(crate) endpoint: Endpoint,
}

/// A process, safe against reuse of its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// `starttime` of /proc/pid/stat, in clock ticks since boot; 0 where there is no /proc.
    pub(crate) started: u64,
}

/// A run that is on disk and served.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Registered {
    pub(crate) run: RunId,
    /// For the sandbox's PID 1, and nobody else.
    pub(crate) identity: Identity,
    /// Where the bridge listens for it, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<Endpoint>,
}

/// What the holder of a run is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum HoldEvent {
    /// The bridge knows that the run is held.
    Held,
    /// The run has a tunnel, or had one.
    Tunnel,
    /// Somebody asked the run to stop.
    Stop,
    /// For the terminal: an upstream rejected a credential, could not be reached, and the like.
    Warning { text: String },
    /// The run was unregistered; nothing follows.
    Ended { reason: String },
}

/// The bridge's state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) pid: i32,
    pub(crate) version: String,
    pub(crate) commit: String,
    pub(crate) started: Timestamp,
    /// Where tunnels are accepted.
    pub(crate) endpoint: String,
    /// Records lost since the start (see [`crate::record`]).
    pub(crate) records_lost: u64,
    /// Runs of runs.json that could not be read and are not served, each with the reason.
    #[serde(default)]
    pub(crate) unreadable: Vec<String>,
    pub(crate) runs: Vec<RunStatus>,
    /// The OAuth grants that the runs use.
    #[serde(default)]
    pub(crate) grants: Vec<GrantStatus>,
}

/// An OAuth grant, as the bridge knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct GrantStatus {
    pub(crate) grant: GrantName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) profile: Option<String>,
    pub(crate) state: GrantState,
    /// The last failure, in a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
    /// Since when it fails, or when the server refused it for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<Timestamp>,
    /// Seconds until the next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) next_try_s: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refreshed_at: Option<Timestamp>,
    pub(crate) auto_refresh: bool,
    /// What a server asked for beyond the grant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) more_scopes: Option<String>,
}

/// How an OAuth grant stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GrantState {
    Ok,
    /// It could not be renewed; it is tried again.
    RefreshFailing,
    /// A person has to sign in again.
    NeedsAuthorization,
    /// A server asks for more scopes.
    MoreScopesAsked,
    /// It is not in the store, or cannot be read.
    Missing,
}

/// One run, as the bridge knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunStatus {
    pub(crate) run: RunId,
    pub(crate) name: String,
    pub(crate) runtime: String,
    pub(crate) registered: Timestamp,
    /// How a tunnel of this run's comes about, and where if not at the bridge's own socket.
    #[serde(default)]
    pub(crate) carrier: String,
    /// Is there a tunnel, and what does the other end say it is?
    pub(crate) tunnel: Option<TunnelStatus>,
    /// Has there been one since this bridge started? An older bridge does not say.
    #[serde(default)]
    pub(crate) had_tunnel: Option<bool>,
    pub(crate) servers: Vec<ServerStatus>,
}

/// A tunnel that is open.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TunnelStatus {
    pub(crate) since: Timestamp,
    pub(crate) sidecar: String,
    pub(crate) transport: String,
}

/// One server of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ServerStatus {
    pub(crate) name: ServerName,
    /// The last thing that went wrong, for people.
    pub(crate) last_error: Option<String>,
    /// In one line, what policy it has and whether a change waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<String>,
}

/// A server's policy, as it is in force.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PolicyState {
    pub(crate) server: ServerName,
    /// Where it came from.
    pub(crate) source: String,
    pub(crate) sha256: String,
    /// The rules that were accepted; none where they cannot be read.
    pub(crate) accepted: Option<RuleSet>,
    /// Why nothing of this server may pass.
    pub(crate) closed: Option<String>,
    /// What waits to be accepted; it is judged as well.
    pub(crate) pending: Option<RuleSet>,
    /// Why the file as it is now is not used.
    pub(crate) broken: Option<String>,
}

impl PolicyState {
    pub(crate) fn of(server: &Server) -> Option<Self> {
        let bound = server.policy.as_ref()?;
        let state = bound.state();
        Some(Self {
            server: server.name.clone(),
            source: bound.source.shown().to_owned(),
            sha256: bound.sha256.clone(),
            accepted: state.accepted.as_ref().ok().map(|policy| policy.set.clone()),
            closed: state.accepted.as_ref().err().cloned(),
            pending: state.pending.as_ref().map(|policy| policy.set.clone()),
            broken: state.broken.clone(),
        })
    }

    /// `linear-readonly: enforce, 1 rule`
    pub(crate) fn line(&self) -> String {
        let mut line = self.source.clone();
        if let Some(set) = &self.accepted {
            let count = set.rules.len();
            let rules = if count == 1 { "rule" } else { "rules" };
            line.push_str(&format!(": {}, {count} {rules}", set.mode.as_str()));
        }
        if let Some(closed) = &self.closed {
            line.push_str(&format!(": closed, nothing passes: {closed}"));
        }
        if self.pending.is_some() {
            line.push_str("; a change waits for 'moat policy reload'");
        }
        if let Some(broken) = &self.broken {
            line.push_str(&format!("; the changed file is not used: {broken}"));
        }
        line
    }
}

/// Accepts what waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Accept {
    pub(crate) server: ServerName,
    /// Of what was shown, so that nothing else is accepted.
    pub(crate) sha256: String,
}

/// A command changed a grant. Its file says the same; this is for the audit logs of the runs that use it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GrantNews {
    pub(crate) grant: GrantName,
    /// Whose it is.
    pub(crate) profile: Option<Profile>,
    pub(crate) change: GrantChange,
}

/// What became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum GrantChange {
    Granted {
        /// Of OAuth grants.
        issuer: Option<String>,
        generation: Option<u64>,
        expires_at: Option<Timestamp>,
    },
    Revoked {
        remote: Remote,
    },
}
