//! The exchange and the new record, under the grant's lock; what is exchanged comes from [`super`].

use std::collections::BTreeSet;

use jiff::Timestamp;
use moat_shared::secret::Secret;
use tokio::{sync::watch, task::JoinSet};
use url::Url;

use super::{
    GrantError, Granted,
    error::refusal,
    plan::{Plan, shown},
};
use crate::{
    credentials::{Credential, Store},
    oauth::{
        client::Identity,
        discovery::{self, Says},
        http::{Limits, NoAnswer},
        listener::Page,
        port::Disk,
        record::{Record, key},
        refresh::{Change, Class, Do, Got, Keep, Port, drive},
        revoke,
        token::{self, Client, Tokens},
    },
    server::Upstream,
};

/// What is exchanged for tokens, or the tokens.
pub(super) enum Proof {
    Tokens((Tokens, Timestamp)),
    Code {
        code: Secret<String>,
        verifier: Secret<String>,
        show: watch::Sender<Option<Page>>,
        pages: JoinSet<()>,
    },
}

impl Plan<'_> {
    /// The exchange and the new record, under the grant's lock.
    pub(super) async fn keep(
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
            warning: None,
            error: None,
        };
        let kept = drive(Keep::default(), &mut port).await;
        let Granting { disk, page, made, warning, error, .. } = port;
        let result = match (kept, made, error) {
            (Ok(()), Some(record), None) => {
                let new_key_file = disk.new_key_file.clone();
                Ok(Granted { path: store.path(&grant), record, new_key_file, warning })
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
        let failed =
            |class: Class| GrantError::Exchange { text: format!("token endpoint: {}", class.words()), class };
        let request = token::request(&self.authority.token_url, client, &fields)
            .map_err(|_| failed(Class::ForbiddenAddress))?;
        let sent = Timestamp::now();
        let answer = self.http.send(request, self.guard, Limits::TOKENS).await;
        let answer = answer.map_err(|error: NoAnswer| failed(error.class()))?;
        let tokens = token::judge(&answer)
            .map_err(|refused| GrantError::Exchange { text: refusal(&refused), class: refused.class })?;
        Ok((tokens, sent))
    }

    /// Does the server take the new token? A server that cannot say now is no reason to lose it.
    async fn verify(&self, tokens: &Tokens) -> Result<Option<String>, GrantError> {
        let Some(server) = self.inputs.server.as_ref().filter(|_| self.inputs.verify) else {
            return Ok(None);
        };
        let host = server.host_str().unwrap_or_default().to_owned();
        let tried = Box::pin(discovery::try_token(self.http, self.guard, server, &tokens.access)).await;
        match tried {
            Ok(Says::Yes) => Ok(None),
            Ok(Says::No) => Err(GrantError::NotAccepted { host }),
            Ok(Says::Else(status)) => Ok(Some(format!("{host} answered {status} to the new token"))),
            Err(error) => Ok(Some(format!("the new token could not be tried: {error}"))),
        }
    }

    fn record(
        &self,
        identity: &Identity,
        redirect_uri: &str,
        (tokens, sent): &(Tokens, Timestamp),
        former: Option<&Record>,
    ) -> Record {
        let inputs = self.inputs;
        let mut hosts: BTreeSet<String> = match former {
            Some(former) if !inputs.only_this_host => former.credential().hosts.clone(),
            _ => [].into(),
        };
        let server = inputs.server.as_ref().and_then(|url| Upstream::try_from(url.to_string()).ok());
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
    warning: Option<String>,
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
        match self.plan.verify(&tokens.0).await {
            Ok(warning) => self.warning = warning,
            Err(error) => {
                self.error = Some(error);
                return None;
            }
        }
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
