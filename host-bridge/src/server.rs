//! One MCP server that a run may use: every value is usable as it stands.
//!
//! Made by [`crate::config`] from moat.yaml and by [`crate::registry`] from runs.json, through the same checks.

use std::fmt;

use http::{HeaderName, Uri};
use moat_shared::{grant::GrantName, id::ServerName};
use serde::{Deserialize, Serialize};

use crate::policy::bound::Bound;

/// One server that a run may use. Its serialised form is that of runs.json and of the control socket:
/// `{"name", "url", "auth": {"grant", "header"}?, "policy"?}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Server {
    pub(crate) name: ServerName,
    #[serde(rename = "url")]
    pub(crate) upstream: Upstream,
    #[serde(rename = "auth", default, skip_serializing_if = "Option::is_none")]
    pub(crate) inject: Option<Injection>,
    /// What may be done with it; without one, everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<Bound>,
}

/// Which credential goes into which header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Injection {
    pub(crate) grant: GrantName,
    pub(crate) header: InjectedHeader,
}

/// The name of a header that may carry a credential, as moat.yaml spells it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct InjectedHeader {
    spelling: String,
    name: HeaderName,
}

impl InjectedHeader {
    /// As moat.yaml spells it, for files and people.
    pub(crate) fn as_str(&self) -> &str {
        &self.spelling
    }
    /// For requests.
    pub(crate) fn name(&self) -> &HeaderName {
        &self.name
    }
}

/// What was given cannot carry a credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot carry a credential: must be a header name, and none of HTTP's or MCP's own")]
pub(crate) struct InvalidHeader(String);

impl TryFrom<String> for InjectedHeader {
    type Error = InvalidHeader;

    fn try_from(spelling: String) -> Result<Self, Self::Error> {
        const FORBIDDEN: [&str; 14] = [
            "host",
            "content-length",
            "content-type",
            "content-encoding",
            "transfer-encoding",
            "connection",
            "keep-alive",
            "te",
            "trailer",
            "upgrade",
            "expect",
            "accept",
            "accept-encoding",
            "last-event-id",
        ];
        let invalid = || InvalidHeader(spelling.chars().take(80).collect());
        let name: HeaderName = spelling.parse().map_err(|_| invalid())?;
        let forbidden = FORBIDDEN.contains(&name.as_str())
            || name.as_str().starts_with("mcp-")
            || name.as_str().starts_with("proxy-");
        if forbidden { Err(invalid()) } else { Ok(Self { spelling, name }) }
    }
}
impl From<InjectedHeader> for String {
    fn from(header: InjectedHeader) -> Self {
        header.spelling
    }
}
impl fmt::Debug for InjectedHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.spelling)
    }
}

/// Where a server is: `https` anywhere, `http` on this machine's loopback only.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Upstream {
    text: String,
    uri: Uri,
    tls: bool,
    host: String,
    port: u16,
}

/// Why a URL cannot be an upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidUpstream {
    #[error("'url' must use HTTPS (http:// is only allowed for localhost, 127.0.0.1, and [::1])")]
    Scheme,
    #[error("'url' is not a valid URL: {0}")]
    Form(String),
    #[error("'url' must not contain a user name or password; use 'auth' and a grant")]
    UserInfo,
    #[error("'url' must not contain a fragment (#...)")]
    Fragment,
}

impl Upstream {
    /// Is it TLS?
    pub(crate) fn is_tls(&self) -> bool {
        self.tls
    }
    /// The host in lower case, IPv6 in brackets; what a grant is bound to.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
    /// `host[:port]` for the Host header: the port only where it is not the scheme's (R3).
    pub(crate) fn authority(&self) -> &str {
        self.uri.authority().map_or("", http::uri::Authority::as_str)
    }
    /// The configured path; at least `/`.
    pub(crate) fn path(&self) -> &str {
        self.uri.path()
    }
    /// The configured query, which is kept (R1).
    pub(crate) fn query(&self) -> Option<&str> {
        self.uri.query()
    }
    /// Scheme, host and port.
    pub(crate) fn origin(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
    /// The URL as configured. May hold a secret in its query: for the trace and moat.yaml's owner only.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

impl TryFrom<String> for Upstream {
    type Error = InvalidUpstream;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let url = url::Url::parse(&text).map_err(|e| InvalidUpstream::Form(e.to_string()))?;
        let host = url.host_str().filter(|h| !h.is_empty()).map(str::to_ascii_lowercase);
        let tls = match url.scheme() {
            "https" => true,
            "http" if matches!(host.as_deref(), Some("localhost" | "127.0.0.1" | "[::1]")) => false,
            _ => return Err(InvalidUpstream::Scheme),
        };
        let host = host.ok_or_else(|| InvalidUpstream::Form("no host".to_owned()))?;
        if !url.username().is_empty() || url.password().is_some() || text.contains('@') && has_userinfo(&text)
        {
            return Err(InvalidUpstream::UserInfo);
        }
        if url.fragment().is_some() {
            return Err(InvalidUpstream::Fragment);
        }
        let port = url.port_or_known_default().unwrap_or(if tls { 443 } else { 80 });
        // `Url` has normalised dot segments, case of the host and default ports.
        let uri: Uri =
            url.as_str().parse().map_err(|e: http::uri::InvalidUri| InvalidUpstream::Form(e.to_string()))?;
        Ok(Self { text, uri, tls, host, port })
    }
}

/// `https://@host` has an empty user name, which the parser drops.
fn has_userinfo(text: &str) -> bool {
    let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
    authority.split(['/', '?', '#', '\\']).next().is_some_and(|authority| authority.contains('@'))
}

impl From<Upstream> for String {
    fn from(upstream: Upstream) -> Self {
        upstream.text
    }
}
impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the query, which may hold a key.
        write!(f, "{}{}", self.origin(), self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("https://mcp.context7.com/mcp" => Ok("https://mcp.context7.com".to_owned()))]
    #[test_case("HTTPS://MCP.Context7.COM:443/mcp" => Ok("https://mcp.context7.com".to_owned()); "case and default port")]
    #[test_case("http://localhost:3000/mcp" => Ok("http://localhost:3000".to_owned()))]
    #[test_case("http://[::1]:3000/mcp" => Ok("http://[::1]:3000".to_owned()))]
    #[test_case("http://127.0.0.1/mcp" => Ok("http://127.0.0.1".to_owned()))]
    #[test_case("http://example.com/mcp" => Err(InvalidUpstream::Scheme); "plain http elsewhere")]
    #[test_case("http://localhost.evil.com/" => Err(InvalidUpstream::Scheme); "prefix of a name")]
    #[test_case("http://127.0.0.2/" => Err(InvalidUpstream::Scheme); "another loopback")]
    #[test_case("ftp://localhost/" => Err(InvalidUpstream::Scheme); "scheme")]
    #[test_case("https://u:p@h/" => Err(InvalidUpstream::UserInfo); "user")]
    #[test_case("https://@h/" => Err(InvalidUpstream::UserInfo); "empty user")]
    #[test_case("https://h/#x" => Err(InvalidUpstream::Fragment); "fragment")]
    fn upstreams(text: &str) -> Result<String, InvalidUpstream> {
        Upstream::try_from(text.to_owned()).map(|u| u.origin())
    }

    #[test_case("https://"; "no host")]
    #[test_case("nonsense"; "no url")]
    fn not_a_url(text: &str) {
        assert!(Upstream::try_from(text.to_owned()).is_err());
    }

    #[test]
    fn a_query_is_kept_and_not_printed() {
        let upstream = Upstream::try_from("https://h/mcp?key=s3cr3t".to_owned()).unwrap();
        assert_eq!(upstream.query(), Some("key=s3cr3t"));
        assert!(!format!("{upstream:?}").contains("s3cr3t"));
    }

    #[test_case("CONTEXT7_API_KEY" => true)]
    #[test_case("Authorization" => true)]
    #[test_case("Host" => false)]
    #[test_case("Mcp-Session-Id" => false)]
    #[test_case("Transfer-Encoding" => false)]
    #[test_case("X Y" => false; "space")]
    #[test_case("X\r\nY" => false; "line break")]
    fn headers(text: &str) -> bool {
        InjectedHeader::try_from(text.to_owned()).is_ok()
    }
}
