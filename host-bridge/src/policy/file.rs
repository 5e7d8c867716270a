//! Rule files, in Keep's format: YAML to a rule set, with every mistake of the file at once and its line (P3).

mod beside;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use self::beside::{Beside, packs, profile};
use super::{
    cel::{self, TokenKind},
    compile::{Policy, RULES},
    model::{Action, Mode, OnError, Pattern, Redact, Rule, RuleSet},
};
use crate::config::{
    self,
    fields::{Fields, Text},
    problem::Report,
    yaml::{self, Value},
};

/// Bytes of a name.
const NAME: usize = 64;
/// Bytes of a `when` before and after definitions are substituted.
const WHEN: usize = 2048;
const EXPANDED: usize = 64 * 1024;

const TOP: [&str; 9] =
    ["version", "scope", "profile", "mode", "on_error", "case_sensitive", "defs", "packs", "rules"];
const RULE: [&str; 7] = ["name", "description", "match", "action", "message", "redact", "judge"];

/// A file that was read and is right.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) policy: Policy,
    /// Of what its author should know: `.keep/linear.yaml:12: rule "team-only": ...`.
    pub(crate) warnings: Vec<String>,
    /// Does the file say its mode?
    pub(crate) mode_is_given: bool,
    /// Everything it was read from.
    pub(crate) files: Vec<PathBuf>,
}

/// Everything that is wrong with a file and what it refers to, each with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken(pub(crate) Vec<String>);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}
impl std::error::Error for Broken {}

/// Which scopes a file may have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scopes(Vec<String>);

impl Scopes {
    /// Those of a server: its name, and that with `mcp-` (P24).
    pub(crate) fn of_server(server: &str) -> Self {
        let name: String = server
            .chars()
            .map(|c| c.to_ascii_lowercase())
            .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' { c } else { '-' })
            .collect();
        Self(vec![name.clone(), format!("mcp-{name}")])
    }
}

/// Reads a file and what lies beside it. `shown`: its name in messages.
pub(crate) fn load(path: &Path, shown: &str, scopes: &Scopes) -> Result<Loaded, Broken> {
    let text = match config::read(path, shown) {
        Ok(Some(text)) => text,
        Ok(None) => return Err(Broken(vec![format!("policy file not found: {shown}")])),
        Err(error) => {
            let error = crate::cli::with_causes(&error);
            return Err(Broken(vec![error.trim_start_matches("loading config: ").to_owned()]));
        }
    };
    let beside = Beside { dir: path.parent(), shown, files: vec![path.to_path_buf()] };
    of_text(&text, shown, scopes, beside)
}

/// The same for a text alone; it cannot refer to packs.
pub(crate) fn read(text: &str, shown: &str, scopes: &Scopes) -> Result<Loaded, Broken> {
    of_text(text, shown, scopes, Beside { dir: None, shown, files: Vec::new() })
}

fn of_text(text: &str, shown: &str, scopes: &Scopes, mut beside: Beside<'_>) -> Result<Loaded, Broken> {
    let broken = |text: String| Broken(vec![format!("{shown}: parse rule file: {text}")]);
    let root = match yaml::parse(text) {
        Ok(Some(root)) if !root.is_null() => root,
        Ok(_) => return Err(broken("empty input".to_owned())),
        Err(error) => {
            return Err(Broken(vec![format!(
                "{shown}:{}: parse rule file: invalid YAML: {}",
                error.line, error.text
            )]));
        }
    };
    let mut report = Report::new(shown);
    let mut others = Vec::new();
    let set = Fields::of(&root, String::new(), "the file", &mut report)
        .and_then(|top| rule_set(&top, scopes, &mut beside, &mut report, &mut others));
    let (problems, mut warnings) = report.into_parts();
    let mut problems: Vec<String> =
        problems.iter().map(|problem| format!("{shown}:{}: {}", problem.line, problem.text)).collect();
    problems.extend(others);
    let Some((set, mode_is_given)) = set.filter(|_| problems.is_empty()) else {
        return Err(Broken(problems));
    };
    let lines: Vec<(usize, String)> = set.rules.iter().map(|rule| (rule.line, rule.name.clone())).collect();
    let policy = Policy::compile(set).map_err(|problems| {
        let text = |problem: &super::compile::RuleProblem| {
            let (line, name) = &lines[problem.index];
            format!("{shown}:{line}: rule {name:?}: {}", problem.text.replace('\n', "\n  "))
        };
        Broken(problems.iter().map(text).collect())
    })?;
    for (index, text) in policy.warnings() {
        let (line, name) = &lines[index];
        warnings.push(format!("{shown}:{line}: rule {name:?}: {text}"));
    }
    Ok(Loaded { policy, warnings, mode_is_given, files: beside.files })
}

fn rule_set(
    top: &Fields<'_>,
    scopes: &Scopes,
    beside: &mut Beside<'_>,
    report: &mut Report,
    others: &mut Vec<String>,
) -> Option<(RuleSet, bool)> {
    check_keys(top, &TOP, report);
    if let Some(version) = top.text("version", report)
        && version.text != "v1"
    {
        let text =
            format_args!("unsupported rule file version {:?} (supported: v1)", version.text).to_string();
        report.problem(version.line, "", text);
    }
    let scope = scope(top, scopes, report);
    let words = Words { profile: profile(top, beside, report, others), defs: defs(top, report) };
    let mut list = packs(top, beside, report, others);
    let before = list.len();
    match top.node("rules").map(|node| (node.line, &node.value)) {
        None if before == 0 => report.problem(top.line, "", "rules: required and must not be empty"),
        Some((line, Value::List(items))) if items.is_empty() && before == 0 => {
            report.problem(line, "", "rules: required and must not be empty");
        }
        _ => list.extend(rules(top, &words, report)),
    }
    if list.len() > RULES {
        let text = format!("rules: {} rules exceeds maximum of {RULES} per scope", list.len());
        report.problem(top.line, "", text);
    }
    for (index, rule) in list.iter().enumerate() {
        if list[..index].iter().any(|other| other.name == rule.name) {
            let at = if index < before { "packs".to_owned() } else { format!("rules[{}]", index - before) };
            report.problem(rule.line, &at, format_args!("duplicate rule name {:?} within scope", rule.name));
        }
    }
    let mode = one_of(
        top,
        "mode",
        &[("enforce", Mode::Enforce), ("audit_only", Mode::AuditOnly), ("audit", Mode::AuditOnly)],
        report,
    );
    let on_error = one_of(top, "on_error", &[("closed", OnError::Closed), ("open", OnError::Open)], report);
    let case_sensitive = top.flag("case_sensitive", report).unwrap_or(false);
    let set = RuleSet {
        scope: scope?,
        mode: mode.unwrap_or(Mode::AuditOnly),
        on_error: on_error.unwrap_or(OnError::Closed),
        case_sensitive,
        rules: list,
    };
    Some((set, top.node("mode").is_some()))
}

/// Keys that begin with `x-` are free (P1).
fn check_keys(fields: &Fields<'_>, known: &[&str], report: &mut Report) {
    let free: Vec<&str> =
        fields.entries().map(|entry| entry.key.as_str()).filter(|key| key.starts_with("x-")).collect();
    let all: Vec<&str> = known.iter().copied().chain(free).collect();
    fields.check_keys(&all, report);
    for entry in fields.entries().filter(|entry| entry.key == "allow" && !known.contains(&"allow")) {
        report.problem(
            entry.line,
            &fields.at,
            "rules do not allow, they deny: deny what is not on a list, as in when: \"!(context.operation in \
             ['get_issue', 'list_issues'])\"",
        );
    }
}

fn one_of<T: Copy>(top: &Fields<'_>, key: &str, known: &[(&str, T)], report: &mut Report) -> Option<T> {
    let given = top.text(key, report)?;
    let found = known.iter().find(|(name, _)| *name == given.text).map(|(_, value)| *value);
    if found.is_none() {
        let names: Vec<String> = known.iter().take(2).map(|(name, _)| format!("{name:?}")).collect();
        let text = format!("{key}: invalid value {:?} (must be {})", given.text, names.join(" or "));
        report.problem(given.line, "", text);
    }
    found
}

fn scope(top: &Fields<'_>, scopes: &Scopes, report: &mut Report) -> Option<String> {
    let Some(scope) = top.text("scope", report).filter(|scope| !scope.text.is_empty()) else {
        report.problem(top.line, "", "scope: required and must not be empty");
        return None;
    };
    if let Some(problem) = misnamed(&scope.text, false) {
        report.problem(scope.line, "", format_args!("scope: {problem}"));
        return None;
    }
    if !scopes.0.is_empty() && !scopes.0.contains(&scope.text) {
        let expected: Vec<String> = scopes.0.iter().map(|scope| format!("{scope:?}")).collect();
        let text = format!(
            "scope {:?} does not belong to this server (expected {})",
            scope.text,
            expected.join(" or ")
        );
        report.problem(scope.line, "", text);
        return None;
    }
    Some(scope.text)
}

fn misnamed(name: &str, underscores: bool) -> Option<String> {
    let (extra, pattern) = if underscores { ('_', "[a-z][a-z0-9_]*") } else { ('-', "[a-z][a-z0-9-]*") };
    if name.len() > NAME {
        return Some(format!("name {name:?} exceeds maximum length of {NAME}"));
    }
    let fits = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == extra);
    (!fits).then(|| format!("name {name:?} is invalid (must match {pattern})"))
}

/// Words that stand for others in `when`: a profile's aliases first, then definitions.
#[derive(Default)]
struct Words {
    profile: BTreeMap<String, String>,
    defs: BTreeMap<String, String>,
}

impl Words {
    /// Token by token, so that strings and comments are left alone (P11).
    fn substitute(&self, when: &str) -> Result<String, String> {
        let once = replace(when, &self.profile)?;
        replace(&once, &self.defs)
    }
}

fn replace(text: &str, words: &BTreeMap<String, String>) -> Result<String, String> {
    // What cannot be read is told where it is compiled.
    let Ok(tokens) = cel::tokens(text) else { return Ok(text.to_owned()) };
    let (mut out, mut at, mut after_dot) = (String::new(), 0, false);
    for token in tokens {
        if let TokenKind::Ident(name) = &token.kind
            && !after_dot
            && let Some(word) = words.get(name)
        {
            out.push_str(&text[at..token.at]);
            out.push_str(word);
            at = token.end;
        }
        after_dot = token.kind == TokenKind::Punct(".");
        if out.len() > EXPANDED {
            return Err(format!(
                "when expression exceeds maximum length of {EXPANDED} once definitions are in it"
            ));
        }
    }
    out.push_str(&text[at..]);
    Ok(out)
}

fn defs(top: &Fields<'_>, report: &mut Report) -> BTreeMap<String, String> {
    let mut defs = BTreeMap::new();
    for (name, Text { line, text }) in top.text_map("defs", report) {
        let problem = if let Some(problem) = misnamed(&name, true) {
            problem
        } else if cel::RESERVED.contains(&name.as_str()) {
            format!("name {name:?} shadows a built-in variable or function")
        } else if text.is_empty() {
            format!("value for {name:?} must not be empty")
        } else if text.len() > WHEN {
            format!("value for {name:?} exceeds maximum length of {WHEN}")
        } else {
            defs.insert(name, text);
            continue;
        };
        report.problem(line, "", format_args!("defs: {problem}"));
    }
    defs
}

fn rules(top: &Fields<'_>, words: &Words, report: &mut Report) -> Vec<Rule> {
    let items = top.list("rules", report).unwrap_or_default();
    items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| {
            let fields = Fields::of(item, format!("rules[{index}]"), "a rule", report)?;
            rule(&fields, words, report)
        })
        .collect()
}

fn rule(fields: &Fields<'_>, words: &Words, report: &mut Report) -> Option<Rule> {
    check_keys(fields, &RULE, report);
    let at = fields.at.as_str();
    let name = fields.text("name", report).map(|name| name.text).unwrap_or_default();
    if name.is_empty() {
        report.problem(fields.line, at, "name is required");
    } else if let Some(problem) = misnamed(&name, false) {
        report.problem(fields.line, at, problem);
    }
    let action = match fields.text("action", report) {
        None => {
            report.problem(fields.line, at, "action is required");
            None
        }
        Some(Text { line, text }) => match text.as_str() {
            "deny" => Some(Action::Deny),
            "log" => Some(Action::Log),
            "redact" => Some(Action::Redact),
            "judge" => {
                report.problem(line, at, "action \"judge\" is not supported");
                None
            }
            other => {
                let text = format!("action {other:?} is invalid (must be \"deny\", \"log\", or \"redact\")");
                report.problem(line, at, text);
                None
            }
        },
    };
    let (operation, when) = matching(fields, words, report);
    let redact = if action == Some(Action::Redact) { redact(fields, report) } else { None };
    let message = fields.text("message", report).map(|message| message.text).unwrap_or_default();
    Some(Rule {
        name,
        operation,
        except: Vec::new(),
        when,
        action: action?,
        message,
        redact,
        line: fields.line,
    })
}

fn matching(fields: &Fields<'_>, words: &Words, report: &mut Report) -> (String, Option<String>) {
    let Some(matching) = fields.map("match", report) else { return (String::new(), None) };
    check_keys(&matching, &["operation", "when"], report);
    let operation = matching.text("operation", report).map(|operation| operation.text).unwrap_or_default();
    let when = matching.text("when", report).and_then(|Text { line, text }| {
        if text.len() > WHEN {
            let text = format!("when expression exceeds maximum length of {WHEN}");
            report.problem(line, &fields.at, text);
            return None;
        }
        words.substitute(&text).map_err(|problem| report.problem(line, &fields.at, problem)).ok()
    });
    (operation, when)
}

fn redact(fields: &Fields<'_>, report: &mut Report) -> Option<Redact> {
    let Some(block) = fields.map("redact", report) else {
        report.problem(fields.line, &fields.at, "action \"redact\" requires a redact block");
        return None;
    };
    check_keys(&block, &["target", "secrets", "patterns"], report);
    let target = block.text("target", report).map(|target| target.text).unwrap_or_default();
    let secrets = block.flag("secrets", report).unwrap_or(false);
    let mut patterns = Vec::new();
    for (index, item) in block.list("patterns", report).unwrap_or_default().iter().enumerate() {
        let at = format!("{}.patterns[{index}]", block.at);
        let Some(pattern) = Fields::of(item, at, "a pattern", report) else { continue };
        check_keys(&pattern, &["match", "replace"], report);
        let text = |key: &str, report: &mut Report| {
            pattern.text(key, report).map(|text| text.text).unwrap_or_default()
        };
        patterns.push(Pattern { pattern: text("match", report), replace: text("replace", report) });
    }
    Some(Redact { target, secrets, patterns })
}

#[cfg(test)]
mod tests;
