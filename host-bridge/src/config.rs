//! moat.yaml and `~/.moat/config.yaml`: read, checked whole, and turned into values that are usable as they stand.
//!
//! ```text
//! text ──yaml──► tree of nodes with lines ──► sections (servers, stdio, network ...) ──► Config
//!                                                 │ every mistake
//!                                                 ▼
//!                                              Problems, all of a file at once
//! ```
//!
//! Nothing here touches credentials or starts anything. What cannot be enforced yet is an error, never ignored.

pub(crate) mod catalog;
mod yaml;

use std::{collections::BTreeMap, path::PathBuf};

use moat_shared::{
    grant::GrantName,
    id::ServerName,
    plan::{Agent, StdioServer},
};

use crate::server::Server;

/// A checked moat.yaml; of a workspace without one, everything is empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    /// The file that it was read from.
    pub(crate) file: Option<PathBuf>,
    /// The run's name.
    pub(crate) name: Option<String>,
    /// `agent:`, a label that is often an agent's name.
    pub(crate) agent: Option<String>,
    /// `mcp:`, in the file's order.
    pub(crate) servers: Vec<Server>,
    /// `grants:` and those of `mcp:`, each once.
    pub(crate) grants: Vec<GrantName>,
    pub(crate) env: BTreeMap<String, String>,
    /// Empty: none is configured.
    pub(crate) command: Vec<String>,
    pub(crate) interactive: bool,
    /// `hooks.pre_run`.
    pub(crate) pre_run: Option<String>,
    pub(crate) runtime: Option<RuntimeName>,
    /// `network.mode`; `None`: the runtime's default.
    pub(crate) network: Option<NetworkMode>,
    /// `claude.mcp`, `codex.mcp`, `gemini.mcp`.
    pub(crate) stdio: BTreeMap<Agent, BTreeMap<ServerName, StdioServer>>,
    pub(crate) mounts: Vec<Mount>,
    /// To be shown before the run starts.
    pub(crate) warnings: Vec<Warning>,
}

/// What drives the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuntimeName {
    Process,
    Docker,
    Podman,
    Apple,
}

/// What network the sandbox has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetworkMode {
    /// Nothing but its own loopback.
    None,
    /// Outbound, without the host's loopback.
    Open,
    /// The host's.
    Host,
}

/// A directory of the host in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// As written: may be relative to the workspace.
    pub(crate) source: PathBuf,
    /// Absolute.
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// Something about a file that does not stop a run: `moat.yaml: 'services' is not supported yet and is ignored`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Warning(pub(crate) String);
