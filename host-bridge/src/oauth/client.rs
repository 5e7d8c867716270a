//! Who moat is to an authorization server: pre-registered, by a metadata document, as it registered before, or by
//! registering now (RFC 7591).
//!
//! A client belongs to the issuer that it was registered with and is shown to no other (O2); only the id of a metadata
//! document is anybody's.

use http::{Method, Request, header};
use jiff::Timestamp;
use moat_shared::secret::Secret;
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::{
    discovery::Authority,
    guard::Guard,
    http::{Body, Http, Limits},
    json,
    record::{Record, key},
    token::{AuthMethod, Client},
};

/// Where a client came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Registered,
    Document,
    Dynamic,
}

impl Kind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "pre",
            Self::Document => "cimd",
            Self::Dynamic => "dcr",
        }
    }
}

/// A client and what is to be remembered of it.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) client: Client,
    pub(crate) kind: Kind,
    /// The scopes that it registered with.
    pub(crate) scope: Option<String>,
    /// When its secret expires.
    pub(crate) secret_expires_at: Option<Timestamp>,
    pub(crate) registration_uri: Option<String>,
    pub(crate) registration_token: Option<Secret<String>>,
}

/// Why there is no client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("no client_id: discovery did not find a registration endpoint and no client_id was configured")]
    None,
    #[error("dynamic client registration: registration failed with status {status}{}", said(error))]
    Refused { status: u16, error: Option<String> },
    #[error("dynamic client registration: {0}")]
    Unreachable(&'static str),
    #[error("dynamic client registration: the answer cannot be used: {0}")]
    Unusable(&'static str),
    #[error("client_id {id:?} was used with {former}, and is not shown to {issuer}")]
    OtherIssuer { id: String, former: String, issuer: String },
}

fn said(error: &Option<String>) -> String {
    error.as_ref().map(|error| format!(" ({error})")).unwrap_or_default()
}

#[derive(Deserialize)]
struct Registered {
    client_id: Option<String>,
    client_secret: Option<String>,
    #[serde(default)]
    client_secret_expires_at: i64,
    token_endpoint_auth_method: Option<String>,
    redirect_uris: Option<Vec<String>>,
    registration_client_uri: Option<String>,
    registration_access_token: Option<String>,
    scope: Option<String>,
    error: Option<String>,
}

/// The client of a person's own.
pub(crate) fn pre_registered(
    id: &str,
    secret: Option<Secret<String>>,
    method: Option<AuthMethod>,
    authority: &Authority,
) -> Identity {
    let method = method.unwrap_or_else(|| chosen(authority, secret.is_some()));
    Identity {
        client: Client { id: id.to_owned(), secret, method },
        kind: Kind::Registered,
        scope: None,
        secret_expires_at: None,
        registration_uri: None,
        registration_token: None,
    }
}

/// A client by its metadata document's URL.
pub(crate) fn by_document(url: &str) -> Identity {
    Identity {
        client: Client { id: url.to_owned(), secret: None, method: AuthMethod::None },
        kind: Kind::Document,
        scope: None,
        secret_expires_at: None,
        registration_uri: None,
        registration_token: None,
    }
}

/// The client that this record's grant registered, if it may be used again for these scopes.
pub(crate) fn registered_before(record: &Record, issuer: &str, scope: Option<&str>) -> Option<Identity> {
    let ours = record.text(key::CLIENT_KIND) == Some(Kind::Dynamic.as_str())
        && record.text(key::ISSUER) == Some(issuer)
        && record.text(key::CLIENT_ID).is_some();
    let expires = record.text(key::CLIENT_SECRET_EXPIRES_AT).and_then(|text| text.parse().ok());
    let alive = expires.is_none_or(|at: Timestamp| at > Timestamp::now());
    let registered = record.text(key::CLIENT_SCOPE);
    let covered = registered.is_none_or(|known| {
        scope
            .unwrap_or_default()
            .split(' ')
            .filter(|s| !s.is_empty())
            .all(|s| known.split(' ').any(|k| k == s))
    });
    (ours && alive && covered).then(|| Identity {
        client: record.client(),
        kind: Kind::Dynamic,
        scope: registered.map(str::to_owned),
        secret_expires_at: expires,
        registration_uri: record.text(key::REGISTRATION_CLIENT_URI).map(str::to_owned),
        registration_token: record
            .text(key::REGISTRATION_ACCESS_TOKEN)
            .map(|token| Secret::new(token.to_owned())),
    })
}

/// Is this person's client one that was shown to another issuer before?
pub(crate) fn check_issuer(record: &Record, id: &str, issuer: Option<&str>) -> Result<(), ClientError> {
    let (Some(former), Some(issuer)) = (record.text(key::ISSUER), issuer) else { return Ok(()) };
    let same_client = record.text(key::CLIENT_ID) == Some(id)
        && record.text(key::CLIENT_KIND) == Some(Kind::Registered.as_str());
    if same_client && former != issuer {
        return Err(ClientError::OtherIssuer {
            id: id.to_owned(),
            former: former.to_owned(),
            issuer: issuer.to_owned(),
        });
    }
    Ok(())
}

/// Registers (RFC 7591). Once more without scopes where the server knows none of them.
pub(crate) async fn register(
    http: &Http,
    guard: Guard,
    authority: &Authority,
    redirect_uri: &str,
    scope: Option<&str>,
    by_device: bool,
) -> Result<Identity, ClientError> {
    let Some(url) = &authority.registration_url else { return Err(ClientError::None) };
    let first = register_once(http, guard, authority, url, redirect_uri, scope, by_device).await;
    match first {
        Err(ClientError::Refused { status: 400, error })
            if scope.is_some()
                && matches!(error.as_deref(), Some("invalid_client_metadata" | "invalid_scope") | None) =>
        {
            register_once(http, guard, authority, url, redirect_uri, None, by_device).await
        }
        first => first,
    }
}

async fn register_once(
    http: &Http,
    guard: Guard,
    authority: &Authority,
    url: &Url,
    redirect_uri: &str,
    scope: Option<&str>,
    by_device: bool,
) -> Result<Identity, ClientError> {
    let mut grant_types = vec!["authorization_code", "refresh_token"];
    if by_device {
        grant_types.push(super::device::GRANT_TYPE);
    }
    let method = chosen(authority, false);
    let mut wish = json!({
        "client_name": "moat",
        "redirect_uris": [redirect_uri],
        "grant_types": grant_types,
        "response_types": ["code"],
        "token_endpoint_auth_method": method.as_str(),
        "application_type": "native",
    });
    if let Some(scope) = scope {
        wish["scope"] = scope.into();
    }
    let request = Request::builder()
        .method(Method::POST)
        .uri(url.as_str())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .body(Body::from(wish.to_string()))
        .map_err(|_| ClientError::Unusable("its URL"))?;
    let answer = http.send(request, guard, Limits::COURTESY).await;
    let answer = answer.map_err(|error| ClientError::Unreachable(error.class().words()))?;
    let given = json::object(&answer).and_then(|value| serde_json::from_value::<Registered>(value).ok());
    let status = answer.status.as_u16();
    if !matches!(status, 200 | 201) {
        let error = given.and_then(|given| given.error).map(|error| super::token::printable(&error, 64));
        return Err(ClientError::Refused { status, error });
    }
    identity(given.ok_or(ClientError::Unusable("it is not JSON"))?, method, redirect_uri, scope)
}

fn identity(
    given: Registered,
    asked: AuthMethod,
    redirect_uri: &str,
    scope: Option<&str>,
) -> Result<Identity, ClientError> {
    let id = given.client_id.filter(|id| !id.is_empty()).ok_or(ClientError::Unusable("no client_id"))?;
    if given.redirect_uris.is_some_and(|uris| !uris.iter().any(|uri| uri == redirect_uri)) {
        return Err(ClientError::Unusable("it has another redirect URI"));
    }
    let method = match given.token_endpoint_auth_method.as_deref() {
        None => asked,
        Some(text) => AuthMethod::parse(text)
            .ok_or(ClientError::Unusable("it wants a client authentication that moat does not know"))?,
    };
    // A secret may come along although nobody asks for it.
    let secret = given.client_secret.filter(|_| method != AuthMethod::None).map(Secret::new);
    if method != AuthMethod::None && secret.is_none() {
        return Err(ClientError::Unusable("it wants a secret and gives none"));
    }
    Ok(Identity {
        client: Client { id, secret, method },
        kind: Kind::Dynamic,
        scope: given.scope.or_else(|| scope.map(str::to_owned)),
        secret_expires_at: (given.client_secret_expires_at > 0)
            .then(|| Timestamp::from_second(given.client_secret_expires_at).ok())
            .flatten(),
        registration_uri: given.registration_client_uri,
        registration_token: given.registration_access_token.map(Secret::new),
    })
}

/// How to say who it is, by what the server lists.
fn chosen(authority: &Authority, has_secret: bool) -> AuthMethod {
    let lists = |method: AuthMethod| authority.auth_methods.iter().any(|listed| listed == method.as_str());
    match has_secret {
        // RFC 8414: nothing listed means Basic.
        true if authority.auth_methods.is_empty() || lists(AuthMethod::Basic) => AuthMethod::Basic,
        true if lists(AuthMethod::Post) => AuthMethod::Post,
        true => AuthMethod::Basic,
        false if authority.auth_methods.is_empty() || lists(AuthMethod::None) => AuthMethod::None,
        false if lists(AuthMethod::Basic) => AuthMethod::Basic,
        false if lists(AuthMethod::Post) => AuthMethod::Post,
        false => AuthMethod::None,
    }
}
