//! Finding out who gives tokens for a server: probe, resource metadata, authorization server, checks (D1 to D7).
//!
//! Nothing is guessed: an endpoint is used because a document said so that was checked against where it came from
//! (O1). All of it happens while a person grants.

use std::time::Duration;

use http::{HeaderValue, Method, Request, StatusCode, header};
use moat_shared::secret::Secret;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use url::Url;

use super::{
    challenge::Challenge,
    guard::{Forbidden, Guard},
    http::{Answer, Body, Http, Limits, NoAnswer},
    json,
    refresh::Class,
};

/// All of a discovery (O15).
const TIME: Duration = Duration::from_secs(20);
const REQUESTS: u32 = 12;
/// Redirects of one metadata request, within its origin (O3).
const HOPS: u32 = 2;
/// Authorization servers of one resource that are looked at.
const SERVERS: usize = 5;

/// An authorization server, with the endpoints that came with it.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    /// Its identifier; none where a person gave the endpoints without one.
    pub(crate) issuer: Option<String>,
    pub(crate) auth_url: Url,
    pub(crate) token_url: Url,
    pub(crate) registration_url: Option<Url>,
    pub(crate) revocation_url: Option<Url>,
    pub(crate) device_url: Option<Url>,
    /// It promised `iss` in its answers (RFC 9207).
    pub(crate) promises_iss: bool,
    pub(crate) auth_methods: Vec<String>,
    /// It takes client id metadata documents.
    pub(crate) takes_documents: bool,
    pub(crate) scopes: Vec<String>,
}

/// What a discovery found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// `None`: the caller has its own.
    pub(crate) authority: Option<Authority>,
    /// The resource metadata's own words.
    pub(crate) resource: Option<String>,
    /// Of the challenge, else of the resource metadata.
    pub(crate) scopes: Option<String>,
}

/// What to look for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish<'a> {
    pub(crate) server: &'a Url,
    /// The pin: `--issuer`.
    pub(crate) issuer: Option<&'a str>,
    /// Of the record that is there: preferred if it is still listed.
    pub(crate) former: Option<&'a str>,
    /// Look for the authorization server as well?
    pub(crate) authority: bool,
}

/// Why there is nothing to go on with. Names hosts and classes, never addresses or bodies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DiscoveryError {
    #[error("{host}: {}", class.words())]
    Unreachable { host: String, class: Class },
    #[error("{host} answered {status} to a request for metadata")]
    Status { host: String, status: u16 },
    #[error("'{what}' of {host} {why}")]
    Url { what: &'static str, host: String, why: Forbidden },
    #[error("the server does not ask for OAuth")]
    NotWanted {
        /// What it said to a request without a token.
        status: u16,
    },
    #[error("the resource metadata is for another resource ({said}), not for this server")]
    OtherResource { said: String },
    #[error("the resource metadata names no authorization server")]
    NoServers,
    #[error("no metadata of the authorization server {issuer} was found")]
    NoMetadata { issuer: String },
    #[error("the metadata of {wanted} says that it is of {said:?}")]
    OtherIssuer { wanted: String, said: String },
    #[error("the authorization server {issuer} does not support PKCE with S256")]
    NoPkce { issuer: String },
    #[error("the authorization server {issuer} does not give codes")]
    NoCodes { issuer: String },
    #[error("the metadata of {issuer} lacks '{what}'")]
    Lacks { issuer: String, what: &'static str },
    #[error("it took too long")]
    TooLong,
    #[error("it needs too many requests")]
    TooMany,
}

impl DiscoveryError {
    /// What a person can do about it.
    pub(crate) fn remedy(&self) -> String {
        match self {
            Self::OtherIssuer { said, .. } => {
                format!("If you trust that issuer, pin it:\n  --issuer {}", super::token::printable(said, 200))
            }
            Self::Unreachable { class, .. } => class.remedy().to_owned(),
            Self::Url { why: Forbidden::Address, .. } => Class::ForbiddenAddress.remedy().to_owned(),
            Self::Status { status: 500.., .. } | Self::TooLong => Class::ServerError.remedy().to_owned(),
            Self::NotWanted { status } => {
                let path = match status {
                    400..=499 => format!("It answered {status}: is the URL right, with its path?\n"),
                    _ => String::new(),
                };
                format!("{path}{OTHERWISE}")
            }
            Self::OtherResource { .. } => "Give the URL that the server itself goes by.".to_owned(),
            Self::NoMetadata { .. } | Self::NoServers => OTHERWISE.to_owned(),
            Self::Status { .. } | Self::Url { .. } | Self::TooMany => {
                format!("Ask whoever runs the server. {OTHERWISE}")
            }
            Self::NoPkce { .. } | Self::NoCodes { .. } | Self::Lacks { .. } => {
                "moat signs in with codes and PKCE alone: ask whoever runs the server. If it takes a static token: moat \
                 grant mcp"
                    .to_owned()
            }
        }
    }
}

/// Ways that need no discovery.
const OTHERWISE: &str = "If you know its endpoints: --auth-url, --token-url and --client-id; if it takes a static token: moat \
     grant mcp";

#[derive(Deserialize)]
struct RawResource {
    resource: Option<String>,
    #[serde(default)]
    authorization_servers: Vec<String>,
    scopes_supported: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawAuthority {
    issuer: Option<String>,
    authorization_endpoint: Option<String>,
    token_endpoint: Option<String>,
    registration_endpoint: Option<String>,
    revocation_endpoint: Option<String>,
    device_authorization_endpoint: Option<String>,
    #[serde(default)]
    authorization_response_iss_parameter_supported: bool,
    token_endpoint_auth_methods_supported: Option<Vec<String>>,
    #[serde(default)]
    client_id_metadata_document_supported: bool,
    scopes_supported: Option<Vec<String>>,
    code_challenge_methods_supported: Option<Vec<String>>,
    response_types_supported: Option<Vec<String>>,
    grant_types_supported: Option<Vec<String>>,
}

/// One discovery: counts its requests and its time.
#[derive(Debug)]
struct Discovery<'a> {
    http: &'a Http,
    guard: Guard,
    left: u32,
    until: Instant,
    /// What the server's own endpoint gets to see, and nobody else.
    bearer: Option<HeaderValue>,
}

/// What a server says to a token that it was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Says {
    Yes,
    /// 401.
    No,
    /// Neither: 403, a server error.
    Else(u16),
}

/// Looks for what a server wants.
pub(crate) async fn discover(http: &Http, guard: Guard, wish: Wish<'_>) -> Result<Found, DiscoveryError> {
    Discovery::new(http, guard).run(wish).await
}

/// Shows a token to the server that it was given for, and to no other.
pub(crate) async fn try_token(
    http: &Http,
    guard: Guard,
    server: &Url,
    token: &Secret<String>,
) -> Result<Says, DiscoveryError> {
    let mut discovery = Discovery::new(http, guard);
    let bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()));
    let mut bearer = bearer.map_err(|_| unreachable(server, Class::UnusableAnswer))?;
    bearer.set_sensitive(true);
    discovery.bearer = Some(bearer);
    Ok(match discovery.probe(server).await?.0 {
        StatusCode::UNAUTHORIZED => Says::No,
        status if status == StatusCode::FORBIDDEN || status.is_server_error() => Says::Else(status.as_u16()),
        _ => Says::Yes,
    })
}

impl<'a> Discovery<'a> {
    fn new(http: &'a Http, guard: Guard) -> Self {
        Self { http, guard, left: REQUESTS, until: Instant::now() + TIME, bearer: None }
    }

    async fn run(&mut self, wish: Wish<'_>) -> Result<Found, DiscoveryError> {
        let (status, challenge) = self.probe(wish.server).await?;
        let asked = challenge.is_some();
        let challenge = challenge.unwrap_or_default();
        let resource = self.resource(wish.server, challenge.resource_metadata.as_deref()).await?;
        let mut scopes = challenge.scope;
        let mut identifier = None;
        let servers = match &resource {
            None => Vec::new(),
            Some(raw) => {
                identifier = Some(check_resource(raw, wish.server)?);
                let supported = raw.scopes_supported.as_ref().map(|scopes| scopes.join(" "));
                scopes = scopes.or_else(|| supported.filter(|scopes| !scopes.is_empty()));
                raw.authorization_servers.iter().take(SERVERS).cloned().collect()
            }
        };
        let mut found = Found { authority: None, resource: identifier, scopes };
        if !wish.authority {
            return Ok(found);
        }
        let authority = match (wish.issuer, resource.is_some()) {
            (Some(pin), _) => self.pinned(pin, &servers).await?,
            (None, true) => {
                let former = wish.former.filter(|former| servers.iter().any(|server| server == former));
                let issuer = former.or_else(|| servers.first().map(String::as_str));
                self.authority_of(issuer.ok_or(DiscoveryError::NoServers)?).await?
            }
            // Servers of 2025-03-26: the origin itself, and only if it says so (D3b).
            (None, false) => {
                let origin = wish.server.origin().ascii_serialization();
                match self.authority_of(&origin).await {
                    Err(DiscoveryError::NoMetadata { .. }) if !asked => {
                        return Err(DiscoveryError::NotWanted { status: status.as_u16() });
                    }
                    authority => authority?,
                }
            }
        };
        found.authority = Some(authority);
        Ok(found)
    }

    /// D1: does the server ask for a token, and what does it say about it?
    async fn probe(&mut self, server: &Url) -> Result<(StatusCode, Option<Challenge>), DiscoveryError> {
        let client = json!({"name": "moat", "version": crate::build::VERSION});
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client});
        let initialize = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params});
        let answer = self.post(server, &initialize, &[("mcp-protocol-version", "2025-11-25")]).await?;
        if answer.status == StatusCode::UNAUTHORIZED {
            return Ok((answer.status, Some(Challenge::of(&answer.headers).unwrap_or_default())));
        }
        let session = answer.headers.get("mcp-session-id").and_then(|value| value.to_str().ok());
        let mut headers = vec![("mcp-method", "tools/list")];
        let mut list = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/list", "params": {}});
        if answer.status.is_success() {
            headers.push(("mcp-protocol-version", "2025-11-25"));
            headers.extend(session.map(|session| ("mcp-session-id", session)));
        } else {
            headers.push(("mcp-protocol-version", "2026-07-28"));
            list["params"]["_meta"] = json!({
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": client,
                "io.modelcontextprotocol/clientCapabilities": {},
            });
        }
        let answer = self.post(server, &list, &headers).await?;
        let asked = answer.status == StatusCode::UNAUTHORIZED;
        Ok((answer.status, asked.then(|| Challenge::of(&answer.headers).unwrap_or_default())))
    }

    async fn post(
        &mut self,
        server: &Url,
        message: &Value,
        headers: &[(&str, &str)],
    ) -> Result<Answer, DiscoveryError> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(server.as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(bearer) = &self.bearer {
            request = request.header(header::AUTHORIZATION, bearer);
        }
        let request = request.body(Body::from(message.to_string()));
        let request = request.map_err(|_| unreachable(server, Class::ForbiddenAddress))?;
        self.send(server, request, Limits::HEAD).await
    }

    async fn send(
        &mut self,
        url: &Url,
        request: Request<Body>,
        limits: Limits,
    ) -> Result<Answer, DiscoveryError> {
        self.left = self.left.checked_sub(1).ok_or(DiscoveryError::TooMany)?;
        let answer = timeout_at(self.until, self.http.send(request, self.guard, limits)).await;
        let answer = answer.map_err(|_| DiscoveryError::TooLong)?;
        answer.map_err(|error: NoAnswer| unreachable(url, error.class()))
    }

    /// D2.
    async fn resource(
        &mut self,
        server: &Url,
        given: Option<&str>,
    ) -> Result<Option<RawResource>, DiscoveryError> {
        const NAME: &str = "/.well-known/oauth-protected-resource";
        if let Some(given) = given {
            let url = self.checked("resource_metadata", given, server)?;
            // Only there: what else lies around is not what the server means.
            let document = self.document(&url).await?;
            let missing = || DiscoveryError::Status { host: host(&url), status: 404 };
            return document.and_then(|v| serde_json::from_value(v).ok()).ok_or_else(missing).map(Some);
        }
        let path = server.path().trim_end_matches('/');
        let mut places = vec![format!("{NAME}{path}")];
        if !path.is_empty() {
            places.push(NAME.to_owned());
        }
        for place in places {
            let document = self.document(&at(server, &place)).await?;
            if let Some(raw) = document.and_then(|value| serde_json::from_value(value).ok()) {
                return Ok(Some(raw));
            }
        }
        Ok(None)
    }

    /// D5 with `--issuer`: its own document, or that of a listed server on its origin which says so.
    async fn pinned(&mut self, pin: &str, servers: &[String]) -> Result<Authority, DiscoveryError> {
        match self.metadata(pin).await {
            Ok(raw) => return self.authority(raw, pin),
            Err(DiscoveryError::NoMetadata { .. }) => {}
            Err(error) => return Err(error),
        }
        let origin = |text: &str| Url::parse(text).ok().map(|url| url.origin());
        for server in servers.iter().filter(|server| origin(server) == origin(pin)) {
            if let Ok(raw) = self.metadata(server).await {
                return self.authority(raw, pin);
            }
        }
        Err(DiscoveryError::NoMetadata { issuer: pin.to_owned() })
    }

    async fn authority_of(&mut self, issuer: &str) -> Result<Authority, DiscoveryError> {
        let raw = self.metadata(issuer).await?;
        self.authority(raw, issuer)
    }

    /// D4.
    async fn metadata(&mut self, issuer: &str) -> Result<RawAuthority, DiscoveryError> {
        let nothing = || DiscoveryError::NoMetadata { issuer: super::token::printable(issuer, 200) };
        let url = Url::parse(issuer).map_err(|_| nothing())?;
        self.guard.check_url(&url).map_err(|why| DiscoveryError::Url {
            what: "issuer",
            host: host(&url),
            why,
        })?;
        let path = url.path().trim_end_matches('/');
        let places = if path.is_empty() {
            vec![
                "/.well-known/oauth-authorization-server".to_owned(),
                "/.well-known/openid-configuration".to_owned(),
            ]
        } else {
            vec![
                format!("/.well-known/oauth-authorization-server{path}"),
                format!("/.well-known/openid-configuration{path}"),
                format!("{path}/.well-known/openid-configuration"),
            ]
        };
        for place in places {
            let document = self.document(&at(&url, &place)).await?;
            if let Some(raw) = document.and_then(|value| serde_json::from_value(value).ok()) {
                return Ok(raw);
            }
        }
        Err(nothing())
    }

    /// D5 to D7.
    fn authority(&self, raw: RawAuthority, issuer: &str) -> Result<Authority, DiscoveryError> {
        let said = raw.issuer.unwrap_or_default();
        // As a string: nothing is normalised (RFC 8414 section 3.3).
        if said != issuer {
            let said = super::token::printable(&said, 200);
            return Err(DiscoveryError::OtherIssuer { wanted: issuer.to_owned(), said });
        }
        let issuer = said;
        let lists = |list: &Option<Vec<String>>, item: &str| {
            list.as_ref().is_some_and(|list| list.iter().any(|known| known == item))
        };
        if !lists(&raw.code_challenge_methods_supported, "S256") {
            return Err(DiscoveryError::NoPkce { issuer });
        }
        if raw.response_types_supported.is_some() && !lists(&raw.response_types_supported, "code") {
            return Err(DiscoveryError::NoCodes { issuer });
        }
        let base = Url::parse(&issuer).map_err(|_| DiscoveryError::NoMetadata { issuer: issuer.clone() })?;
        let required = |text: Option<String>, what| {
            let text = text.ok_or_else(|| DiscoveryError::Lacks { issuer: issuer.clone(), what })?;
            self.checked(what, &text, &base)
        };
        let optional =
            |text: Option<String>, what| text.map(|text| self.checked(what, &text, &base)).transpose();
        const DEVICE: &str = "urn:ietf:params:oauth:grant-type:device_code";
        let by_device = raw.grant_types_supported.is_none() || lists(&raw.grant_types_supported, DEVICE);
        Ok(Authority {
            auth_url: required(raw.authorization_endpoint, "authorization_endpoint")?,
            token_url: required(raw.token_endpoint, "token_endpoint")?,
            registration_url: optional(raw.registration_endpoint, "registration_endpoint")?,
            revocation_url: optional(raw.revocation_endpoint, "revocation_endpoint")?,
            device_url: optional(
                raw.device_authorization_endpoint.filter(|_| by_device),
                "device_authorization_endpoint",
            )?,
            promises_iss: raw.authorization_response_iss_parameter_supported,
            auth_methods: raw.token_endpoint_auth_methods_supported.unwrap_or_default(),
            takes_documents: raw.client_id_metadata_document_supported,
            scopes: raw.scopes_supported.unwrap_or_default(),
            issuer: Some(issuer),
        })
    }

    fn checked(&self, what: &'static str, text: &str, of: &Url) -> Result<Url, DiscoveryError> {
        let failed = |why| DiscoveryError::Url { what, host: host(of), why };
        let url = Url::parse(text).map_err(|_| failed(Forbidden::Form))?;
        self.guard.check_url(&url).map_err(failed)?;
        Ok(url)
    }

    /// A JSON object at a place. `None`: there is none; an error: there may be one, and a later place must not win.
    async fn document(&mut self, url: &Url) -> Result<Option<Value>, DiscoveryError> {
        let mut url = url.clone();
        for _ in 0..=HOPS {
            let request = Request::builder()
                .uri(url.as_str())
                .header(header::ACCEPT, "application/json")
                .header("mcp-protocol-version", "2025-11-25")
                .body(Body::default())
                .map_err(|_| unreachable(&url, Class::ForbiddenAddress))?;
            let answer = self.send(&url, request, Limits::METADATA).await?;
            if answer.status.is_redirection() {
                let location = answer.headers.get(header::LOCATION).map(HeaderValue::to_str);
                let next = location.and_then(|text| url.join(text.ok()?).ok());
                match next.filter(|next| next.origin() == url.origin()) {
                    Some(next) => url = next,
                    None => return Err(unreachable(&url, Class::Redirect)),
                }
                continue;
            }
            return match answer.status.as_u16() {
                200 => Ok(json::object(&answer)),
                status @ (408 | 429 | 500..) => Err(DiscoveryError::Status { host: host(&url), status }),
                _ => Ok(None),
            };
        }
        Err(unreachable(&url, Class::Redirect))
    }
}

/// The resource, if it is this server's: same origin, and its path or one above it (RFC 9728 section 3.3, as the field
/// has it).
fn check_resource(raw: &RawResource, server: &Url) -> Result<String, DiscoveryError> {
    let said = raw.resource.clone().unwrap_or_default();
    let other = || DiscoveryError::OtherResource { said: super::token::printable(&said, 200) };
    let url = Url::parse(&said).map_err(|_| other())?;
    let (path, of_server) = (url.path().trim_end_matches('/'), server.path().trim_end_matches('/'));
    let above = of_server == path || of_server.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    if url.origin() == server.origin() && above { Ok(said) } else { Err(other()) }
}

fn at(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(path);
    url.set_query(None);
    url.set_fragment(None);
    url
}

fn host(url: &Url) -> String {
    url.host_str().unwrap_or("an unknown host").to_owned()
}

fn unreachable(url: &Url, class: Class) -> DiscoveryError {
    DiscoveryError::Unreachable { host: host(url), class }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("https://h/mcp", "https://h/mcp" => true; "the same")]
    #[test_case("https://h/", "https://h/mcp" => true; "its origin")]
    #[test_case("https://h", "https://h/a/b" => true; "its origin without a slash")]
    #[test_case("https://h/mcp", "https://h/mcp/" => true; "a trailing slash")]
    #[test_case("https://h/mc", "https://h/mcp" => false; "half a segment")]
    #[test_case("https://h/mcp/x", "https://h/mcp" => false; "below it")]
    #[test_case("https://g/mcp", "https://h/mcp" => false; "another host")]
    #[test_case("http://h/mcp", "https://h/mcp" => false; "another scheme")]
    #[test_case("https://h:444/mcp", "https://h/mcp" => false; "another port")]
    #[test_case("nonsense", "https://h/mcp" => false; "no url")]
    fn f3_resources(said: &str, server: &str) -> bool {
        let raw = RawResource {
            resource: Some(said.to_owned()),
            authorization_servers: Vec::new(),
            scopes_supported: None,
        };
        let checked = check_resource(&raw, &Url::parse(server).unwrap());
        checked.is_ok_and(|resource| resource == said)
    }
}
