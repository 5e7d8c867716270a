//! The one place where a credential enters a request, and the only maker of [`Ready`] (R7).
//!
//! | the configured header holds | then |
//! |---|---|
//! | the exact stub, once | it is replaced |
//! | nothing | the credential is added |
//! | anything else, or twice | the request is refused; the value goes nowhere |
//!
//! Other headers that are made for credentials, or that hold a stub, are dropped and recorded.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use http::{HeaderMap, HeaderName, Request, Uri, header, uri};
use moat_shared::{grant::holds_a_stub, hint::Hint, secret::Secret};

use super::{
    decide::Decided,
    error::PipelineError,
    headers,
    parse::{Asked, RequestBody},
    place::Placed,
    session::Sessions,
};
use crate::{
    credentials::{self, InjectError, ReadError, Store, TokenFor},
    env::Environment,
    home::{Home, Profile},
    record::{AuditEvent, Recorder},
    server::Server,
    upstream::scan::Forms,
};

/// A request that may be sent as it is.
#[derive(Debug)]
pub(super) struct Ready {
    placed: Placed,
    request: Request<RequestBody>,
    asked: Asked,
    credential: Option<Credential>,
}

/// A credential that a request got.
#[derive(Debug, Clone)]
pub(super) struct Credential {
    pub(super) token: TokenFor,
    /// What to look for in the answer.
    pub(super) forms: Arc<Forms>,
    /// Tokens that this one took the place of.
    former: Arc<[Secret<String>]>,
}

impl Ready {
    pub(super) fn placed(&self) -> &Placed {
        &self.placed
    }
    pub(super) fn headers(&self) -> &HeaderMap {
        self.request.headers()
    }
    pub(super) fn into_parts(self) -> (Placed, Request<RequestBody>, Asked, Option<Credential>) {
        (self.placed, self.request, self.asked, self.credential)
    }
}

/// Access to the credentials of every profile.
pub(super) struct Credentials {
    home: Home,
    env: Environment,
    stores: Mutex<HashMap<Option<String>, Arc<Store>>>,
    /// The forms of a credential cost more to make than a request costs; a credential seldom changes.
    forms: Mutex<HashMap<OfProfile, Credential>>,
}

/// Former tokens of a grant that are looked for in answers, beside the last one.
const FORMER: usize = 3;

/// A profile's name and a grant's.
type OfProfile = (Option<String>, String);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("home", &self.home).finish_non_exhaustive()
    }
}

impl Credentials {
    pub(super) fn new(home: Home, env: Environment) -> Self {
        Self { home, env, stores: Mutex::default(), forms: Mutex::default() }
    }

    /// The credential for a server, if it wants one.
    fn for_server(
        &self,
        profile: Option<&Profile>,
        server: &Server,
    ) -> Result<Option<Credential>, PipelineError> {
        let refused = |error: InjectError| refusal(server, &error);
        let store = self.store(profile);
        let Some(token) = credentials::token_for(&store, server).map_err(refused)? else { return Ok(None) };
        // Bound twice: the store's word, and what is about to be contacted.
        if token.host() != server.upstream.host() || *token.server() != server.name {
            return Err(PipelineError::NoCredential {
                text: format!("MCP server '{}': wrong credential", server.name),
            });
        }
        Ok(Some(self.with_forms(profile, token)?))
    }

    pub(super) fn store(&self, profile: Option<&Profile>) -> Arc<Store> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        stores
            .entry(profile.map(|profile| profile.as_str().to_owned()))
            .or_insert_with(|| Arc::new(Store::open(&self.home, &self.env, profile)))
            .clone()
    }

    /// With what to look for in the answer, made anew when the credential has changed.
    fn with_forms(&self, profile: Option<&Profile>, token: TokenFor) -> Result<Credential, PipelineError> {
        let key = (profile.map(|profile| profile.as_str().to_owned()), token.grant().as_str().to_owned());
        let mut cache = self.forms.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cache.get(&key)
            && known.token.token().expose() == token.token().expose()
            && known.token.has_the_companions_of(&token)
        {
            return Ok(Credential { token, forms: known.forms.clone(), former: known.former.clone() });
        }
        // A renewed token does not make the ones before it harmless: a server may answer with them for a while.
        let mut former: Vec<Secret<String>> = Vec::new();
        if let Some(known) = cache.remove(&key).filter(|_| !token.companions().is_empty()) {
            former.push(known.token.token().clone());
            former.extend(known.former.iter().take(FORMER).cloned());
        }
        let secrets: Vec<&Secret<String>> =
            [token.token()].into_iter().chain(token.companions()).chain(&former).collect();
        let forms = Forms::of_all(&secrets, token.grant().stub().as_str()).map_err(|error| {
            PipelineError::NoCredential { text: format!("MCP server '{}': {error}", token.server()) }
        })?;
        let credential = Credential { token, forms: Arc::new(forms), former: former.into() };
        cache.insert(key, credential.clone());
        Ok(credential)
    }
}

/// Why there is no credential, with the command that helps.
fn refusal(server: &Server, error: &InjectError) -> PipelineError {
    let grant = server.inject.as_ref().map(|injection| &injection.grant);
    tracing::warn!(server = %server.name, %error, "no credential");
    let text = match (error, grant) {
        (InjectError::Read(reason), Some(grant)) => {
            let run = grant.command();
            format!(
                "Failed to load credential for '{}'. Grant: {grant}. Run: {run}{}",
                server.name,
                why(reason)
            )
        }
        (error, _) => {
            let hint = error.hint().map(|hint| format!("\n{hint}")).unwrap_or_default();
            format!("{error}{hint}")
        }
    };
    PipelineError::NoCredential { text }
}

/// More than "it is not there", but no path of this machine.
fn why(reason: &ReadError) -> &'static str {
    match reason {
        ReadError::NotConfigured { .. } => "",
        ReadError::Decrypt { .. } | ReadError::Key { .. } => {
            " (it cannot be decrypted: the encryption key has changed or cannot be had)"
        }
        ReadError::Unreadable { .. } => " (it cannot be read)",
        ReadError::Malformed { .. } | ReadError::Mismatch { .. } => " (its file is damaged)",
    }
}

/// Makes a request ready: its headers filtered, its session opened, its credential in place.
pub(super) fn inject(
    decided: Decided,
    credentials: &Credentials,
    sessions: &Sessions,
    recorder: &Recorder,
) -> Result<Ready, PipelineError> {
    let (placed, method, received, body, asked) = decided.into_inner().into_parts();
    let server = placed.server();
    let run = &placed.run().id;
    let mut headers = headers::to_upstream(&received);
    check_stub(server, &received)?;
    for header in drop_foreign(server, &mut headers) {
        recorder.audit(
            run,
            AuditEvent::HeaderDropped { server: server.name.clone(), header: header.to_string() },
        );
    }
    sessions.open(run, &server.name, &mut headers)?;
    let credential = credentials.for_server(placed.run().profile.as_ref(), server).inspect_err(|error| {
        if let Some(injection) = &server.inject {
            recorder.audit(
                run,
                AuditEvent::CredentialRefused {
                    grant: injection.grant.clone(),
                    host: server.upstream.host().to_owned(),
                    server: server.name.clone(),
                    reason: error.to_string(),
                },
            );
        }
    })?;
    if let Some(Credential { token, .. }) = &credential {
        // Replaces the stub, or adds.
        headers.insert(token.header(), token.value().clone());
        recorder.audit(
            run,
            AuditEvent::CredentialInjected {
                grant: token.grant().clone(),
                host: token.host().to_owned(),
                header: server.inject.as_ref().map_or("", |i| i.header.as_str()).to_owned(),
                server: server.name.clone(),
            },
        );
    }
    let uri = absolute(&placed)?;
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(Ready { placed, request, asked, credential })
}

/// The configured header holds the stub, once, or is absent, under whatever name a server may take for it.
fn check_stub(server: &Server, received: &HeaderMap) -> Result<(), PipelineError> {
    let Some(injection) = &server.inject else { return Ok(()) };
    let stub = injection.grant.stub();
    let foreign = || PipelineError::ForeignCredential {
        server: server.name.to_string(),
        header: injection.header.as_str().to_owned(),
    };
    let configured = injection.header.name();
    let meant = headers::plain(configured);
    let alias = received.keys().any(|name| name != configured && headers::plain(name) == meant);
    let mut values = received.get_all(configured).iter();
    match (values.next(), values.next()) {
        _ if alias => Err(foreign()),
        (None, _) => Ok(()),
        (Some(value), None) if stub.is(value.as_bytes()) => Ok(()),
        _ => Err(foreign()),
    }
}

/// Drops what is made for credentials but is not the configured header, and every other stub. Returns the names.
fn drop_foreign(server: &Server, headers: &mut HeaderMap) -> Vec<HeaderName> {
    let configured = server.inject.as_ref().map(|injection| injection.header.name());
    let made_for_credentials = [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE];
    let foreign: Vec<HeaderName> = headers
        .keys()
        .filter(|name| Some(*name) != configured)
        .filter(|name| {
            made_for_credentials.contains(name)
                || headers.get_all(*name).iter().any(|value| holds_a_stub(value.as_bytes()))
        })
        .cloned()
        .collect();
    for name in &foreign {
        headers.remove(name);
    }
    foreign
}

/// The upstream's URL for this request: the configured origin, always.
fn absolute(placed: &Placed) -> Result<Uri, PipelineError> {
    let upstream = &placed.server().upstream;
    Uri::builder()
        .scheme(if upstream.is_tls() { uri::Scheme::HTTPS } else { uri::Scheme::HTTP })
        .authority(upstream.authority())
        .path_and_query(placed.target().clone())
        .build()
        .map_err(|_| PipelineError::Unconfined("it makes no URL"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::testing;
    use test_case::test_case;

    fn server() -> Server {
        testing::run(&[("context7", "https://h/mcp", Some(("mcp-context7", "CONTEXT7_API_KEY")))]).servers[0]
            .clone()
    }

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        headers.iter().map(|(n, v)| (n.parse::<HeaderName>().unwrap(), v.parse().unwrap())).collect()
    }

    #[test_case(&[] => true; "absent")]
    #[test_case(&[("context7_api_key", "moat-stub-mcp-context7")] => true; "the stub")]
    #[test_case(&[("context7_api_key", "")] => false; "empty")]
    #[test_case(&[("context7_api_key", "real-key")] => false; "a real one")]
    #[test_case(&[("context7_api_key", "Bearer moat-stub-mcp-context7")] => false; "with a scheme")]
    #[test_case(&[("context7_api_key", "moat-stub-mcp-other")] => false; "another grant's")]
    #[test_case(&[("context7-api-key", "real-key")] => false; "a real one under a name that some take for it")]
    #[test_case(&[("context7_api-key", "moat-stub-mcp-context7")] => false; "the stub under such a name")]
    #[test_case(&[("context7_api_key", "moat-stub-mcp-context7"), ("context7_api_key", "moat-stub-mcp-context7")] => false; "twice")]
    fn r7_the_configured_header(headers: &[(&str, &str)]) -> bool {
        check_stub(&server(), &map(headers)).is_ok()
    }

    #[test_case("authorization", "Bearer x" => true)]
    #[test_case("proxy-authorization", "x" => true)]
    #[test_case("cookie", "a=b" => true)]
    #[test_case("x-other", "moat-stub-oauth:notion" => true; "a stub elsewhere")]
    #[test_case("x-other", "a moat-stub-mcp-context7 b" => true; "its own stub elsewhere")]
    #[test_case("x-other", "x" => false; "an ordinary header")]
    #[test_case("context7_api_key", "moat-stub-mcp-context7" => false; "the configured one")]
    fn r7_dropped(name: &str, value: &str) -> bool {
        let mut headers = map(&[(name, value)]);
        !drop_foreign(&server(), &mut headers).is_empty()
    }
}
