//! `moat version`.

use super::{Failure, Global, Outcome, print};
use crate::build::{COMMIT, VERSION, built};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self, global: &Global) -> Outcome {
        if global.json {
            let version = serde_json::json!({"version": VERSION, "commit": COMMIT, "built": built()});
            let text =
                serde_json::to_string_pretty(&version).map_err(|error| Failure::new(error.to_string()))?;
            print::line(&text);
        } else {
            print::line(&format!("moat {VERSION}\n  commit: {COMMIT}\n  built:  {}", built()));
        }
        Ok(moat_shared::exit::OK)
    }
}
