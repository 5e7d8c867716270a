//! An OAuth credential as it is stored: a [`Credential`] whose metadata says whose it is, how it is renewed and where.
//!
//! One record is one issuer, one client and one resource; everything in it is used with that issuer and nowhere else.
//! The metadata is a map of strings because the Go implementation reads it too; what it does not know it keeps.

use jiff::{SignedDuration, Timestamp};
use moat_shared::secret::Secret;
use url::Url;

use super::{
    guard::Guard,
    refresh::{Class, Print, Seen},
    token::{AuthMethod, Client, Tokens},
};
use crate::credentials::Credential;

/// The names of the metadata.
pub(crate) mod key {
    pub(crate) const TOKEN_SOURCE: &str = "token_source";
    pub(crate) const TOKEN_URL: &str = "token_url";
    pub(crate) const CLIENT_ID: &str = "client_id";
    pub(crate) const CLIENT_SECRET: &str = "client_secret";
    pub(crate) const REFRESH_TOKEN: &str = "refresh_token";
    pub(crate) const RESOURCE: &str = "resource";
    pub(crate) const ISSUER: &str = "issuer";
    pub(crate) const AUTH_URL: &str = "auth_url";
    pub(crate) const REVOCATION_URL: &str = "revocation_url";
    pub(crate) const AUTH_METHOD: &str = "auth_method";
    pub(crate) const CLIENT_KIND: &str = "client_kind";
    pub(crate) const REDIRECT_URI: &str = "redirect_uri";
    pub(crate) const CLIENT_SCOPE: &str = "client_scope";
    pub(crate) const CLIENT_SECRET_EXPIRES_AT: &str = "client_secret_expires_at";
    pub(crate) const REGISTRATION_CLIENT_URI: &str = "registration_client_uri";
    pub(crate) const REGISTRATION_ACCESS_TOKEN: &str = "registration_access_token";
    pub(crate) const REQUESTED_SCOPE: &str = "requested_scope";
    pub(crate) const SERVER_URL: &str = "server_url";
    pub(crate) const GENERATION: &str = "generation";
    pub(crate) const REFRESHED_AT: &str = "refreshed_at";
    pub(crate) const REJECTED_AT: &str = "rejected_at";
    pub(crate) const REJECTED_FOR: &str = "rejected_for";
    pub(crate) const ALLOW_PRIVATE: &str = "allow_private";
}

/// Bounds of the time before expiry at which a token is renewed: a tenth of its lifetime, within these, and never more
/// than half of it.
const MARGIN_MIN: SignedDuration = SignedDuration::from_secs(30);
const MARGIN_MAX: SignedDuration = SignedDuration::from_secs(300);
/// A record written further than this in the future says nothing about now (O17).
const SKEW: SignedDuration = SignedDuration::from_hours(24);

/// How much longer the access token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// Until a server says no: nobody said how long.
    Unknown,
    Fresh,
    /// Good, but about to expire: to be renewed beside its use.
    Ending,
    Expired,
}

/// The OAuth side of a credential.
#[derive(Debug, Clone)]
pub(crate) struct Record(Credential);

impl Record {
    pub(crate) fn of(credential: Credential) -> Self {
        Self(credential)
    }

    pub(crate) fn credential(&self) -> &Credential {
        &self.0
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0.metadata.get(key).map(|value| value.expose().as_str()).filter(|value| !value.is_empty())
    }

    pub(crate) fn set(&mut self, key: &str, value: Option<&str>) {
        match value {
            Some(value) => {
                self.0.metadata.insert(key.to_owned(), Secret::new(value.to_owned()));
            }
            None => {
                self.0.metadata.remove(key);
            }
        }
    }

    pub(crate) fn access(&self) -> Print {
        Print::of(self.0.token.expose())
    }

    pub(crate) fn refresh_token(&self) -> Option<&str> {
        self.text(key::REFRESH_TOKEN)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.text(key::GENERATION).and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    pub(crate) fn time(&self, key: &str) -> Option<Timestamp> {
        self.text(key).and_then(|text| text.parse().ok())
    }

    /// When and why the server refused the refresh token for good.
    pub(crate) fn rejected(&self) -> Option<(Timestamp, Class)> {
        let why = self.text(key::REJECTED_FOR).unwrap_or_default();
        let class = serde_json::from_value(why.into()).unwrap_or(Class::InvalidGrant);
        Some((self.time(key::REJECTED_AT)?, class))
    }

    /// Who says who may do what: the issuer, else the token endpoint's origin.
    pub(crate) fn issuer(&self) -> String {
        let origin = || Some(Url::parse(self.text(key::TOKEN_URL)?).ok()?.origin().ascii_serialization());
        self.text(key::ISSUER).map(str::to_owned).or_else(origin).unwrap_or_else(|| "unknown".to_owned())
    }

    pub(crate) fn token_url(&self) -> Option<Url> {
        Url::parse(self.text(key::TOKEN_URL)?).ok()
    }

    /// Which addresses its requests may go to.
    pub(crate) fn guard(&self) -> Guard {
        let url = self.text(key::SERVER_URL).or_else(|| self.text(key::TOKEN_URL));
        let url = url.and_then(|url| Url::parse(url).ok());
        Guard::of(url.as_ref(), self.text(key::ALLOW_PRIVATE) == Some("true"))
    }

    pub(crate) fn client(&self) -> Client {
        let secret = self.text(key::CLIENT_SECRET).map(|secret| Secret::new(secret.to_owned()));
        // Go sends a secret in the body.
        let unsaid = if secret.is_some() { AuthMethod::Post } else { AuthMethod::None };
        Client {
            id: self.text(key::CLIENT_ID).unwrap_or_default().to_owned(),
            secret,
            method: self.text(key::AUTH_METHOD).and_then(AuthMethod::parse).unwrap_or(unsaid),
        }
    }

    pub(crate) fn life(&self, now: Timestamp) -> Life {
        let Some(expires) = self.0.expires_at else { return Life::Unknown };
        let since = self.time(key::REFRESHED_AT).unwrap_or(self.0.created_at);
        if since > now.saturating_add(SKEW).unwrap_or(now) {
            return Life::Unknown;
        }
        if expires <= now {
            return Life::Expired;
        }
        let lifetime = expires.duration_since(since).max(SignedDuration::ZERO);
        let margin = (lifetime / 10).clamp(MARGIN_MIN, MARGIN_MAX).min(lifetime / 2);
        if expires.duration_since(now) <= margin { Life::Ending } else { Life::Fresh }
    }

    /// What [`super::refresh`] knows of it.
    pub(crate) fn seen(&self, now: Timestamp) -> Seen {
        Seen {
            generation: self.generation(),
            access: self.access(),
            refresh: self.refresh_token().map(Print::of),
            rejected: self.text(key::REJECTED_AT).is_some(),
            fresh: matches!(self.life(now), Life::Fresh | Life::Unknown),
        }
    }

    /// The next generation, with the tokens of an answer to a request that was sent at `sent`.
    pub(crate) fn renewed(&self, tokens: &Tokens, sent: Timestamp) -> Self {
        let mut next = self.clone();
        next.0.token = tokens.access.clone();
        next.0.expires_at = tokens.expires_at(sent);
        if let Some(refresh) = &tokens.refresh {
            next.set(key::REFRESH_TOKEN, Some(refresh.expose()));
        }
        if let Some(scope) = &tokens.scope {
            next.0.scopes = scope.split(' ').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        }
        next.set(key::GENERATION, Some(&(self.generation() + 1).to_string()));
        next.set(key::REFRESHED_AT, Some(&sent.to_string()));
        next.set(key::REJECTED_AT, None);
        next.set(key::REJECTED_FOR, None);
        next
    }

    /// Without its refresh token, which is dead. The access token may be good for a while.
    pub(crate) fn rejected_for(&self, class: Class, now: Timestamp) -> Self {
        let mut next = self.clone();
        next.set(key::REFRESH_TOKEN, None);
        next.set(key::REJECTED_AT, Some(&now.to_string()));
        let word = serde_json::to_value(class).ok();
        next.set(key::REJECTED_FOR, word.as_ref().and_then(serde_json::Value::as_str));
        if class == Class::InvalidClient && self.text(key::CLIENT_KIND) == Some("dcr") {
            next.set(key::CLIENT_ID, None);
            next.set(key::CLIENT_SECRET, None);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    const NOW: i64 = 1_000_000_000;

    fn record(refreshed: i64, expires: Option<i64>) -> Record {
        let at = |offset: i64| Timestamp::from_second(NOW + offset).unwrap();
        let grant = "oauth:mine".parse().unwrap();
        let mut credential = Credential::new(grant, Secret::new("t".to_owned()), [].into(), at(refreshed));
        credential.expires_at = expires.map(at);
        let mut record = Record::of(credential);
        record.set(key::REFRESHED_AT, Some(&at(refreshed).to_string()));
        record
    }

    #[test_case(0, Some(3600) => Life::Fresh; "an hour")]
    #[test_case(-3300, Some(300) => Life::Ending; "a tenth of an hour, at most five minutes, before its end")]
    #[test_case(-3299, Some(301) => Life::Fresh; "a second before that")]
    #[test_case(-60, Some(29) => Life::Ending; "at least half a minute")]
    #[test_case(0, Some(2) => Life::Fresh; "two seconds")]
    #[test_case(-1, Some(1) => Life::Ending; "never more than half of it")]
    #[test_case(-60, Some(0) => Life::Expired; "over")]
    #[test_case(-60, None => Life::Unknown; "f12 nobody said")]
    #[test_case(7 * 86_400, Some(7 * 86_400 + 3600) => Life::Unknown; "o17 the clock went back a week")]
    #[test_case(7 * 86_400, Some(-1) => Life::Unknown; "o17 and the expiry says nothing either")]
    #[test_case(-30 * 86_400, Some(-29 * 86_400) => Life::Expired; "o17 after a long sleep")]
    #[test_case(3600, Some(7200) => Life::Fresh; "o17 an hour ahead is fine")]
    fn a13_o17_lives(refreshed: i64, expires: Option<i64>) -> Life {
        record(refreshed, expires).life(Timestamp::from_second(NOW).unwrap())
    }
}
