//! What the sidecar is told when it starts: one document, written by the host, read once by PID 1.
//!
//! The host has checked everything in it against moat.yaml; PID 1 trusts it and nothing else. It arrives with the
//! run's [`Identity`] in a [`Startup`], on an inherited descriptor, in a file that is removed after reading, or on stdin
//! in front of everything that is the agent's ([`framed`]).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    endpoint::{Dialler, Endpoint},
    grant::{GrantName, Stub},
    id::{RunId, ServerName},
    secret::Secret,
};

/// Everything that PID 1 needs: what to do, and the run's key for the relay.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Startup {
    /// What to do.
    pub plan: Plan,
    /// The run's certificate and key.
    pub identity: Identity,
}

/// The run's certificate and key, and the CA that the bridge's certificate must chain to; all PEM.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The installation's CA certificate.
    pub ca_pem: String,
    /// The run's certificate. It names the run; nothing else does.
    pub certificate_pem: String,
    /// The run's private key (PKCS #8).
    #[serde(with = "exposed")]
    pub key_pem: Secret<String>,
}

/// The only serialisation of a secret: into the document that carries the key to PID 1.
mod exposed {
    use super::Secret;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(secret: &Secret<String>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(secret.expose())
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Secret<String>, D::Error> {
        String::deserialize(from).map(Secret::new)
    }
}

/// What PID 1 writes to a terminal when it can take the startup without echoing it: a string that terminals ignore.
/// Into a pipe nothing is written, since a pipe echoes nothing.
pub const AWAITS_STARTUP: &[u8] = b"\x1b_moat:startup\x1b\\";

/// The digits in front of a startup on stdin: its length in bytes, hexadecimal. What follows it is the agent's.
pub const FRAME_DIGITS: usize = 8;

/// Where a container's agent lives when the image has no home that it may write to. PID 1 makes it, or the runtime does
/// where PID 1 could not.
pub const OTHER_HOME: &str = "/.moat/home";

/// A startup as it travels on stdin.
///
/// # Errors
/// When it cannot be serialised.
pub fn framed(startup: &Startup) -> serde_json::Result<Secret<Vec<u8>>> {
    let mut bytes = vec![b'0'; FRAME_DIGITS];
    serde_json::to_writer(&mut bytes, startup)?;
    let digits = format!("{:0FRAME_DIGITS$x}", bytes.len() - FRAME_DIGITS);
    bytes[..FRAME_DIGITS].copy_from_slice(digits.as_bytes());
    Ok(Secret::new(bytes))
}

/// What PID 1 does, in this order: relay and files, hook, agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The run.
    pub run: RunId,
    /// Where the bridge is and who dials.
    pub tunnel: Tunnel,
    /// The relay's port on 127.0.0.1.
    pub relay_port: u16,
    /// The servers of `mcp:`, in the order of moat.yaml.
    pub servers: Vec<RelayedServer>,
    /// The agent that this run is for; its files are written. `None` (`moat run`): all agents' files are.
    pub agent: Option<Agent>,
    /// `claude.mcp`, `codex.mcp`, `gemini.mcp`: servers inside the sandbox.
    pub stdio: BTreeMap<Agent, BTreeMap<ServerName, StdioServer>>,
    /// Agents ask before they act (`--noyolo`); otherwise their own confirmation is switched off.
    pub confirm: bool,
    /// Where `.mcp.json` goes.
    pub mcp_json: McpJson,
    /// The workspace, as the sandbox sees it; the hook's working directory.
    pub workspace: PathBuf,
    /// The agent's working directory.
    pub directory: PathBuf,
    /// Who the agent is.
    pub user: User,
    /// Who the relay is; where the sandbox has only one uid, the agent's.
    pub relay_user: Ids,
    /// The user as a container image spells it (`USER`). Only the sandbox's own files know who that is: PID 1 looks there
    /// before anything else, and replaces [`Self::user`] and [`Self::relay_user`] by what it finds.
    pub image_user: Option<String>,
    /// System call filters that PID 1 puts on itself before anything else, and so on everything in the sandbox; none where
    /// whoever made the sandbox has done so.
    pub filters: Vec<Filter>,
    /// The agent's environment, complete but for what PID 1 itself adds (HOME, USER, LOGNAME, NO_PROXY, MOAT_*).
    pub env: BTreeMap<String, String>,
    /// `hooks.pre_run`, run by `sh -c` as the agent's user in the workspace.
    pub pre_run: Option<String>,
    /// The agent's command; never empty.
    pub command: Vec<String>,
    /// Stdin, stdout and stderr are a terminal that is to become the agent's controlling terminal.
    pub terminal: bool,
    /// From the first SIGTERM to SIGKILL, in milliseconds; shorter than the runtime's own patience.
    pub grace_ms: u64,
    /// How long PID 1 waits for the first tunnel before it gives up and starts nothing, in milliseconds.
    pub tunnel_ms: u64,
}

/// A program of classic BPF for seccomp(2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter(pub Vec<Instruction>);

/// One instruction: code, the jumps if true and if false, and the operand (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instruction(pub u16, pub u8, pub u8, pub u32);

/// Where the bridge is and who dials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tunnel {
    /// Where, as the sandbox sees it.
    pub endpoint: Endpoint,
    /// Who opens the byte stream.
    pub dialler: Dialler,
}

impl Tunnel {
    /// The unix socket that the bridge dials: PID 1 listens there, and hands the listener to the relay.
    #[must_use]
    pub fn dialled_socket(&self) -> Option<&Path> {
        match (self.dialler, &self.endpoint) {
            (Dialler::Bridge, Endpoint::Unix(path)) => Some(path),
            _ => None,
        }
    }
}

/// One server behind the relay, as the agent is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayedServer {
    /// Its name; its URL is `http://127.0.0.1:<relay port>/mcp/<name>`.
    pub name: ServerName,
    /// The header that holds the stub, when the server wants a credential.
    pub header: Option<StubHeader>,
}

/// The header of an agent's file that holds a stub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StubHeader {
    /// The header's name as moat.yaml spells it.
    pub name: String,
    /// Its value.
    pub stub: Stub,
}

/// An MCP server that the agent starts itself, inside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StdioServer {
    /// The executable.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// A provider's grant: its variable is set to the stub.
    pub grant: Option<GrantName>,
    /// Its working directory.
    pub cwd: Option<String>,
}

/// The agents whose files are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Agent {
    /// Claude Code: `~/.claude.json`.
    Claude,
    /// Codex: `~/.codex/config.toml`.
    Codex,
    /// Gemini CLI: `~/.gemini/settings.json`.
    Gemini,
}

impl Agent {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Claude, Self::Codex, Self::Gemini];

    /// The agent's name: its verb, its key in moat.yaml, and its executable.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Claude => "claude",
            Self::Codex => "codex",
            Self::Gemini => "gemini",
        }
    }
}

/// Where `.mcp.json` goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum McpJson {
    /// Into the workspace, merged, and taken out again when the run ends.
    Workspace,
    /// The workspace's own is under version control: the merged one goes to the agent's home.
    Home,
    /// The workspace's own is another run's, which takes it out when it ends: the merged one goes to the agent's home.
    Shared,
}

/// A uid and a gid, as the sandbox sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Who the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// Its uid and gid.
    pub ids: Ids,
    /// For USER and LOGNAME.
    pub name: String,
    /// For HOME; agents' files lie below it.
    pub home: PathBuf,
}
