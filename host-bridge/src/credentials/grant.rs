//! The one door through which a credential leaves the store: for one server, and only when the grant is bound to
//! the server's host.
//!
//! A grant's hosts are those recorded with the credential (given at grant time, or confirmed by the user). A file
//! without any, as older versions wrote them, belongs to the hosts that the catalog has for the grant, if it has
//! any. Nothing is ever bound by a moat.yaml alone: it may come from a stranger's repository.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use http::{HeaderName, HeaderValue, header::AUTHORIZATION};
use moat_shared::{
    grant::{GrantKind, GrantName},
    hint::Hint,
    id::ServerName,
    secret::Secret,
};

use super::{
    sealed::Credential,
    store::{ReadError, Store},
};
use crate::{config::catalog, oauth::record::key as oauth, server::Server};

/// A credential for one server, as it goes into the request. The only form in which one leaves the store.
#[derive(Clone)]
pub(crate) struct TokenFor {
    server: ServerName,
    host: String,
    grant: GrantName,
    header: HeaderName,
    value: HeaderValue,
    token: Secret<String>,
    companions: Vec<Secret<String>>,
}

impl TokenFor {
    /// What belongs to the credential and is sent to no server: the refresh token, the client's secret. For whoever
    /// looks for reflections.
    pub(crate) fn companions(&self) -> &[Secret<String>] {
        &self.companions
    }

    pub(crate) fn has_the_companions_of(&self, other: &Self) -> bool {
        let exposed = |token: &Self| token.companions.iter().map(|s| s.expose().clone()).collect::<Vec<_>>();
        self.companions.len() == other.companions.len()
            && zeroize::Zeroizing::new(exposed(self)) == zeroize::Zeroizing::new(exposed(other))
    }

    pub(crate) fn server(&self) -> &ServerName {
        &self.server
    }
    /// The host that it may be sent to, as [`crate::server::Upstream::host`] spells it.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }
    pub(crate) fn grant(&self) -> &GrantName {
        &self.grant
    }
    pub(crate) fn header(&self) -> &HeaderName {
        &self.header
    }
    /// The header's whole value, marked as sensitive.
    pub(crate) fn value(&self) -> &HeaderValue {
        &self.value
    }
    /// The bare credential, for whoever looks for reflections of it.
    pub(crate) fn token(&self) -> &Secret<String> {
        &self.token
    }
}

impl fmt::Debug for TokenFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenFor({} at {}: {} in {})", self.server, self.host, self.grant, self.header)
    }
}

/// Why a server gets no credential.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InjectError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("MCP server '{server}': grant '{grant}' was not granted for host '{host}'")]
    NotBound { server: ServerName, grant: GrantName, host: String },
    #[error("MCP server '{server}' requires grant '{grant}' but it needs a new authorization")]
    NeedsAuthorization { server: ServerName, grant: GrantName },
    #[error("MCP server '{server}': the credential of '{grant}' cannot be sent in a header")]
    NotAHeaderValue { server: ServerName, grant: GrantName },
}

impl Hint for InjectError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Read(error) => error.hint(),
            Self::NotBound { grant, host, .. } => Some(allow_hint(grant, host).into()),
            Self::NeedsAuthorization { grant, .. } => Some(format!("To fix:\n  {}", grant.command()).into()),
            Self::NotAHeaderValue { grant, .. } => Some(
                format!(
                    "It holds a line break or another control character. Grant it again:\n  {}",
                    grant.command()
                )
                .into(),
            ),
        }
    }
}

/// How to bind a grant to a host: without the secret, or with it.
pub(crate) fn allow_hint(grant: &GrantName, host: &str) -> String {
    let allow = format!("To allow it:\n  moat grant allow {grant} {host}");
    match grant.kind() {
        GrantKind::Mcp(name) => {
            let scheme = if matches!(host, "localhost" | "127.0.0.1" | "[::1]") { "http" } else { "https" };
            format!(
                "{allow}\n\nOr grant it anew for this host alone:\n  moat grant mcp {name} --url {scheme}://{host}/"
            )
        }
        GrantKind::OAuth(_) | GrantKind::Provider(_) => allow,
    }
}

/// The credential for a server, read from the store now. `None`: the server wants none.
pub(crate) fn token_for(store: &Store, server: &Server) -> Result<Option<TokenFor>, InjectError> {
    let Some(injection) = &server.inject else { return Ok(None) };
    let credential = store.current(&injection.grant)?;
    let host = server.upstream.host();
    if !hosts(&credential).contains(host) {
        return Err(InjectError::NotBound {
            server: server.name.clone(),
            grant: injection.grant.clone(),
            host: host.to_owned(),
        });
    }
    let header = injection.header.name().clone();
    let value = header_value(&credential, &header).ok_or_else(|| InjectError::NotAHeaderValue {
        server: server.name.clone(),
        grant: injection.grant.clone(),
    })?;
    let companions = [oauth::REFRESH_TOKEN, oauth::CLIENT_SECRET]
        .iter()
        .filter_map(|key| credential.metadata.get(*key))
        .filter(|secret| !secret.expose().is_empty())
        .cloned()
        .collect();
    Ok(Some(TokenFor {
        companions,
        server: server.name.clone(),
        host: host.to_owned(),
        grant: injection.grant.clone(),
        header,
        value,
        token: credential.token.clone(),
    }))
}

/// Where a credential may be sent.
pub(crate) fn hosts(credential: &Credential) -> Cow<'_, BTreeSet<String>> {
    if credential.hosts.is_empty() {
        Cow::Owned(catalog::hosts_of(&credential.grant))
    } else {
        Cow::Borrowed(&credential.hosts)
    }
}

/// `Bearer ` goes before an OAuth token in `Authorization`, and nowhere else.
fn header_value(credential: &Credential, header: &HeaderName) -> Option<HeaderValue> {
    let token = credential.token.expose();
    if !is_sendable(token) {
        return None;
    }
    let bearer = matches!(credential.grant.kind(), GrantKind::OAuth(_)) && *header == AUTHORIZATION;
    let text = zeroize::Zeroizing::new(if bearer { format!("Bearer {token}") } else { token.clone() });
    let mut value = HeaderValue::from_bytes(text.as_bytes()).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Is this text legal in a header, as it is? Visible characters and single spaces between them; no line break.
pub(crate) fn is_sendable(token: &str) -> bool {
    !token.is_empty() && token.trim() == token && token.bytes().all(|b| (0x20..0x7f).contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        env::Environment,
        home::Home,
        server::{InjectedHeader, Injection, Upstream},
    };
    use test_case::test_case;

    fn server(url: &str, grant: &str, header: &str) -> Server {
        Server {
            name: "s".parse().unwrap(),
            upstream: Upstream::try_from(url.to_owned()).unwrap(),
            inject: Some(Injection {
                grant: grant.parse().unwrap(),
                header: InjectedHeader::try_from(header.to_owned()).unwrap(),
            }),
            policy: None,
        }
    }

    /// The header of a request to `url`, with `token` stored for `grant` and `hosts`.
    fn value(
        url: &str,
        grant: &str,
        header: &str,
        hosts: &[&str],
        token: &str,
    ) -> Result<String, InjectError> {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let store = Store::open(&home, &Environment::from([("MOAT_KEYRING_BACKEND", "file")]), None);
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let token = Secret::new(token.to_owned());
        store
            .put(&Credential::new(grant.parse().unwrap(), token, hosts, jiff::Timestamp::UNIX_EPOCH))
            .unwrap();
        let token = token_for(&store, &server(url, grant, header))?.unwrap();
        assert!(token.value().is_sensitive());
        assert!(!format!("{token:?}").contains(token.token().expose()));
        Ok(token.value().to_str().unwrap().to_owned())
    }

    #[test_case("https://mcp.context7.com/mcp", "mcp-context7", &[]; "the catalog's, of an older file")]
    #[test_case("https://MCP.Context7.com/other", "mcp-context7", &[]; "another path of the host")]
    #[test_case("https://h/mcp", "mcp-a", &["h"]; "given")]
    #[test_case("https://h:8443/mcp", "mcp-a", &["g", "h"]; "another port")]
    #[test_case("http://localhost:1/", "github", &["localhost"]; "a provider's, confirmed")]
    fn goes_to_its_hosts(url: &str, grant: &str, hosts: &[&str]) {
        assert_eq!(value(url, grant, "X-Key", hosts, "t0ken").unwrap(), "t0ken");
    }

    #[test_case("https://evil.example/mcp", "mcp-context7", &[]; "not the catalog's")]
    #[test_case("https://mcp.context7.com.evil.example/", "mcp-context7", &[]; "longer")]
    #[test_case("https://context7.com/", "mcp-context7", &[]; "shorter")]
    #[test_case("https://h/", "mcp-a", &[]; "never bound")]
    #[test_case("https://h/", "github", &[]; "a provider's, never bound")]
    #[test_case("https://sub.h/", "mcp-a", &["h"]; "below")]
    #[test_case("https://mcp.context7.com/", "mcp-context7", &["self.hosted"]; "given elsewhere only")]
    fn goes_nowhere_else(url: &str, grant: &str, hosts: &[&str]) {
        let error = value(url, grant, "X-Key", hosts, "t0ken").unwrap_err();
        assert!(matches!(error, InjectError::NotBound { .. }), "{error}");
    }

    #[test]
    fn the_message_names_what_would_allow_it() {
        let error = value("https://h/", "mcp-a", "X", &[], "t").unwrap_err();
        assert_eq!(error.to_string(), "MCP server 's': grant 'mcp-a' was not granted for host 'h'");
        let hint = error.hint().unwrap();
        assert!(hint.contains("moat grant allow mcp-a h\n"), "{hint}");
        assert!(hint.contains("moat grant mcp a --url https://h/"), "{hint}");
    }

    #[test_case("oauth:a", "Authorization" => "Bearer t0ken")]
    #[test_case("oauth:a", "authorization" => "Bearer t0ken"; "any case")]
    #[test_case("oauth:a", "X-Token" => "t0ken"; "another header")]
    #[test_case("mcp-a", "Authorization" => "t0ken"; "static")]
    fn bearer_is_added_for_oauth_in_authorization_only(grant: &str, header: &str) -> String {
        value("https://h/", grant, header, &["h"], "t0ken").unwrap()
    }

    #[test_case("a\r\nX-Evil: 1"; "line break")]
    #[test_case("a\nb"; "line feed")]
    #[test_case("a\0b"; "zero")]
    #[test_case(" t0ken"; "space around")]
    #[test_case("ä"; "not ascii")]
    fn what_would_break_out_of_a_header_is_refused(token: &str) {
        let error = value("https://h/", "mcp-a", "X-Key", &["h"], token).unwrap_err();
        assert!(matches!(error, InjectError::NotAHeaderValue { .. }));
        assert!(!error.to_string().contains(token));
    }

    #[test]
    fn a_server_without_auth_gets_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&Home::at(dir.path()), &Environment::default(), None);
        let server = Server { inject: None, ..server("https://h/", "mcp-a", "X") };
        assert!(token_for(&store, &server).unwrap().is_none());
    }
}
