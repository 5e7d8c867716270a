//! A person grants: from what is known of the server to a record in the store.
//!
//! ```text
//! endpoints (given or discovered) ─► listener ─► client ─► browser, pasted address, device ─► exchange ─► record
//!                                                                                            └── under the lock ──┘
//! ```
//!
//! Nothing is stored before the new tokens are whole, and what was there stays until the new record has its place.

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use moat_shared::{grant::GrantName, secret::Secret};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use url::Url;

use super::{
    authorize::{Pending, Verdict},
    client::{self, ClientError, Identity},
    device::{self, DeviceError},
    discovery::{self, Authority, DiscoveryError, Wish},
    guard::{Forbidden, Guard},
    http::{Http, Limits, NoAnswer},
    listener::{Came, Listener, Page},
    port::Disk,
    record::{Record, key},
    refresh::{Change, Class, Do, Got, Keep, Port, drive},
    revoke,
    token::{self, AuthMethod, Client, Refused, Tokens},
};
use crate::credentials::{Credential, Store};

/// After this long the person is told what to look for.
const IMPATIENCE: Duration = Duration::from_secs(20);
/// What an OpenID server calls the wish for a refresh token.
const OFFLINE: &str = "offline_access";

/// What a person and their files say.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    pub(crate) grant: GrantName,
    /// The MCP server.
    pub(crate) server: Option<Url>,
    /// Authorization and token endpoint.
    pub(crate) endpoints: Option<(Url, Url)>,
    pub(crate) client_id: Option<String>,
    pub(crate) client_secret: Option<Secret<String>>,
    pub(crate) auth_method: Option<AuthMethod>,
    pub(crate) client_metadata_url: Option<String>,
    pub(crate) scopes: Option<String>,
    pub(crate) issuer: Option<String>,
    /// `Some(None)`: none is to be sent.
    pub(crate) resource: Resource,
    pub(crate) redirect_uri: Option<Url>,
    pub(crate) redirect_port: Option<u16>,
    pub(crate) allow_private: bool,
    pub(crate) new_client: bool,
    pub(crate) device: bool,
    pub(crate) timeout: Duration,
    /// The grant is for this server's host alone.
    pub(crate) only_this_host: bool,
}

/// What is said about the resource (RFC 8707).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resource {
    AsFound,
    Given(String),
    None,
}

/// Whoever sits there.
pub(crate) trait Host: Send {
    /// Tells something.
    fn say(&mut self, text: &str);
    /// Shows the address to go to, and opens it where there is a browser. `true`: it was opened.
    fn visit(&mut self, url: &Url, port: u16) -> bool;
    /// The next line that the person pastes. Never comes back when there is none.
    fn pasted(&mut self) -> impl Future<Output = String> + Send;
    /// Is there no browser, so that a device flow is better where the server has it?
    fn prefers_device(&self) -> bool;
}

/// What was stored.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) path: PathBuf,
    pub(crate) record: Record,
    pub(crate) new_key_file: Option<PathBuf>,
}

/// Why nothing was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GrantError {
    #[error("{0}")]
    Discovery(DiscoveryError),
    #[error("{what} {why}")]
    Url { what: &'static str, why: Forbidden },
    #[error(transparent)]
    Client(ClientError),
    #[error("the port for the sign-in cannot be opened: {0}")]
    Listener(String),
    #[error("the system gives no random bytes")]
    Random,
    #[error("timed out waiting for authorization callback")]
    TimedOut { reused_client: bool },
    #[error("authorization failed: the answer came from another issuer")]
    OtherIssuer { said: Option<String>, explicit: bool },
    #[error("authorization failed: oauth error: {error}{}", description.as_ref().map(|d| format!(": {d}")).unwrap_or_default())]
    Refused { error: String, description: Option<String> },
    #[error("exchanging code: {0}")]
    Exchange(String),
    #[error("the server has no device flow")]
    NoDevice,
    #[error("device sign-in: {0}")]
    Device(String),
    #[error("the credential cannot be kept: {0}")]
    Storage(String),
}

impl GrantError {
    /// What a person can do about it.
    pub(crate) fn remedy(&self, grant: &GrantName, port: Option<u16>) -> Option<String> {
        let command = grant.command();
        match self {
            Self::Discovery(error) => error.remedy(),
            Self::Client(ClientError::None | ClientError::Refused { .. }) => {
                let port = port.unwrap_or(8976);
                Some(format!(
                    "Register an application with the server, with the redirect URI http://127.0.0.1:{port}/callback, \
                     then:\n  {command} --client-id <id> --redirect-port {port}\nand --client-secret - if it has a \
                     secret."
                ))
            }
            Self::Client(ClientError::OtherIssuer { .. }) => Some(format!(
                "If that is right: moat revoke {grant}, then grant it again with the client of the new issuer."
            )),
            Self::TimedOut { reused_client } => {
                let again = if *reused_client {
                    format!(
                        "\nThe server may have forgotten the client that moat registered there:\n  {command} --new-client"
                    )
                } else {
                    String::new()
                };
                Some(format!(
                    "If the browser showed an error instead of a sign-in page: the redirect URI may not be registered \
                     (--redirect-port), or the server does not take 'resource' (--no-resource).{again}"
                ))
            }
            Self::OtherIssuer { said: Some(said), explicit: true } => Some(format!(
                "If that is the right issuer, add to ~/.moat/oauth/{}.yaml:\n  issuer: {said}",
                name_of(grant)
            )),
            Self::Url { why: Forbidden::Address, .. } => {
                Some(format!("If it is in your own network:\n  {command} --allow-private-network"))
            }
            Self::NoDevice => Some(format!("Without it:\n  {command} --no-browser")),
            Self::Refused { error, .. } if error == "invalid_target" => {
                Some(format!("The server does not take this resource:\n  {command} --no-resource"))
            }
            Self::Exchange(_) | Self::Device(_) => {
                Some(format!("Nothing was stored. To try again:\n  {command}"))
            }
            _ => None,
        }
    }
}

fn name_of(grant: &GrantName) -> &str {
    grant.as_str().strip_prefix("oauth:").unwrap_or(grant.as_str())
}

/// All that one authorization has, whichever way the person takes.
struct Plan<'a> {
    http: &'a Http,
    guard: Guard,
    inputs: &'a Inputs,
    authority: Authority,
    resource: Option<String>,
    scope: Option<String>,
    prompt_consent: bool,
    former: Option<Record>,
}

/// Grants. The port that was listened at is left in `port`, for the remedy.
pub(crate) async fn grant(
    http: &Http,
    store: &Store,
    inputs: &Inputs,
    host: &mut impl Host,
    port: &mut Option<u16>,
) -> Result<Granted, GrantError> {
    let former = store.read(&inputs.grant).ok().map(Record::of);
    let plan = plan(http, inputs, former, host).await?;
    let listener = plan.listener().await?;
    *port = Some(listener.port());
    let device = inputs.device || (host.prefers_device() && plan.authority.device_url.is_some());
    if inputs.device && plan.authority.device_url.is_none() {
        return Err(GrantError::NoDevice);
    }
    let (identity, reused) = plan.identity(&listener, device, host).await?;
    let redirect_uri = listener.redirect_uri().to_string();
    let proof = if device {
        drop(listener);
        Proof::Tokens(plan.by_device(&identity, host).await?)
    } else {
        plan.by_code(&identity, listener, host, reused).await?
    };
    plan.keep(store, identity, proof, &redirect_uri).await
}

/// What is exchanged for tokens, or the tokens.
enum Proof {
    Tokens((Tokens, Timestamp)),
    Code {
        code: Secret<String>,
        verifier: Secret<String>,
        show: watch::Sender<Option<Page>>,
        pages: JoinSet<()>,
    },
}

async fn plan<'a>(
    http: &'a Http,
    inputs: &'a Inputs,
    former: Option<Record>,
    host: &mut impl Host,
) -> Result<Plan<'a>, GrantError> {
    let first = inputs.server.as_ref().or_else(|| inputs.endpoints.as_ref().map(|(_, token)| token));
    let guard = Guard::of(first, inputs.allow_private);
    let former_issuer = former.as_ref().and_then(|record| record.text(key::ISSUER)).map(str::to_owned);
    let wish = |server| Wish {
        server,
        issuer: inputs.issuer.as_deref(),
        former: former_issuer.as_deref(),
        authority: inputs.endpoints.is_none(),
    };
    let found = match &inputs.server {
        None => None,
        Some(server) if inputs.endpoints.is_none() => {
            host.say(&format!("Attempting OAuth discovery for {}...", shown(server)));
            let found = discovery::discover(http, guard, wish(server)).await;
            let found = found.map_err(GrantError::Discovery)?;
            host.say("Discovered OAuth endpoints.");
            Some(found)
        }
        // The endpoints are known: what the server says about itself is welcome, and that is all.
        Some(server) => discovery::discover(http, guard, wish(server)).await.ok(),
    };
    let (found_authority, found_resource, found_scopes) = match found {
        Some(found) => (found.authority, found.resource, found.scopes),
        None => (None, None, None),
    };
    let authority = match (&inputs.endpoints, found_authority) {
        (Some((auth_url, token_url)), _) => explicit(guard, auth_url, token_url, inputs)?,
        (None, Some(authority)) => authority,
        (None, None) => return Err(GrantError::Discovery(DiscoveryError::NotWanted)),
    };
    let resource = match &inputs.resource {
        Resource::None => None,
        Resource::Given(resource) => Some(resource.clone()),
        Resource::AsFound => found_resource.or_else(|| inputs.server.as_ref().map(as_resource)),
    };
    // A new grant at the same issuer loses nothing that was asked for before.
    let before = former
        .as_ref()
        .filter(|record| record.text(key::ISSUER) == authority.issuer.as_deref())
        .and_then(|record| record.text(key::REQUESTED_SCOPE));
    let mut scope = inputs.scopes.clone().or_else(|| match (before, found_scopes) {
        (Some(before), Some(found)) => Some(union(before, &found)),
        (Some(one), None) => Some(one.to_owned()),
        (None, found) => found,
    });
    let mut prompt_consent = false;
    if let Some(scope) = scope.as_mut().filter(|scope| !scope.is_empty())
        && authority.scopes.iter().any(|known| known == OFFLINE)
    {
        *scope = union(scope, OFFLINE);
        prompt_consent = true;
    }
    Ok(Plan { http, guard, inputs, authority, resource, scope, prompt_consent, former })
}

fn explicit(guard: Guard, auth_url: &Url, token_url: &Url, inputs: &Inputs) -> Result<Authority, GrantError> {
    let check = |what, url: &Url| {
        guard.check_url(url).map_err(|why| GrantError::Url { what, why }).map(|()| url.clone())
    };
    Ok(Authority {
        issuer: inputs.issuer.clone(),
        auth_url: check("auth_url", auth_url)?,
        token_url: check("token_url", token_url)?,
        registration_url: None,
        revocation_url: None,
        device_url: None,
        promises_iss: false,
        auth_methods: Vec::new(),
        takes_documents: false,
        scopes: Vec::new(),
    })
}

/// The server's URL as a resource: no query, no fragment, no bare trailing slash.
fn as_resource(server: &Url) -> String {
    let mut url = server.clone();
    url.set_query(None);
    url.set_fragment(None);
    let text = url.to_string();
    if url.path() == "/" { text.trim_end_matches('/').to_owned() } else { text }
}

/// Without its query, which may hold a key.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}

/// Scopes of either, in their order, none twice.
pub(crate) fn union(one: &str, other: &str) -> String {
    let mut all: Vec<&str> = Vec::new();
    for scope in one.split(' ').chain(other.split(' ')).filter(|scope| !scope.is_empty()) {
        if !all.contains(&scope) {
            all.push(scope);
        }
    }
    all.join(" ")
}

impl Plan<'_> {
    /// At the port that is asked for, that the former client is registered with, or any.
    async fn listener(&self) -> Result<Listener, GrantError> {
        let given = self.inputs.redirect_uri.as_ref();
        let wanted = self.inputs.redirect_port.or_else(|| given.and_then(Url::port));
        let failed = |error: std::io::Error| GrantError::Listener(error.to_string());
        if wanted.is_some() {
            return Listener::bind(wanted, given).await.map_err(failed);
        }
        let former = self.former.as_ref().and_then(|record| record.text(key::REDIRECT_URI));
        let former = former.and_then(|uri| Url::parse(uri).ok()).and_then(|uri| uri.port());
        if let Some(port) = former
            && let Ok(listener) = Listener::bind(Some(port), given).await
        {
            return Ok(listener);
        }
        Listener::bind(None, given).await.map_err(failed)
    }

    /// Who moat is to this server, and whether it was so before.
    async fn identity(
        &self,
        listener: &Listener,
        device: bool,
        host: &mut impl Host,
    ) -> Result<(Identity, bool), GrantError> {
        let inputs = self.inputs;
        if let Some(id) = &inputs.client_id {
            if let Some(former) = &self.former {
                client::check_issuer(former, id, self.authority.issuer.as_deref())
                    .map_err(GrantError::Client)?;
            }
            let secret = inputs.client_secret.clone();
            return Ok((client::pre_registered(id, secret, inputs.auth_method, &self.authority), false));
        }
        if let Some(url) = inputs.client_metadata_url.as_ref().filter(|_| self.authority.takes_documents) {
            return Ok((client::by_document(url), false));
        }
        let redirect_uri = listener.redirect_uri().as_str();
        let scope = self.scope.as_deref();
        if let (false, Some(former), Some(issuer)) = (inputs.new_client, &self.former, &self.authority.issuer)
            && former.text(key::REDIRECT_URI) == Some(redirect_uri)
            && let Some(identity) = client::registered_before(former, issuer, scope)
        {
            return Ok((identity, true));
        }
        if self.authority.registration_url.is_some() {
            host.say("Registering OAuth client...");
        }
        let registered =
            client::register(self.http, self.guard, &self.authority, redirect_uri, scope, device).await;
        registered.map(|identity| (identity, false)).map_err(GrantError::Client)
    }

    async fn by_device(
        &self,
        identity: &Identity,
        host: &mut impl Host,
    ) -> Result<(Tokens, Timestamp), GrantError> {
        let endpoint = self.authority.device_url.as_ref().ok_or(GrantError::NoDevice)?;
        let (scope, resource) = (self.scope.as_deref(), self.resource.as_deref());
        let begun = device::begin(self.http, self.guard, endpoint, &identity.client, scope, resource).await;
        let device = begun.map_err(device_failed)?;
        host.say(&format!(
            "Open this page on any device:\n\n  {}\n\nand enter the code: {}\n",
            device.page, device.user_code
        ));
        let url = &self.authority.token_url;
        device.tokens(self.http, self.guard, url, &identity.client, resource).await.map_err(device_failed)
    }

    async fn by_code(
        &self,
        identity: &Identity,
        listener: Listener,
        host: &mut impl Host,
        reused_client: bool,
    ) -> Result<Proof, GrantError> {
        let redirect_uri = listener.redirect_uri().to_string();
        let pending = Pending::new(&self.authority, redirect_uri).map_err(|_| GrantError::Random)?;
        let pending = Arc::new(pending);
        let url = pending.url(
            &self.authority.auth_url,
            &identity.client.id,
            self.scope.as_deref(),
            self.resource.as_deref(),
            self.prompt_consent,
        );
        let port = listener.port();
        let (came, mut answers) = mpsc::channel(4);
        let (show, shown) = watch::channel(None);
        let mut pages = JoinSet::new();
        pages.spawn(listener.run(pending.clone(), came, shown));
        host.visit(&url, port);
        let until = Instant::now() + self.inputs.timeout;
        let impatience = sleep(IMPATIENCE);
        let mut impatience = std::pin::pin!(impatience);
        let mut told = false;
        let verdict = loop {
            tokio::select! {
                Some(came) = answers.recv() => match came {
                    Came::Answer(verdict) => break verdict,
                    Came::Stray => host.say(
                        "A page that does not belong to this sign-in called back and was turned away."),
                },
                line = host.pasted() => match query_of(&line) {
                    None => host.say("That is not the whole address: paste all of it, from http:// on."),
                    Some(query) => match pending.judge(&query) {
                        Verdict::Stray => host.say("That address does not belong to this sign-in."),
                        verdict => break verdict,
                    },
                },
                () = &mut impatience, if !told => {
                    told = true;
                    host.say("Still waiting. If the browser shows an error instead of a sign-in page, see: moat grant \
                        oauth --help");
                }
                () = sleep_until(until) => return Err(GrantError::TimedOut { reused_client }),
            }
        };
        let failed = |why: &str| {
            show.send_replace(Some(Page::Failed(why.to_owned())));
        };
        match verdict {
            Verdict::Code(code) => {
                let verifier = pending.verifier().clone();
                Ok(Proof::Code { code, verifier, show, pages })
            }
            Verdict::Refused { error, description } => {
                failed(&format!("{error} {}", description.as_deref().unwrap_or_default()));
                while pages.join_next().await.is_some() {}
                Err(GrantError::Refused { error, description })
            }
            Verdict::OtherIssuer { said } => {
                failed("The answer came from another issuer.");
                while pages.join_next().await.is_some() {}
                Err(GrantError::OtherIssuer { said, explicit: self.authority.issuer.is_none() })
            }
            Verdict::Stray => Err(GrantError::TimedOut { reused_client }),
        }
    }

    /// The exchange and the new record, under the grant's lock.
    async fn keep(
        self,
        store: &Store,
        identity: Identity,
        proof: Proof,
        redirect_uri: &str,
    ) -> Result<Granted, GrantError> {
        // From here on Ctrl-C waits: a code that was sent is a token somewhere.
        let _deaf = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).ok();
        let grant = self.inputs.grant.clone();
        let mut port = Granting {
            disk: Disk::new(store, &grant),
            plan: &self,
            identity: &identity,
            redirect_uri,
            proof: Some(proof),
            page: None,
            made: None,
            error: None,
        };
        let kept = drive(Keep::default(), &mut port).await;
        let Granting { disk, page, made, error, .. } = port;
        let result = match (kept, made, error) {
            (Ok(()), Some(record), None) => {
                Ok(Granted { path: store.path(&grant), record, new_key_file: disk.new_key_file.clone() })
            }
            (_, _, Some(error)) => Err(error),
            (kept, ..) => Err(GrantError::Storage(
                disk.trouble
                    .clone()
                    .unwrap_or_else(|| kept.err().unwrap_or(Class::Storage).words().to_owned()),
            )),
        };
        if let Some((show, mut pages)) = page {
            show.send_replace(Some(match &result {
                Ok(_) => Page::Done,
                Err(error) => Page::Failed(error.to_string()),
            }));
            while pages.join_next().await.is_some() {}
        }
        // The tokens of another issuer are worth nothing any more, and end where they came from.
        if let (Ok(granted), Some(former)) = (&result, &self.former)
            && former.text(key::ISSUER).is_some()
            && former.text(key::ISSUER) != granted.record.text(key::ISSUER)
        {
            let told = revoke::tell(self.http, former).await;
            tracing::debug!(?told, "the former issuer was told");
        }
        result
    }

    async fn exchange(
        &self,
        client: &Client,
        redirect_uri: &str,
        code: &Secret<String>,
        verifier: &Secret<String>,
    ) -> Result<(Tokens, Timestamp), GrantError> {
        let mut fields = vec![
            ("grant_type", "authorization_code"),
            ("code", code.expose().as_str()),
            ("redirect_uri", redirect_uri),
            ("code_verifier", verifier.expose().as_str()),
        ];
        fields.extend(self.resource.as_deref().map(|resource| ("resource", resource)));
        fields.extend(self.scope.as_deref().map(|scope| ("scope", scope)));
        let failed = |text: &str| GrantError::Exchange(format!("token endpoint: {text}"));
        let request = token::request(&self.authority.token_url, client, &fields)
            .map_err(|_| failed("the request cannot be made"))?;
        let sent = Timestamp::now();
        let answer = self.http.send(request, self.guard, Limits::TOKENS).await;
        let answer = answer.map_err(|error: NoAnswer| failed(error.class().words()))?;
        let tokens = token::judge(&answer).map_err(|refused| GrantError::Exchange(refusal(&refused)))?;
        Ok((tokens, sent))
    }

    fn record(
        &self,
        identity: &Identity,
        redirect_uri: &str,
        (tokens, sent): &(Tokens, Timestamp),
        former: Option<&Record>,
    ) -> Record {
        let inputs = self.inputs;
        let mut hosts: std::collections::BTreeSet<String> = match former {
            Some(former) if !inputs.only_this_host => former.credential().hosts.clone(),
            _ => [].into(),
        };
        let server =
            inputs.server.as_ref().and_then(|url| crate::server::Upstream::try_from(url.to_string()).ok());
        hosts.extend(server.map(|upstream| upstream.host().to_owned()));
        let credential =
            Credential::new(inputs.grant.clone(), tokens.access.clone(), hosts, Timestamp::now());
        let mut record = Record::of(credential);
        // What generation it is says `renewed`, from the one before.
        let before = former.map_or(0, Record::generation);
        record.set(key::GENERATION, Some(&before.to_string()));
        let text = |text: &Option<Url>| text.as_ref().map(Url::to_string);
        let authority = &self.authority;
        let secret = identity.client.secret.as_ref().map(|secret| secret.expose().as_str());
        let registration = identity.registration_token.as_ref().map(|token| token.expose().as_str());
        let expires = identity.secret_expires_at.map(|at| at.to_string());
        for (name, value) in [
            (key::TOKEN_SOURCE, Some("oauth")),
            (key::ISSUER, authority.issuer.as_deref()),
            (key::AUTH_URL, Some(authority.auth_url.as_str())),
            (key::TOKEN_URL, Some(authority.token_url.as_str())),
            (key::REVOCATION_URL, text(&authority.revocation_url).as_deref()),
            (key::CLIENT_ID, Some(identity.client.id.as_str())),
            (key::CLIENT_SECRET, secret),
            (key::AUTH_METHOD, Some(identity.client.method.as_str())),
            (key::CLIENT_KIND, Some(identity.kind.as_str())),
            (key::CLIENT_SCOPE, identity.scope.as_deref()),
            (key::CLIENT_SECRET_EXPIRES_AT, expires.as_deref()),
            (key::REGISTRATION_CLIENT_URI, identity.registration_uri.as_deref()),
            (key::REGISTRATION_ACCESS_TOKEN, registration),
            (key::REDIRECT_URI, Some(redirect_uri)),
            (key::RESOURCE, self.resource.as_deref()),
            (key::REQUESTED_SCOPE, self.scope.as_deref().filter(|scope| !scope.is_empty())),
            (key::SERVER_URL, inputs.server.as_ref().map(shown).as_deref()),
            (key::ALLOW_PRIVATE, self.guard.allows_private().then_some("true")),
        ] {
            record.set(name, value);
        }
        record.renewed(tokens, *sent)
    }
}

/// The port of a new grant: the exchange happens between the look and the write.
struct Granting<'a, 'p> {
    disk: Disk<'a>,
    plan: &'a Plan<'p>,
    identity: &'a Identity,
    redirect_uri: &'a str,
    proof: Option<Proof>,
    page: Option<(watch::Sender<Option<Page>>, JoinSet<()>)>,
    made: Option<Record>,
    error: Option<GrantError>,
}

impl Granting<'_, '_> {
    async fn make(&mut self) -> Option<Record> {
        let tokens = match self.proof.take()? {
            Proof::Tokens(tokens) => tokens,
            Proof::Code { code, verifier, show, pages } => {
                self.page = Some((show, pages));
                let client = &self.identity.client;
                match self.plan.exchange(client, self.redirect_uri, &code, &verifier).await {
                    Ok(tokens) => tokens,
                    Err(error) => {
                        self.error = Some(error);
                        return None;
                    }
                }
            }
        };
        Some(self.plan.record(self.identity, self.redirect_uri, &tokens, self.disk.record.as_ref()))
    }
}

impl Port for Granting<'_, '_> {
    async fn perform(&mut self, what: Do) -> Got {
        if what != Do::PrepareRecord(Change::Granted) {
            return self.disk.perform(what).await;
        }
        let Some(record) = self.make().await else { return Got::Failed };
        let got = self.disk.prepare(&record);
        self.made = Some(record);
        got
    }
}

/// The query of a pasted address, or the query itself. A bare code says not which sign-in it belongs to.
fn query_of(line: &str) -> Option<String> {
    let line = line.trim();
    let query = match Url::parse(line) {
        Ok(url) => url.query()?.to_owned(),
        Err(_) => line.trim_start_matches('?').to_owned(),
    };
    query.contains("state=").then_some(query)
}

fn refusal(refused: &Refused) -> String {
    let said = match (&refused.error, &refused.description) {
        (Some(error), Some(description)) => format!(" ({error}: {description})"),
        (Some(error), None) => format!(" ({error})"),
        (None, _) if refused.class == Class::UnusableAnswer => " without a usable token".to_owned(),
        (None, _) => String::new(),
    };
    format!("token endpoint returned {}{said}", refused.status)
}

fn device_failed(error: DeviceError) -> GrantError {
    GrantError::Device(match error {
        DeviceError::Unreachable(class) => class.words().to_owned(),
        DeviceError::Refused(refused) => refusal(&refused),
        DeviceError::Unusable => "the server's answer cannot be used".to_owned(),
        DeviceError::Expired => "the code was not entered in time".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("https://h/" => "https://h"; "a bare slash")]
    #[test_case("https://h/mcp?key=s3cr3t" => "https://h/mcp"; "a query")]
    #[test_case("https://h/mcp/" => "https://h/mcp/"; "a path keeps its slash")]
    fn o5_resources(server: &str) -> String {
        as_resource(&Url::parse(server).unwrap())
    }

    #[test_case("http://127.0.0.1:1/callback?code=c&state=s" => Some("code=c&state=s".to_owned()); "the whole")]
    #[test_case(" ?code=c&state=s\n" => Some("code=c&state=s".to_owned()); "its query")]
    #[test_case("abcdef" => None; "a bare code")]
    #[test_case("" => None; "nothing")]
    fn pasted(line: &str) -> Option<String> {
        query_of(line)
    }

    #[test]
    fn scopes_are_joined() {
        assert_eq!(union("a b", "b  c"), "a b c");
        assert_eq!(union("", "a"), "a");
    }
}
