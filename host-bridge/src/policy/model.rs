//! A rule set: what every form of policy becomes, what runs.json keeps, and what [`super::compile`] makes runnable.
//!
//! It is complete: packs are resolved and definitions substituted, so that a restart needs nothing of the workspace (P43).

use ring::digest;
use serde::{Deserialize, Serialize};

/// The rules for one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleSet {
    pub(crate) scope: String,
    pub(crate) mode: Mode,
    pub(crate) on_error: OnError,
    pub(crate) case_sensitive: bool,
    pub(crate) rules: Vec<Rule>,
}

/// Is a denial carried out?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    Enforce,
    /// Everything is judged and recorded, nothing is stopped.
    AuditOnly,
}

impl Mode {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::AuditOnly => "audit_only",
        }
    }
}

/// What a rule that cannot be evaluated does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnError {
    /// It denies.
    Closed,
    /// It does not match.
    Open,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    pub(crate) name: String,
    /// A pattern over operations; empty: any tool.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) operation: String,
    /// Of an allow list: it takes part in whatever these patterns do not match, methods included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) except: Vec<String>,
    /// CEL, with definitions substituted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) when: Option<String>,
    pub(crate) action: Action,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) redact: Option<Redact>,
    /// Where it stands in its file; 0 where there is none.
    #[serde(default)]
    pub(crate) line: usize,
}

/// What a rule that matches does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    Deny,
    Log,
    Redact,
}

impl Action {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Log => "log",
            Self::Redact => "redact",
        }
    }
}

/// What a redaction rewrites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Redact {
    /// `params.` and names.
    pub(crate) target: String,
    #[serde(default)]
    pub(crate) secrets: bool,
    #[serde(default)]
    pub(crate) patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pattern {
    #[serde(rename = "match")]
    pub(crate) pattern: String,
    #[serde(default)]
    pub(crate) replace: String,
}

impl RuleSet {
    /// `sha256:` and hex, over everything that decides.
    pub(crate) fn hash(&self) -> String {
        let mut whole = self.clone();
        // Where a rule stands decides nothing.
        whole.rules.iter_mut().for_each(|rule| rule.line = 0);
        let text = serde_json::to_vec(&whole).unwrap_or_default();
        let hash = digest::digest(&digest::SHA256, &text);
        let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }
}
