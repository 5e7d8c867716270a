//! `moat version`.

use super::{Context, Failure, Outcome, print};

/// The version, as `moat --version` prints it.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that this was built from; `unknown` outside a checkout.
pub(crate) const COMMIT: &str = match option_env!("MOAT_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
/// When this was built.
pub(crate) const BUILT: &str = match option_env!("MOAT_BUILT") {
    Some(built) => built,
    None => "unknown",
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        if context.global.json {
            let version = serde_json::json!({"version": VERSION, "commit": COMMIT, "built": BUILT});
            let text =
                serde_json::to_string_pretty(&version).map_err(|error| Failure::new(error.to_string()))?;
            print::line(&text);
        } else {
            print::line(&format!("moat {VERSION}\n  commit: {COMMIT}\n  built:  {BUILT}"));
        }
        Ok(moat_shared::exit::OK)
    }
}
