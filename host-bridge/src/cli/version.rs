//! `moat version`.

use super::{Failure, Global, Outcome, print};
use crate::{
    build::{COMMIT, VERSION, built},
    runtime::embed,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self, global: &Global) -> Outcome {
        if global.json {
            let sidecars: Vec<_> = embed::carried().map(embed::Architecture::name).collect();
            let version = serde_json::json!({
                "version": VERSION, "commit": COMMIT, "built": built(), "sidecars": sidecars,
            });
            let text =
                serde_json::to_string_pretty(&version).map_err(|error| Failure::new(error.to_string()))?;
            print::line(&text);
        } else {
            let sidecars = embed::carried_names();
            print::line(&format!(
                "moat {VERSION}\n  commit:   {COMMIT}\n  built:    {}\n  sidecars: {sidecars}",
                built()
            ));
        }
        Ok(moat_shared::exit::OK)
    }
}
