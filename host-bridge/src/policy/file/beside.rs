//! Packs and profiles: files beside a rule file, which it names (P10).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{Words, check_keys, misnamed, rules};
use crate::{
    config::{
        self,
        fields::{Fields, Text},
        problem::Report,
        yaml::{self, Node, Value},
    },
    policy::{
        cel,
        compile::RULES,
        model::{Action, Rule},
    },
};

/// Where packs and profiles are.
pub(super) struct Beside<'p> {
    pub(super) dir: Option<&'p Path>,
    pub(super) shown: &'p str,
    pub(super) files: Vec<PathBuf>,
}

impl Beside<'_> {
    /// The YAML files of a directory beside the rule file, each parsed, with its name for messages (P10).
    fn files(&mut self, name: &str, others: &mut Vec<String>) -> Vec<(String, Node)> {
        let Some(dir) = self.dir.map(|dir| dir.join(name)) else { return Vec::new() };
        let mut paths: Vec<PathBuf> = match std::fs::read_dir(&dir) {
            Ok(entries) => entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect(),
            Err(error) => {
                others
                    .push(format!("{}: the directory {name}/ beside it cannot be read: {error}", self.shown));
                return Vec::new();
            }
        };
        paths.retain(|path| path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml"));
        paths.sort();
        let mut files = Vec::new();
        for path in paths.into_iter().take(RULES) {
            let shown = format!("{name}/{}", path.file_name().unwrap_or_default().to_string_lossy());
            match config::read(&path, &shown) {
                Ok(Some(text)) => match yaml::parse(&text) {
                    Ok(Some(root)) => files.push((shown, root)),
                    Ok(None) => {}
                    Err(error) => {
                        others.push(format!("{shown}:{}: invalid YAML: {}", error.line, error.text))
                    }
                },
                Ok(None) => {}
                Err(error) => others.push(crate::cli::with_causes(&error)),
            }
            self.files.push(path);
        }
        files
    }
}

/// What a file in `packs/` or `profiles/` says, with its own problems.
fn named<T>(
    files: &[(String, Node)],
    wanted: &str,
    others: &mut Vec<String>,
    known: &[&str],
    read: impl Fn(&Fields<'_>, &mut Report) -> T,
) -> Option<T> {
    for (shown, root) in files {
        let mut report = Report::new(shown);
        let Some(fields) = Fields::of(root, String::new(), "the file", &mut report) else { continue };
        if fields.text("name", &mut report).is_none_or(|name| name.text != wanted) {
            continue;
        }
        check_keys(&fields, known, &mut report);
        let value = read(&fields, &mut report);
        let (problems, _) = report.into_parts();
        others.extend(problems.iter().map(|problem| format!("{shown}:{}: {}", problem.line, problem.text)));
        return Some(value);
    }
    None
}

fn names(files: &[(String, Node)]) -> String {
    let mut report = Report::new("");
    let names: Vec<String> = files
        .iter()
        .filter_map(|(_, root)| Fields::of(root, String::new(), "", &mut report)?.text("name", &mut report))
        .map(|name| name.text)
        .collect();
    names.join(", ")
}

pub(super) fn profile(
    fields: &Fields<'_>,
    beside: &mut Beside<'_>,
    report: &mut Report,
    others: &mut Vec<String>,
) -> BTreeMap<String, String> {
    let Some(wanted) = fields.text("profile", report).filter(|name| !name.text.is_empty()) else {
        return BTreeMap::new();
    };
    let files = beside.files("profiles", others);
    let found = named(&files, &wanted.text, others, &["name", "description", "aliases"], |file, report| {
        let mut aliases = BTreeMap::new();
        for (alias, Text { line, text }) in file.text_map("aliases", report) {
            let path = text.strip_prefix("params.").filter(|path| {
                path.split('.').all(|segment| {
                    segment.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic())
                        && segment.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())
                })
            });
            if alias.len() > 32 || misnamed(&alias, true).is_some() || cel::RESERVED.contains(&alias.as_str())
            {
                report.problem(
                    line,
                    "",
                    format_args!("alias {alias:?} is not a free name of at most 32 characters"),
                );
            } else if path.is_none() {
                report.problem(line, "", format_args!("alias {alias:?} must stand for params. and names"));
            } else {
                aliases.insert(alias, text);
            }
        }
        aliases
    });
    if found.is_none() {
        let text = format!("profile {:?} not found (available: {})", wanted.text, names(&files));
        report.problem(wanted.line, &fields.at, text);
    }
    found.unwrap_or_default()
}

/// Rules of the packs that a file refers to.
pub(super) fn packs(
    top: &Fields<'_>,
    beside: &mut Beside<'_>,
    report: &mut Report,
    others: &mut Vec<String>,
) -> Vec<Rule> {
    let Some(items) = top.list("packs", report).filter(|items| !items.is_empty()) else { return Vec::new() };
    let files = beside.files("packs", others);
    let profiles = if beside.dir.is_some_and(|dir| dir.join("profiles").is_dir()) {
        beside.files("profiles", others)
    } else {
        Vec::new()
    };
    let mut all = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let Some(reference) = Fields::of(item, format!("packs[{index}]"), "a pack", report) else { continue };
        check_keys(&reference, &["name", "overrides"], report);
        let wanted = reference.text("name", report).map(|name| name.text).unwrap_or_default();
        let found =
            named(&files, &wanted, others, &["name", "description", "profile", "rules"], |file, report| {
                let aliases = file.text("profile", report).and_then(|name| {
                    named(
                        &profiles,
                        &name.text,
                        &mut Vec::new(),
                        &["name", "description", "aliases"],
                        |file, report| {
                            file.text_map("aliases", report)
                                .into_iter()
                                .map(|(name, text)| (name, text.text))
                                .collect()
                        },
                    )
                });
                rules(file, &Words { profile: aliases.unwrap_or_default(), defs: BTreeMap::new() }, report)
            });
        let Some(mut rules) = found else {
            let text = format!("pack {wanted:?} not found (available: {})", names(&files));
            report.problem(reference.line, &reference.at, text);
            continue;
        };
        overrides(&reference, &mut rules, report);
        // Their own lines are those of another file.
        rules.iter_mut().for_each(|rule| rule.line = reference.line);
        all.extend(rules);
    }
    all
}

fn overrides(reference: &Fields<'_>, rules: &mut Vec<Rule>, report: &mut Report) {
    let Some(overrides) = reference.map("overrides", report) else { return };
    overrides.check_duplicates(report);
    for entry in overrides.entries() {
        let at = overrides.path(&entry.key);
        let Some(index) = rules.iter().position(|rule| rule.name == entry.key) else {
            report.problem(entry.line, &at, format_args!("override target {:?} does not exist", entry.key));
            continue;
        };
        match &entry.value.value {
            Value::Scalar { text, .. } if text == "disabled" => {
                rules.remove(index);
            }
            Value::Scalar { text, .. } => {
                report.problem(
                    entry.line,
                    &at,
                    format_args!("string override must be \"disabled\", got {text:?}"),
                );
            }
            Value::Map(_) => {
                let Some(fields) = Fields::of(&entry.value, at.clone(), "an override", report) else {
                    continue;
                };
                override_one(&fields, &mut rules[index], report);
            }
            Value::List(_) => report.problem(entry.line, &at, "override value must be \"disabled\" or a map"),
        }
    }
}

fn override_one(fields: &Fields<'_>, rule: &mut Rule, report: &mut Report) {
    for entry in fields.entries() {
        match entry.key.as_str() {
            "when" => rule.when = fields.text("when", report).map(|when| when.text),
            "message" => {
                rule.message = fields.text("message", report).map(|text| text.text).unwrap_or_default()
            }
            "action" => match fields.text("action", report).map(|action| action.text).as_deref() {
                Some("deny") => rule.action = Action::Deny,
                Some("log") => rule.action = Action::Log,
                Some("redact") if rule.redact.is_some() => rule.action = Action::Redact,
                other => {
                    let text = format!(
                        "override action {:?} is invalid (must be \"deny\", \"log\", or \"redact\")",
                        other.unwrap_or_default()
                    );
                    report.problem(entry.line, &fields.at, text);
                }
            },
            key @ ("name" | "operation") => {
                report.problem(entry.line, &fields.at, format_args!("cannot override field {key:?}"));
            }
            key => report.problem(entry.line, &fields.at, format_args!("unknown override field {key:?}")),
        }
    }
}
