//! The plan for PID 1, from what is to be run and how the sandbox looks. Pure.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use moat_shared::{
    id::RunId,
    plan::{McpJson, Plan, RelayedServer, StubHeader},
    wire,
};

use super::order::Order;
use crate::{env::Environment, runtime::View, server::Server};

/// From the first signal to SIGKILL; the holder waits longer.
pub(crate) const GRACE_MS: u64 = 5_000;

/// Where programs usually are.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Of the user's environment, what says how to write to a terminal; everything else stays outside.
const TERMINAL: [&str; 5] = ["COLORTERM", "LANG", "LC_ALL", "LC_CTYPE", "TERM"];

/// What PID 1 is to do.
pub(crate) fn plan(
    order: &Order,
    run: RunId,
    view: View,
    env: &Environment,
    mcp_json: McpJson,
    terminal: bool,
) -> Plan {
    Plan {
        run,
        tunnel: view.tunnel,
        relay_port: wire::RELAY_PORT,
        servers: order.config.servers.iter().map(relayed).collect(),
        agent: order.agent,
        stdio: order.config.stdio.clone(),
        confirm: order.confirm,
        mcp_json,
        workspace: view.workspace,
        user: view.user,
        relay_user: view.relay_user,
        env: environment(env, &order.env),
        pre_run: order.config.pre_run.clone(),
        command: order.command.clone(),
        terminal,
        grace_ms: GRACE_MS,
    }
}

fn relayed(server: &Server) -> RelayedServer {
    let header = server
        .inject
        .as_ref()
        .map(|inject| StubHeader { name: inject.header.as_str().to_owned(), stub: inject.grant.stub() });
    RelayedServer { name: server.name.clone(), header }
}

/// The agent's environment: small, and nothing of the user's but what a terminal needs.
fn environment(host: &Environment, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([("PATH".to_owned(), path(host))]);
    for name in TERMINAL {
        if let Some(value) = host.get(name) {
            env.insert(name.to_owned(), value.to_owned());
        }
    }
    env.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
    env
}

/// The user's PATH without what the sandbox does not see, and the usual places.
fn path(host: &Environment) -> String {
    const HIDDEN: [&str; 8] = ["/root", "/home", "/tmp", "/run", "/mnt", "/media", "/var/tmp", "/proc"];
    let home = host.user_home();
    let hidden = |dir: &Path| {
        HIDDEN.iter().any(|hidden| dir.starts_with(hidden))
            || home.as_ref().is_some_and(|home| dir.starts_with(home))
    };
    let mut dirs: Vec<PathBuf> = Vec::new();
    for dir in host.path().chain(PATH.map(Path::new)) {
        if dir.is_absolute() && !hidden(dir) && !dirs.iter().any(|known| known == dir) {
            dirs.push(dir.to_path_buf());
        }
    }
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.to_string_lossy()).collect();
    dirs.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_gets_a_small_environment() {
        let host = Environment::from([
            ("PATH", "/home/alice/bin:/opt/node/bin:/usr/bin:relative:/data/alice/bin"),
            ("HOME", "/data/alice"),
            ("TERM", "xterm-256color"),
            ("AWS_SECRET_ACCESS_KEY", "s3cr3t"),
        ]);
        let given =
            BTreeMap::from([("TERM".to_owned(), "dumb".to_owned()), ("X".to_owned(), "1".to_owned())]);
        let env = environment(&host, &given);
        assert_eq!(env["PATH"], "/opt/node/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin");
        assert_eq!(env.keys().collect::<Vec<_>>(), ["PATH", "TERM", "X"]);
        assert_eq!(env["TERM"], "dumb");
    }
}
