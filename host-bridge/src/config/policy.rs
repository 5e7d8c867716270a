//! `policy:` of a server, in its three forms: a starter pack's name, a rule file, rules in place.
//!
//! What cannot be enforced is an error: a server with a policy is never served without it (P26).

use std::path::Path;

use super::{
    fields::Fields,
    problem::Report,
    yaml::{Node, Value},
};
use crate::policy::{
    bound::{Bound, Source},
    file::{self, Broken, Loaded, Scopes},
    form::{self, Inline},
    glob::Glob,
    packs,
};

/// `Some(None)`: there is no policy. `None`: there is a mistake, and it is reported.
#[expect(clippy::option_option, reason = "no policy and a mistake are different things")]
pub(super) fn policy(
    fields: &Fields<'_>,
    server: &str,
    workspace: Option<&Path>,
    report: &mut Report,
) -> Option<Option<Bound>> {
    let Some(node) = fields.raw("policy") else { return Some(None) };
    let at = fields.at.as_str();
    match read(node, server, at, workspace, report) {
        Ok(bound) => Some(Some(bound)),
        Err(texts) => {
            for text in texts {
                report.problem(node.line, at, text);
            }
            None
        }
    }
}

/// No texts: reported already.
fn read(
    node: &Node,
    server: &str,
    at: &str,
    workspace: Option<&Path>,
    report: &mut Report,
) -> Result<Bound, Vec<String>> {
    match &node.value {
        Value::Map(_) => inline(node, server, at, report),
        Value::Scalar { text, .. } if !node.is_null() => {
            let lower = text.to_ascii_lowercase();
            if text.contains('/') || lower.ends_with(".yaml") || lower.ends_with(".yml") {
                return from_file(text, server, workspace, report);
            }
            form::pack(text, server).ok_or_else(|| {
                let names: Vec<_> = packs::names().collect();
                vec![format!(
                    "MCP server {server:?} policy: unknown starter pack {text:?} — available packs: {}",
                    names.join(", ")
                )]
            })
        }
        _ => {
            let kind = if node.is_null() { "null" } else { "list" };
            Err(vec![format!(
                "policy must be a string (file path or pack name) or mapping (inline rules), got {kind}"
            )])
        }
    }
}

fn from_file(
    shown: &str,
    server: &str,
    workspace: Option<&Path>,
    report: &mut Report,
) -> Result<Bound, Vec<String>> {
    let path = workspace.map_or_else(|| shown.into(), |workspace| workspace.join(shown));
    let path = std::path::absolute(&path).unwrap_or(path);
    let Loaded { policy, warnings, mode_is_given, .. } = file::load(&path, shown, &Scopes::of_server(server))
        .map_err(|Broken(problems)| {
            problems
                .iter()
                .map(|problem| format!("MCP server {server:?} policy: {problem}"))
                .collect::<Vec<_>>()
        })?;
    for warning in warnings {
        report.warning(warning);
    }
    if !policy.enforces() {
        report.warning(if mode_is_given {
            format!("MCP server '{server}': policy {shown} only audits: it records and blocks nothing")
        } else {
            format!(
                "MCP server '{server}': policy {shown} has no 'mode', so it records and blocks nothing (audit_only). \
                 Add 'mode: enforce' to block."
            )
        });
    }
    Ok(Bound::new(Source::File { path, shown: shown.to_owned() }, &policy.set))
}

fn inline(node: &Node, server: &str, at: &str, report: &mut Report) -> Result<Bound, Vec<String>> {
    let Some(fields) = Fields::of(node, format!("{at}.policy"), "'policy'", report) else {
        return Err(Vec::new());
    };
    fields.check_keys(&["deny", "allow", "mode"], report);
    let audit = match fields.text("mode", report) {
        None => false,
        Some(mode) => match mode.text.as_str() {
            "enforce" => false,
            "audit" | "audit_only" => true,
            other => {
                return Err(vec![format!("invalid policy mode {other:?}: must be \"enforce\" or \"audit\"")]);
            }
        },
    };
    let deny = patterns(&fields, "deny", report)?;
    let allow = patterns(&fields, "allow", report)?;
    if deny.is_none() && allow.is_none() {
        return Err(vec![
            "inline policy must have at least one deny rule; use a file path or pack name for file-based policies"
                .to_owned(),
        ]);
    }
    let given = Inline { deny: deny.unwrap_or_default(), allow: allow.unwrap_or_default(), audit };
    Ok(form::inline(&given, server))
}

/// A list of operations; an empty one is a mistake, not a list that denies or allows nothing.
fn patterns(fields: &Fields<'_>, key: &str, report: &mut Report) -> Result<Option<Vec<String>>, Vec<String>> {
    let Some(node) = fields.raw(key) else { return Ok(None) };
    let wrong = |text: &str| Err(vec![format!("invalid inline policy: '{key}' {text}")]);
    if !matches!(node.value, Value::List(_)) {
        return wrong("must be a list of tool names");
    }
    let Some(items) = fields.texts(key, report) else { return Err(Vec::new()) };
    let given = items.len();
    let items: Vec<String> = items.into_iter().map(|item| item.text.trim().to_owned()).collect();
    if given == 0 && key == "deny" {
        return Ok(None);
    }
    if given == 0 {
        return wrong("is empty, so nothing could be called; leave the server out instead");
    }
    if items.iter().any(String::is_empty) {
        return wrong("has an empty entry");
    }
    for item in &items {
        if let Err(error) = Glob::new(item, false) {
            return wrong(&format!("has an entry {item:?} that is not a valid pattern: {error}"));
        }
    }
    Ok(Some(items))
}
