//! `claude:`, `codex:` and `gemini:`, of which only `mcp` matters yet: the servers that an agent starts itself.

use std::collections::BTreeMap;

use moat_shared::{
    grant::{GrantKind, GrantName, PROVIDERS},
    id::ServerName,
    plan::{Agent, StdioServer},
};

use super::{
    fields::{Fields, Text},
    problem::Report,
    yaml::{Entry, Node, Value},
};
use crate::server::Server;

/// The keys of an agent's section.
fn keys(agent: Agent) -> &'static [&'static str] {
    match agent {
        Agent::Claude => {
            &["mcp", "base_url", "bedrock", "env", "llm-gateway", "marketplaces", "plugins", "sync_logs"]
        }
        Agent::Codex | Agent::Gemini => &["mcp", "sync_logs"],
    }
}

/// What the sections are checked against.
#[derive(Debug)]
pub(super) struct Others<'a> {
    pub(super) servers: &'a [Server],
    /// `grants:` as written.
    pub(super) grants: &'a [GrantName],
}

/// The stdio servers of every agent.
pub(super) fn servers(
    top: &Fields<'_>,
    others: &Others<'_>,
    report: &mut Report,
) -> BTreeMap<Agent, BTreeMap<ServerName, StdioServer>> {
    let mut all = BTreeMap::new();
    for agent in Agent::ALL {
        let Some(section) = top.map(agent.name(), report) else { continue };
        section.check_keys(keys(agent), report);
        for entry in
            section.entries().filter(|entry| entry.key != "mcp" && keys(agent).contains(&entry.key.as_str()))
        {
            if has_policy(&entry.value) {
                report.unenforced(entry.line, "", format_args!("'{}.policy'", section.path(&entry.key)));
            } else {
                report.ignored(&section.path(&entry.key));
            }
        }
        let Some(map) = section.map("mcp", report) else { continue };
        map.check_duplicates(report);
        let servers: BTreeMap<_, _> =
            map.entries().filter_map(|entry| server(agent, &map, entry, others, report)).collect();
        if !servers.is_empty() {
            all.insert(agent, servers);
        }
    }
    all
}

fn has_policy(node: &Node) -> bool {
    match &node.value {
        Value::Map(entries) => entries.iter().any(|entry| entry.key == "policy" || has_policy(&entry.value)),
        Value::List(_) | Value::Scalar { .. } => false,
    }
}

fn server(
    agent: Agent,
    map: &Fields<'_>,
    entry: &Entry,
    others: &Others<'_>,
    report: &mut Report,
) -> Option<(ServerName, StdioServer)> {
    let at = map.path(&entry.key);
    let name = entry.key.parse::<ServerName>().map_err(|error| report.problem(entry.line, &at, error)).ok();
    if let Some(name) = name.as_ref().filter(|name| others.servers.iter().any(|server| server.name == **name))
    {
        let text = format!(
            "mcp server name \"{name}\" is used by both a remote and a local server — names must be unique"
        );
        report.problem(entry.line, "", text);
    }
    let fields = Fields::of(&entry.value, at, &format!("'{}'", map.path(&entry.key)), report)?;
    fields.check_keys(&["command", "args", "env", "grant", "cwd"], report);
    let command = fields.text("command", report).filter(|command| !command.text.is_empty());
    if command.is_none()
        && fields.node("command").is_none_or(|node| matches!(node.value, Value::Scalar { .. }))
    {
        report.problem(entry.line, &fields.at, "'command' is required");
    }
    let grant = fields.text("grant", report).filter(|grant| !grant.text.is_empty());
    let grant = grant.and_then(|grant| provider(agent, &grant, &fields.at, others, report));
    let args = fields.texts("args", report).unwrap_or_default();
    let env = environment(&fields, report);
    let cwd = fields.text("cwd", report).map(|cwd| cwd.text);
    let args = args.into_iter().map(|arg| arg.text).collect();
    Some((name?, StdioServer { command: command?.text, args, env, grant, cwd }))
}

fn environment(fields: &Fields<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let map = fields.text_map("env", report);
    for (key, value) in &map {
        super::env::check(key, value, &fields.path("env"), report);
        if value.text.contains("${secrets.") {
            report.warning(format_args!(
                "'{}.env.{key}' refers to a secret; secrets are not supported yet, so the text stays as it is",
                fields.at
            ));
        }
    }
    map.into_iter().map(|(key, value)| (key, value.text)).collect()
}

fn provider(
    agent: Agent,
    grant: &Text,
    at: &str,
    others: &Others<'_>,
    report: &mut Report,
) -> Option<GrantName> {
    let shown: String = grant.text.chars().take(80).collect();
    if agent == Agent::Claude {
        let text = "'grant' is not supported for Claude Code local MCP servers — Claude Code manages its own \
                    credential injection";
        report.problem(grant.line, at, text);
        return None;
    }
    let name =
        grant.text.parse::<GrantName>().ok().filter(|name| matches!(name.kind(), GrantKind::Provider(_)));
    let Some(name) = name else {
        let supported = PROVIDERS.map(|(name, _)| name).join(", ");
        report.problem(grant.line, at, format_args!("unknown grant \"{shown}\" (supported: {supported})"));
        return None;
    };
    if !others.grants.contains(&name) {
        let text = format!(
            "grant \"{name}\" not declared in top-level grants list — add 'grants: [{name}]' to {}",
            report.file
        );
        report.problem(grant.line, at, text);
        return None;
    }
    Some(name)
}
