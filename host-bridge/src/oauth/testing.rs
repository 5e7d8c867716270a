//! A web site on loopback that answers as a test wants and remembers what it was asked, and a person who signs in there.
//! [`compliant`] is a whole MCP server with its authorization server; a test answers for itself what matters to it.

use std::{
    convert::Infallible,
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use moat_shared::grant::GrantName;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use url::Url;

use super::{
    grant::{self, GrantError, Granted, Host, Inputs, Resource},
    http::Http,
    record::Record,
};
use crate::{credentials::Store, env::Environment, home::Home};

/// One request that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: String,
}

impl Asked {
    /// A field of its form.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let mut fields = url::form_urlencoded::parse(self.body.as_bytes());
        fields.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// It, as one text: what a secret must not be in.
    pub(crate) fn everything(&self) -> String {
        format!("{self:?}")
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Said {
    status: u16,
    header: Option<(&'static str, String)>,
    body: Vec<u8>,
}

impl Said {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, header: None, body: Vec::new() }
    }

    pub(crate) fn json(status: u16, value: &Value) -> Self {
        Self { body: value.to_string().into_bytes(), ..Self::status(status) }
    }

    pub(crate) fn body(status: u16, body: Vec<u8>) -> Self {
        Self { body, ..Self::status(status) }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.header = Some((name, value.into()));
        self
    }
}

/// The site.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) origin: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    _tasks: JoinSet<()>,
}

impl Site {
    /// Answers with `script`, which is told the site's origin.
    pub(crate) async fn open(script: impl Fn(&str, &Asked) -> Said + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (script, noted, own) = (Arc::new(script), asked.clone(), origin.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (script, noted, own) = (script.clone(), noted.clone(), own.clone());
                let service = service_fn(move |request| {
                    let (script, noted, own) = (script.clone(), noted.clone(), own.clone());
                    async move {
                        let asked = read(request).await;
                        noted.lock().unwrap().push(asked.clone());
                        let Said { status, header, body } = script(&own, &asked);
                        let mut answer = Response::new(Full::new(Bytes::from(body)));
                        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
                        if let Some((name, value)) = header {
                            answer.headers_mut().insert(name, value.parse().unwrap());
                        }
                        Ok::<_, Infallible>(answer)
                    }
                });
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move { drop(connection.await) });
            }
        });
        Self { origin, asked, _tasks: tasks }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// What was asked at one path.
    pub(crate) fn at(&self, path: &str) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.path == path).collect()
    }

    /// The paths that were asked for, in their order.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.path).collect()
    }

    pub(crate) fn server(&self) -> Url {
        Url::parse(&format!("{}/mcp", self.origin)).unwrap()
    }
}

async fn read(request: Request<Incoming>) -> Asked {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    Asked {
        method: head.method,
        path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: head.headers,
        body: String::from_utf8_lossy(&body).into_owned(),
    }
}

/// The authorization server's metadata.
pub(crate) fn metadata(origin: &str) -> Value {
    json!({
        "issuer": origin,
        "authorization_endpoint": format!("{origin}/authorize"),
        "token_endpoint": format!("{origin}/token"),
        "registration_endpoint": format!("{origin}/register"),
        "revocation_endpoint": format!("{origin}/revoke"),
        "code_challenge_methods_supported": ["S256"],
        "response_types_supported": ["code"],
        "authorization_response_iss_parameter_supported": true,
        "token_endpoint_auth_methods_supported": ["none", "client_secret_basic"],
    })
}

/// The resource's metadata, with its authorization servers.
pub(crate) fn resource(origin: &str, servers: &[&str]) -> Value {
    json!({"resource": format!("{origin}/mcp"), "authorization_servers": servers, "scopes_supported": ["a", "b"]})
}

pub(crate) fn challenge(origin: &str) -> Said {
    let place = format!("Bearer resource_metadata=\"{origin}/.well-known/oauth-protected-resource/mcp\"");
    Said::status(401).with("www-authenticate", place)
}

pub(crate) fn tokens(access: &str, refresh: &str) -> Value {
    json!({"access_token": access, "refresh_token": refresh, "token_type": "Bearer", "expires_in": 3600})
}

/// Everything as it should be.
pub(crate) fn compliant(origin: &str, asked: &Asked) -> Said {
    match asked.path.as_str() {
        "/mcp" if asked.header("authorization").is_none() => challenge(origin),
        "/mcp" => Said::json(200, &json!({"jsonrpc": "2.0", "id": 1, "result": {}})),
        "/.well-known/oauth-protected-resource/mcp" => Said::json(200, &resource(origin, &[origin])),
        "/.well-known/oauth-authorization-server" => Said::json(200, &metadata(origin)),
        "/register" => {
            let mut client: Value = serde_json::from_str(&asked.body).unwrap();
            client["client_id"] = "registered".into();
            Said::json(201, &client)
        }
        "/token" => Said::json(200, &tokens("access-1", "refresh-1")),
        "/revoke" => Said::status(200),
        _ => Said::status(404),
    }
}

/// The query on which a browser ends that was sent to this address.
type Ending = dyn Fn(&Url) -> Option<String> + Send;

/// Who signs in: pastes the address that the browser ends on.
pub(crate) struct Somebody {
    pub(crate) visited: Vec<Url>,
    pub(crate) told: Vec<String>,
    answer: Box<Ending>,
    answers: Vec<String>,
}

/// A parameter of an authorization request.
pub(crate) fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

impl Somebody {
    /// Whom the authorization endpoint's own origin answers, with its `iss`.
    pub(crate) fn agreeing() -> Self {
        Self::ending(|url| {
            let issuer = url.origin().ascii_serialization();
            Some(format!("code=the-code&iss={issuer}&state={}", parameter(url, "state")?))
        })
    }

    /// Whose browser ends on a redirect with the query that `answer` makes.
    pub(crate) fn ending(answer: impl Fn(&Url) -> Option<String> + Send + 'static) -> Self {
        Self { visited: Vec::new(), told: Vec::new(), answer: Box::new(answer), answers: Vec::new() }
    }
}

impl Host for Somebody {
    fn say(&mut self, text: &str) {
        self.told.push(text.to_owned());
    }

    fn visit(&mut self, url: &Url, _port: u16) -> bool {
        self.visited.push(url.clone());
        let redirect = parameter(url, "redirect_uri").unwrap_or_default();
        self.answers.extend((self.answer)(url).map(|query| format!("{redirect}?{query}")));
        false
    }

    fn pasted(&mut self) -> impl Future<Output = String> + Send {
        let line = self.answers.pop();
        async move {
            match line {
                Some(line) => line,
                None => std::future::pending().await,
            }
        }
    }

    fn prefers_device(&self) -> bool {
        false
    }
}

/// A throw-away store, and the client.
pub(crate) struct Place {
    _dir: tempfile::TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) http: Http,
}

pub(crate) fn name() -> GrantName {
    "oauth:mine".parse().unwrap()
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().join("home"));
        let store = Store::open(&home, &Environment::from([("MOAT_KEYRING_BACKEND", "file")]), None);
        let http = Http::new(Arc::new(rustls::RootCertStore::empty())).unwrap();
        Self { _dir: dir, store: Arc::new(store), http }
    }

    pub(crate) async fn grant(
        &self,
        inputs: &Inputs,
        somebody: &mut Somebody,
    ) -> Result<Granted, GrantError> {
        Box::pin(grant::grant(&self.http, &self.store, inputs, somebody, &mut None)).await
    }

    /// The record that is stored.
    pub(crate) fn record(&self) -> Option<Record> {
        self.store.read(&name()).ok().map(Record::of)
    }

    /// The bytes on the disk.
    pub(crate) fn bytes(&self) -> Option<Vec<u8>> {
        std::fs::read(self.store.path(&name())).ok()
    }
}

/// What a person gives who gives nothing but the server.
pub(crate) fn inputs(site: &Site) -> Inputs {
    Inputs {
        grant: name(),
        server: Some(site.server()),
        endpoints: None,
        client_id: None,
        client_secret: None,
        auth_method: None,
        client_metadata_url: None,
        scopes: None,
        issuer: None,
        resource: Resource::AsFound,
        redirect_uri: None,
        redirect_port: None,
        allow_private: false,
        new_client: false,
        device: false,
        timeout: Duration::from_secs(10),
        only_this_host: true,
        verify: true,
    }
}

/// The type of what a test sends by hand.
pub(crate) fn get(url: &str) -> Request<super::http::Body> {
    Request::builder().uri(url).header(header::ACCEPT, "application/json").body(Default::default()).unwrap()
}
