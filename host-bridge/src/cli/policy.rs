//! `moat policy`: what agents may do with servers, before a run (`check`, `test`, `explain`, `diff`), after one
//! (`backtest`) and while one lives (`reload`).

mod backtest;
mod check;
mod explain;
mod fixtures;
mod reload;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Context, Failure, Outcome, print};
use crate::policy::{
    difference::Difference,
    file::{self, Loaded, Scopes},
    model::RuleSet,
    packs,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A policy is given to a server in moat.yaml: a starter pack's name, a rule file, or rules in place.

Examples:
  moat policy check                                    every policy of this workspace's moat.yaml
  moat policy check .keep/linear.yaml --strict
  moat policy explain linear delete_issue --args '{\"id\": \"X-1\"}'
  moat policy test .keep/linear.yaml fixtures/*.yaml
  moat policy diff linear-readonly .keep/linear.yaml
  moat policy backtest brave-otter --server linear --rules .keep/linear.yaml
  moat policy reload brave-otter")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Load policies and say everything that is wrong or doubtful
    Check(check::Args),
    /// Run a rule file against fixtures
    Test(fixtures::Args),
    /// Say which rule decides about a call, and why
    Explain(explain::Args),
    /// Show what differs between two policies
    Diff(DiffArgs),
    /// Replay a run's recorded calls against other rules
    Backtest(backtest::Args),
    /// Accept changed rule files for a run that is going
    Reload(reload::Args),
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        match self.verb {
            Verb::Check(args) => args.run(context),
            Verb::Test(args) => args.run(context),
            Verb::Explain(args) => args.run(context),
            Verb::Diff(args) => args.run(context),
            Verb::Backtest(args) => args.run(context),
            Verb::Reload(args) => args.run(context),
        }
    }
}

#[derive(Debug, clap::Args)]
struct DiffArgs {
    /// A rule file, or a starter pack's name
    old: String,
    /// The same
    new: String,
}

impl DiffArgs {
    fn run(self, context: &Context) -> Outcome {
        let difference = Difference::between(&rules(&self.old)?, &rules(&self.new)?);
        if context.global.json {
            json(&difference)?;
        } else if difference.is_empty() {
            print::line("No rule differs");
        } else {
            difference.lines().iter().for_each(|line| print::line(line));
        }
        Ok(moat_shared::exit::OK)
    }
}

/// The rules of a file, or of a starter pack.
fn rules(given: &str) -> Result<RuleSet, Failure> {
    match packs::load(given, given) {
        Some(set) => Ok(set),
        None => Ok(load(&PathBuf::from(given))?.policy.set),
    }
}

/// A rule file, for whatever server.
fn load(path: &Path) -> Result<Loaded, Failure> {
    file::load(path, &path.display().to_string(), &Scopes::default()).map_err(|broken| {
        let names: Vec<_> = packs::names().collect();
        Failure::new(broken.to_string()).with_hint(format!("starter packs are: {}", names.join(", ")))
    })
}

fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(error.to_string()))?;
    print::line(&text);
    Ok(())
}
