//! What this build is: version, commit and time, as build.rs found them.

use jiff::Timestamp;

pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit, or `unknown` where it was built without git.
pub(crate) const COMMIT: &str = env!("MOAT_COMMIT");

/// When it was built.
pub(crate) fn built() -> Timestamp {
    env!("MOAT_BUILT").parse().ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or_default()
}
