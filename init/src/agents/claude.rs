//! Claude Code: `~/.claude.json`, or the one in `CLAUDE_CONFIG_DIR`.

use moat_shared::plan::{Agent, Plan, RelayedServer, StdioServer};
use serde_json::{Value, json};

use super::{Entry, Fault, TIMEOUT_MS, headers, mcp_json, or_empty, owns, url, workspace};
use crate::files::json::{edit::Text, parse::Comments};

/// Where the servers are.
pub(super) const SERVERS: &str = "mcpServers";

/// The file after the edit.
pub(super) fn edited(before: Option<&str>, plan: &Plan) -> Result<String, Fault> {
    let mut text = Text::new(or_empty(before), Comments::Refused)?;
    // Nobody is there to answer the questions of a first start, and the workspace was named by the user.
    text.set_if_missing(&["hasCompletedOnboarding"], true)?;
    text.set(&["projects", &workspace(plan), "hasTrustDialogAccepted"], true)?;
    // It asks about each server of a project's `.mcp.json`; those that are ours need no answer.
    let in_project = mcp_json::names(plan);
    text.add_to_list(&["projects", &workspace(plan), "enabledMcpjsonServers"], &in_project)?;
    if !plan.confirm {
        // The same question as `--dangerously-skip-permissions`, which the command line has answered.
        text.set_if_missing(&["bypassPermissionsModeAccepted"], true)?;
    }
    let stdio = plan.stdio.get(&Agent::Claude).into_iter().flatten();
    let entries = entries(plan, stdio.map(|(name, server)| (name.as_str(), server)));
    replace_owned(&mut text, &entries)?;
    Ok(text.into_string())
}

/// All servers as Claude Code and `.mcp.json` spell them.
pub(super) fn entries<'a>(
    plan: &Plan,
    stdio: impl Iterator<Item = (&'a str, &'a StdioServer)>,
) -> Vec<(String, Entry)> {
    let remote = plan.servers.iter().map(|server| (server.name.to_string(), remote(server, plan)));
    remote.chain(stdio.map(|(name, server)| (name.to_owned(), local(server, plan)))).collect()
}

fn remote(server: &RelayedServer, plan: &Plan) -> Entry {
    let mut members = vec![("type", Value::from("http")), ("url", Value::from(url(server, plan)))];
    if server.header.is_some() {
        members.push(("headers", json!(headers(server))));
    }
    members.push(("timeout", Value::from(TIMEOUT_MS)));
    Entry(members)
}

fn local(server: &StdioServer, plan: &Plan) -> Entry {
    let mut entry = Entry::stdio(server, plan);
    entry.0.insert(0, ("type", Value::from("stdio")));
    entry
}

/// Takes out what is ours, refuses when a name of ours is the user's, puts in what is ours now.
pub(super) fn replace_owned(text: &mut Text, entries: &[(String, Entry)]) -> Result<(), Fault> {
    for (name, line, value) in text.members(&[SERVERS])? {
        if !owns(name, &value) && entries.iter().any(|(ours, _)| ours == name) {
            return Err(Fault::Clash { line, name: name.to_owned() });
        }
    }
    text.remove(&[SERVERS], owns)?;
    text.insert(&[SERVERS], entries)?;
    Ok(())
}
