//! `env:` and `secrets:`.

use std::collections::BTreeMap;

use super::{
    fields::{Fields, Text},
    problem::Report,
};

/// `env:`, checked against `secrets:`.
pub(super) fn env(top: &Fields<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let env = top.text_map("env", report);
    for (key, value) in &env {
        check(key, value, "env", report);
    }
    if top.node("secrets").is_some() {
        for (key, secret) in top.text_map("secrets", report) {
            if env.contains_key(&key) {
                let text =
                    format_args!("key {key:?} defined in both 'env' and 'secrets' - use one or the other")
                        .to_string();
                report.problem(secret.line, "", text);
            }
        }
        report.ignored("secrets");
    }
    env.into_iter().map(|(key, value)| (key, value.text)).collect()
}

/// One variable. The names that moat sets for the agent are its own.
pub(super) fn check(key: &str, value: &Text, at: &str, report: &mut Report) {
    if key.is_empty() || key.contains(['=', '\0']) {
        report.problem(value.line, at, format_args!("{key:?} is no name of a variable"));
    } else if key.starts_with("MOAT_") {
        report.problem(
            value.line,
            at,
            format_args!("{key:?} cannot be set: names with MOAT_ are moat's own"),
        );
    } else if value.text.contains('\0') {
        report.problem(value.line, at, format_args!("the value of {key:?} has a zero byte"));
    }
}
