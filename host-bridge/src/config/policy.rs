//! `policy:` of a server. Its three forms are checked, then refused: a server with a policy is never served without.

use super::{
    fields::Fields,
    problem::Report,
    yaml::{Node, Value},
};

/// The packs that exist.
const PACKS: [&str; 1] = ["linear-readonly"];

/// Reports what is wrong with a server's `policy`; if nothing is, that policies are not supported yet.
pub(super) fn refuse(fields: &Fields<'_>, server: &str, report: &mut Report) {
    let Some(node) = fields.raw("policy") else { return };
    let at = fields.at.as_str();
    match check(node, server, at, report) {
        Ok(()) => report.unenforced(node.line, at, "'policy'"),
        Err(Some(text)) => report.problem(node.line, at, text),
        Err(None) => {}
    }
}

/// `Err(None)`: reported already.
fn check(node: &Node, server: &str, at: &str, report: &mut Report) -> Result<(), Option<String>> {
    match &node.value {
        Value::Map(_) => inline(node, at, report),
        Value::Scalar { text, .. } if !node.is_null() => {
            let lower = text.to_ascii_lowercase();
            let is_file = text.contains('/') || lower.ends_with(".yaml") || lower.ends_with(".yml");
            if is_file || PACKS.contains(&text.as_str()) {
                return Ok(());
            }
            Err(Some(format!(
                "MCP server {server:?} policy: unknown starter pack {text:?} — available packs: {}",
                PACKS.join(", ")
            )))
        }
        _ => {
            let kind = if node.is_null() { "null" } else { "list" };
            Err(Some(format!(
                "policy must be a string (file path or pack name) or mapping (inline rules), got {kind}"
            )))
        }
    }
}

fn inline(node: &Node, at: &str, report: &mut Report) -> Result<(), Option<String>> {
    let Some(fields) = Fields::of(node, format!("{at}.policy"), "'policy'", report) else { return Err(None) };
    fields.check_keys(&["deny", "mode"], report);
    if let Some(mode) = fields.text("mode", report)
        && !matches!(mode.text.as_str(), "enforce" | "audit" | "audit_only")
    {
        return Err(Some(format!("invalid policy mode {:?}: must be \"enforce\" or \"audit\"", mode.text)));
    }
    match &fields.raw("deny").filter(|node| !node.is_null()).map(|node| &node.value) {
        None => {}
        Some(Value::List(_)) => {
            let rules = fields.texts("deny", report).unwrap_or_default();
            if rules.iter().any(|rule| rule.text.trim().is_empty()) {
                return Err(Some("invalid inline policy: 'deny' has an empty entry".to_owned()));
            }
            if !rules.is_empty() {
                return Ok(());
            }
        }
        Some(_) => return Err(Some("invalid inline policy: 'deny' must be a list of tool names".to_owned())),
    }
    Err(Some(
        "inline policy must have at least one deny rule; use a file path or pack name for file-based policies"
            .to_owned(),
    ))
}
