//! Codex: `~/.codex/config.toml`, or the one in `CODEX_HOME`.

use moat_shared::{
    grant::STUB_PREFIX,
    plan::{Agent, Plan, RelayedServer, StdioServer},
};
use toml_edit::{Array, Document, DocumentMut, InlineTable, Item, Table, TableLike, Value, value};

use super::{Fault, MARK, is_relay_url, stdio_env, url, workspace};
use crate::files::json::parse::line_of;

/// Where the servers are.
const SERVERS: &str = "mcp_servers";
/// Behind a setting that we wrote, so that the next start may replace it.
const SET_BY_US: &str = " # set by moat";
/// Seconds that a call may take.
const TOOL_TIMEOUT: i64 = 600;
/// Seconds that the first contact may take.
const STARTUP_TIMEOUT: i64 = 30;

/// The file after the edit.
pub(super) fn edited(before: Option<&str>, plan: &Plan) -> Result<String, Fault> {
    let text = before.unwrap_or_default();
    let document = Document::parse(text).map_err(|error| Fault::Broken {
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        reason: format!("not valid TOML: {}", error.message().trim().replace('\n', ", ")),
    })?;
    let ours = servers(plan);
    check(text, &document, &ours)?;
    let mut document = document.into_mut();
    set(&mut document, "approval_policy", if plan.confirm { "on-request" } else { "never" });
    set(&mut document, "sandbox_mode", if plan.confirm { "workspace-write" } else { "danger-full-access" });
    trust(&mut document, plan);
    replace_owned(&mut document, ours);
    Ok(document.to_string())
}

/// All servers of this run.
fn servers(plan: &Plan) -> Vec<(String, Table)> {
    let remote = plan.servers.iter().map(|server| (server.name.to_string(), remote(server, plan)));
    let stdio = plan.stdio.get(&Agent::Codex).into_iter().flatten();
    remote.chain(stdio.map(|(name, server)| (name.to_string(), local(server, plan)))).collect()
}

fn remote(server: &RelayedServer, plan: &Plan) -> Table {
    let mut table = Table::new();
    table.insert("url", value(url(server, plan)));
    if let Some(header) = &server.header {
        let mut headers = InlineTable::new();
        headers.insert(&header.name, header.stub.as_str().into());
        table.insert("http_headers", value(headers));
    }
    table.insert("startup_timeout_sec", value(STARTUP_TIMEOUT));
    table.insert("tool_timeout_sec", value(TOOL_TIMEOUT));
    approve(&mut table, plan);
    table
}

fn local(server: &StdioServer, plan: &Plan) -> Table {
    let mut table = Table::new();
    table.insert("command", value(&server.command));
    if !server.args.is_empty() {
        table.insert("args", value(server.args.iter().collect::<Array>()));
    }
    if let Some(cwd) = &server.cwd {
        table.insert("cwd", value(cwd));
    }
    approve(&mut table, plan);
    let env: Table = stdio_env(server, plan).into_iter().map(|(name, text)| (name, value(text))).collect();
    table.insert("env", Item::Table(env));
    table
}

/// Calls without a question each, unless questions are wanted.
fn approve(table: &mut Table, plan: &Plan) {
    if !plan.confirm {
        table.insert("default_tools_approval_mode", value("approve"));
    }
}

/// Refuses what is in the way: things of another kind under our names, and the user's servers with names of ours.
fn check(text: &str, document: &Document<&str>, ours: &[(String, Table)]) -> Result<(), Fault> {
    for name in [SERVERS, "projects"] {
        let Some((key, item)) = document.as_table().get_key_value(name) else { continue };
        if item.as_table_like().is_none() {
            let line = line_of(text, key.span().map_or(0, |span| span.start));
            return Err(Fault::Broken { line, reason: format!("{name} is not a table") });
        }
    }
    let there = document.get(SERVERS).and_then(Item::as_table_like);
    for (name, item) in there.into_iter().flat_map(TableLike::iter) {
        if !owns(name, item) && ours.iter().any(|(ours, _)| ours == name) {
            let key = there.and_then(|table| table.key(name)).and_then(toml_edit::Key::span);
            let place = item.span().or(key).map_or(0, |span| span.start);
            return Err(Fault::Clash { line: line_of(text, place), name: name.to_owned() });
        }
    }
    Ok(())
}

/// Is this entry ours?
fn owns(name: &str, entry: &Item) -> bool {
    let Some(table) = entry.as_table_like() else { return false };
    let member = |name: &str| table.get(name);
    let stub = member("http_headers").and_then(Item::as_table_like).is_some_and(|headers| {
        headers.iter().filter_map(|(_, value)| value.as_str()).any(|value| value.starts_with(STUB_PREFIX))
    });
    let patient = member("tool_timeout_sec").and_then(Item::as_integer) == Some(TOOL_TIMEOUT);
    let url = member("url").and_then(Item::as_str);
    let marked = member("env").and_then(Item::as_table_like).is_some_and(|env| env.contains_key(MARK));
    marked || (url.is_some_and(|url| is_relay_url(url, name)) && (stub || patient))
}

/// A setting of ours, unless the user has his own.
fn set(document: &mut DocumentMut, name: &str, setting: &str) {
    let the_users = document.get(name).is_some_and(|item| {
        let suffix =
            item.as_value().and_then(|value| value.decor().suffix()).and_then(|suffix| suffix.as_str());
        suffix.is_none_or(|suffix| suffix.trim_end() != SET_BY_US)
    });
    if the_users {
        return;
    }
    let setting = Value::from(setting).decorated(" ", SET_BY_US);
    match document.get_mut(name) {
        Some(there) => *there = Item::Value(setting),
        None => {
            document.insert(name, Item::Value(setting));
        }
    }
}

/// The workspace was named by the user.
fn trust(document: &mut DocumentMut, plan: &Plan) {
    let workspace = workspace(plan);
    let projects = child(document.as_table_mut(), "projects");
    let Some(projects) = projects.as_table_like_mut() else { return };
    if !projects.contains_key(&workspace) {
        let mut project = Table::new();
        project.insert("trust_level", value("trusted"));
        put(projects, &workspace, project);
    } else if let Some(project) = projects.get_mut(&workspace).and_then(Item::as_table_like_mut)
        && !project.contains_key("trust_level")
    {
        project.insert("trust_level", value("trusted"));
    }
}

fn replace_owned(document: &mut DocumentMut, ours: Vec<(String, Table)>) {
    if ours.is_empty() && !document.contains_key(SERVERS) {
        return;
    }
    let Some(servers) = child(document.as_table_mut(), SERVERS).as_table_like_mut() else { return };
    let gone: Vec<String> =
        servers.iter().filter(|(name, item)| owns(name, item)).map(|(name, _)| name.to_owned()).collect();
    for name in gone {
        servers.remove(&name);
    }
    for (name, table) in ours {
        put(servers, &name, table);
    }
}

/// The table of this name; made without a header of its own when it is missing.
fn child<'a>(table: &'a mut Table, name: &str) -> &'a mut Item {
    table.entry(name).or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    })
}

/// Adds a table in the way that its parent is written.
fn put(parent: &mut dyn TableLike, name: &str, table: Table) {
    let item = Item::Table(table);
    parent.insert(name, item);
}
