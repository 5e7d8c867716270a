//! What differs between two rule sets, rule by rule, for people: `diff`, `reload`, and the announcement at a start (P42).

use serde::Serialize;

use super::model::{Rule, RuleSet};

/// What changed from one rule set to another.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Difference {
    /// Of the whole set: `mode: enforce -> audit_only`.
    pub(crate) settings: Vec<String>,
    pub(crate) removed: Vec<String>,
    pub(crate) added: Vec<String>,
    /// A rule's name and what changed in it.
    pub(crate) changed: Vec<(String, Vec<String>)>,
    /// Rules that stand in another order.
    pub(crate) reordered: bool,
}

impl Difference {
    pub(crate) fn between(old: &RuleSet, new: &RuleSet) -> Self {
        let mut difference = Self::default();
        let mut setting = |name: &str, old: String, new: String| {
            if old != new {
                difference.settings.push(format!("{name}: {old} -> {new}"));
            }
        };
        setting("scope", old.scope.clone(), new.scope.clone());
        setting("mode", old.mode.as_str().to_owned(), new.mode.as_str().to_owned());
        setting("on_error", format!("{:?}", old.on_error), format!("{:?}", new.on_error));
        setting("case_sensitive", old.case_sensitive.to_string(), new.case_sensitive.to_string());
        let find = |set: &'_ RuleSet, name: &str| set.rules.iter().position(|rule| rule.name == name);
        for rule in &old.rules {
            match find(new, &rule.name) {
                None => difference.removed.push(rule.name.clone()),
                Some(index) => {
                    let changes = changes(rule, &new.rules[index]);
                    if !changes.is_empty() {
                        difference.changed.push((rule.name.clone(), changes));
                    }
                }
            }
        }
        let added = new.rules.iter().filter(|rule| find(old, &rule.name).is_none());
        difference.added.extend(added.map(|rule| rule.name.clone()));
        let common = |set: &RuleSet, other: &RuleSet| -> Vec<String> {
            let kept = set.rules.iter().filter(|rule| find(other, &rule.name).is_some());
            kept.map(|rule| rule.name.clone()).collect()
        };
        difference.reordered = common(old, new) != common(new, old);
        difference
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `1 rule removed (deny-deletes), 1 added (log-all)`
    pub(crate) fn summary(&self) -> String {
        let mut parts = self.settings.clone();
        let mut count = |what: &str, names: Vec<&str>| {
            if !names.is_empty() {
                let rules = if names.len() == 1 { "rule" } else { "rules" };
                parts.push(format!("{} {rules} {what} ({})", names.len(), names.join(", ")));
            }
        };
        count("removed", self.removed.iter().map(String::as_str).collect());
        count("added", self.added.iter().map(String::as_str).collect());
        count("changed", self.changed.iter().map(|(name, _)| name.as_str()).collect());
        if self.reordered {
            parts.push("rules in another order".to_owned());
        }
        if parts.is_empty() { "nothing that decides".to_owned() } else { parts.join(", ") }
    }

    /// A line for each thing.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.settings.iter().map(|setting| format!("~ {setting}")).collect();
        lines.extend(self.removed.iter().map(|name| format!("- rule {name}")));
        lines.extend(self.added.iter().map(|name| format!("+ rule {name}")));
        for (name, changes) in &self.changed {
            lines.extend(changes.iter().map(|change| format!("~ rule {name}: {change}")));
        }
        if self.reordered {
            lines.push("~ rules stand in another order".to_owned());
        }
        lines
    }
}

fn changes(old: &Rule, new: &Rule) -> Vec<String> {
    let mut changes = Vec::new();
    let mut field = |name: &str, old: String, new: String| {
        if old != new {
            changes.push(format!("{name}: {old:?} -> {new:?}"));
        }
    };
    field("operation", old.operation.clone(), new.operation.clone());
    field("allowed", old.except.join(", "), new.except.join(", "));
    field("when", old.when.clone().unwrap_or_default(), new.when.clone().unwrap_or_default());
    field("action", old.action.as_str().to_owned(), new.action.as_str().to_owned());
    field("message", old.message.clone(), new.message.clone());
    if old.redact != new.redact {
        changes.push("redact: changed".to_owned());
    }
    changes
}
