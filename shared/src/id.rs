//! The names of a run and of a server: parsed once, safe everywhere afterwards.
//!
//! Both end up in paths, URLs and files of other programs, so neither can be made from an unchecked string.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// One start of an agent in one sandbox: `run_` and twelve lower-case hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(String);

impl RunId {
    /// The id for six random bytes.
    #[must_use]
    pub fn from_random(bytes: [u8; 6]) -> Self {
        let mut text = String::from("run_");
        for byte in bytes {
            text.push(char::from(HEX[usize::from(byte >> 4)]));
            text.push(char::from(HEX[usize::from(byte & 15)]));
        }
        Self(text)
    }

    /// The id as it is written everywhere.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// What was given is not a run id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid run id {0:?}: must be 'run_' and 12 lower-case hexadecimal digits")]
pub struct InvalidRunId(String);

impl FromStr for RunId {
    type Err = InvalidRunId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("run_").unwrap_or_default();
        if digits.len() == 12 && digits.bytes().all(|b| HEX.contains(&b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidRunId(text.chars().take(64).collect()))
        }
    }
}

/// The name of one `mcp:` entry: `[A-Za-z0-9][A-Za-z0-9._-]{0,63}`.
///
/// Safe as a URL path segment, a JSON key and a (quoted) TOML key without any escaping.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerName(String);

impl ServerName {
    /// The name as it is written everywhere.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What was given is not a server name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid server name {0:?}: must start with a letter or digit, then letters, digits, '.', '_' and '-', \
     at most 64 characters"
)]
pub struct InvalidServerName(String);

impl FromStr for ServerName {
    type Err = InvalidServerName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if first && rest && text.len() <= 64 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidServerName(text.chars().take(64).collect()))
        }
    }
}

macro_rules! text_type {
    ($name:ident, $error:ident) => {
        impl TryFrom<String> for $name {
            type Error = $error;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }
    };
}
text_type!(RunId, InvalidRunId);
text_type!(ServerName, InvalidServerName);

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("run_0123456789ab" => true)]
    #[test_case("run_0123456789AB" => false; "upper case")]
    #[test_case("run_0123456789a" => false; "short")]
    #[test_case("run_0123456789abc" => false; "long")]
    #[test_case("0123456789ab" => false; "no prefix")]
    #[test_case("run_../../../etc" => false; "path")]
    fn run_ids(text: &str) -> bool {
        text.parse::<RunId>().is_ok()
    }

    #[test]
    fn a_random_run_id_parses() {
        let id = RunId::from_random([0, 1, 0xab, 0xff, 0x10, 9]);
        assert_eq!(id.as_str(), "run_0001abff1009");
        assert_eq!(id.as_str().parse::<RunId>(), Ok(id));
    }

    #[test_case("context7" => true)]
    #[test_case("local-tools_2.x" => true)]
    #[test_case("" => false; "empty")]
    #[test_case(".hidden" => false; "dot first")]
    #[test_case(".." => false; "up")]
    #[test_case("a/b" => false; "slash")]
    #[test_case("a b" => false; "space")]
    #[test_case("a%2f" => false; "percent")]
    #[test_case("ä" => false; "not ascii")]
    fn server_names(text: &str) -> bool {
        text.parse::<ServerName>().is_ok()
    }

    #[test]
    fn a_server_name_has_at_most_64_characters() {
        assert!("a".repeat(64).parse::<ServerName>().is_ok());
        assert!("a".repeat(65).parse::<ServerName>().is_err());
    }
}
