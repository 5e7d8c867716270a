//! The runs that the bridge serves. One task owns them; a run is on disk before anybody hears of it.

use moat_shared::id::{RunId, ServerName};
use serde::{Deserialize, Serialize};

use crate::{control::api::Process, home::Profile, server::Server};

/// A run, as runs.json knows it. What it may use never changes while it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    #[serde(rename = "run_id")]
    pub(crate) id: RunId,
    pub(crate) name: String,
    pub(crate) runtime: String,
    pub(crate) workspace: String,
    #[serde(rename = "mcp_servers")]
    pub(crate) servers: Vec<Server>,
    #[serde(rename = "cred_profile", default, skip_serializing_if = "Option::is_none")]
    pub(crate) profile: Option<Profile>,
    pub(crate) holder: Process,
    pub(crate) registered: jiff::Timestamp,
}

impl Run {
    /// The server of this name.
    pub(crate) fn server(&self, name: &ServerName) -> Option<&Server> {
        self.servers.iter().find(|server| server.name == *name)
    }
}
