//! `moat version`.

use jiff::Timestamp;

use super::{Context, Failure, Outcome, print};

/// The version, as `moat --version` prints it.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that this was built from; `unknown` outside a checkout.
pub(crate) const COMMIT: &str = match option_env!("MOAT_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
/// When this was built, in seconds since 1970.
const BUILT: Option<&str> = option_env!("MOAT_BUILT");

/// When this was built, in RFC 3339; `unknown` if the build did not say.
fn built() -> String {
    let time =
        BUILT.and_then(|text| text.parse().ok()).and_then(|second| Timestamp::from_second(second).ok());
    time.map_or_else(|| "unknown".to_owned(), |time| time.to_string())
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        if context.global.json {
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
