//! Holds the tables of docs/ against the code, so that neither can change alone.

use std::{collections::BTreeMap, fs, path::Path};

use moat_shared::wire::ErrorKind;

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

#[test]
fn the_error_kinds_are_those_of_the_wire() {
    let documented: BTreeMap<String, u16> = table(&document("PROTOCOL.md"), "shared::wire::ErrorKind")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].parse().unwrap()))
        .collect();
    // Serde names every variant when it does not know one: the only list that cannot be incomplete.
    let message = serde_json::from_str::<ErrorKind>("\"?\"").unwrap_err().to_string();
    let kinds: BTreeMap<String, u16> = message
        .split('`')
        .skip(3)
        .step_by(2)
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
