//! Gemini CLI: `~/.gemini/settings.json`, which may hold comments.

use moat_shared::plan::{Agent, Plan, RelayedServer};
use serde_json::{Value, json};

use super::{Entry, Fault, TIMEOUT_MS, claude::replace_owned, headers, or_empty, url};
use crate::files::json::{edit::Text, parse::Comments};

/// The file after the edit.
pub(super) fn edited(before: Option<&str>, plan: &Plan) -> Result<String, Fault> {
    let mut text = Text::new(or_empty(before), Comments::Allowed)?;
    // In an untrusted folder MCP is off altogether. A user who wants the question keeps it; the environment of the
    // run then says that this one folder is trusted.
    text.set_if_missing(&["security", "folderTrust", "enabled"], false)?;
    let mut entries: Vec<(String, Entry)> =
        plan.servers.iter().map(|server| (server.name.to_string(), remote(server, plan))).collect();
    for (name, server) in plan.stdio.get(&Agent::Gemini).into_iter().flatten() {
        let mut entry = Entry::stdio(server, plan);
        trust(&mut entry, plan);
        entries.push((name.to_string(), entry));
    }
    replace_owned(&mut text, &entries)?;
    Ok(text.into_string())
}

fn remote(server: &RelayedServer, plan: &Plan) -> Entry {
    let mut entry = Entry(vec![("httpUrl", Value::from(url(server, plan)))]);
    if server.header.is_some() {
        entry.0.push(("headers", json!(headers(server))));
    }
    trust(&mut entry, plan);
    entry.0.push(("timeout", Value::from(TIMEOUT_MS)));
    entry
}

/// Calls without a question each, unless questions are wanted.
fn trust(entry: &mut Entry, plan: &Plan) {
    if !plan.confirm {
        entry.0.push(("trust", Value::from(true)));
    }
}
