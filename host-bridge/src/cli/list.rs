//! `moat list`: the runs, newest first, as they really are. The bridge is not asked.

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Failure, Outcome, print, table, text::visible, when};
use crate::run::{
    metadata::{Record, State},
    select,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moat list
  moat list --json | jq -r '.[] | select(.state == \"running\") | .run_id'")]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let listing = select::all(&context.home).map_err(|error| {
            Failure::new(format!("cannot read {}: {error}", context.home.runs().display()))
        })?;
        if context.global.json {
            let runs: Vec<Shown> = listing.runs.iter().map(Shown::from).collect();
            let text =
                serde_json::to_string_pretty(&runs).map_err(|error| Failure::new(error.to_string()))?;
            print::line(&text);
        } else if listing.runs.is_empty() {
            print::line("No runs found");
        } else {
            print::line(&table(&listing.runs, Timestamp::now()));
        }
        for (_, error) in &listing.unreadable {
            print::note(&format!("Warning: {}", super::with_causes(error)));
        }
        Ok(moat_shared::exit::OK)
    }
}

/// The table of these runs.
pub(crate) fn table(runs: &[Record], now: Timestamp) -> String {
    let rows = runs.iter().map(|run| {
        [
            visible(&run.metadata.name).into_owned(),
            run.id.to_string(),
            visible(&run.metadata.runtime).into_owned(),
            run.state().to_string(),
            when::age(run.metadata.created_at, now),
            endpoints(run),
        ]
    });
    table::of(["NAME", "RUN ID", "RUNTIME", "STATE", "AGE", "ENDPOINTS"], rows)
}

/// The MCP servers that the run reaches, while it is there.
fn endpoints(run: &Record) -> String {
    let servers = &run.metadata.servers;
    if servers.is_empty() || !run.state().is_live() {
        return "-".to_owned();
    }
    visible(&servers.join(", ")).into_owned()
}

/// A run in JSON. Documented in docs/reference.md.
#[derive(Debug, Serialize)]
pub(crate) struct Shown<'a> {
    run_id: &'a str,
    name: &'a str,
    runtime: &'a str,
    tunnel: Option<&'a str>,
    state: State,
    agent: Option<&'a str>,
    workspace: &'a str,
    grants: &'a [String],
    servers: &'a [String],
    interactive: bool,
    created_at: Timestamp,
    started_at: Option<Timestamp>,
    stopped_at: Option<Timestamp>,
    exit_code: Option<u8>,
    error: Option<&'a str>,
}

impl<'a> From<&'a Record> for Shown<'a> {
    fn from(run: &'a Record) -> Self {
        let metadata = &run.metadata;
        let non_empty = |text: &'a str| (!text.is_empty()).then_some(text);
        Self {
            run_id: run.id.as_str(),
            name: &metadata.name,
            runtime: &metadata.runtime,
            tunnel: non_empty(&metadata.tunnel),
            state: run.state(),
            agent: non_empty(&metadata.agent),
            workspace: &metadata.workspace,
            grants: &metadata.grants,
            servers: &metadata.servers,
            interactive: metadata.interactive,
            created_at: metadata.created_at,
            started_at: metadata.started_at,
            stopped_at: metadata.stopped_at,
            exit_code: metadata.exit_code,
            error: non_empty(run.error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{control::api::Process, run::metadata::Metadata};

    fn run(name: &str, holder: Process, state: State) -> Record {
        let created = "2026-01-25T10:00:00Z".parse().unwrap();
        let mut metadata = Metadata::new(name.into(), Path::new("/w"), "process", holder, created);
        metadata.state = state;
        metadata.servers = vec!["context7".to_owned(), "local".to_owned()];
        Record { id: "run_0123456789ab".parse().unwrap(), metadata }
    }

    #[test]
    fn the_table() {
        let runs = [
            run("brave-otter", Process::current(), State::Running),
            run("x\u{1b}[2J", Process { pid: i32::MAX, started: 1 }, State::Running),
        ];
        let now = "2026-01-25T13:00:00Z".parse().unwrap();
        assert_eq!(
            table(&runs, now),
            "NAME         RUN ID            RUNTIME  STATE    AGE     ENDPOINTS\n\
             brave-otter  run_0123456789ab  process  running  3h ago  context7, local\n\
             x\\u{1b}[2J   run_0123456789ab  process  failed   3h ago  -"
        );
    }

    #[test]
    fn a_dead_run_in_json() {
        let run = run("a", Process { pid: i32::MAX, started: 1 }, State::Running);
        let shown = serde_json::to_value(Shown::from(&run)).unwrap();
        assert_eq!(shown["state"], "failed");
        assert_eq!(shown["run_id"], "run_0123456789ab");
        assert!(shown["error"].as_str().unwrap().contains("ended unexpectedly"));
        assert_eq!(
            shown["stopped_at"],
            serde_json::Value::Null,
            "absent values are null, keys are always there"
        );
    }
}
