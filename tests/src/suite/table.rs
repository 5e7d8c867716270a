//! The tables of docs/CONFORMANCE.md: a test makes each of them, and compares it with the one that is there.
//!
//! With `MOAT_TESTS_WRITE=docs` the test writes it instead.

use std::{collections::BTreeMap, fs, path::PathBuf, sync::Mutex};

use super::report::Report;
use crate::{Outcome, Trouble, trouble::ensure};

/// A run: its column's heading and what it found.
pub type Column<'a> = (&'a str, &'a Report);

/// A row for each scenario, and one for all.
#[must_use]
pub fn table(columns: &[Column<'_>]) -> String {
    let headings: Vec<&str> = columns.iter().map(|(heading, _)| *heading).collect();
    let mut text =
        format!("| scenario | {} |\n|---|{}\n", headings.join(" | "), "---|".repeat(columns.len()));
    let scenarios: std::collections::BTreeSet<&str> =
        columns.iter().flat_map(|(_, report)| report.scenarios()).collect();
    for scenario in scenarios {
        let cells: Vec<String> =
            columns.iter().map(|(_, report)| cell(&report.count(Some(scenario)))).collect();
        text.push_str(&format!("| `{scenario}` | {} |\n", cells.join(" | ")));
    }
    let sums: Vec<String> = columns.iter().map(|(_, report)| cell(&report.count(None))).collect();
    text.push_str(&format!("| all | {} |\n", sums.join(" | ")));
    text
}

/// `12`, or `3, 2 failed`.
fn cell(counts: &BTreeMap<&str, usize>) -> String {
    let words = [("SUCCESS", ""), ("FAILURE", " failed"), ("WARNING", " warned"), ("SKIPPED", " skipped")];
    let cells: Vec<String> = words
        .iter()
        .filter_map(|(status, word)| counts.get(status).map(|count| format!("{count}{word}")))
        .collect();
    if cells.is_empty() { "none".to_owned() } else { cells.join(", ") }
}

/// Holds the part of docs/CONFORMANCE.md between the two comments of this name to `table`.
///
/// # Errors
/// When it is another, or there is no such part.
pub fn hold(name: &str, table: &str) -> Outcome {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().map_err(|_| Trouble::new("another table's test panicked"))?;
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/CONFORMANCE.md");
    let document = fs::read_to_string(&path)?;
    let (begin, end) = (format!("<!-- table {name} -->\n"), "<!-- end of table -->");
    let missing = || Trouble::new(format!("{}: no {begin}", path.display()));
    let (before, rest) = document.split_once(&begin).ok_or_else(missing)?;
    let (published, after) = rest.split_once(end).ok_or_else(missing)?;
    if std::env::var_os("MOAT_TESTS_WRITE").is_some_and(|what| what == "docs") {
        return Ok(fs::write(&path, format!("{before}{begin}{table}{end}{after}"))?);
    }
    ensure(published == table, || {
        format!(
            "docs/CONFORMANCE.md says something else about {name}; if this is right, run this test with \
             MOAT_TESTS_WRITE=docs.\n{table}"
        )
    })
}
