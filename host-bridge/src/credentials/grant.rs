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
use crate::{config::catalog, server::Server};

/// A credential for one server, as it goes into the request. The only form in which one leaves the store.
#[derive(Clone)]
pub(crate) struct TokenFor {
    server: ServerName,
    host: String,
    grant: GrantName,
    header: HeaderName,
    value: HeaderValue,
    token: Secret<String>,
}

impl TokenFor {
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
    #[error("MCP server '{server}': the credential of '{grant}' cannot be sent in a header")]
    NotAHeaderValue { server: ServerName, grant: GrantName },
}

impl Hint for InjectError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Read(error) => error.hint(),
            Self::NotBound { grant, host, .. } => Some(allow_hint(grant, host).into()),
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
    let credential = store.read(&injection.grant)?;
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
    Ok(Some(TokenFor {
        server: server.name.clone(),
        host: host.to_owned(),
        grant: injection.grant.clone(),
        header,
        value,
        token: credential.token,
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
