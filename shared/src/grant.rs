//! Grants and the stubs that stand for them in the sandbox.
//!
//! A grant has one canonical spelling: `mcp-<name>`, `oauth:<name>`, or a provider's name. `mcp:<name>` is read
//! as `mcp-<name>` everywhere.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The providers whose grants become an environment variable of a stdio server, and that variable.
pub const PROVIDERS: [(&str, &str); 4] = [
    ("github", "GITHUB_TOKEN"),
    ("openai", "OPENAI_API_KEY"),
    ("anthropic", "ANTHROPIC_API_KEY"),
    ("gemini", "GEMINI_API_KEY"),
];

/// The name of a stored credential, in canonical spelling; safe as a file name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GrantName(String);

/// What a grant is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantKind<'a> {
    /// `mcp-<name>`: a static credential for an MCP server.
    Mcp(&'a str),
    /// `oauth:<name>`: an OAuth token that the bridge refreshes.
    OAuth(&'a str),
    /// `github`, `openai`, `anthropic`, `gemini`.
    Provider(&'a str),
}

impl GrantName {
    /// The grant of a static credential for the MCP server `name`.
    ///
    /// # Errors
    /// When `name` is not usable in a file name and a header value.
    pub fn mcp(name: &str) -> Result<Self, InvalidGrantName> {
        format!("mcp-{name}").parse()
    }

    /// The canonical spelling.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the grant is for.
    #[must_use]
    pub fn kind(&self) -> GrantKind<'_> {
        if let Some(name) = self.0.strip_prefix("mcp-") {
            GrantKind::Mcp(name)
        } else if let Some(name) = self.0.strip_prefix("oauth:") {
            GrantKind::OAuth(name)
        } else {
            GrantKind::Provider(&self.0)
        }
    }

    /// The command that makes this grant.
    #[must_use]
    pub fn command(&self) -> String {
        match self.kind() {
            GrantKind::Mcp(name) => format!("moat grant mcp {name}"),
            GrantKind::OAuth(name) => format!("moat grant oauth {name}"),
            GrantKind::Provider(name) => format!("moat grant {name}"),
        }
    }

    /// What the agent holds instead of the credential.
    #[must_use]
    pub fn stub(&self) -> Stub {
        Stub(format!("{STUB_PREFIX}{}", self.0))
    }
}

/// What was given is not a grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown grant {0:?}: must be 'mcp-<name>', 'oauth:<name>' or one of github, openai, anthropic, gemini; \
     a name has letters, digits, '.', '_' and '-', at most 64 characters"
)]
pub struct InvalidGrantName(String);

impl FromStr for GrantName {
    type Err = InvalidGrantName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidGrantName(text.chars().take(80).collect());
        if PROVIDERS.iter().any(|(name, _)| *name == text) {
            return Ok(Self(text.to_owned()));
        }
        let (prefix, name) =
            if let Some(name) = text.strip_prefix("mcp-").or_else(|| text.strip_prefix("mcp:")) {
                ("mcp-", name)
            } else if let Some(name) = text.strip_prefix("oauth:") {
                ("oauth:", name)
            } else {
                return Err(invalid());
            };
        // The same alphabet as a server's name: it must be safe in a file name and in a header value.
        name.parse::<crate::id::ServerName>().map_err(|_| invalid())?;
        Ok(Self(format!("{prefix}{name}")))
    }
}

impl TryFrom<String> for GrantName {
    type Error = InvalidGrantName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}
impl From<GrantName> for String {
    fn from(name: GrantName) -> Self {
        name.0
    }
}
impl fmt::Display for GrantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for GrantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// What every stub starts with.
pub const STUB_PREFIX: &str = "moat-stub-";

/// `moat-stub-<grant>`: stands for a credential. Not a secret and not an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stub(String);

impl Stub {
    /// The stub as it is written into configuration files and headers.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is this header value exactly this stub? Nothing is trimmed and no scheme is skipped (R7).
    #[must_use]
    pub fn is(&self, value: &[u8]) -> bool {
        value == self.0.as_bytes()
    }
}

impl fmt::Display for Stub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Does this header value hold a stub of any grant, wherever in the value?
#[must_use]
pub fn holds_a_stub(value: &[u8]) -> bool {
    memchr::memmem::find(value, STUB_PREFIX.as_bytes()).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("mcp-context7" => Some("mcp-context7".to_owned()))]
    #[test_case("mcp:context7" => Some("mcp-context7".to_owned()); "older spelling")]
    #[test_case("oauth:notion" => Some("oauth:notion".to_owned()))]
    #[test_case("github" => Some("github".to_owned()))]
    #[test_case("gitlab" => None; "unknown provider")]
    #[test_case("mcp-" => None; "no name")]
    #[test_case("mcp-../x" => None; "path")]
    #[test_case("oauth:a/b" => None; "slash")]
    #[test_case("mcp-a\r\nX: y" => None; "header injection")]
    fn canonical(text: &str) -> Option<String> {
        text.parse::<GrantName>().ok().map(String::from)
    }

    #[test]
    fn a_stub_is_compared_exactly() {
        let stub = GrantName::mcp("context7").unwrap().stub();
        assert_eq!(stub.as_str(), "moat-stub-mcp-context7");
        assert!(stub.is(b"moat-stub-mcp-context7"));
        assert!(!stub.is(b"moat-stub-mcp-context77"));
        assert!(!stub.is(b"Bearer moat-stub-mcp-context7"));
        assert!(holds_a_stub(b"Bearer moat-stub-oauth:notion"));
        assert!(!holds_a_stub(b"moat-stu"));
    }
}
