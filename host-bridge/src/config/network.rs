//! `network:`. Only `mode` acts yet; what would restrict a run stops it.

use super::{NetworkMode, fields::Fields, problem::Report, yaml::Value};

/// `network.mode`, with everything else checked.
pub(super) fn network(top: &Fields<'_>, report: &mut Report) -> Option<NetworkMode> {
    let fields = top.map("network", report)?;
    fields.check_keys(&["mode", "policy", "rules", "keep_policy", "host", "allow"], report);
    if let Some(policy) = fields.text("policy", report) {
        match policy.text.as_str() {
            "" | "permissive" => {}
            "strict" => report.unenforced(policy.line, "", "'network.policy: strict'"),
            other => {
                let text = format!("invalid network policy {other:?}: must be 'permissive' or 'strict'");
                report.problem(policy.line, "", text);
            }
        }
    }
    for key in ["rules", "keep_policy"] {
        if let Some(node) = fields.node(key) {
            report.unenforced(node.line, "", format_args!("'network.{key}'"));
        }
    }
    if let Some(node) = fields.node("allow") {
        let text = "\"network.allow\" is no longer supported, use \"network.rules\" instead\n\nExample:\n  network:\n    \
                    rules:\n      - \"api.github.com\"";
        report.problem(node.line, "", text);
    }
    ports(&fields, report);
    let mode = fields.text("mode", report)?;
    let parsed = NetworkMode::parse(&mode.text);
    if parsed.is_none() {
        let text = format!("invalid network mode {:?}: must be 'none', 'open' or 'host'", mode.text);
        report.problem(mode.line, "", text);
    }
    parsed
}

fn ports(fields: &Fields<'_>, report: &mut Report) {
    let Some(items) = fields.list("host", report) else { return };
    let mut seen = Vec::new();
    for item in items {
        let port = match &item.value {
            Value::Scalar { text, .. } => text.parse::<i64>().ok(),
            Value::List(_) | Value::Map(_) => None,
        };
        match port {
            None => report.problem(item.line, "network.host", format_args!("{} is no port", item.kind())),
            Some(port) if !(1..=65535).contains(&port) => {
                report.problem(
                    item.line,
                    "network.host",
                    format_args!("port {port} is out of range (1-65535)"),
                );
            }
            Some(port) if seen.contains(&port) => {
                report.problem(item.line, "network.host", format_args!("duplicate port {port}"));
            }
            Some(port) => seen.push(port),
        }
    }
    report.ignored("network.host");
}
