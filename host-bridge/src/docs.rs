//! Holds the tables of docs/ against the code, so that neither can change alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use moat_shared::wire::ErrorKind;

use crate::config::catalog::CATALOG;

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the table after the comment that says it is checked against `what`; cells without backticks.
fn table(document: &str, what: &str) -> Vec<Vec<String>> {
    let comment = format!("<!-- checked against {what} by");
    let (_, after) = document.split_once(&comment).unwrap_or_else(|| panic!("no table of {what}"));
    let rows: Vec<Vec<String>> = after
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
        .collect();
    assert!(!rows.is_empty(), "the table of {what} is empty");
    rows
}

/// The variants of an enum: serde names them all when it does not know one, the only list that cannot be incomplete.
fn variants(message: &str) -> impl Iterator<Item = &str> {
    assert!(message.starts_with("unknown variant `?`, expected one of"), "{message}");
    message.split('`').skip(3).step_by(2)
}

#[test]
fn the_error_kinds_are_those_of_the_wire() {
    let documented: BTreeMap<String, u16> = table(&document("PROTOCOL.md"), "shared::wire::ErrorKind")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].parse().unwrap()))
        .collect();
    let message = serde_json::from_str::<ErrorKind>("\"?\"").unwrap_err().to_string();
    let kinds: BTreeMap<String, u16> = variants(&message)
        .map(|name| {
            let kind: ErrorKind = serde_json::from_str(&format!("{name:?}")).unwrap();
            (name.to_owned(), kind.status())
        })
        .collect();
    assert!(kinds.len() > 10, "{message}");
    assert_eq!(documented, kinds);
}

#[test]
fn the_rules_are_complete() {
    let text = document("PROTOCOL.md");
    for rule in (1..=24).map(|n| format!("| R{n} |")).chain((1..=10).map(|n| format!("| T{n} |"))) {
        assert_eq!(text.matches(&rule).count(), 1, "{rule}");
    }
}

#[test]
fn the_catalog_is_that_of_the_code() {
    let documented = table(&document("reference.md"), "config::catalog");
    let known: Vec<Vec<String>> = CATALOG
        .iter()
        .map(|known| [known.name, known.url, known.grant, known.header].map(str::to_owned).to_vec())
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn the_exit_codes_are_those_of_the_code() {
    let documented: Vec<u8> =
        table(&document("reference.md"), "shared::exit").iter().map(|row| row[0].parse().unwrap()).collect();
    let source = include_str!("../../shared/src/exit.rs");
    let codes: Vec<u8> = source
        .lines()
        .filter(|line| line.starts_with("pub const ") && line.contains(": u8 = "))
        .filter_map(|line| line.rsplit(' ').next()?.trim_end_matches(';').parse().ok())
        .collect();
    assert!(codes.len() > 5, "{codes:?}");
    assert_eq!(documented, codes);
}

#[test]
fn the_audit_events_are_those_of_the_code() {
    let documented: BTreeSet<String> = table(&document("reference.md"), "record::AuditEvent")
        .into_iter()
        .map(|mut row| row.swap_remove(0))
        .collect();
    let message =
        serde_json::from_str::<crate::record::AuditEvent>(r#"{"type":"?"}"#).unwrap_err().to_string();
    assert_eq!(documented, variants(&message).map(str::to_owned).collect());
}

#[test]
fn the_reasons_of_the_trace_are_those_of_the_code() {
    let text = document("reference.md");
    let message = serde_json::from_str::<crate::record::Failure>("\"?\"").unwrap_err().to_string();
    for reason in variants(&message) {
        assert!(text.contains(&format!("`{reason}`")), "{reason}");
    }
}

#[test]
fn every_environment_name_is_documented() {
    let documented: BTreeSet<String> = table(&document("reference.md"), "the sources")
        .into_iter()
        .map(|mut row| row.swap_remove(0))
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut used = BTreeSet::new();
    for part in ["host-bridge/src", "init/src", "sidecar/src", "shared/src"] {
        names_in(&root.join(part), &mut used);
    }
    // Those of the build, which no user sees.
    used.retain(|name| {
        !name.starts_with("MOAT_SIDECAR") && !matches!(name.as_str(), "MOAT_BUILT" | "MOAT_COMMIT")
    });
    assert!(used.contains("MOAT_HOME"));
    let missing: Vec<&String> = used.difference(&documented).collect();
    assert!(missing.is_empty(), "not in reference.md: {missing:?}");
}

/// The string literals of the sources that are names of ours.
fn names_in(directory: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names_in(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_test(&path) {
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let literals = code.split('"').filter(|word| {
                word.strip_prefix("MOAT_").is_some_and(|rest| {
                    !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
                })
            });
            names.extend(literals.map(str::to_owned));
        }
    }
}

fn is_test(path: &Path) -> bool {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    name == "docs" || name == "tests" || name.ends_with("_tests")
}

#[test]
fn every_command_and_flag_is_in_the_reference() {
    let text = document("reference.md");
    for verb in crate::cli::command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let heading = format!("### moat {}\n", verb.get_name());
        let (_, section) = text.split_once(&heading).unwrap_or_else(|| panic!("no section {heading:?}"));
        let own = first_of(section);
        // An agent's section refers to that of `moat run`.
        let shared = text.split("### moat run\n").nth(1).filter(|_| own.contains("the flags of `moat run`"));
        flags_are_in(verb, &format!("{own}{}", shared.map_or("", first_of)));
    }
}

/// What comes before the next heading.
fn first_of(text: &str) -> &str {
    let end = [text.find("\n## "), text.find("\n### ")].into_iter().flatten().min();
    &text[..end.unwrap_or(text.len())]
}

fn flags_are_in(verb: &clap::Command, section: &str) {
    if verb.get_about().is_some_and(|about| about.to_string().contains("not supported yet")) {
        return;
    }
    for flag in verb.get_arguments().filter(|flag| !flag.is_global_set() && !flag.is_hide_set()) {
        if let Some(long) = flag.get_long().filter(|long| *long != "help") {
            assert!(section.contains(&format!("--{long}")), "moat {}: --{long} is missing", verb.get_name());
        }
    }
    for inner in verb.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help") {
        assert!(
            section.contains(inner.get_name()),
            "moat {} {} is missing",
            verb.get_name(),
            inner.get_name()
        );
        flags_are_in(inner, section);
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn links_lead_somewhere() {
    let mut files: Vec<PathBuf> =
        fs::read_dir(repository().join("docs")).unwrap().map(|e| e.unwrap().path()).collect();
    files.push(repository().join("README.md"));
    let mut checked = 0;
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let targets =
            text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in targets.filter(|target| !target.starts_with("http")) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let other = if path.is_empty() { file.clone() } else { file.parent().unwrap().join(path) };
            assert!(other.exists(), "{}: {target}", file.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(&other).unwrap();
                assert!(text.lines().any(|line| is_heading_of(line, anchor)), "{}: {target}", file.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}

fn is_heading_of(line: &str, anchor: &str) -> bool {
    let Some(title) = line.strip_prefix('#') else { return false };
    let title = title.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    title.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).eq(anchor.chars())
}

#[test]
fn what_holds_a_barrier_exists() {
    let text = document("SECURITY.md");
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| "))
        .filter_map(|line| line.trim_end_matches(" |").rsplit_once(" | "));
    let mut checked = 0;
    for (_, holder) in rows {
        for item in holder.split('`').skip(1).step_by(2).filter(|item| item.contains("::")) {
            assert!(exists(item), "SECURITY.md names {item}, which is not there");
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked}");
}

/// `module::module::item`: do the module's file and, in it or below, the item exist? The first word may be a crate.
fn exists(item: &str) -> bool {
    let (root, rest) = match item.split_once("::") {
        Some((part @ ("shared" | "sidecar" | "init"), rest)) => (repository().join(part).join("src"), rest),
        _ => (repository().join("host-bridge/src"), item),
    };
    let mut module = root;
    for name in rest.split("::") {
        let next = module.join(name);
        if next.is_dir() || next.with_extension("rs").is_file() {
            module = next;
        } else {
            return mentions(&module, name);
        }
    }
    true
}

fn mentions(module: &Path, name: &str) -> bool {
    let file = fs::read_to_string(module.with_extension("rs")).unwrap_or_default();
    let has = |text: &str| text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
    let below = fs::read_dir(module).into_iter().flatten().map(|entry| entry.unwrap().path());
    has(&file)
        || below.filter(|path| path.is_file()).any(|path| has(&fs::read_to_string(path).unwrap_or_default()))
}
