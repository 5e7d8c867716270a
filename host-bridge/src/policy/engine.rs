//! Judges one call by one policy. Without I/O and without a clock: policy, call and counters in, judgement out.
//!
//! Rules run from the specific to the general. Nothing allows: what no rule denies may pass. `deny` ends, `log` is noted,
//! `redact` changes what later rules see; a rule that cannot be evaluated denies, unless the file says `on_error: open`.

use std::{
    collections::BTreeMap,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
};

use jiff::Timestamp;

use super::{
    cel::{self, Env, Rates, Verdict},
    compile::{Policy, Ready, Redactor},
    glob::Operation,
    json::{Data, Node, Text, folds_alike},
    model::Action,
};

pub(crate) use super::cel::Context;

/// What kind of thing an operation is (P30).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tool,
    /// Anything else that is judged; only rules whose pattern names a method take part.
    Method,
    /// A result whose request nobody knows: every rule for results takes part (P34).
    Unknown,
}

/// What is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Request,
    Response,
}

/// One call.
pub(crate) struct Call<'c> {
    pub(crate) kind: Kind,
    pub(crate) phase: Phase,
    pub(crate) operation: &'c Operation<'c>,
    pub(crate) context: &'c Context,
    pub(crate) now: Timestamp,
    pub(crate) rates: &'c dyn Rates,
}

/// The arguments or the result, as it is judged and rewritten.
pub(crate) trait Subject {
    fn params(&self) -> &Node;
    /// Rewrites what a rule is aimed at. Returns how many strings changed. `dry`: only counts.
    fn redact(&mut self, redactor: &dyn Fn(&str) -> Option<String>, path: &[String], dry: bool) -> usize;
}

/// How one rule fared, for those who ask why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Its operation is another.
    Skipped,
    NotMatched,
    /// A key that it reads is not there.
    Missing,
    Matched,
    Error(String),
}

/// A denial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denial {
    pub(crate) rule: String,
    pub(crate) message: String,
    /// It was no match, but a rule that could not be evaluated.
    pub(crate) error: Option<String>,
    /// Patterns of the allow list that denies.
    pub(crate) allowed: Vec<String>,
}

/// What a policy says of a call.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    /// The first denial, carried out or not.
    pub(crate) denial: Option<Denial>,
    /// Rules that matched and only note it.
    pub(crate) logged: Vec<String>,
    /// Rules that rewrote something, with their target.
    pub(crate) redacted: Vec<(String, String)>,
    /// Rules that could not be evaluated, where that does not deny.
    pub(crate) errors: Vec<(String, String)>,
    /// Rules in their order and how they fared, if asked for.
    pub(crate) steps: Vec<(usize, Step)>,
}

impl Policy {
    /// Judges a call. `explain`: note how each rule fared.
    pub(crate) fn judge(&self, call: &Call<'_>, subject: &mut dyn Subject, explain: bool) -> Judgement {
        let mut judgement = Judgement::default();
        for rule in &self.rules {
            let step = self.step(rule, call, subject);
            if explain {
                judgement.steps.push((rule.index, step.clone()));
            }
            let spec = &self.set.rules[rule.index];
            let denial = match step {
                Step::Skipped | Step::NotMatched | Step::Missing => continue,
                Step::Error(text) if self.enforces() && self.fails_closed() => Denial {
                    message: format!(
                        "Rule {:?} evaluation error: {text}. Call denied (fail-closed).",
                        spec.name
                    ),
                    rule: spec.name.clone(),
                    error: Some(text),
                    allowed: Vec::new(),
                },
                Step::Error(text) => {
                    judgement.errors.push((spec.name.clone(), text));
                    continue;
                }
                Step::Matched => match spec.action {
                    Action::Deny => Denial {
                        rule: spec.name.clone(),
                        message: spec.message.clone(),
                        error: None,
                        allowed: spec.except.clone(),
                    },
                    Action::Log => {
                        judgement.logged.push(spec.name.clone());
                        continue;
                    }
                    Action::Redact => {
                        self.redact(rule, subject, &mut judgement);
                        continue;
                    }
                },
            };
            judgement.denial.get_or_insert(denial);
            if self.enforces() {
                break;
            }
        }
        judgement
    }

    fn redact(&self, rule: &Ready, subject: &mut dyn Subject, judgement: &mut Judgement) {
        let Some(redactor) = &rule.redactor else { return };
        let Redactor { path, .. } = redactor;
        if subject.redact(&|text| redactor.rewrite(text), path, !self.enforces()) > 0 {
            let name = self.set.rules[rule.index].name.clone();
            judgement.redacted.push((name, format!("params.{}", path.join("."))));
        }
    }

    fn step(&self, rule: &Ready, call: &Call<'_>, subject: &dyn Subject) -> Step {
        if (call.phase == Phase::Response && !rule.in_response) || !rule.takes_part(call.kind, call.operation)
        {
            return Step::Skipped;
        }
        let Some(code) = &rule.code else { return Step::Matched };
        let env = Env {
            params: Some(subject.params()),
            context: call.context,
            now: Some(call.now),
            rates: Some(call.rates),
            lowered: !self.set.case_sensitive,
        };
        // Nothing in there is known to panic; if it does, it is an error like any other.
        let verdict = catch_unwind(AssertUnwindSafe(|| cel::evaluate(code, &env)));
        match verdict.unwrap_or_else(|_| Verdict::Error("the evaluation broke off".to_owned())) {
            Verdict::True => Step::Matched,
            Verdict::False { missing: true } => Step::Missing,
            Verdict::False { missing: false } => Step::NotMatched,
            Verdict::Unknown => Step::Error("depends on what is not known".to_owned()),
            Verdict::Error(text) => Step::Error(text),
        }
    }

    /// What becomes of a call whose arguments nobody knows: the first rule that denies it for certain, or else one that
    /// could.
    pub(crate) fn foresee(
        &self,
        kind: Kind,
        operation: &Operation<'_>,
        context: &Context,
    ) -> Option<(&str, bool)> {
        let mut possible = None;
        for rule in &self.rules {
            let spec = &self.set.rules[rule.index];
            if spec.action != Action::Deny || !rule.takes_part(kind, operation) {
                continue;
            }
            let verdict = rule.code.as_ref().map_or(Verdict::True, |code| {
                let env =
                    Env { params: None, context, now: None, rates: None, lowered: !self.set.case_sensitive };
                cel::evaluate(code, &env)
            });
            match verdict {
                Verdict::True => return Some((&spec.name, true)),
                Verdict::Unknown | Verdict::Error(_) => {
                    possible.get_or_insert((spec.name.as_str(), false));
                }
                Verdict::False { .. } => {}
            }
        }
        possible
    }

    /// Would a call always be denied, whatever its arguments? Then it need not be shown (P35). The rule that denies.
    pub(crate) fn hides(&self, kind: Kind, operation: &Operation<'_>, context: &Context) -> Option<&str> {
        for rule in &self.rules {
            let spec = &self.set.rules[rule.index];
            if spec.action != Action::Deny || !rule.takes_part(kind, operation) {
                continue;
            }
            let always = rule.code.as_ref().is_none_or(|code| {
                let env =
                    Env { params: None, context, now: None, rates: None, lowered: !self.set.case_sensitive };
                let verdict = catch_unwind(AssertUnwindSafe(|| cel::evaluate(code, &env)));
                matches!(verdict, Ok(Verdict::True))
            });
            if always {
                return Some(&spec.name);
            }
        }
        None
    }

    /// What can hide things whose operations begin so, in words that are the same while it is.
    pub(crate) fn hiding(&self, start: &str) -> Vec<String> {
        let takes_part = |rule: &&Ready| {
            let denies = self.set.rules[rule.index].action == Action::Deny;
            denies && (!rule.except.is_empty() || rule.glob.as_ref().is_some_and(|glob| glob.may_name(start)))
        };
        let rules = self.rules.iter().filter(takes_part).map(|rule| &self.set.rules[rule.index]);
        rules.map(|rule| format!("{:?} {:?} {:?}", rule.operation, rule.except, rule.when)).collect()
    }

    /// A key of the arguments that some decoders would take for one that a rule reads (P28).
    pub(crate) fn misread<'n>(&self, call: &Call<'_>, params: &'n Node) -> Option<&'n str> {
        self.rules.iter().filter(|rule| rule.takes_part(call.kind, call.operation)).find_map(|rule| {
            let targets = rule.redactor.iter().map(|redactor| &redactor.path);
            rule.facts.fields.iter().chain(targets).find_map(|path| misread(params, path))
        })
    }
}

impl Ready {
    pub(super) fn takes_part(&self, kind: Kind, operation: &Operation<'_>) -> bool {
        if kind == Kind::Unknown {
            return self.in_response;
        }
        if !self.except.is_empty() {
            let lists = |glob: &super::glob::Glob| {
                (kind == Kind::Tool || glob.names_a_method()) && glob.matches(operation)
            };
            return !self.except.iter().any(lists);
        }
        match &self.glob {
            None => kind == Kind::Tool,
            Some(glob) => (kind == Kind::Tool || glob.names_a_method()) && glob.matches(operation),
        }
    }
}

fn misread<'n>(node: &'n Node, path: &[String]) -> Option<&'n str> {
    let (name, rest) = path.split_first()?;
    match node.get(name) {
        Some(below) => misread(below, rest),
        None => node.entries().iter().map(|(key, _)| key.as_str()).find(|key| folds_alike(key, name)),
    }
}

/// Arguments of a request, with what is to be written in their bytes.
#[derive(Debug)]
pub(crate) struct Arguments<'n> {
    params: &'n mut Node,
    /// New texts by where the old token starts.
    pub(crate) edits: BTreeMap<usize, (Range<usize>, String)>,
}

impl<'n> Arguments<'n> {
    pub(crate) fn new(params: &'n mut Node) -> Self {
        Self { params, edits: BTreeMap::new() }
    }
}

impl Subject for Arguments<'_> {
    fn params(&self) -> &Node {
        self.params
    }

    fn redact(&mut self, rewrite: &dyn Fn(&str) -> Option<String>, path: &[String], dry: bool) -> usize {
        let Self { params, edits } = self;
        let mut target = Some(&mut **params);
        for name in path {
            target = target.and_then(|node| node.get_mut(name));
        }
        let mut changed = 0;
        if let Some(target) = target {
            target.strings_mut(&mut |span, text| {
                if let Some(new) = rewrite(text.original()) {
                    changed += 1;
                    if !dry {
                        edits.insert(span.start, (span.clone(), new.clone()));
                        *text = Text::written(new);
                    }
                }
            });
        }
        changed
    }
}

/// The strings of a result; rules see them joined as `params.content` (P33).
#[derive(Debug)]
pub(crate) struct ResultTexts {
    params: Node,
    /// Where each string's token stands, and the string as it may go on.
    strings: Vec<(Range<usize>, String)>,
    pub(crate) edits: BTreeMap<usize, (Range<usize>, String)>,
}

impl ResultTexts {
    pub(crate) fn new(strings: Vec<(Range<usize>, String)>) -> Self {
        let params = Self::joined(&strings, Text::new);
        Self { params, strings, edits: BTreeMap::new() }
    }

    fn joined(strings: &[(Range<usize>, String)], text: fn(String) -> Text) -> Node {
        let all: Vec<&str> = strings.iter().map(|(_, text)| text.as_str()).collect();
        let content = Node::made(Data::Text(text(all.join("\n"))));
        Node::made(Data::Map(vec![("content".to_owned(), content)]))
    }
}

impl Subject for ResultTexts {
    fn params(&self) -> &Node {
        &self.params
    }

    fn redact(&mut self, rewrite: &dyn Fn(&str) -> Option<String>, path: &[String], dry: bool) -> usize {
        if path != ["content"] {
            return 0;
        }
        let whole = self.params.get("content").and_then(Node::text).unwrap_or_default();
        let whole = rewrite(whole);
        let mut new: Vec<String> =
            self.strings.iter().map(|(_, text)| rewrite(text).unwrap_or_else(|| text.clone())).collect();
        // What matches across two strings: the first takes the whole, the others become empty.
        if let Some(whole) = whole
            && whole != new.join("\n")
        {
            new = vec![String::new(); self.strings.len()];
            if let Some(first) = new.first_mut() {
                *first = whole;
            }
        }
        let mut changed = 0;
        for ((span, old), new) in self.strings.iter_mut().zip(new) {
            if *old == new {
                continue;
            }
            changed += 1;
            if !dry {
                self.edits.insert(span.start, (span.clone(), new.clone()));
                *old = new;
            }
        }
        if changed > 0 && !dry {
            self.params = Self::joined(&self.strings, Text::written);
        }
        changed
    }
}

/// Bytes with some of their string tokens replaced; everything else stays as it is (P31).
pub(crate) fn splice(bytes: &[u8], edits: &BTreeMap<usize, (Range<usize>, String)>) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    for (span, text) in edits.values() {
        out.extend_from_slice(bytes.get(at..span.start).unwrap_or_default());
        out.extend_from_slice(super::json::quoted(text).as_bytes());
        at = span.end;
    }
    out.extend_from_slice(bytes.get(at..).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests;
