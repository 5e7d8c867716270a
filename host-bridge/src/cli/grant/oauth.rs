//! `moat grant oauth <name>`: signs in to an MCP server with OAuth, in the browser, by a pasted address or by a device.

mod terminal;

use std::{path::PathBuf, time::Duration};

use jiff::{Timestamp, tz::TimeZone};
use moat_shared::{exit, grant::GrantName, secret::Secret};
use serde::Serialize;
use url::Url;

use self::terminal::Terminal;
use super::super::{
    Context, Failure, Outcome,
    ask::{Ask, Person},
    news, print,
    proxy::block_on,
    text::visible,
    when,
};
use crate::{
    config::{
        self, catalog,
        oauth::{OAuthFile, endpoint},
    },
    credentials::Store,
    env::Environment,
    home::Home,
    oauth::{
        browser,
        grant::{self, GrantError, Granted, Inputs, Resource},
        http::Http,
        record::{Record, key},
    },
    server::Upstream,
    upstream,
};

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Sign in to an MCP server with OAuth.\n\n\
        The server is asked who signs people in for it; you confirm in your browser, and the tokens are stored encrypted \
        as grant 'oauth:<name>', bound to the server's host. The bridge renews them by itself. The server is the one of \
        --url, else the one of that name in this directory's moat.yaml, else the known one of that name, else the one \
        that it was granted for before. What is not given here is taken from ~/.moat/oauth/<name>.yaml, and what is not \
        there either is discovered.",
    after_help = "\
Examples:
  moat grant oauth linear
  moat grant oauth mine --url https://mcp.example.com/mcp
  moat grant oauth mine --no-browser        # on a machine without a browser: paste the address that it ends on
  moat grant oauth mine --device            # or enter a code on any device, where the server can do that
  moat grant oauth mine --client-id my-app --client-secret - --redirect-port 8976

If the browser shows an error instead of a sign-in page:
  - the redirect URI is not registered: register http://127.0.0.1:<port>/callback with the server, and give --client-id
    and --redirect-port; if moat registered itself there before: --new-client
  - the server does not take 'resource': --no-resource"
)]
pub(super) struct Args {
    /// What the grant is called: 'oauth:<name>'
    name: String,
    /// The MCP server; the grant is bound to its host alone
    #[arg(long, value_name = "URL", value_parser = |text: &str| Upstream::try_from(text.to_owned()))]
    url: Option<Upstream>,
    /// The authorization endpoint, instead of discovery; needs --token-url
    #[arg(long, value_name = "URL", value_parser = |text: &str| endpoint("auth_url", text))]
    auth_url: Option<Url>,
    /// The token endpoint, instead of discovery; needs --auth-url
    #[arg(long, value_name = "URL", value_parser = |text: &str| endpoint("token_url", text))]
    token_url: Option<Url>,
    /// The client that you registered
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// Its secret; '-' asks for it without showing it
    #[arg(long, value_name = "SECRET")]
    client_secret: Option<String>,
    /// The scopes to ask for, with spaces between them
    #[arg(long)]
    scopes: Option<String>,
    /// Trust this issuer, where the server names another
    #[arg(long, value_name = "URL")]
    issuer: Option<String>,
    /// The resource to ask for, instead of the server's own
    #[arg(long, value_name = "URI", conflicts_with = "no_resource")]
    resource: Option<String>,
    /// Send no 'resource'
    #[arg(long)]
    no_resource: bool,
    /// Where a client metadata document for moat is published
    #[arg(long, value_name = "URL")]
    client_metadata_url: Option<String>,
    /// Register anew, although moat is registered there
    #[arg(long)]
    new_client: bool,
    /// Open no browser; the address that yours ends on can be pasted
    #[arg(long)]
    no_browser: bool,
    /// Enter a code on any device
    #[arg(long)]
    device: bool,
    /// The port of 127.0.0.1 on which the sign-in ends
    #[arg(long, value_name = "PORT")]
    redirect_port: Option<u16>,
    /// How long to wait for the sign-in
    #[arg(long, default_value = "5m", value_parser = duration)]
    timeout: Duration,
    /// Store the token without asking the server whether it takes it
    #[arg(long)]
    no_verify: bool,
    /// Let the server and its authorization server be in a private network
    #[arg(long)]
    allow_private_network: bool,
}

/// What `--json` prints. Documented in docs/reference.md.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    grant: &'a str,
    path: String,
    issuer: String,
    client: Option<&'a str>,
    resource: Option<&'a str>,
    scopes: &'a [String],
    hosts: Vec<&'a str>,
    expires_at: Option<Timestamp>,
    auto_refresh: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a time like 90s or 5m".to_owned();
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..at].parse().map_err(|_| wrong())?;
    let unit = match &text[at..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    Some(number * unit)
        .filter(|seconds| (1..=24 * 3600).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

impl Args {
    pub(super) fn run(self, context: &Context, store: &Store) -> Outcome {
        let grant = grant_of(&self.name)?;
        let known = Known::gather(&context.home, store, &grant, &self.name)?;
        let (no_browser, snippet_url) = (self.no_browser, self.url.clone());
        let inputs = self.inputs(grant, known)?;
        if context.global.dry_run {
            print::note(&format!(
                "Would save grant '{}' to {}",
                inputs.grant,
                store.path(&inputs.grant).display()
            ));
            return Ok(exit::OK);
        }
        block_on(async {
            let again = again(&inputs.grant, snippet_url.as_ref());
            let granted = sign_in(&inputs, &again, store, &context.env, no_browser).await?;
            news::tell(&context.home, store, &inputs.grant, news::granted(&granted.record)).await;
            if context.global.json {
                print::line(&Shown::of(&granted).json()?);
            } else {
                say_usage(&inputs, snippet_url.as_ref());
            }
            Ok(exit::OK)
        })
    }

    fn inputs(self, grant: GrantName, known: Known) -> Result<Inputs, Failure> {
        let Known { server, file } = known;
        let endpoints = match (self.auth_url, self.token_url) {
            (Some(auth_url), Some(token_url)) => Some((auth_url, token_url)),
            (None, None) => None,
            (Some(_), None) => return Err(Failure::new("invalid OAuth flags: token-url is required")),
            (None, Some(_)) => return Err(Failure::new("invalid OAuth flags: auth-url is required")),
        };
        let endpoints = endpoints.or(file.endpoints);
        let only_this_host = self.url.is_some();
        let server = self.url.or(server).and_then(|url| Url::parse(url.as_str()).ok());
        let client_id = self.client_id.or(file.client_id);
        if endpoints.is_some() && client_id.is_none() {
            return Err(Failure::new("invalid OAuth flags: client-id is required").with_hint(
                "With --auth-url and --token-url moat cannot register itself: give --client-id.",
            ));
        }
        if endpoints.is_none() && server.is_none() {
            return Err(none_found(&grant));
        }
        let client_secret = match self.client_secret.as_deref() {
            Some("-") => Some(
                Person
                    .secret("Client secret: ")
                    .map_err(|error| Failure::new(format!("reading the client secret: {error}")))?,
            ),
            Some(secret) => Some(Secret::new(secret.to_owned())),
            None => file.client_secret,
        };
        let resource = match (self.no_resource, self.resource.or(file.resource)) {
            (true, _) => Resource::None,
            (false, Some(resource)) => Resource::Given(resource),
            (false, None) => Resource::AsFound,
        };
        Ok(Inputs {
            grant,
            server,
            endpoints,
            client_id,
            client_secret,
            auth_method: file.auth_method,
            client_metadata_url: self.client_metadata_url.or(file.client_metadata_url),
            scopes: self.scopes.or(file.scopes),
            issuer: self.issuer.or(file.issuer),
            resource,
            redirect_uri: file.redirect_uri,
            redirect_port: self.redirect_port,
            allow_private: self.allow_private_network || file.allow_private,
            new_client: self.new_client,
            device: self.device,
            timeout: self.timeout,
            only_this_host,
            verify: !self.no_verify,
        })
    }
}

/// What is known without flags.
struct Known {
    server: Option<Upstream>,
    file: OAuthFile,
}

impl Known {
    fn gather(home: &Home, store: &Store, grant: &GrantName, name: &str) -> Result<Self, Failure> {
        let path = home.oauth_file(name);
        let file = OAuthFile::load(&path).map_err(|problems| {
            let text = super::super::with_causes(&problems);
            let text = text.strip_prefix("loading config: ").unwrap_or(&text);
            Failure::new(format!("invalid oauth config {}: {text}", path.display()))
        })?;
        let file = file.unwrap_or_default();
        for warning in &file.warnings {
            print::note(&format!("Warning: {warning}"));
        }
        let workspace = std::env::current_dir().ok().map(|here| config::load(&here));
        let workspace = match workspace {
            Some(Ok(config)) => config,
            Some(Err(problems)) => {
                print::note(&format!("Warning: the moat.yaml of this directory is not used: {problems}"));
                config::Config::default()
            }
            None => config::Config::default(),
        };
        let named = workspace.servers.iter().find(|server| server.name.as_str() == name);
        let uses = |server: &&crate::server::Server| {
            server.inject.as_ref().is_some_and(|injection| injection.grant == *grant)
        };
        let server =
            named.or_else(|| workspace.servers.iter().find(uses)).map(|server| server.upstream.clone());
        let catalog = || {
            let known = catalog::CATALOG.iter().find(|known| known.grant == grant.as_str())?;
            Upstream::try_from(known.url.to_owned()).ok()
        };
        // The command in an agent's error works anywhere, not only in the directory of its moat.yaml.
        let granted_before = || {
            let record = Record::of(store.read(grant).ok()?);
            Upstream::try_from(record.text(key::SERVER_URL)?.to_owned()).ok()
        };
        Ok(Self { server: server.or_else(catalog).or_else(granted_before), file })
    }
}

fn grant_of(name: &str) -> Result<GrantName, Failure> {
    format!("oauth:{name}")
        .parse()
        .map_err(|_| Failure::new(format!("invalid name: {:?} contains invalid characters", visible(name))))
}

fn none_found(grant: &GrantName) -> Failure {
    let name = grant.as_str().trim_start_matches("oauth:");
    Failure::new(format!(
        "no OAuth configuration found for \"{name}\"\n\nProvide one of:\n  1. CLI flags: --auth-url, --token-url, \
         --client-id\n  2. Config file: ~/.moat/oauth/{name}.yaml\n  3. MCP server URL: --url <mcp-server-url>"
    ))
}

/// Grants what a run lacks, when the person says yes to it before the start.
pub(crate) fn inline(
    grant: &GrantName,
    server: Option<&Upstream>,
    home: &Home,
    env: &Environment,
    store: &Store,
) -> Result<(), Failure> {
    let name = grant.as_str().trim_start_matches("oauth:");
    let mut known = Known::gather(home, store, grant, name)?;
    if let Some(server) = server {
        known.server = Some(server.clone());
    }
    let args =
        <Alone as clap::Parser>::try_parse_from(["oauth", name]).map_err(|e| Failure::new(e.to_string()))?;
    let inputs = args.args.inputs(grant.clone(), known)?;
    block_on(async {
        let again = again(grant, None);
        let granted = sign_in(&inputs, &again, store, env, false).await?;
        news::tell(home, store, grant, news::granted(&granted.record)).await;
        Ok(exit::OK)
    })
    .map(drop)
}

/// The flags' defaults, without a command line.
#[derive(Debug, clap::Parser)]
struct Alone {
    #[command(flatten)]
    args: Args,
}

async fn sign_in(
    inputs: &Inputs,
    again: &str,
    store: &Store,
    env: &Environment,
    no_browser: bool,
) -> Result<Granted, Failure> {
    let http = Http::new(upstream::platform_roots())
        .map_err(|error| Failure::new(format!("preparing TLS: {error}")))?;
    let mut terminal = Terminal {
        env: env.clone(),
        opener: browser::opener(env).filter(|_| !no_browser),
        device_first: no_browser,
        lines: None,
        opened: None,
    };
    let mut port = None;
    let granted = grant::grant(&http, store, inputs, &mut terminal, &mut port).await;
    let granted = granted.map_err(|error| failure(&error, &inputs.grant, again, port))?;
    if let Some(file) = &granted.new_key_file {
        print::note(&format!(
            "Warning: this machine has no keychain, so the encryption key is in {}. Whoever reads that file can read \
             your credentials.",
            file.display()
        ));
    }
    if let Some(warning) = &granted.warning {
        print::note(&format!("Warning: {}", visible(warning)));
    }
    print::note(&format!("OAuth credential '{}' saved to {}", inputs.grant, granted.path.display()));
    print::note(&expiry(&granted.record));
    Ok(granted)
}

/// The command to try again with: the server stands in it where it was given, since it stands nowhere else yet.
fn again(grant: &GrantName, url: Option<&Upstream>) -> String {
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b":/._-".contains(&b));
    match url.map(Upstream::as_str) {
        Some(url) if plain(url) => format!("{} --url {url}", grant.command()),
        Some(url) => format!("{} --url '{}'", grant.command(), url.replace('\'', "%27")),
        None => grant.command(),
    }
}

/// Nothing is promised that a record without a refresh token cannot keep.
fn expiry(record: &Record) -> String {
    let refresh = if record.refresh_token().is_some() { "auto-refresh enabled" } else { "no refresh token" };
    match record.credential().expires_at {
        Some(at) => format!("Expires: {} ({refresh})", when::date(at, &TimeZone::system())),
        None => format!("Expires: unknown ({refresh})"),
    }
}

fn failure(error: &GrantError, grant: &GrantName, again: &str, port: Option<u16>) -> Failure {
    let text = match error {
        GrantError::Discovery(_) => format!("Discovery failed: {error}"),
        _ => error.to_string(),
    };
    Failure::new(visible(&text).into_owned()).with_hint(error.remedy(grant, again, port))
}

fn say_usage(inputs: &Inputs, given: Option<&Upstream>) {
    let name = inputs.grant.as_str().trim_start_matches("oauth:");
    let known = catalog::find(name).filter(|known| known.grant == inputs.grant.as_str() && given.is_none());
    let snippet = match (known, &inputs.server) {
        (Some(known), _) => format!("mcp:\n  - {}", known.name),
        (None, server) => {
            let url = server.as_ref().map_or("https://mcp.example.com/mcp", Url::as_str);
            format!(
                "mcp:\n  - name: {name}\n    url: {url}\n    auth:\n      grant: {}\n      header: Authorization",
                inputs.grant
            )
        }
    };
    print::note(&format!("\nUse in moat.yaml:\n\n{snippet}"));
}

impl<'a> Shown<'a> {
    fn of(granted: &'a Granted) -> Self {
        let Granted { path, record, .. } = granted;
        let path: &PathBuf = path;
        Self {
            grant: record.credential().grant.as_str(),
            path: path.display().to_string(),
            issuer: record.issuer(),
            client: record.text(key::CLIENT_KIND),
            resource: record.text(key::RESOURCE),
            scopes: &record.credential().scopes,
            hosts: record.credential().hosts.iter().map(String::as_str).collect(),
            expires_at: record.credential().expires_at,
            auto_refresh: Record::refresh_token(record).is_some(),
        }
    }

    fn json(&self) -> Result<String, Failure> {
        serde_json::to_string_pretty(self).map_err(|error| Failure::new(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("5m" => Ok(300))]
    #[test_case("90s" => Ok(90))]
    #[test_case("90" => Ok(90))]
    #[test_case("0s" => Err(()))]
    #[test_case("5d" => Err(()))]
    #[test_case("m" => Err(()))]
    fn durations(text: &str) -> Result<u64, ()> {
        duration(text).map(|duration| duration.as_secs()).map_err(|_| ())
    }

    #[test_case("notion" => Ok("oauth:notion".to_owned()))]
    #[test_case("a/b" => Err("invalid name: \"a/b\" contains invalid characters".to_owned()))]
    #[test_case("../x" => Err("invalid name: \"../x\" contains invalid characters".to_owned()))]
    fn names(name: &str) -> Result<String, String> {
        grant_of(name).map(String::from).map_err(|failure| failure.text)
    }

    #[test_case(true, false => "Expires: unknown (auto-refresh enabled)"; "renewable")]
    #[test_case(false, false => "Expires: unknown (no refresh token)"; "no refresh token")]
    #[test_case(false, true => "Expires: 20.. (no refresh token)"; "with its time")]
    fn f16_what_is_said_of_the_expiry(renewable: bool, expires: bool) -> String {
        let now = Timestamp::now();
        let token = Secret::new("t".to_owned());
        let mut credential =
            crate::credentials::Credential::new(grant_of("x").unwrap(), token, [].into(), now);
        credential.expires_at = expires.then_some(now);
        let mut record = Record::of(credential);
        record.set(key::REFRESH_TOKEN, renewable.then_some("r"));
        let text = expiry(&record);
        match text.strip_prefix("Expires: 20").and_then(|rest| rest.split_once(" (")) {
            Some((_, rest)) => format!("Expires: 20.. ({rest}"),
            None => text,
        }
    }

    #[test_case(None => "moat grant oauth x"; "known")]
    #[test_case(Some("https://h/mcp") => "moat grant oauth x --url https://h/mcp"; "given")]
    #[test_case(Some("https://h/mcp?a=b&c='d") => "moat grant oauth x --url 'https://h/mcp?a=b&c=%27d'"; "quoted")]
    fn the_command_to_try_again(url: Option<&str>) -> String {
        let url = url.map(|url| Upstream::try_from(url.to_owned()).unwrap());
        again(&grant_of("x").unwrap(), url.as_ref())
    }

    #[test]
    fn without_anything_the_ways_are_told() {
        let text = none_found(&grant_of("x").unwrap()).text;
        assert!(text.starts_with(
            "no OAuth configuration found for \"x\"\n\nProvide one of:\n  1. CLI flags: --auth-url"
        ));
        assert!(text.ends_with("3. MCP server URL: --url <mcp-server-url>"), "{text}");
    }
}
