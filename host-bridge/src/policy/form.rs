//! The forms that a policy has in moat.yaml that are no file: a pack's name, and rules in place.

use super::{
    bound::{Bound, Source},
    model::{Action, Mode, OnError, Rule, RuleSet},
    packs,
};

/// The scope of a policy that is not a file.
pub(crate) fn scope(server: &str) -> String {
    format!("mcp-{server}")
}

/// A starter pack, by its name.
pub(crate) fn pack(name: &str, server: &str) -> Option<Bound> {
    packs::load(name, &scope(server)).map(|set| Bound::new(Source::Pack { name: name.to_owned() }, &set))
}

/// What was written in place.
#[derive(Debug, Default)]
pub(crate) struct Inline {
    pub(crate) deny: Vec<String>,
    /// Everything else is denied; empty: there is no such list.
    pub(crate) allow: Vec<String>,
    pub(crate) audit: bool,
}

/// A rule for each entry of `deny`, and one for all of `allow`.
pub(crate) fn inline(given: &Inline, server: &str) -> Bound {
    let rule = |name: String, operation: String, except: Vec<String>, message: String| Rule {
        name,
        operation,
        except,
        when: None,
        action: Action::Deny,
        message,
        redact: None,
        line: 0,
    };
    let mut rules: Vec<Rule> = given
        .deny
        .iter()
        .map(|operation| {
            let message = format!("{operation} is not allowed");
            rule(format!("deny-{operation}"), operation.clone(), Vec::new(), message)
        })
        .collect();
    if !given.allow.is_empty() {
        let message = "Only what is on the server's allow list may be called.".to_owned();
        rules.push(rule("allow-list".to_owned(), String::new(), given.allow.clone(), message));
    }
    let set = RuleSet {
        scope: scope(server),
        mode: if given.audit { Mode::AuditOnly } else { Mode::Enforce },
        on_error: OnError::Closed,
        case_sensitive: false,
        rules,
    };
    Bound::new(Source::Inline, &set)
}
