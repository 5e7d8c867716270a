//! `mcp:`: the remote and host-local servers of a run.

use std::path::Path;

use moat_shared::{grant::GrantName, id::ServerName};

use super::{
    catalog::{self, Known},
    fields::{Fields, Text},
    policy,
    problem::Report,
    yaml::{Node, Value},
};
use crate::server::{InjectedHeader, Injection, Server, Upstream};

const KEYS: [&str; 4] = ["name", "url", "auth", "policy"];

/// All entries of `mcp:` that are usable; what is not is in the report.
pub(super) fn servers(top: &Fields<'_>, workspace: Option<&Path>, report: &mut Report) -> Vec<Server> {
    let mut names = Vec::new();
    let items = top.list("mcp", report).unwrap_or_default();
    let servers: Vec<Server> = items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| server(item, index, &mut names, workspace, report))
        .collect();
    open_beside_judged(&servers, report);
    servers
}

/// A policy belongs to its entry. Another entry that reaches the same host without one is a way around it that somebody may
/// not have meant.
fn open_beside_judged(servers: &[Server], report: &mut Report) {
    for open in servers.iter().filter(|server| server.policy.is_none()) {
        let same =
            |other: &&Server| other.policy.is_some() && other.upstream.origin() == open.upstream.origin();
        if let Some(judged) = servers.iter().find(same) {
            report.warning(format_args!(
                "MCP server '{}' has no policy and reaches the same host as '{}', whose policy does not hold for it",
                open.name, judged.name
            ));
        }
    }
}

fn server(
    item: &Node,
    index: usize,
    names: &mut Vec<ServerName>,
    workspace: Option<&Path>,
    report: &mut Report,
) -> Option<Server> {
    let at = format!("mcp[{index}]");
    match &item.value {
        Value::Scalar { text, .. } if !item.is_null() => by_name(item.line, text, &at, names, report),
        Value::Map(_) => {
            let fields = Fields::of(item, at, "an entry", report)?;
            fields.check_keys(&KEYS, report);
            in_full(&fields, names, workspace, report)
        }
        _ => {
            report.problem(item.line, &at, format_args!("must be a name or a mapping, not {}", item.kind()));
            None
        }
    }
}

/// `- linear`
fn by_name(
    line: usize,
    text: &str,
    at: &str,
    names: &mut Vec<ServerName>,
    report: &mut Report,
) -> Option<Server> {
    let Some(known) = catalog::find(text) else {
        report.problem(line, at, unknown(text));
        return None;
    };
    let name = name(line, text, at, names, report)?;
    let upstream = upstream(line, known.url, at, report)?;
    let inject = injection(Some(known.grant), Some(known.header), line, at, report)?;
    Some(Server { name, upstream, inject: Some(inject), policy: None })
}

/// `- name: ...`. Everything is looked at, whatever else is wrong.
fn in_full(
    fields: &Fields<'_>,
    names: &mut Vec<ServerName>,
    workspace: Option<&Path>,
    report: &mut Report,
) -> Option<Server> {
    let at = fields.at.as_str();
    let given = fields.text("name", report).filter(|name| !name.text.is_empty());
    let checked = match &given {
        Some(Text { line, text }) => name(*line, text, at, names, report),
        None => {
            if fields.node("name").is_none_or(|node| matches!(node.value, Value::Scalar { .. })) {
                report.problem(fields.line, at, "'name' is required");
            }
            None
        }
    };
    let known = given.as_ref().and_then(|name| catalog::find(&name.text));
    let upstream = url(fields, given.as_ref(), known, report);
    let inject = auth(fields, known, upstream.as_ref(), report);
    let policy = policy::policy(fields, given.as_ref().map_or("", |name| &name.text), workspace, report);
    Some(Server { name: checked?, upstream: upstream?, inject: inject?, policy: policy? })
}

fn name(
    line: usize,
    text: &str,
    at: &str,
    names: &mut Vec<ServerName>,
    report: &mut Report,
) -> Option<ServerName> {
    match text.parse::<ServerName>() {
        Ok(name) if names.contains(&name) => {
            report.problem(line, at, format_args!("duplicate name '{name}'"));
            None
        }
        Ok(name) => {
            names.push(name.clone());
            Some(name)
        }
        Err(error) => {
            report.problem(line, at, error);
            None
        }
    }
}

fn url(
    fields: &Fields<'_>,
    name: Option<&Text>,
    known: Option<&Known>,
    report: &mut Report,
) -> Option<Upstream> {
    let at = fields.at.as_str();
    match (fields.text("url", report).filter(|url| !url.text.is_empty()), known, name) {
        (Some(url), ..) => upstream(url.line, &url.text, at, report),
        // Of another kind: reported already.
        (None, ..) if fields.node("url").is_some_and(|node| !matches!(node.value, Value::Scalar { .. })) => {
            None
        }
        (None, Some(known), _) => upstream(fields.line, known.url, at, report),
        (None, None, Some(name)) => {
            let text = format_args!("'url' is required ({})", unknown(&name.text)).to_string();
            report.problem(fields.line, at, text);
            None
        }
        (None, None, None) => {
            report.problem(fields.line, at, "'url' is required");
            None
        }
    }
}

fn upstream(line: usize, text: &str, at: &str, report: &mut Report) -> Option<Upstream> {
    Upstream::try_from(text.to_owned()).map_err(|error| report.problem(line, at, error)).ok()
}

/// `Some(None)`: the server is used without a credential. `None`: there is a mistake.
#[expect(clippy::option_option, reason = "no credential and a mistake are different things")]
fn auth(
    fields: &Fields<'_>,
    known: Option<&Known>,
    upstream: Option<&Upstream>,
    report: &mut Report,
) -> Option<Option<Injection>> {
    let at = fields.at.as_str();
    // A moat.yaml that gives a known name another URL must not get the credential of the known one.
    let named = known;
    let known = known.filter(|known| upstream.is_none_or(|upstream| known.is_at(upstream)));
    if fields.node("auth").is_none() {
        let Some(known) = known else {
            if let Some(known) = named {
                report.warning(format_args!(
                    "{at}: 'url' is not the known one of '{}', so no credential is sent; add 'auth' to send one",
                    known.name
                ));
            }
            return Some(None);
        };
        return injection(Some(known.grant), Some(known.header), fields.line, at, report).map(Some);
    }
    let auth = fields.map("auth", report)?;
    auth.check_keys(&["grant", "header"], report);
    let kinds_are_right = ["grant", "header"]
        .iter()
        .all(|key| auth.node(key).is_none_or(|node| matches!(node.value, Value::Scalar { .. })));
    let of = |text: Option<Text>, filled: Option<&str>| {
        text.map(|text| text.text).filter(|text| !text.is_empty()).or_else(|| filled.map(str::to_owned))
    };
    let grant = of(auth.text("grant", report), known.map(|known| known.grant));
    let header = of(auth.text("header", report), known.map(|known| known.header));
    if !kinds_are_right {
        return None;
    }
    injection(grant.as_deref(), header.as_deref(), auth.line, at, report).map(Some)
}

fn injection(
    grant: Option<&str>,
    header: Option<&str>,
    line: usize,
    at: &str,
    report: &mut Report,
) -> Option<Injection> {
    let grant = match grant {
        None => {
            report.problem(line, at, "'auth.grant' is required when auth is specified");
            None
        }
        Some(text) => supported(text, line, at, report),
    };
    let header = match header {
        None => {
            report.problem(line, at, "'auth.header' is required when auth is specified");
            None
        }
        Some(text) => InjectedHeader::try_from(text.to_owned())
            .map_err(|error| report.problem(line, at, format_args!("'auth.header' {error}")))
            .ok(),
    };
    Some(Injection { grant: grant?, header: header? })
}

/// A grant that a run can use today.
pub(super) fn supported(text: &str, line: usize, at: &str, report: &mut Report) -> Option<GrantName> {
    match text.parse::<GrantName>() {
        Ok(grant) => Some(grant),
        Err(error) => {
            report.problem(line, at, error);
            None
        }
    }
}

fn unknown(name: &str) -> String {
    let shown: String = name.chars().take(80).collect();
    format!("unknown MCP server {shown:?}: provide a url, or use a known name ({})", catalog::names())
}
