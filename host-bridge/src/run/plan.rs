//! The plan for PID 1, from what is to be run and how the sandbox looks. Pure.

use std::{collections::BTreeMap, time::Duration};

use moat_shared::{
    id::RunId,
    limits,
    plan::{McpJson, Plan, RelayedServer, StubHeader, Tunnel},
    wire,
};

use super::order::Order;
use crate::{env::Environment, runtime::View, server::Server};

/// Of the user's environment, what says how to write to a terminal; everything else stays outside.
const TERMINAL: [&str; 5] = ["COLORTERM", "LANG", "LC_ALL", "LC_CTYPE", "TERM"];

/// What PID 1 is to do.
pub(crate) fn plan(
    order: &Order,
    run: RunId,
    view: View,
    tunnel: Tunnel,
    env: &Environment,
    mcp_json: McpJson,
    terminal: bool,
) -> Plan {
    Plan {
        run,
        tunnel,
        relay_port: wire::RELAY_PORT,
        servers: order.config.servers.iter().map(relayed).collect(),
        agent: order.agent,
        stdio: order.config.stdio.clone(),
        confirm: order.confirm,
        mcp_json,
        workspace: view.workspace,
        directory: view.directory,
        user: view.user,
        relay_user: view.relay_user,
        image_user: view.image_user,
        filters: view.filters,
        env: environment(view.env, env, &order.env),
        pre_run: order.config.pre_run.clone(),
        command: view.command,
        terminal,
        grace_ms: view.grace_ms,
        tunnel_ms: millis(limits::FIRST_TUNNEL),
    }
}

/// As a plan counts time.
pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn relayed(server: &Server) -> RelayedServer {
    let header = server
        .inject
        .as_ref()
        .map(|inject| StubHeader { name: inject.header.as_str().to_owned(), stub: inject.grant.stub() });
    RelayedServer { name: server.name.clone(), header }
}

/// The agent's environment: what the sandbox has, of the user's only what a terminal needs, and what was given.
fn environment(
    mut env: BTreeMap<String, String>,
    host: &Environment,
    given: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    for name in TERMINAL {
        if let Some(value) = host.get(name) {
            env.insert(name.to_owned(), value.to_owned());
        }
    }
    env.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_gets_a_small_environment() {
        let host = Environment::from([
            ("PATH", "/home/alice/bin"),
            ("TERM", "xterm-256color"),
            ("AWS_SECRET_ACCESS_KEY", "s3cr3t"),
        ]);
        let of = |pairs: [(&str, &str); 2]| {
            pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect::<BTreeMap<_, _>>()
        };
        let env =
            environment(of([("PATH", "/bin"), ("LANG", "C")]), &host, &of([("TERM", "dumb"), ("X", "1")]));
        assert_eq!(
            env.into_iter().collect::<Vec<_>>(),
            of([("PATH", "/bin"), ("LANG", "C")])
                .into_iter()
                .chain(of([("TERM", "dumb"), ("X", "1")]))
                .collect::<Vec<_>>()
        );
    }
}
