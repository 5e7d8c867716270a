//! Plan and a file's text before → its text afterwards, one module per agent. Pure.
//!
//! What moat owns in a file is replaced, all else stays. An entry is ours when it can only be ours: its URL is that
//! of the relay for this very name, with a stub in a header or our long timeout; or, for a server that the agent
//! starts itself, when its environment names the run.

pub(crate) mod claude;
pub(crate) mod codex;
pub(crate) mod gemini;
pub(crate) mod mcp_json;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use moat_shared::{
    grant::{PROVIDERS, STUB_PREFIX},
    plan::{Agent, Plan, RelayedServer, StdioServer},
    wire,
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use crate::{
    environ,
    files::json::{edit::EditError, parse::Syntax},
};

/// How long an agent waits for a call, in milliseconds; calls legally take minutes.
const TIMEOUT_MS: u64 = 600_000;
/// The variable that marks a server which the agent starts itself as ours.
const MARK: &str = "MOAT_RUN_ID";

/// Why a file cannot be edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// It is not what the agent reads.
    #[error("{reason}")]
    Broken { line: usize, reason: String },
    /// The user has a server of that name.
    #[error(
        "there is an MCP server \"{name}\" of your own with the name of one from moat.yaml; rename one of the two"
    )]
    Clash { line: usize, name: String },
}

impl Fault {
    /// Where.
    pub(crate) const fn line(&self) -> usize {
        match self {
            Self::Broken { line, .. } | Self::Clash { line, .. } => *line,
        }
    }
}

impl From<EditError> for Fault {
    fn from(error: EditError) -> Self {
        match error {
            EditError::Syntax(Syntax { line, reason }) => {
                Self::Broken { line, reason: format!("not valid JSON: {reason}") }
            }
            EditError::NotAnObject { line, path } => {
                Self::Broken { line, reason: format!("{path} is not an object") }
            }
            EditError::Twice { line, name } => {
                Self::Broken { line, reason: format!("\"{name}\" is there twice") }
            }
        }
    }
}

/// The agent's own file.
pub(crate) fn path(agent: Agent, plan: &Plan) -> PathBuf {
    let home = &plan.user.home;
    // An agent resolves these against its working directory.
    let relocated = |variable: &str| {
        plan.env.get(variable).filter(|value| !value.is_empty()).map(|value| plan.workspace.join(value))
    };
    match agent {
        Agent::Claude => relocated("CLAUDE_CONFIG_DIR").unwrap_or_else(|| home.clone()).join(".claude.json"),
        Agent::Codex => relocated("CODEX_HOME").unwrap_or_else(|| home.join(".codex")).join("config.toml"),
        Agent::Gemini => home.join(".gemini/settings.json"),
    }
}

/// The agent's own file after the edit.
pub(crate) fn edited(agent: Agent, before: Option<&str>, plan: &Plan) -> Result<String, Fault> {
    match agent {
        Agent::Claude => claude::edited(before, plan),
        Agent::Codex => codex::edited(before, plan),
        Agent::Gemini => gemini::edited(before, plan),
    }
}

/// The agents whose files this run needs.
pub(crate) fn of_run(plan: &Plan) -> Vec<Agent> {
    plan.agent.map_or_else(|| Agent::ALL.to_vec(), |agent| vec![agent])
}

fn url(server: &RelayedServer, plan: &Plan) -> String {
    format!("{}{}{}", environ::relay_url(plan.relay_port), wire::MCP_PREFIX, server.name)
}

/// Is this the URL of a relay, on whatever port, for the server of this name?
fn is_relay_url(url: &str, name: &str) -> bool {
    let port_and_path = url.strip_prefix("http://127.0.0.1:").and_then(|rest| rest.split_once('/'));
    port_and_path.is_some_and(|(port, path)| {
        port.parse::<u16>().is_ok()
            && wire::MCP_PREFIX.get(1..).is_some_and(|prefix| path.strip_prefix(prefix) == Some(name))
    })
}

/// Is this entry of a JSON file ours?
fn owns(name: &str, entry: &Value) -> bool {
    let url = entry.get("httpUrl").or_else(|| entry.get("url")).and_then(Value::as_str);
    let stub = entry.get("headers").and_then(Value::as_object).is_some_and(|headers| {
        headers.values().filter_map(Value::as_str).any(|value| value.starts_with(STUB_PREFIX))
    });
    let patient = entry.get("timeout").and_then(Value::as_u64) == Some(TIMEOUT_MS);
    let remote = url.is_some_and(|url| is_relay_url(url, name)) && (stub || patient);
    remote || entry.get("env").and_then(|env| env.get(MARK)).is_some()
}

/// The one header of a relayed server, as a JSON object.
fn headers(server: &RelayedServer) -> BTreeMap<&str, &str> {
    server.header.iter().map(|header| (&*header.name, header.stub.as_str())).collect()
}

/// A stdio server's environment: its own, its grant's stub, and our mark.
fn stdio_env<'a>(server: &'a StdioServer, plan: &'a Plan) -> BTreeMap<&'a str, String> {
    let mut env: BTreeMap<&str, String> =
        server.env.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    if let Some(grant) = &server.grant {
        let variable = PROVIDERS.iter().find(|(provider, _)| *provider == grant.as_str());
        env.extend(variable.map(|(_, variable)| (*variable, grant.stub().to_string())));
    }
    env.insert(MARK, plan.run.to_string());
    env
}

/// A JSON object whose members stay in the order in which they were written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry(Vec<(&'static str, Value)>);

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl Entry {
    /// What all JSON agents understand of a server that they start themselves.
    fn stdio(server: &StdioServer, plan: &Plan) -> Self {
        let mut members = vec![("command", Value::from(&*server.command))];
        if !server.args.is_empty() {
            members.push(("args", Value::from(server.args.clone())));
        }
        let env =
            stdio_env(server, plan).into_iter().map(|(name, value)| (name.to_owned(), Value::from(value)));
        members.push(("env", Value::Object(env.collect())));
        members.extend(server.cwd.iter().map(|cwd| ("cwd", Value::from(cwd.as_str()))));
        Self(members)
    }
}

/// A text that exists but says nothing is as good as none.
fn or_empty(before: Option<&str>) -> &str {
    before.filter(|text| !text.trim().is_empty()).unwrap_or("{\n}\n")
}

/// The workspace as a key in an agent's file.
fn workspace(plan: &Plan) -> String {
    Path::to_string_lossy(&plan.workspace).into_owned()
}

#[cfg(test)]
#[path = "agents_tests.rs"]
mod tests;
