//! `moat destroy`: removes runs that are over, with their records.

use std::fs;

use super::{Context, Failure, Outcome, pick, print};
use crate::{
    home::Home,
    run::{
        metadata::Record,
        select::{self, Listing, SelectError},
    },
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moat destroy                the most recent run that is over
  moat destroy brave-otter    all runs of this name that are over; asks when there are several")]
pub(crate) struct Args {
    /// A run's id, the beginning of one, or its name [default: the most recent run that is over]
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Do not ask; also remove a run whose metadata is damaged
    #[arg(short, long)]
    force: bool,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let listing = select::all(&context.home).map_err(|error| {
            Failure::new(format!("cannot read {}: {error}", context.home.runs().display()))
        })?;
        let runs = self.choose(listing)?;
        if let Some(run) = runs.iter().find(|run| run.is_live) {
            return Err(Failure::new(format!("run {} is {}", run.id, run.state))
                .with_hint(format!("Stop it first: moat stop {}", run.id)));
        }
        if runs.len() > 1
            && !self.force
            && !pick::confirm(&format!("Destroy all {} runs? [y/N]: ", runs.len()))
        {
            return Err(Failure::new("nothing was destroyed"));
        }
        for run in &runs {
            remove(&context.home, run, context.global.dry_run)?;
        }
        Ok(moat_shared::exit::OK)
    }

    fn choose(&self, listing: Listing) -> Result<Vec<Doomed>, Failure> {
        let Some(argument) = &self.run else {
            let over = listing.runs.iter().find(|run| !run.state().is_live());
            let over = over.ok_or_else(|| Failure::new("no stopped runs found to destroy"))?;
            return Ok(vec![Doomed::from(over)]);
        };
        let damaged = listing.unreadable.into_iter().find(|(id, _)| id.as_str() == argument);
        if let Some((id, error)) = damaged {
            // What state it is in cannot be known.
            return match self.force {
                true => Ok(vec![Doomed { id, is_live: false, state: String::new() }]),
                false => Err(Failure::from_error(&error)),
            };
        }
        let runs = select::matching(listing.runs, argument).map_err(|error| pick::failure(&error))?;
        if runs.len() > 1 && !self.force && !print::can_ask() {
            let several = SelectError::Several { argument: argument.clone(), runs };
            return Err(pick::failure(&several));
        }
        Ok(runs.iter().map(Doomed::from).collect())
    }
}

/// A run that is to go.
#[derive(Debug)]
struct Doomed {
    id: moat_shared::id::RunId,
    is_live: bool,
    state: String,
}

impl From<&Record> for Doomed {
    fn from(run: &Record) -> Self {
        Self { id: run.id.clone(), is_live: run.state().is_live(), state: run.state().to_string() }
    }
}

fn remove(home: &Home, run: &Doomed, dry_run: bool) -> Result<(), Failure> {
    if dry_run {
        print::line(&format!("Run {} would be destroyed", run.id));
        return Ok(());
    }
    // Metadata last: what was removed half is still listed and can be destroyed again.
    let directory = home.run(&run.id);
    let removed = fs::read_dir(&directory).and_then(|entries| {
        for entry in entries {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false if entry.path() == home.metadata(&run.id) => {}
                false => fs::remove_file(entry.path())?,
            }
        }
        fs::remove_dir_all(&directory)
    });
    removed.map_err(|error| Failure::new(format!("cannot remove {}: {error}", directory.display())))?;
    print::line(&format!("Run {} destroyed", run.id));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{control::api::Process, run::metadata::Metadata};
    use jiff::Timestamp;
    use test_case::test_case;

    const RUNNING: &str = "run_aa0000000001";
    const OVER: &str = "run_bb0000000002";
    const DAMAGED: &str = "run_cc0000000003";

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        for (id, pid, second) in [(RUNNING, None, 9), (OVER, Some(i32::MAX), 1), (DAMAGED, None, 2)] {
            let holder = pid.map_or_else(Process::current, |pid| Process { pid, started: 1 });
            let now = Timestamp::from_second(second).unwrap();
            let metadata = Metadata::new("twin".into(), Path::new("/w"), "process", holder, now);
            Record::create(&home, id.parse().unwrap(), metadata).unwrap();
        }
        fs::write(home.metadata(&DAMAGED.parse().unwrap()), "{").unwrap();
        (dir, home)
    }

    #[test_case(None, false => Ok(vec![OVER.to_owned()]); "the most recent that is over")]
    #[test_case(Some("run_bb"), false => Ok(vec![OVER.to_owned()]); "prefix")]
    #[test_case(Some(DAMAGED), true => Ok(vec![DAMAGED.to_owned()]); "damaged, by force")]
    #[test_case(Some(DAMAGED), false => Err("the metadata of run_cc0000000003 is damaged".to_owned()); "damaged")]
    #[test_case(Some("nobody"), true => Err("no run found matching \"nobody\"".to_owned()))]
    fn choice(run: Option<&str>, force: bool) -> Result<Vec<String>, String> {
        let (_dir, home) = home();
        let args = Args { run: run.map(str::to_owned), force };
        let doomed = args
            .choose(select::all(&home).unwrap())
            .map_err(|f| f.text.split(": ").next().unwrap_or_default().to_owned())?;
        Ok(doomed.iter().map(|run| run.id.to_string()).collect())
    }

    #[test]
    fn a_run_goes_with_everything_it_has_and_nothing_else() {
        let (dir, home) = home();
        let id: moat_shared::id::RunId = OVER.parse().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, "x").unwrap();
        std::os::unix::fs::symlink(dir.path(), home.run(&id).join("link")).unwrap();
        fs::write(home.logs(&id), "x").unwrap();
        remove(&home, &Doomed { id: id.clone(), is_live: false, state: String::new() }, false).unwrap();
        assert!(!home.run(&id).exists());
        assert!(precious.exists(), "a link is not followed");
    }
}
