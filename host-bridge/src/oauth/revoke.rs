//! Giving tokens back: RFC 7009 at the issuer that gave them, and RFC 7592 for the client that moat registered there.
//! A courtesy: whatever a server says, what is stored here is removed.

use http::{Method, Request, header};
use url::Url;

use super::{
    http::{Body, Http, Limits, NoAnswer},
    record::{Record, key},
    refresh::Class,
    token,
};

/// What the issuer knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Revoked,
    /// It has no place for that.
    NoEndpoint,
    Failed(Class),
}

/// Revokes the refresh token, then the access token, then forgets the client.
pub(crate) async fn tell(http: &Http, record: &Record) -> Told {
    let told = match record.text(key::REVOCATION_URL).and_then(|text| Url::parse(text).ok()) {
        None => Told::NoEndpoint,
        Some(url) => tokens(http, record, &url).await,
    };
    unregister(http, record).await;
    told
}

async fn tokens(http: &Http, record: &Record, url: &Url) -> Told {
    let access = record.credential().token.expose().as_str();
    let tokens = [
        record.refresh_token().map(|token| (token, "refresh_token")),
        Some((access, "access_token")).filter(|_| record.text(key::TOKEN_SOURCE) == Some("oauth")),
    ];
    let mut told = Told::Revoked;
    for (token, hint) in tokens.into_iter().flatten() {
        let fields = [("token", token), ("token_type_hint", hint)];
        let Ok(request) = token::request(url, &record.client(), &fields) else {
            return Told::Failed(Class::ForbiddenAddress);
        };
        let class = match http.send(request, record.guard(), Limits::COURTESY).await {
            Ok(answer) if answer.status.as_u16() == 200 => continue,
            Ok(answer) if answer.status.is_server_error() => Class::ServerError,
            Ok(answer) if answer.status.is_redirection() => Class::Redirect,
            Ok(_) => Class::Refused,
            Err(NoAnswer::NotSent(class) | NoAnswer::Lost(class)) => class,
        };
        // The refresh token is what counts: with it the server ends the rest.
        if hint == "refresh_token" || told == Told::Revoked && record.refresh_token().is_none() {
            told = Told::Failed(class);
        }
    }
    told
}

/// RFC 7592, at the issuer's own origin only.
async fn unregister(http: &Http, record: &Record) {
    let (Some(uri), Some(token)) =
        (record.text(key::REGISTRATION_CLIENT_URI), record.text(key::REGISTRATION_ACCESS_TOKEN))
    else {
        return;
    };
    let origin = |text: &str| Url::parse(text).ok().map(|url| url.origin());
    if origin(uri).is_none() || origin(uri) != origin(&record.issuer()) {
        return;
    }
    let Ok(mut value) = header::HeaderValue::try_from(format!("Bearer {token}")) else { return };
    value.set_sensitive(true);
    let request = Request::builder()
        .method(Method::DELETE)
        .uri(uri)
        .header(header::AUTHORIZATION, value)
        .body(Body::default());
    if let Ok(request) = request
        && let Err(error) = http.send(request, record.guard(), Limits::COURTESY).await
    {
        tracing::debug!(class = ?error.class(), "the registered client could not be removed");
    }
}
