//! `moat __sandbox`: what `moat run` starts to build a sandbox. Not for people.

use super::{Context, Outcome};
use crate::runtime::process;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    descriptors: process::Descriptors,
}

impl Args {
    pub(crate) fn run(self, _context: &Context) -> Outcome {
        Ok(process::build(self.descriptors))
    }
}
