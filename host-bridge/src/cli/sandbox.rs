//! `moat __sandbox`: what `moat run` starts to build a sandbox. Not for people.

use super::{Context, Outcome};
use crate::runtime::process;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    descriptors: process::Descriptors,
}

/// `moat __enter`: what `moat exec` starts to reach a sandbox of namespaces. Not for people.
#[derive(Debug, clap::Args)]
pub(crate) struct EnterArgs {
    #[command(flatten)]
    entering: process::Entering,
}

impl EnterArgs {
    pub(crate) fn run(&self, _context: &Context) -> Outcome {
        Ok(process::join(&self.entering))
    }
}

impl Args {
    pub(crate) fn run(self, _context: &Context) -> Outcome {
        Ok(process::build(self.descriptors))
    }
}
