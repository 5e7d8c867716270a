//! `moat status`.

use super::{Context, Failure, Outcome};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self, _context: &Context) -> Outcome {
        Err(Failure::new("not built yet"))
    }
}
