//! A rule set into a policy that can judge: patterns and expressions read, rules in their order.

use std::fmt;

use regex::Regex;

use super::{
    cel::{self, Code, Facts},
    glob::{Glob, Operation},
    model::{Action, Mode, OnError, Redact, RuleSet},
    regexp, secrets,
};

/// Rules of one policy, those of its packs included.
pub(crate) const RULES: usize = 500;

/// A policy that can judge.
pub(crate) struct Policy {
    pub(crate) set: RuleSet,
    /// `sha256:...` of the rule set.
    pub(crate) hash: String,
    /// In the order in which they run.
    pub(super) rules: Vec<Ready>,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("scope", &self.set.scope)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

/// A rule that can be tried.
#[derive(Debug)]
pub(super) struct Ready {
    /// Its place in the rule set.
    pub(super) index: usize,
    pub(super) glob: Option<Glob>,
    pub(super) except: Vec<Glob>,
    pub(super) code: Option<Code>,
    pub(super) facts: Facts,
    pub(super) redactor: Option<Redactor>,
    /// It takes part when a result is judged (P32).
    pub(super) in_response: bool,
}

/// What is wrong with one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuleProblem {
    pub(crate) index: usize,
    pub(crate) text: String,
}

impl Policy {
    /// Everything that is wrong, at once.
    pub(crate) fn compile(set: RuleSet) -> Result<Self, Vec<RuleProblem>> {
        let mut problems = Vec::new();
        let mut rules: Vec<Ready> = Vec::with_capacity(set.rules.len());
        for index in 0..set.rules.len() {
            match ready(&set, index) {
                Ok(rule) => rules.push(rule),
                Err(texts) => problems.extend(texts.into_iter().map(|text| RuleProblem { index, text })),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        // Stable: within a tier the file's order stays.
        rules.sort_by_key(|rule| match &rule.glob {
            Some(glob) if glob.is_exact() => 0,
            Some(_) => 1,
            None => 2,
        });
        let hash = set.hash();
        Ok(Self { set, hash, rules })
    }

    /// Without what rewrites: an edit that nobody accepted may deny, never write into what others let pass (P41).
    pub(crate) fn denying_only(mut self) -> Self {
        self.rules.retain(|rule| rule.redactor.is_none());
        self
    }

    #[cfg(test)]
    pub(crate) fn rewrites(&self) -> bool {
        self.rules.iter().any(|rule| rule.redactor.is_some())
    }

    /// The operation as rules see it.
    pub(crate) fn seen<'o>(&self, operation: &'o Operation<'_>) -> &'o str {
        if self.set.case_sensitive { operation.own() } else { operation.lower() }
    }

    pub(crate) fn enforces(&self) -> bool {
        self.set.mode == Mode::Enforce
    }

    pub(crate) fn fails_closed(&self) -> bool {
        self.set.on_error == OnError::Closed
    }

    /// Are results judged at all?
    pub(crate) fn judges_results(&self) -> bool {
        self.rules.iter().any(|rule| rule.in_response)
    }

    /// Does it depend on what servers say of their tools?
    pub(crate) fn reads_annotations(&self) -> bool {
        self.rules.iter().any(|rule| rule.facts.context.contains("annotations"))
    }

    pub(crate) fn reads_labels(&self) -> bool {
        self.rules.iter().any(|rule| rule.facts.context.contains("labels"))
    }

    /// What the authors of its rules should know: the rule's place in the set, and the text.
    pub(crate) fn warnings(&self) -> Vec<(usize, String)> {
        let mut warnings = Vec::new();
        for rule in &self.rules {
            warnings.extend(rule.facts.warnings.iter().map(|text| (rule.index, text.clone())));
            let spec = &self.set.rules[rule.index];
            if spec.operation.contains(['{', '}']) {
                let text = "braces in 'operation' are literal; write one rule for each name".to_owned();
                warnings.push((rule.index, text));
            }
            if rule.in_response && !rule.facts.context.contains("direction") {
                let text = "reads params.content without a direction, so it judges arguments and results alike; add \
                            context.direction == 'request' or 'response' to judge one of them";
                warnings.push((rule.index, text.to_owned()));
            }
        }
        warnings.sort_by_key(|(index, _)| *index);
        warnings
    }
}

fn ready(set: &RuleSet, index: usize) -> Result<Ready, Vec<String>> {
    let spec = &set.rules[index];
    let mut problems = Vec::new();
    let mut glob = |pattern: &str| {
        Glob::new(pattern, set.case_sensitive)
            .map_err(|error| problems.push(format!("operation {pattern:?} is not a valid pattern: {error}")))
            .ok()
    };
    let own = if spec.operation.is_empty() { None } else { glob(&spec.operation) };
    let except = spec.except.iter().filter_map(|pattern| glob(pattern)).collect();
    let (mut code, mut facts) = (None, Facts::default());
    if let Some(when) = spec.when.as_deref().filter(|when| !when.trim().is_empty()) {
        match cel::parse(when).and_then(|tree| cel::check(&tree, when, set.case_sensitive)) {
            Ok((checked, known)) => (code, facts) = (Some(checked), known),
            Err(mistake) => problems.push(format!("when: {}", mistake.shown(when))),
        }
    }
    let redactor = match (spec.action, &spec.redact) {
        (Action::Redact, Some(redact)) => Redactor::new(redact).map_err(|texts| problems.extend(texts)).ok(),
        (Action::Redact, None) => {
            problems.push("action \"redact\" requires a redact block".to_owned());
            None
        }
        _ => None,
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    let rewrites_content =
        redactor.as_ref().is_some_and(|redactor| redactor.path.first().is_some_and(|name| name == "content"));
    let in_response = facts.context.contains("direction") || facts.reads("content") || rewrites_content;
    Ok(Ready { index, glob: own, except, code, facts, redactor, in_response })
}

/// Rewrites strings.
#[derive(Debug)]
pub(super) struct Redactor {
    /// Below params.
    pub(super) path: Vec<String>,
    secrets: bool,
    patterns: Vec<(Regex, String)>,
}

impl Redactor {
    fn new(redact: &Redact) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let path = target(&redact.target).map_err(|text| problems.push(text)).unwrap_or_default();
        if !redact.secrets && redact.patterns.is_empty() {
            problems.push("redact requires secrets: true or non-empty patterns".to_owned());
        }
        if redact.patterns.len() > 50 {
            problems
                .push(format!("redact patterns: {} patterns exceeds maximum of 50", redact.patterns.len()));
        }
        let mut patterns = Vec::new();
        for (index, pattern) in redact.patterns.iter().enumerate().take(50) {
            let text = &pattern.pattern;
            if text.is_empty() {
                problems.push(format!("redact patterns[{index}]: match must not be empty"));
            } else if text.chars().count() > 1024 {
                problems.push(format!("redact pattern too long ({} chars, max 1024)", text.chars().count()));
            } else {
                match regexp::compile(text) {
                    Ok(regex) => patterns.push((regex, pattern.replace.clone())),
                    Err(error) => problems.push(format!(
                        "redact patterns[{index}]: match {text:?} is not a valid RE2 pattern: {error}"
                    )),
                }
            }
        }
        if problems.is_empty() { Ok(Self { path, secrets: redact.secrets, patterns }) } else { Err(problems) }
    }

    /// The text as it may go on; `None`: as it is. Secrets first, then the patterns one after another.
    pub(super) fn rewrite(&self, text: &str) -> Option<String> {
        let mut current = if self.secrets { secrets::redacted(text) } else { text.to_owned() };
        for (regex, replace) in &self.patterns {
            match replaced(regex, &current, replace) {
                Some(changed) => current = changed,
                None => return Some("[REDACTED]".to_owned()),
            }
        }
        (current != text).then_some(current)
    }
}

/// What a text may grow to; a longer one is not there at all.
const MOST: usize = 16 << 20;

/// As `Regex::replace_all`. `None`: more than [`MOST`].
fn replaced(regex: &regex::Regex, text: &str, replace: &str) -> Option<String> {
    let references = replace.matches('$').count();
    let (mut out, mut end) = (String::new(), 0);
    for captures in regex.captures_iter(text) {
        let whole = captures.get_match();
        // A group lies in the whole match.
        let most = replace.len() + references * whole.len() + out.len() + whole.start() - end;
        if most > MOST {
            return None;
        }
        out.push_str(&text[end..whole.start()]);
        captures.expand(replace, &mut out);
        end = whole.end();
    }
    out.push_str(&text[end..]);
    Some(out)
}

fn target(target: &str) -> Result<Vec<String>, String> {
    if target.is_empty() {
        return Err("redact target is required".to_owned());
    }
    let Some(path) = target.strip_prefix("params.") else {
        return Err(format!("redact target {target:?} must be a params.* path"));
    };
    let bad =
        |text: String| format!("redact target {target:?}: invalid field path: field path {target:?}: {text}");
    path.split('.')
        .map(|segment| {
            let wrong = segment.chars().enumerate().find(|(index, c)| {
                !(*c == '_' || c.is_ascii_alphabetic() || *index > 0 && c.is_ascii_digit())
            });
            match wrong {
                _ if segment.is_empty() => Err(bad("empty segment".to_owned())),
                Some((_, c)) => Err(bad(format!("segment {segment:?}: invalid character '{c}'"))),
                None => Ok(segment.to_owned()),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::model::Pattern;

    #[test]
    fn replacements_are_those_of_the_library() {
        for (pattern, text, replace) in [
            ("a", "banana", "$0$0"),
            ("(n)(a)", "banana", "$2-$1"),
            ("x", "banana", "y"),
            ("", "ab", "-"),
            ("é", "é é", "$$"),
        ] {
            let regex = Regex::new(pattern).unwrap();
            assert_eq!(
                replaced(&regex, text, replace).unwrap(),
                regex.replace_all(text, replace),
                "{pattern}"
            );
        }
    }

    #[test]
    fn a_text_that_doubles_itself_is_ended() {
        let redact = Redact {
            target: "params.x".to_owned(),
            secrets: false,
            patterns: vec![Pattern { pattern: "(?s).+".to_owned(), replace: "$0$0".to_owned() }; 50],
        };
        let redactor = Redactor::new(&redact).unwrap();
        assert_eq!(redactor.rewrite("abc").as_deref(), Some("[REDACTED]"));
    }
}
