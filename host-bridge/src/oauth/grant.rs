//! A person grants: from what is known of the server to a record in the store.
//!
//! ```text
//! endpoints (given or discovered) ─► listener ─► client ─► browser, pasted address, device ─► exchange ─► record
//!                                                                                            └── under the lock ──┘
//! ```
//!
//! Nothing is stored before the new tokens are whole, and what was there stays until the new record has its place.

mod error;
mod inputs;
mod keep;
mod plan;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use url::Url;

pub(crate) use self::{
    error::GrantError,
    inputs::{Granted, Host, Inputs, Resource},
    plan::union,
};
use self::{
    error::device_failed,
    keep::Proof,
    plan::{Plan, plan},
};
use super::{
    authorize::{Pending, Verdict},
    client::{self, Identity},
    device,
    http::Http,
    listener::{Came, Listener, Page},
    record::{Record, key},
    token::Tokens,
};
use crate::credentials::Store;

/// After this long the person is told what to look for.
const IMPATIENCE: Duration = Duration::from_secs(20);

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
        device
            .tokens(self.http, self.guard, url, &identity.client, resource, self.inputs.timeout)
            .await
            .map_err(device_failed)
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

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("http://127.0.0.1:1/callback?code=c&state=s" => Some("code=c&state=s".to_owned()); "the whole")]
    #[test_case(" ?code=c&state=s\n" => Some("code=c&state=s".to_owned()); "its query")]
    #[test_case("abcdef" => None; "a bare code")]
    #[test_case("" => None; "nothing")]
    fn pasted(line: &str) -> Option<String> {
        query_of(line)
    }
}
