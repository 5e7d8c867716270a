//! Names of runs: given, or an adjective and an animal.

use std::{fmt, str::FromStr};

use ring::rand::{SecureRandom, SystemRandom};

const ADJECTIVES: [&str; 32] = [
    "amber", "bold", "brave", "bright", "brisk", "calm", "clever", "cosy", "crisp", "daring", "eager",
    "fair", "fleet", "gentle", "glad", "keen", "kind", "lively", "lucky", "merry", "mild", "nimble", "noble",
    "plucky", "proud", "quick", "quiet", "sharp", "sunny", "swift", "tidy", "wise",
];
const ANIMALS: [&str; 32] = [
    "badger", "beaver", "bison", "crane", "curlew", "deer", "dolphin", "falcon", "ferret", "finch", "fox",
    "gecko", "hare", "heron", "ibex", "jackdaw", "kestrel", "lark", "lynx", "marten", "mole", "newt",
    "otter", "owl", "panda", "puffin", "raven", "seal", "stoat", "swan", "tapir", "wren",
];

/// A run's name, which is also its host name: `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunName(String);

/// What was given is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid run name {0:?}: must start with a letter or digit, then letters, digits, '.', '_' and '-', at most 63 \
     characters"
)]
pub(crate) struct InvalidRunName(String);

impl FromStr for RunName {
    type Err = InvalidRunName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if first && rest && text.len() <= 63 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidRunName(text.chars().take(64).collect()))
        }
    }
}

impl RunName {
    /// A new one.
    pub(crate) fn random() -> Self {
        let mut bytes = [0; 2];
        // Only for people: without randomness all runs have the same name, and their ids still tell them apart.
        let _same_name = SystemRandom::new().fill(&mut bytes).is_err();
        let [adjective, animal] = bytes.map(usize::from);
        Self(format!("{}-{}", ADJECTIVES[adjective % ADJECTIVES.len()], ANIMALS[animal % ANIMALS.len()]))
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("brave-otter" => true)]
    #[test_case("a" => true)]
    #[test_case("" => false; "empty")]
    #[test_case("../x" => false; "path")]
    #[test_case("a b" => false; "space")]
    #[test_case("-x" => false; "flag")]
    fn names(text: &str) -> bool {
        text.parse::<RunName>().is_ok()
    }

    #[test]
    fn a_random_name_is_a_name() {
        for adjective in ADJECTIVES {
            for animal in ANIMALS {
                assert!(format!("{adjective}-{animal}").parse::<RunName>().is_ok());
            }
        }
        assert!(RunName::random().to_string().contains('-'));
    }
}
