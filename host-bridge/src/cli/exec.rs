//! `moat exec <run> -- cmd...`: refused until a runtime can start a second command in a running sandbox.
//!
//! What would run there must get everything that keeps the agent in (namespaces, user, system call filter), so this
//! says no rather than do half of it.

use super::{Context, Failure, Outcome, pick};

#[derive(Debug, clap::Args)]
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
        let run = pick::one(context, Some(&self.run))?;
        let program = self.command.first().map(String::as_str).unwrap_or_default();
        Err(Failure::new(format!(
            "{program} was not started in {}: exec is not supported yet on the process runtime",
            run.id
        ))
        .with_hint("Start a shell as the run's command instead: moat run <workspace> -- sh"))
    }
}
