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

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use moat_shared::{
    grant::GrantName,
    id::ServerName,
    plan::{Agent, StdioServer},
};

use crate::server::Server;
use fields::Fields;
use problem::Report;

pub(crate) mod catalog;
mod container;
mod env;
pub(crate) mod fields;
mod mount;
mod network;
pub(crate) mod oauth;
mod policy;
pub(crate) mod problem;
mod server;
mod settings;
mod stdio;
mod suggest;
pub(crate) mod yaml;

#[cfg(test)]
mod tests;

pub(crate) use container::ContainerOptions;
pub(crate) use mount::Mount;
pub(crate) use problem::{Problems, Warning};
pub(crate) use settings::Settings;
pub(crate) use suggest::nearest;

/// The file's names: today's, and the one of old.
const FILES: [&str; 2] = ["moat.yaml", "agent.yaml"];

/// Every key of the top level.
const KEYS: [&str; 31] = [
    "name",
    "agent",
    "version",
    "dependencies",
    "grants",
    "env",
    "secrets",
    "mounts",
    "ports",
    "network",
    "command",
    "claude",
    "copilot",
    "codex",
    "gemini",
    "pi",
    "interactive",
    "clipboard",
    "snapshots",
    "tracing",
    "hooks",
    "workspace",
    "sandbox",
    "runtime",
    "volumes",
    "container",
    "mcp",
    "services",
    "language_servers",
    "base_image",
    "image",
];

/// Keys that are accepted with a warning, because they do nothing yet.
const LATER: [&str; 13] = [
    "dependencies",
    "ports",
    "copilot",
    "pi",
    "clipboard",
    "snapshots",
    "tracing",
    "workspace",
    "sandbox",
    "volumes",
    "services",
    "language_servers",
    "base_image",
];

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
    /// The container's image.
    pub(crate) image: Option<String>,
    pub(crate) container: ContainerOptions,
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

impl RuntimeName {
    pub(crate) const ALL: [Self; 4] = [Self::Process, Self::Docker, Self::Podman, Self::Apple];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Apple => "apple",
        }
    }
}

/// What was given is no runtime.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid runtime {0:?}: must be 'process', 'docker', 'podman' or 'apple'")]
pub(crate) struct InvalidRuntime(String);

impl std::str::FromStr for RuntimeName {
    type Err = InvalidRuntime;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|runtime| runtime.as_str() == text);
        known.ok_or_else(|| InvalidRuntime(text.chars().take(80).collect()))
    }
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

impl NetworkMode {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "none" => Some(Self::None),
            "open" => Some(Self::Open),
            "host" => Some(Self::Host),
            _ => None,
        }
    }
}

/// Reads the workspace's moat.yaml (else agent.yaml, else nothing).
pub(crate) fn load(workspace: &Path) -> Result<Config, Problems> {
    for name in FILES {
        let path = workspace.join(name);
        if let Some(text) = read(&path, name)? {
            return Ok(Config { file: Some(path), ..parse_in(name, &text, Some(workspace))? });
        }
    }
    Ok(Config::default())
}

/// A file's text; `None` when there is no such file.
pub(crate) fn read(path: &Path, name: &str) -> Result<Option<String>, Problems> {
    let failed = |source| Problems::Reading { file: name.to_owned(), source };
    // Before it is opened: a named pipe would wait for a writer.
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => return Err(failed(io::Error::other("not a regular file"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    // Nor if it has become one meanwhile.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(yaml::FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > yaml::FILE {
        return Err(failed(io::Error::other(format!("larger than {} bytes", yaml::FILE))));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line =
            1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count();
        failed(io::Error::other(format!("not UTF-8 on line {line}")))
    })?;
    Ok(Some(text))
}

/// Checks a text as moat.yaml.
#[cfg(any(test, fuzzing))]
pub(crate) fn check(text: &str) -> Result<Config, Problems> {
    parse(FILES[0], text)
}

/// Checks a whole file that lies nowhere.
#[cfg(any(test, fuzzing))]
fn parse(file: &str, text: &str) -> Result<Config, Problems> {
    parse_in(file, text, None)
}

/// Checks a whole file; what it refers to lies in the workspace.
fn parse_in(file: &str, text: &str, workspace: Option<&Path>) -> Result<Config, Problems> {
    let root = yaml::parse(text).map_err(|source| Problems::Parsing { file: file.to_owned(), source })?;
    let mut report = Report::new(file);
    let root = root.filter(|root| !root.is_null());
    let top = root.as_ref().and_then(|root| Fields::of(root, String::new(), "the file", &mut report));
    let mut config = top.map(|top| sections(&top, workspace, &mut report)).unwrap_or_default();
    config.warnings = report.finish()?;
    Ok(config)
}

fn sections(top: &Fields<'_>, workspace: Option<&Path>, report: &mut Report) -> Config {
    top.check_keys(&KEYS, report);
    for key in LATER {
        if top.node(key).is_some() {
            report.ignored(key);
        }
    }
    sandbox(top, report);
    let servers = server::servers(top, workspace, report);
    let declared = grants(top, report);
    let stdio = stdio::servers(top, &stdio::Others { servers: &servers, grants: &declared }, report);
    let mut grants = declared;
    for grant in servers.iter().filter_map(|server| server.inject.as_ref()).map(|inject| &inject.grant) {
        if !grants.contains(grant) {
            grants.push(grant.clone());
        }
    }
    Config {
        file: None,
        name: name(top, report),
        agent: top.text("agent", report).map(|agent| agent.text).filter(|agent| !agent.is_empty()),
        servers,
        grants,
        env: env::env(top, report),
        command: command(top, report),
        interactive: top.flag("interactive", report).unwrap_or(false),
        pre_run: hooks(top, report),
        runtime: runtime(top, report),
        image: container::image(top, report),
        container: container::options(top, report),
        network: network::network(top, report),
        stdio,
        mounts: mount::mounts(top, report).into_iter().map(|(_, mount)| mount).collect(),
        warnings: Vec::new(),
    }
}

fn name(top: &Fields<'_>, report: &mut Report) -> Option<String> {
    let name = top.text("name", report).filter(|name| !name.text.is_empty())?;
    // The alphabet of a server's name: it ends up in paths and messages.
    if name.text.parse::<ServerName>().is_err() {
        let text = "'name' must start with a letter or digit, then letters, digits, '.', '_' and '-', at most 64 \
                    characters";
        report.problem(name.line, "", text);
    }
    Some(name.text)
}

fn grants(top: &Fields<'_>, report: &mut Report) -> Vec<GrantName> {
    let mut grants = Vec::new();
    for (index, text) in top.texts("grants", report).unwrap_or_default().into_iter().enumerate() {
        if let Some(grant) = server::supported(&text.text, text.line, &format!("grants[{index}]"), report)
            && !grants.contains(&grant)
        {
            grants.push(grant);
        }
    }
    grants
}

fn command(top: &Fields<'_>, report: &mut Report) -> Vec<String> {
    let command = top.texts("command", report).unwrap_or_default();
    if let Some(first) = command.first().filter(|first| first.text.is_empty()) {
        report.problem(
            first.line,
            "",
            "command[0] cannot be empty: the first element must be the executable",
        );
    }
    command.into_iter().map(|word| word.text).collect()
}

fn hooks(top: &Fields<'_>, report: &mut Report) -> Option<String> {
    let hooks = top.map("hooks", report)?;
    hooks.check_keys(&["pre_run", "post_build", "post_build_root"], report);
    for key in ["post_build", "post_build_root"] {
        if hooks.node(key).is_some() {
            report.ignored(&hooks.path(key));
        }
    }
    hooks.text("pre_run", report).map(|hook| hook.text).filter(|hook| !hook.is_empty())
}

fn runtime(top: &Fields<'_>, report: &mut Report) -> Option<RuntimeName> {
    let runtime = top.text("runtime", report).filter(|runtime| !runtime.text.is_empty())?;
    runtime.text.parse().map_err(|error| report.problem(runtime.line, "", error)).ok()
}

fn sandbox(top: &Fields<'_>, report: &mut Report) {
    if let Some(sandbox) = top.text("sandbox", report)
        && !matches!(sandbox.text.as_str(), "" | "none")
    {
        let text = format!("invalid sandbox value {:?}: must be empty (default) or 'none'", sandbox.text);
        report.problem(sandbox.line, "", text);
    }
}
