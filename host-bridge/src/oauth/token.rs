//! The token endpoint: what is sent to it, and what its answers mean. The same for the exchange of a code, a device's
//! polling and a refresh.
//!
//! An answer is judged whole before anything of it is used: status, JSON without duplicate keys, a token that can be
//! sent. Of an error only the code and a few printable characters of its description are ever shown.

use http::{HeaderValue, Method, Request, header};
use jiff::{SignedDuration, Timestamp};
use moat_shared::secret::Secret;
use serde::Deserialize;
use url::{Url, form_urlencoded};

use super::{
    http::{Answer as Response, Body},
    json,
    refresh::{Answer, Class},
};

/// How a client says who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthMethod {
    None,
    Basic,
    Post,
}

impl AuthMethod {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Basic => "client_secret_basic",
            Self::Post => "client_secret_post",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::None, Self::Basic, Self::Post].into_iter().find(|method| method.as_str() == text)
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) id: String,
    pub(crate) secret: Option<Secret<String>>,
    pub(crate) method: AuthMethod,
}

/// The tokens of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Tokens {
    pub(crate) access: Secret<String>,
    pub(crate) refresh: Option<Secret<String>>,
    /// Seconds; `None` or 0: nobody knows.
    pub(crate) expires_in: Option<u64>,
    pub(crate) scope: Option<String>,
}

impl Tokens {
    /// By the clock of this machine, from before the request was sent.
    pub(crate) fn expires_at(&self, sent: Timestamp) -> Option<Timestamp> {
        /// Longer than any token lives; more is as good as unknown.
        const CENTURY: u64 = 100 * 365 * 24 * 3600;
        let seconds = self.expires_in.filter(|seconds| (1..CENTURY).contains(seconds))?;
        sent.checked_add(SignedDuration::from_secs(i64::try_from(seconds).ok()?)).ok()
    }
}

/// Why there are no tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    /// The OAuth error, if it is one: printable, without spaces.
    pub(crate) error: Option<String>,
    /// The server's own words: printable, short.
    pub(crate) description: Option<String>,
    pub(crate) class: Class,
}

/// Makes a request to a token, revocation or device endpoint. Secrets are in memory that is wiped, except for the copy
/// that the connection writes from.
pub(crate) fn request(
    url: &Url,
    client: &Client,
    fields: &[(&str, &str)],
) -> Result<Request<Body>, http::Error> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(fields);
    let mut builder = Request::builder()
        .method(Method::POST)
        .uri(url.as_str())
        .header(header::ACCEPT, "application/json")
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
    match (client.method, &client.secret) {
        // RFC 6749 section 2.3.1: form-encoded first. And never the id in the body as well.
        (AuthMethod::Basic, Some(secret)) => {
            let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let pair = format!("{}:{}", encode(&client.id), encode(secret.expose()));
            let basic = format!("Basic {}", base64::Engine::encode(&base64::prelude::BASE64_STANDARD, pair));
            let mut value = HeaderValue::try_from(basic)?;
            value.set_sensitive(true);
            builder = builder.header(header::AUTHORIZATION, value);
        }
        (AuthMethod::Post, Some(secret)) => {
            form.append_pair("client_id", &client.id).append_pair("client_secret", secret.expose());
        }
        _ => {
            form.append_pair("client_id", &client.id);
        }
    }
    builder.body(form.finish().into())
}

/// Seconds as servers write them: a number, or a number in a string.
#[derive(Debug, Clone, Copy)]
struct Seconds(u64);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let seconds = match &value {
            serde_json::Value::Number(number) => number.as_u64(),
            serde_json::Value::String(text) => text.parse().ok(),
            _ => None,
        };
        seconds.map(Self).ok_or_else(|| serde::de::Error::custom("not a number of seconds"))
    }
}

#[derive(Deserialize)]
struct Given {
    access_token: Option<String>,
    token_type: Option<String>,
    expires_in: Option<Seconds>,
    refresh_token: Option<String>,
    scope: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

/// Judges a whole answer.
pub(crate) fn judge(answer: &Response) -> Result<Tokens, Refused> {
    let status = answer.status.as_u16();
    let refused = |class| Refused { status, error: None, description: None, class };
    if answer.status.is_redirection() {
        return Err(refused(Class::Redirect));
    }
    let given = json::object(answer).and_then(|value| serde_json::from_value::<Given>(value).ok());
    let error = given.as_ref().and_then(|given| given.error.as_deref());
    if let Some(error) = error {
        let class = match error {
            "invalid_grant" => Class::InvalidGrant,
            "invalid_client" => Class::InvalidClient,
            "unauthorized_client" => Class::UnauthorizedClient,
            "unsupported_grant_type" => Class::UnsupportedGrantType,
            "invalid_target" => Class::InvalidTarget,
            "invalid_scope" => Class::InvalidScope,
            "invalid_request" => Class::InvalidRequest,
            "slow_down" => Class::Throttled,
            _ if status >= 500 => Class::ServerError,
            _ => Class::Refused,
        };
        let description = given.as_ref().and_then(|given| given.error_description.as_deref());
        let shown = |text: &str| printable(text, 200);
        return Err(Refused {
            status,
            error: Some(printable(error, 64)),
            description: description.map(shown).filter(|text| !text.is_empty()),
            class,
        });
    }
    match (status, given) {
        (200, Some(given)) => tokens(given).ok_or_else(|| refused(Class::UnusableAnswer)),
        (200, None) => Err(refused(Class::UnusableAnswer)),
        (429 | 408, _) => Err(refused(Class::Throttled)),
        (500.., _) => Err(refused(Class::ServerError)),
        _ => Err(refused(Class::Refused)),
    }
}

fn tokens(given: Given) -> Option<Tokens> {
    let usable = |text: &String| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    let access = given.access_token.filter(usable)?;
    if !given.token_type.is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")) {
        return None;
    }
    let refresh = given.refresh_token.filter(|text| !text.is_empty());
    if refresh.as_ref().is_some_and(|text| !text.bytes().all(|byte| (0x20..0x7f).contains(&byte))) {
        return None;
    }
    Some(Tokens {
        access: Secret::new(access),
        refresh: refresh.map(Secret::new),
        expires_in: given.expires_in.map(|seconds| seconds.0),
        scope: given.scope.map(|scope| printable(&scope, 4096)),
    })
}

impl Refused {
    /// For the refresh: for good, or not now?
    pub(crate) fn answer(&self) -> Answer {
        match self.class {
            Class::InvalidGrant
            | Class::InvalidClient
            | Class::UnauthorizedClient
            | Class::UnsupportedGrantType
            | Class::InvalidTarget
            | Class::InvalidScope => Answer::Terminal(self.class),
            // A success: a server that rotates has taken the token.
            Class::UnusableAnswer => Answer::Unknown(self.class),
            class => Answer::Later(class),
        }
    }
}

/// What a server says, for people: printable ASCII only, and not much of it.
pub(crate) fn printable(text: &str, most: usize) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;
    use test_case::test_case;

    fn answer(status: u16, body: &str) -> Response {
        Response {
            status: StatusCode::from_u16(status).unwrap(),
            headers: http::HeaderMap::new(),
            body: bytes::Bytes::copy_from_slice(body.as_bytes()),
        }
    }

    #[test_case(200, r#"{"access_token":"t","token_type":"Bearer"}"# => None; "no expiry")]
    #[test_case(200, r#"{"access_token":"t","token_type":"bearer","expires_in":3600}"# => Some(3600))]
    #[test_case(200, r#"{"access_token":"t","token_type":"BEARER","expires_in":"3600"}"# => Some(3600); "in a string")]
    #[test_case(200, r#"{"access_token":"t","token_type":"bearer","expires_in":0}"# => Some(0); "zero")]
    fn usable(status: u16, body: &str) -> Option<u64> {
        judge(&answer(status, body)).unwrap().expires_in
    }

    #[test_case(200, r#"{"access_token":"","token_type":"bearer"}"# => Class::UnusableAnswer; "f7 an empty token")]
    #[test_case(200, r#"{"authed_user":{"access_token":"x"},"token_type":"bearer"}"# => Class::UnusableAnswer; "f7 a nested token")]
    #[test_case(200, r#"{"access_token":"a b","token_type":"bearer"}"# => Class::UnusableAnswer; "a space")]
    #[test_case(200, r#"{"access_token":"t","token_type":"mac"}"# => Class::UnusableAnswer; "another type")]
    #[test_case(200, r#"{"access_token":"t"}"# => Class::UnusableAnswer; "no type")]
    #[test_case(200, r#"{"access_token":"t","token_type":"bearer","expires_in":-1}"# => Class::UnusableAnswer; "a13 negative")]
    #[test_case(200, r#"{"access_token":"t","token_type":"bearer","expires_in":1e99}"# => Class::UnusableAnswer; "a13 huge")]
    #[test_case(200, r#"{"access_token":"t","access_token":"u","token_type":"bearer"}"# => Class::UnusableAnswer; "o14 a key twice")]
    #[test_case(200, r#"{"error":"invalid_grant"}"# => Class::InvalidGrant; "an error with 200")]
    #[test_case(200, "access_token=t&token_type=bearer" => Class::UnusableAnswer; "a form")]
    #[test_case(400, r#"{"error":"invalid_grant"}"# => Class::InvalidGrant)]
    #[test_case(401, r#"{"error":"invalid_client"}"# => Class::InvalidClient)]
    #[test_case(400, "Forbidden" => Class::Refused; "no json")]
    #[test_case(503, "<html>" => Class::ServerError)]
    #[test_case(500, r#"{"error":"server_error"}"# => Class::ServerError; "with an error")]
    #[test_case(429, "" => Class::Throttled)]
    #[test_case(307, r#"{"access_token":"t","token_type":"bearer"}"# => Class::Redirect; "f9 a redirect")]
    #[test_case(201, r#"{"access_token":"t","token_type":"bearer"}"# => Class::Refused; "201")]
    fn a6_unusable(status: u16, body: &str) -> Class {
        judge(&answer(status, body)).unwrap_err().class
    }

    #[test]
    fn f14_a_body_is_never_shown() {
        let body =
            r#"{"error":"invalid_grant","error_description":"\u001b[31mred","marker":"SECRET-MARKER"}"#;
        let refused = judge(&answer(400, body)).unwrap_err();
        assert_eq!(refused.description.as_deref(), Some("[31mred"));
        assert!(!format!("{refused:?}").contains("SECRET-MARKER"));
    }

    #[test_case(None => None; "absent")]
    #[test_case(Some(0) => None; "zero")]
    #[test_case(Some(60) => Some(60))]
    #[test_case(Some(u64::MAX) => None; "endless")]
    fn a13_expiry(expires_in: Option<u64>) -> Option<i64> {
        let tokens = Tokens { access: Secret::new("t".to_owned()), refresh: None, expires_in, scope: None };
        tokens.expires_at(Timestamp::UNIX_EPOCH).map(Timestamp::as_second)
    }

    fn sent(method: AuthMethod) -> (Option<String>, String) {
        let client =
            Client { id: "my id".to_owned(), secret: Some(Secret::new("s:+/ %".to_owned())), method };
        let url = Url::parse("https://as.example/token?keep=1").unwrap();
        let request = request(&url, &client, &[("grant_type", "refresh_token")]).unwrap();
        assert_eq!(request.uri(), "https://as.example/token?keep=1");
        let basic = request.headers().get(header::AUTHORIZATION);
        assert!(basic.is_none_or(HeaderValue::is_sensitive));
        let basic = basic.map(|value| value.to_str().unwrap().to_owned());
        (basic, String::from_utf8(request.body().whole().to_vec()).unwrap())
    }

    #[test]
    fn f8_every_way_to_say_who_it_is() {
        let (basic, body) = sent(AuthMethod::Basic);
        let pair = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, "my+id:s%3A%2B%2F+%25");
        assert_eq!((basic, body.as_str()), (Some(format!("Basic {pair}")), "grant_type=refresh_token"));
        let post = "grant_type=refresh_token&client_id=my+id&client_secret=s%3A%2B%2F+%25";
        assert_eq!(sent(AuthMethod::Post), (None, post.to_owned()));
        let none = "grant_type=refresh_token&client_id=my+id";
        assert_eq!(sent(AuthMethod::None), (None, none.to_owned()));
    }
}
