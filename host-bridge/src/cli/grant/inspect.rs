//! `moat grant list` and `moat grant show`.

use jiff::{Timestamp, tz::TimeZone};
use moat_shared::{
    exit,
    grant::{GrantKind, GrantName},
};
use serde::Serialize;

use super::super::{Context, Failure, Outcome, print, table, text::visible, when};
use crate::{
    credentials::{Credential, Listed, ReadError, Store, grant::hosts},
    oauth::record::{Record, key},
};

/// A credential in JSON. Documented in docs/reference.md.
#[derive(Debug, Serialize)]
struct Row<'a> {
    provider: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    granted_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// What kind of credential a grant is.
fn kind(grant: &str) -> &'static str {
    match grant.parse::<GrantName>() {
        Ok(grant) => match grant.kind() {
            GrantKind::OAuth(_) => "oauth",
            GrantKind::Mcp(_) | GrantKind::Provider(_) => "token",
        },
        Err(_) => "unknown",
    }
}

pub(super) fn list(context: &Context, store: &Store) -> Outcome {
    let listed =
        store.list().map_err(|error| Failure::new(format!("cannot read the credentials: {error}")))?;
    if context.global.json {
        let rows: Vec<_> = listed.iter().map(Row::of).collect();
        print::line(&serde_json::to_string_pretty(&rows).map_err(|error| Failure::new(error.to_string()))?);
    } else if listed.is_empty() {
        print::line("No credentials found.\n\nGrant a credential with: moat grant <provider>");
    } else {
        print::line(&rows(&listed, Timestamp::now()));
    }
    for Listed { name, credential } in &listed {
        if let Err(reason) = credential {
            print::note(&format!("Warning: {}: {}", visible(name), visible(reason)));
        }
    }
    Ok(exit::OK)
}

fn rows(listed: &[Listed], now: Timestamp) -> String {
    let rows = listed.iter().map(|Listed { name, credential }| {
        let granted = match credential {
            Ok(credential)
                if OAuth::of(credential).is_some_and(|oauth| oauth.needs_authorization.is_some()) =>
            {
                format!("{} (needs authorization)", when::age(credential.created_at, now))
            }
            Ok(credential) => when::age(credential.created_at, now),
            Err(_) => "unreadable".to_owned(),
        };
        [visible(name).into_owned(), kind(name).to_owned(), granted]
    });
    table::of(["PROVIDER", "TYPE", "GRANTED"], rows)
}

impl<'a> Row<'a> {
    fn of(Listed { name, credential }: &'a Listed) -> Self {
        Self {
            provider: name,
            kind: kind(name),
            granted_at: credential.as_ref().ok().map(|credential| credential.created_at),
            error: credential.as_ref().err().map(String::as_str),
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// The grant, like mcp-context7
    grant: GrantName,
    /// Print the whole credential
    #[arg(long)]
    show_token: bool,
}

/// A credential in JSON. Documented in docs/reference.md.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    provider: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    source: &'a str,
    scopes: &'a [String],
    hosts: Vec<String>,
    granted_at: Timestamp,
    expires_at: Option<Timestamp>,
    token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    oauth: Option<OAuth>,
}

/// What is special about an OAuth grant. Neither its refresh token nor a client's secret.
#[derive(Debug, Serialize)]
struct OAuth {
    issuer: String,
    /// How moat is known there: pre, cimd, dcr.
    client: Option<String>,
    resource: Option<String>,
    auto_refresh: bool,
    refreshed_at: Option<Timestamp>,
    /// Why the server refused to renew it, and since when.
    needs_authorization: Option<Rejected>,
}

#[derive(Debug, Serialize)]
struct Rejected {
    reason: &'static str,
    at: Timestamp,
}

impl OAuth {
    fn of(credential: &Credential) -> Option<Self> {
        if !matches!(credential.grant.kind(), GrantKind::OAuth(_)) {
            return None;
        }
        let record = Record::of(credential.clone());
        let text = |key: &str| record.text(key).map(str::to_owned);
        Some(Self {
            issuer: record.issuer(),
            client: text(key::CLIENT_KIND),
            resource: text(key::RESOURCE),
            auto_refresh: record.refresh_token().is_some(),
            refreshed_at: record.time(key::REFRESHED_AT),
            needs_authorization: record.rejected().map(|(at, class)| Rejected { reason: class.words(), at }),
        })
    }

    fn text(&self, grant: &str, zone: &TimeZone) -> String {
        let or = |text: &Option<String>| visible(text.as_deref().unwrap_or("-")).into_owned();
        let state = match &self.needs_authorization {
            None => String::new(),
            Some(Rejected { reason, at }) => format!(
                "\nState:     needs authorization ({reason}, {}). Run: moat grant oauth {}",
                when::date(*at, zone),
                grant.trim_start_matches("oauth:")
            ),
        };
        format!(
            "\nIssuer:    {}\nClient:    {}\nResource:  {}\nRefresh:   {}{state}",
            visible(&self.issuer),
            or(&self.client),
            or(&self.resource),
            if self.auto_refresh { "yes" } else { "no" }
        )
    }
}

impl ShowArgs {
    pub(super) fn run(self, context: &Context, store: &Store) -> Outcome {
        let credential = store.read(&self.grant).map_err(|error| match error {
            ReadError::NotConfigured { grant } => Failure::new(format!("no credential found for {grant}"))
                .with_hint(format!("To store one:\n  {}", grant.command())),
            other => Failure::from_error(&other),
        })?;
        let shown = Shown::of(&credential, self.show_token);
        if context.global.json {
            print::line(
                &serde_json::to_string_pretty(&shown).map_err(|error| Failure::new(error.to_string()))?,
            );
        } else {
            print::line(&shown.text(&TimeZone::system()));
        }
        Ok(exit::OK)
    }
}

impl<'a> Shown<'a> {
    fn of(credential: &'a Credential, whole: bool) -> Self {
        let token = credential.token.expose();
        Self {
            provider: credential.grant.as_str(),
            kind: kind(credential.grant.as_str()),
            source: credential
                .metadata
                .get("token_source")
                .map_or("static", |source| source.expose().as_str()),
            scopes: &credential.scopes,
            hosts: hosts(credential).iter().cloned().collect(),
            granted_at: credential.created_at,
            expires_at: credential.expires_at,
            token: if whole { token.clone() } else { masked(token) },
            oauth: OAuth::of(credential),
        }
    }

    fn text(&self, zone: &TimeZone) -> String {
        let or =
            |list: &[String], none: &str| if list.is_empty() { none.to_owned() } else { list.join(", ") };
        let unknown = if self.oauth.is_some() { "unknown" } else { "never" };
        let expires = self.expires_at.map_or_else(|| unknown.to_owned(), |at| when::date(at, zone));
        let oauth = self.oauth.as_ref().map(|oauth| oauth.text(self.provider, zone)).unwrap_or_default();
        format!(
            "Provider:  {}\nType:      {}\nSource:    {}\nScopes:    {}\nHosts:     {}\nGranted:   {}\nExpires:   \
             {expires}{oauth}\nToken:     {}",
            self.provider,
            self.kind,
            visible(self.source),
            visible(&or(self.scopes, "-")),
            visible(&or(&self.hosts, "none yet")),
            when::date(self.granted_at, zone),
            visible(&self.token),
        )
    }
}

/// The last four characters, and those only of a credential that is long enough to keep them harmless.
fn masked(token: &str) -> String {
    const MASK: &str = "****************";
    let count = token.chars().count();
    let tail: String = if count < 16 { String::new() } else { token.chars().skip(count - 4).collect() };
    format!("{MASK}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use moat_shared::secret::Secret;
    use test_case::test_case;

    fn credential(grant: &str, token: &str) -> Credential {
        let now = "2026-01-25T10:00:00Z".parse().unwrap();
        Credential::new(grant.parse().unwrap(), Secret::new(token.to_owned()), [].into(), now)
    }

    #[test_case("ctx7sk-0123456789abcd" => "****************abcd")]
    #[test_case("short" => "****************"; "short ones show nothing")]
    fn masks(token: &str) -> String {
        masked(token)
    }

    #[test]
    fn a_table_with_what_cannot_be_read() {
        let now = "2026-01-25T13:00:00Z".parse().unwrap();
        let listed = [
            Listed { name: "mcp-a".to_owned(), credential: Ok(credential("mcp-a", "x")) },
            Listed { name: "oauth:b".to_owned(), credential: Ok(credential("oauth:b", "x")) },
            Listed { name: "odd\u{1b}".to_owned(), credential: Err("not the name of a grant".to_owned()) },
        ];
        insta::assert_snapshot!(rows(&listed, now), @r"
        PROVIDER   TYPE     GRANTED
        mcp-a      token    3h ago
        oauth:b    oauth    3h ago
        odd\u{1b}  unknown  unreadable
        ");
    }

    #[test]
    fn shown_without_the_token() {
        let mut credential = credential("mcp-context7", "ctx7sk-0123456789abcd");
        credential.expires_at = Some("2026-02-01T00:00:00Z".parse().unwrap());
        let text = Shown::of(&credential, false).text(&TimeZone::fixed(jiff::tz::offset(1)));
        insta::assert_snapshot!(text, @r"
        Provider:  mcp-context7
        Type:      token
        Source:    static
        Scopes:    -
        Hosts:     mcp.context7.com
        Granted:   2026-01-25 11:00:00
        Expires:   2026-02-01 01:00:00
        Token:     ****************abcd
        ");
    }
}
