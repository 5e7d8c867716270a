//! Which run an argument means: a run id, the beginning of one, or a name; none means the most recent.
//!
//! The runs are those with metadata on disk; the bridge is not asked.

use std::{borrow::Cow, fs, io};

use moat_shared::{hint::Hint, id::RunId};

use super::metadata::{MetadataError, Record};
use crate::home::Home;

/// Every run that there is on disk.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Newest first.
    pub(crate) runs: Vec<Record>,
    /// Runs whose metadata cannot be read, and why.
    pub(crate) unreadable: Vec<(RunId, MetadataError)>,
}

/// Why an argument names no run, or no single one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelectError {
    #[error("no run found matching {0:?}")]
    NoMatch(String),
    #[error("no runs found")]
    NoRuns,
    #[error("name {argument:?} matches {} runs; specify a run ID to disambiguate", .runs.len())]
    Several { argument: String, runs: Vec<Record> },
    #[error("cannot list the runs")]
    List(#[from] io::Error),
}

impl Hint for SelectError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::NoMatch(_) => Some("Run 'moat list' to see available runs.".into()),
            Self::NoRuns => Some("Start one with: moat run <workspace> -- <command>".into()),
            Self::Several { .. } | Self::List(_) => None,
        }
    }
}

/// Every run on disk.
pub(crate) fn all(home: &Home) -> io::Result<Listing> {
    let entries = match fs::read_dir(home.runs()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Listing::default()),
        Err(error) => return Err(error),
    };
    let mut listing = Listing::default();
    for entry in entries {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<RunId>().ok()) else { continue };
        match Record::read(home, &id) {
            Ok(Some(record)) => listing.runs.push(record),
            // A run that is being made, or one that is being destroyed.
            Ok(None) => {}
            Err(error) => listing.unreadable.push((id, error)),
        }
    }
    listing
        .runs
        .sort_by(|a, b| b.metadata.created_at.cmp(&a.metadata.created_at).then_with(|| a.id.cmp(&b.id)));
    Ok(listing)
}

/// The runs, newest first, that an argument means: one for an id, several perhaps for a name or the beginning of an
/// id. Never empty.
pub(crate) fn matching(runs: Vec<Record>, argument: &str) -> Result<Vec<Record>, SelectError> {
    let by_id = |run: &Record| run.id.as_str() == argument;
    let by_name = |run: &Record| run.metadata.name == argument;
    // Of one start that took two, it means the one that came of it.
    let by_its_name = |run: &Record| by_name(run) && !run.metadata.gave_way;
    let by_prefix = |run: &Record| argument.len() > RUN.len() && run.id.as_str().starts_with(argument);
    const RUN: &str = "run_";

    let rules: [&dyn Fn(&Record) -> bool; 4] = [&by_id, &by_its_name, &by_name, &by_prefix];
    let rule = rules.into_iter().find(|rule| runs.iter().any(rule));
    let rule = rule.ok_or_else(|| SelectError::NoMatch(argument.to_owned()))?;
    Ok(runs.into_iter().filter(|run| rule(run)).collect())
}

/// The one run that an argument means; the most recent without one.
pub(crate) fn one(home: &Home, argument: Option<&str>) -> Result<Record, SelectError> {
    let runs = all(home)?.runs;
    let Some(argument) = argument else {
        return runs.into_iter().next().ok_or(SelectError::NoRuns);
    };
    let mut runs = matching(runs, argument)?;
    match runs.len() {
        1 => Ok(runs.remove(0)),
        _ => Err(SelectError::Several { argument: argument.to_owned(), runs }),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{control::api::Process, run::metadata::Metadata};
    use test_case::test_case;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let runs = [
            ("run_aa0000000001", "otter", 1, false),
            ("run_aa0000000002", "twin", 9, false),
            ("run_bb0000000003", "twin", 8, false),
            ("run_cc0000000004", "mole", 2, true),
            ("run_cc0000000005", "mole", 3, false),
            ("run_dd0000000006", "newt", 4, true),
        ];
        for (id, name, second, gave_way) in runs {
            let now = jiff::Timestamp::from_second(second).unwrap();
            let mut metadata =
                Metadata::new(name.into(), Path::new("/w"), "process", Process::current(), now);
            metadata.gave_way = gave_way;
            Record::create(&home, id.parse().unwrap(), metadata).unwrap();
        }
        (dir, home)
    }

    #[test_case(None => "run_aa0000000002"; "most recent")]
    #[test_case(Some("otter") => "run_aa0000000001"; "name")]
    #[test_case(Some("mole") => "run_cc0000000005"; "not the one that gave way")]
    #[test_case(Some("newt") => "run_dd0000000006"; "unless it is the only one")]
    #[test_case(Some("run_bb") => "run_bb0000000003"; "beginning of an id")]
    #[test_case(Some("run_bb0000000003") => "run_bb0000000003"; "id")]
    #[test_case(Some("twin") => "name \"twin\" matches 2 runs; specify a run ID to disambiguate")]
    #[test_case(Some("run_") => "no run found matching \"run_\""; "too little")]
    #[test_case(Some("../../etc") => "no run found matching \"../../etc\""; "a path is just a name")]
    fn selection(argument: Option<&str>) -> String {
        let (_dir, home) = home();
        match one(&home, argument) {
            Ok(run) => run.id.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_damaged_run_hides_no_other() {
        let (_dir, home) = home();
        fs::write(home.metadata(&"run_aa0000000001".parse().unwrap()), "{").unwrap();
        fs::create_dir(home.runs().join("not-a-run")).unwrap();
        let listing = all(&home).unwrap();
        assert_eq!((listing.runs.len(), listing.unreadable.len()), (5, 1));
    }

    #[test]
    fn no_directory_means_no_runs() {
        let error = one(&Home::at("/nonexistent/moat"), None).unwrap_err();
        assert!(matches!(error, SelectError::NoRuns));
    }
}
