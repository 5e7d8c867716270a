//! `moat status`: bridge and runs in short.

use std::fmt::Write;

use jiff::Timestamp;
use moat_shared::exit;
use serde::Serialize;

use super::{Context, Failure, Outcome, print, proxy::block_on, text::visible, when};
use crate::control::{
    api::{GrantState, GrantStatus, RunStatus, Status},
    client::{Client, ClientError},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moat status
  moat status --json | jq '.bridge.runs[].tunnel'")]
pub(crate) struct Args {}

/// What `--json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    running: bool,
    bridge: Option<&'a Status>,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        block_on(async {
            let client = match Client::connect(&context.home).await {
                Ok(client) => Some(client),
                Err(ClientError::NotRunning) => None,
                Err(error) => return Err(Failure::from_error(&error)),
            };
            let bridge = client.as_ref().map(Client::first_status);
            if context.global.json {
                let shown = Shown { running: bridge.is_some(), bridge };
                let value = serde_json::to_value(shown).map_err(|error| Failure::new(error.to_string()))?;
                print::line(&format!("{value:#}"));
            } else {
                print::out(&bridge.map_or_else(not_running, |status| text(status, Timestamp::now())));
            }
            if let Some(warning) = client.as_ref().and_then(Client::mismatch) {
                print::note(&warning);
            }
            Ok(exit::OK)
        })
    }
}

fn not_running() -> String {
    "Bridge: not running (it starts by itself with the first run)\n".to_owned()
}

fn text(status: &Status, now: Timestamp) -> String {
    let mut text = format!(
        "Bridge: running (pid {}), moat {} ({}), started {}\n",
        status.pid,
        status.version,
        status.commit,
        when::age(status.started, now)
    );
    let mut line = |line: std::fmt::Arguments<'_>| {
        let _infallible = writeln!(text, "{line}");
    };
    line(format_args!("  Listening: {}", status.endpoint));
    line(format_args!("  Active runs: {}", status.runs.len()));
    if status.records_lost > 0 {
        line(format_args!("  Records lost: {} (see proxy/daemon.log)", status.records_lost));
    }
    for unreadable in &status.unreadable {
        line(format_args!("  Not served: {}", visible(unreadable)));
    }
    for grant in &status.grants {
        line(format_args!("  {}", of_grant(grant, now)));
    }
    for run in &status.runs {
        line(format_args!("{} ({}, {})", run.run, visible(&run.name), visible(&run.runtime)));
        line(format_args!("  Tunnel: {}", tunnel(run, now)));
        for server in &run.servers {
            match &server.last_error {
                Some(error) => line(format_args!("  Server {}: {}", server.name, visible(error))),
                None => line(format_args!("  Server {}: ok", server.name)),
            }
            if let Some(policy) = &server.policy {
                line(format_args!("    Policy {}", visible(policy)));
            }
        }
    }
    text
}

/// `oauth:notion  ok  expires in 42m  refreshed 13m ago`
fn of_grant(grant: &GrantStatus, now: Timestamp) -> String {
    let mut words = vec![grant.grant.to_string()];
    if let Some(profile) = &grant.profile {
        words.push(format!("(profile {profile})"));
    }
    let failure = grant.failure.as_deref().unwrap_or("unknown");
    let since = grant.since.map(|at| when::age(at, now)).unwrap_or_default();
    match grant.state {
        GrantState::Ok => words.push("ok".to_owned()),
        GrantState::RefreshFailing => {
            let next = grant.next_try_s.unwrap_or_default();
            words.push(format!(
                "refresh failing  since {since}  token endpoint: {failure}  next try in {next}s"
            ));
        }
        GrantState::NeedsAuthorization => {
            words.push(format!("needs authorization  run: {}  ({failure}, {since})", grant.grant.command()));
        }
        GrantState::MoreScopesAsked => {
            let scopes = grant.more_scopes.as_deref().unwrap_or_default();
            words.push(format!("more scopes asked  {}", visible(scopes)));
        }
        GrantState::Missing => words.push(format!("not in the store  run: {}", grant.grant.command())),
    }
    match grant.expires_at {
        Some(at) if at > now => words.push(format!("expires in {}", when::span(at.duration_since(now)))),
        Some(at) => words.push(format!("expired {}", when::age(at, now))),
        None => {}
    }
    if grant.state == GrantState::Ok && !grant.auto_refresh {
        words.push("no refresh token".to_owned());
    }
    if let Some(at) = grant.refreshed_at {
        words.push(format!("refreshed {}", when::age(at, now)));
    }
    words.join("  ")
}

fn tunnel(run: &RunStatus, now: Timestamp) -> String {
    run.tunnel.as_ref().map_or_else(
        || format!("none (to come: {})", visible(&run.carrier)),
        |tunnel| {
            let since = when::age(tunnel.since, now);
            format!("open ({}, sidecar {}, {since})", tunnel.transport, visible(&tunnel.sidecar))
        },
    )
}
