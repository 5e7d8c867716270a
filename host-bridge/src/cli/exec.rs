//! `moat exec <run> -- cmd...`: a further command in a running sandbox, as the agent. See [`crate::run::exec`].

use super::{Context, Outcome, pick, print};
use crate::run;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moat exec brave-otter -- sh          a shell beside the agent, as the agent
  moat exec run_a1 -- git status       the exit code is the command's
  echo hi | moat exec run_a1 -- cat")]
pub(crate) struct Args {
    /// A run's id, the beginning of one, or its name
    #[arg(value_name = "RUN")]
    run: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let record = pick::one(context, Some(&self.run))?;
        if context.global.dry_run {
            print::note(&format!("Would start {} in {}", self.command.join(" "), record.id));
            return Ok(moat_shared::exit::OK);
        }
        run::exec::exec(&record, &self.command, context)
    }
}
