//! `moat stop [run]`: asks the command that holds the run to end it, and waits until it has.

use std::time::{Duration, Instant};

use moat_shared::id::RunId;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Context, Failure, Outcome, pick, print, with_causes};
use crate::{
    control::client::{Client, ClientError},
    home::Home,
    run::{
        metadata::Record,
        select::{self, SelectError},
    },
};

/// Longer than a run's holder waits before it kills.
const PATIENCE: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moat stop                the most recent run that is running
  moat stop brave-otter    all running runs of this name; asks when there are several")]
pub(crate) struct Args {
    /// A run's id, the beginning of one, or its name [default: the most recent running one]
    #[arg(value_name = "RUN")]
    run: Option<String>,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let runs = self.choose(&context.home)?;
        if runs.len() > 1 && !pick::confirm(&format!("Stop all {} runs? [y/N]: ", runs.len())) {
            return Err(Failure::new("nothing was stopped"));
        }
        if context.global.dry_run {
            for run in &runs {
                print::note(&format!("Would stop {}", run.id));
            }
            return Ok(moat_shared::exit::OK);
        }
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(format!("starting: {error}")))?;
        for run in &runs {
            tokio.block_on(ask_to_stop(&context.home, run))?;
        }
        for run in &runs {
            tokio.block_on(until_stopped(&context.home, &run.id))?;
            print::line(&format!("Run {} stopped", run.id));
        }
        Ok(moat_shared::exit::OK)
    }

    fn choose(&self, home: &Home) -> Result<Vec<Record>, Failure> {
        let listing = select::all(home).map_err(|error| pick::failure(&SelectError::List(error)))?;
        let Some(argument) = &self.run else {
            let live = listing.runs.into_iter().find(|run| run.state().is_live());
            return live.map(|run| vec![run]).ok_or_else(|| Failure::new("no running runs found"));
        };
        let matching = select::matching(listing.runs, argument).map_err(|error| pick::failure(&error))?;
        let known = matching.len();
        let mut live: Vec<_> = matching.into_iter().filter(|run| run.state().is_live()).collect();
        match (live.len(), known) {
            (0, 1) => Err(Failure::new(format!("run {argument} is not running"))),
            (0, _) => Err(Failure::new("no running runs found")),
            _ => Ok(std::mem::take(&mut live)),
        }
    }
}

/// Through the bridge; when that is of no help, by a signal to the holder.
async fn ask_to_stop(home: &Home, run: &Record) -> Result<(), Failure> {
    let asked: Result<(), ClientError> = async { Client::connect(home).await?.stop(&run.id).await }.await;
    let Err(error) = asked else { return Ok(()) };
    let holder = run.metadata.holder.filter(|holder| holder.is_alive());
    let Some(holder) = holder else { return Err(Failure::from_error(&error)) };
    kill(Pid::from_raw(holder.pid), Signal::SIGTERM).map_err(|signal| {
        Failure::new(format!("run {} was not stopped: {}; {signal}", run.id, with_causes(&error)))
    })
}

async fn until_stopped(home: &Home, run: &RunId) -> Result<(), Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let record = Record::read(home, run).map_err(|error| Failure::from_error(&error))?;
        if record.is_none_or(|record| !record.state().is_live()) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(format!(
                "run {run} has not stopped within {} seconds",
                PATIENCE.as_secs()
            )));
        }
        tokio::time::sleep(POLL).await;
    }
}
