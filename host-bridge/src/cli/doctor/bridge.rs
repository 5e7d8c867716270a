//! Does the bridge run, is it this build's, does it lose records, and has each run its tunnel?

use jiff::Timestamp;

use super::{Report, Section};
use crate::{
    cli::when,
    control::{
        api::{RunStatus, Status},
        client::{Client, ClientError},
    },
    home::Home,
    run::select,
};

const HERE: Section = Section::Bridge;

/// Returns the bridge's state, for whoever knows more about it.
pub(super) async fn look(home: &Home, now: Timestamp, report: &mut Report) -> Option<Status> {
    let client = match Client::connect(home).await {
        Ok(client) => client,
        Err(ClientError::NotRunning) => {
            not_running(home, report);
            return None;
        }
        Err(error) => {
            report.error(HERE, &error).detail(format!("log: {}", home.daemon_log().display()));
            return None;
        }
    };
    let status = client.first_status().clone();
    running(&status, now, report).detail(format!("log: {}", home.daemon_log().display()));
    if client.mismatch().is_some() {
        report
            .warning(
                HERE,
                format!("it is another build than this command: {} ({})", status.version, status.commit),
            )
            .remedy("To update it (runs keep working):\n  moat proxy restart");
    }
    if status.records_lost > 0 {
        let text = format!("{} records of trace and audit were lost since it started", status.records_lost);
        report.problem(HERE, text).remedy(format!("Is the disk full? See {}", home.daemon_log().display()));
    }
    for reason in &status.unreadable {
        let text = format!("a run of {} is not served: {reason}", home.runs_file().display());
        report
            .problem(HERE, text)
            .remedy("Start that run anew, with the moat that wrote it or with this one.");
    }
    for run in &status.runs {
        tunnel(run, now, report);
    }
    Some(status)
}

fn not_running(home: &Home, report: &mut Report) {
    let live =
        select::all(home).map_or(0, |listing| listing.runs.iter().filter(|r| r.state().is_live()).count());
    match live {
        0 => {
            report.ok(HERE, "not running; it starts by itself with the first run");
        }
        n => {
            report.problem(HERE, format!("not running, but there are runs that need it ({n})")).remedy(
                format!("To fix:\n  moat proxy start\nIf it ends again, see {}", home.daemon_log().display()),
            );
        }
    }
}

fn running<'a>(status: &Status, now: Timestamp, report: &'a mut Report) -> &'a mut super::Finding {
    let since = when::age(status.started, now);
    let runs = match status.runs.len() {
        1 => "1 run".to_owned(),
        n => format!("{n} runs"),
    };
    report
        .ok(HERE, format!("running since {since}, {runs}"))
        .detail(format!("pid {}, moat {} ({})", status.pid, status.version, status.commit))
        .detail(format!("tunnels at {}", status.endpoint))
}

fn tunnel(run: &RunStatus, now: Timestamp, report: &mut Report) {
    let name = format!("{} ({})", run.name, run.run);
    match &run.tunnel {
        Some(tunnel) => {
            report
                .ok(Section::Tunnel, format!("{name}: open since {}", when::age(tunnel.since, now)))
                .detail(format!("sidecar {} over {}", tunnel.sidecar, tunnel.transport));
        }
        // A run that was registered just now is still on its way.
        None if now.as_second() - run.registered.as_second() < 30 => {
            report.ok(Section::Tunnel, format!("{name}: not open yet"));
        }
        None => {
            report
                .problem(Section::Tunnel, format!("{name}: no tunnel since the bridge or the run started"))
                .remedy(format!(
                    "See what the run says:\n  moat logs {}\nor end it:\n  moat stop {}",
                    run.run, run.run
                ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn run(tunnel: bool) -> RunStatus {
        let tunnel = tunnel.then(|| crate::control::api::TunnelStatus {
            since: Timestamp::UNIX_EPOCH,
            sidecar: "0.1.0".into(),
            transport: "unix".into(),
        });
        RunStatus {
            carrier: "unix".to_owned(),
            run: "run_0123456789ab".parse().unwrap(),
            name: "otter".into(),
            runtime: "process".into(),
            registered: Timestamp::UNIX_EPOCH,
            had_tunnel: Some(tunnel.is_some()),
            tunnel,
            servers: Vec::new(),
        }
    }

    #[test_case(true, 3600 => false; "open")]
    #[test_case(false, 5 => false; "on its way")]
    #[test_case(false, 3600 => true; "never came")]
    fn tunnels(open: bool, second: i64) -> bool {
        let mut report = Report::default();
        tunnel(&run(open), Timestamp::from_second(second).unwrap(), &mut report);
        report.is_broken()
    }

    #[tokio::test]
    async fn a_bridge_that_nobody_needs_may_be_absent() {
        let dir = tempfile::tempdir().unwrap();
        let mut report = Report::default();
        let status = look(&Home::at(dir.path()), Timestamp::UNIX_EPOCH, &mut report).await;
        assert!(status.is_none() && !report.is_broken(), "{report:?}");
    }

    #[tokio::test]
    async fn a_bridge_that_a_run_needs_may_not() {
        use crate::{
            control::api::Process,
            run::metadata::{Metadata, Record},
        };
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let metadata =
            Metadata::new("x".into(), dir.path(), "process", Process::current(), Timestamp::UNIX_EPOCH);
        Record::create(&home, "run_0123456789ab".parse().unwrap(), metadata).unwrap();
        let mut report = Report::default();
        look(&home, Timestamp::UNIX_EPOCH, &mut report).await;
        assert!(report.is_broken(), "{report:?}");
    }
}
