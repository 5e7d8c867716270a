//! `moat proxy`: is the bridge there, start it, stop it, start it anew.

use std::{fmt::Write, time::Duration};

use clap::ValueEnum;
use moat_shared::exit;
use tokio::time::{Instant, sleep};

use super::{Context, Failure, Outcome, print};
use crate::{
    build,
    control::{
        api::Status,
        client::{Client, ClientError},
        spawn,
    },
};

/// The bridge drains for a few seconds before it leaves.
const LEAVE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(10);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moat proxy
  moat proxy restart     # after an update; runs keep working")]
pub(crate) struct Args {
    #[arg(value_enum, default_value_t)]
    what: What,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum What {
    /// Show whether it runs, and for whom
    #[default]
    Status,
    /// Start it, if it does not run
    Start,
    /// Let it finish what is in flight, and leave
    Stop,
    /// Replace it; runs keep working
    Restart,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        block_on(async {
            match self.what {
                What::Status => status(context).await,
                What::Start => start(context).await,
                What::Stop => {
                    stop(context).await?;
                    print::line("Daemon shutdown requested");
                    Ok(exit::OK)
                }
                What::Restart => {
                    if stop(context).await? {
                        gone(context).await?;
                    }
                    start(context).await
                }
            }
        })
    }
}

/// Runs a verb's asynchronous part.
pub(super) fn block_on(work: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("starting the runtime: {error}")))?
        .block_on(work)
}

async fn status(context: &Context) -> Outcome {
    match Client::connect(&context.home).await {
        Ok(client) => show(context, client.first_status()),
        Err(ClientError::NotRunning) if context.global.json => print::line(r#"{"running":false}"#),
        Err(ClientError::NotRunning) => print::line("Daemon is not running"),
        Err(error) => return Err(Failure::from_error(&error)),
    }
    Ok(exit::OK)
}

async fn start(context: &Context) -> Outcome {
    let client =
        spawn::ensure(&context.home, &context.env).await.map_err(|error| Failure::from_error(&error))?;
    show(context, client.first_status());
    if let Some(warning) = client.mismatch() {
        print::note(&warning);
    }
    Ok(exit::OK)
}

/// Asks it to leave; `false` when there is none.
async fn stop(context: &Context) -> Result<bool, Failure> {
    let asked = match Client::connect(&context.home).await {
        Ok(client) => client.shutdown().await,
        Err(error) => Err(error),
    };
    match asked {
        Ok(()) => Ok(true),
        Err(ClientError::NotRunning) => Ok(false),
        Err(error) => Err(Failure::from_error(&error)),
    }
}

/// Waits until it no longer takes anybody in. The next one waits for its end by itself.
async fn gone(context: &Context) -> Result<(), Failure> {
    let deadline = Instant::now() + LEAVE;
    while !matches!(Client::connect(&context.home).await, Err(ClientError::NotRunning)) {
        if Instant::now() >= deadline {
            return Err(Failure::new("the bridge was asked to leave and does not")
                .with_hint(format!("see {}", context.home.daemon_log().display())));
        }
        sleep(POLL).await;
    }
    Ok(())
}

fn show(context: &Context, status: &Status) {
    if context.global.json {
        let value = serde_json::to_value(status).unwrap_or_default();
        print::line(&format!("{value:#}"));
    } else {
        print::out(&text(status));
    }
}

fn text(status: &Status) -> String {
    let mut text = format!(
        "Daemon running (pid {})\n  Listening: {}\n  Active runs: {}\n  Started: {}\n  Commit: {} (cli: {})\n",
        status.pid,
        status.endpoint,
        status.runs.len(),
        status.started,
        status.commit,
        build::COMMIT
    );
    if !status.runs.is_empty() {
        text.push_str("Registered runs:\n");
    }
    for run in &status.runs {
        let _infallible = writeln!(text, "  - {} ({}, {})", run.run, run.name, run.runtime);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown() {
        let status: Status = serde_json::from_str(
            r#"{"pid":7,"version":"1.2.3","commit":"abc","started":"2026-01-25T10:23:44Z","endpoint":"unix:/x",
                "records_lost":0,"runs":[{"run":"run_0123456789ab","name":"brave-otter","runtime":"process",
                "registered":"2026-01-25T10:23:44Z","tunnel":null,"servers":[]}]}"#,
        )
        .unwrap();
        assert_eq!(
            text(&status),
            format!(
                "Daemon running (pid 7)\n  Listening: unix:/x\n  Active runs: 1\n  Started: 2026-01-25T10:23:44Z\n  \
                 Commit: abc (cli: {})\nRegistered runs:\n  - run_0123456789ab (brave-otter, process)\n",
                build::COMMIT
            )
        );
    }
}
