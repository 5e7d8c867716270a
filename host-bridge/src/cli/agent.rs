//! `moat claude`, `moat codex`, `moat gemini`.

use moat_shared::plan::Agent;

use super::{Context, Failure, Outcome};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

#[derive(Debug, clap::Args)]
pub(crate) struct ClaudeArgs {}

impl Args {
    pub(crate) fn run(self, _context: &Context, _agent: Agent) -> Outcome {
        Err(Failure::new("not built yet"))
    }
}

impl ClaudeArgs {
    pub(crate) fn run(self, _context: &Context) -> Outcome {
        Err(Failure::new("not built yet"))
    }
}
