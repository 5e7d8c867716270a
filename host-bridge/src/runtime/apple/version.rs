//! Which `container` this is, and whether moat can work with it.
//!
//! Apple promises stability within a patch version only, so the floor is a rule of ours: below 1.1.0 a socket that is
//! mounted cannot be used by an ordinary user and `--network none` is refused; 1.2.1 is the oldest whose every documented
//! form is in moat's tests.

use std::{borrow::Cow, fmt};

use moat_shared::hint::Hint;

/// The oldest that has what a run needs.
const OLDEST: Version = Version(1, 1, 0);
/// The oldest that moat is tested with.
const TESTED: Version = Version(1, 2, 1);

/// Of the `container` command line tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u32, u32, u32);

/// The tool cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VersionError {
    #[error("container {0} is too old: at least {OLDEST} is needed, {TESTED} or later is tested")]
    TooOld(Version),
    #[error("'container --version' does not say a version, but {0:?}")]
    Unknown(String),
}

impl Hint for VersionError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        Some(match self {
            Self::TooOld(_) => {
                format!("install {TESTED} or later: https://github.com/apple/container/releases").into()
            }
            Self::Unknown(_) => "is the 'container' in your PATH Apple's? which container".into(),
        })
    }
}

impl Version {
    /// Reads `container CLI version 1.2.1 (build: release, commit: …)`.
    pub(super) fn of(said: &str) -> Result<Self, VersionError> {
        let unknown = || VersionError::Unknown(said.trim().chars().take(80).collect());
        let (_, after) = said.split_once("version ").ok_or_else(unknown)?;
        let digits: String = after.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let mut parts = digits.split('.').map(str::parse);
        match (parts.next(), parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor)), Some(Ok(patch))) => Ok(Self(major, minor, patch)),
            _ => Err(unknown()),
        }
    }

    /// A word for the user, where it works and is not tested.
    pub(crate) fn judge(self) -> Result<Option<String>, VersionError> {
        if self < OLDEST {
            return Err(VersionError::TooOld(self));
        }
        Ok((self < TESTED)
            .then(|| format!("container {self} is older than {TESTED}, the oldest that is tested")))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("container CLI version 1.2.1 (build: release, commit: 4d24f6c)\n" => "works"; "the floor")]
    #[test_case("container CLI version 1.4.1 (build: release, commit: unspecified)" => "works"; "the newest known")]
    #[test_case("container CLI version 10.0.0-beta1 (build: debug)" => "works"; "not by its letters")]
    #[test_case("container CLI version 1.1.0 (build: release, commit: x)" => "works, with a word"; "accepted")]
    #[test_case("container CLI version 1.2.0 (build: release, commit: x)" => "works, with a word"; "masks paths")]
    #[test_case("container CLI version 1.0.0 (build: release, commit: x)" => "too old"; "no network none")]
    #[test_case("container CLI version 0.12.3 (build: release, commit: x)" => "too old"; "before 1")]
    #[test_case("toolbox 1.2.3" => "unknown"; "another tool")]
    #[test_case("container CLI version one" => "unknown"; "no number")]
    #[test_case("" => "unknown"; "nothing")]
    fn versions(said: &str) -> &'static str {
        match Version::of(said).and_then(Version::judge) {
            Ok(None) => "works",
            Ok(Some(_)) => "works, with a word",
            Err(error) => {
                assert!(error.hint().is_some());
                if matches!(error, VersionError::TooOld(_)) { "too old" } else { "unknown" }
            }
        }
    }
}
