//! `~/.moat/oauth/<name>.yaml`: what a person knows of an authorization server and of their client there. moat never
//! writes this file.

use std::path::Path;

use moat_shared::secret::Secret;
use url::Url;

use super::{Problems, Warning, fields::Fields, problem::Report, read, yaml, yaml::Value};
use crate::oauth::token::AuthMethod;

/// A checked file; everything in it is optional.
#[derive(Debug, Default)]
pub(crate) struct OAuthFile {
    /// Authorization and token endpoint: both, or none.
    pub(crate) endpoints: Option<(Url, Url)>,
    pub(crate) client_id: Option<String>,
    pub(crate) client_secret: Option<Secret<String>>,
    pub(crate) scopes: Option<String>,
    pub(crate) issuer: Option<String>,
    pub(crate) resource: Option<String>,
    pub(crate) redirect_uri: Option<Url>,
    pub(crate) auth_method: Option<AuthMethod>,
    pub(crate) client_metadata_url: Option<String>,
    pub(crate) allow_private: bool,
    pub(crate) warnings: Vec<Warning>,
}

const KEYS: [&str; 11] = [
    "auth_url",
    "token_url",
    "client_id",
    "client_secret",
    "scopes",
    "issuer",
    "resource",
    "redirect_uri",
    "token_auth_method",
    "client_metadata_url",
    "allow_private_network",
];

impl OAuthFile {
    /// Reads the file at `path`; `None`: there is none.
    pub(crate) fn load(path: &Path) -> Result<Option<Self>, Problems> {
        let file = path.display().to_string();
        let Some(text) = read(path, &file)? else { return Ok(None) };
        Self::parse(&text, &file).map(Some)
    }

    fn parse(text: &str, file: &str) -> Result<Self, Problems> {
        let mut report = Report::new(file);
        let root = yaml::parse(text)
            .map_err(|source| Problems::Parsing { file: file.to_owned(), source })?
            .filter(|root| !root.is_null());
        let mut read = Self::default();
        if let Some(top) =
            root.as_ref().and_then(|root| Fields::of(root, String::new(), "the file", &mut report))
        {
            read.fill(&top, &mut report);
        }
        read.warnings = report.finish()?;
        Ok(read)
    }

    fn fill(&mut self, top: &Fields<'_>, report: &mut Report) {
        top.check_keys(&KEYS, report);
        let auth_url = url(top, "auth_url", report);
        let token_url = url(top, "token_url", report);
        // One that is there and wrong was told of already.
        let lacks = |key: &str| top.node(key).is_none();
        self.endpoints = match (auth_url, token_url) {
            (Some(auth_url), Some(token_url)) => Some((auth_url, token_url)),
            (Some(_), None) if lacks("token_url") => {
                report.problem(top.line, "", "'token_url' is required where 'auth_url' is given");
                None
            }
            (None, Some(_)) if lacks("auth_url") => {
                report.problem(top.line, "", "'auth_url' is required where 'token_url' is given");
                None
            }
            _ => None,
        };
        let mut text =
            |key: &str| top.text(key, report).map(|text| text.text).filter(|text| !text.is_empty());
        self.client_id = text("client_id");
        self.client_secret = text("client_secret").map(Secret::new);
        self.issuer = text("issuer");
        self.resource = text("resource");
        self.client_metadata_url = text("client_metadata_url");
        self.scopes = match top.node("scopes").map(|node| &node.value) {
            Some(Value::List(_)) => top
                .texts("scopes", report)
                .map(|scopes| scopes.into_iter().map(|scope| scope.text).collect::<Vec<_>>().join(" ")),
            _ => top.text("scopes", report).map(|text| text.text),
        };
        self.redirect_uri = top.text("redirect_uri", report).and_then(|given| {
            let uri = Url::parse(&given.text).ok().filter(is_loopback);
            if uri.is_none() {
                report.problem(
                    given.line,
                    "",
                    "'redirect_uri' must be http:// on 127.0.0.1 or localhost: the sign-in ends on this machine",
                );
            }
            uri
        });
        self.auth_method = top.text("token_auth_method", report).and_then(|given| {
            let method = AuthMethod::parse(&given.text);
            if method.is_none() {
                report.problem(
                    given.line,
                    "",
                    "'token_auth_method' must be none, client_secret_basic or client_secret_post",
                );
            }
            method
        });
        self.allow_private = top.flag("allow_private_network", report).unwrap_or_default();
    }
}

fn is_loopback(url: &Url) -> bool {
    url.scheme() == "http" && matches!(url.host_str(), Some("127.0.0.1" | "localhost"))
}

fn url(top: &Fields<'_>, key: &str, report: &mut Report) -> Option<Url> {
    let given = top.text(key, report)?;
    endpoint(key, &given.text).map_err(|text| report.problem(given.line, "", text)).ok()
}

/// An endpoint, as a flag or a file gives it.
pub(crate) fn endpoint(key: &str, text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("{key} is not a valid URL: {error}"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if crate::oauth::guard::is_local(&url) => Ok(url),
        other => Err(format!("{key} must use HTTPS (got {other:?})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test]
    fn f15_all_of_it_is_read() {
        let file = OAuthFile::parse(
            "auth_url: https://a/authorize\ntoken_url: https://a/token\nclient_id: me\nclient_secret: s3cr3t\n\
             scopes: [a, b]\nissuer: https://a\nredirect_uri: http://localhost:7000/back\n\
             token_auth_method: client_secret_post\nallow_private_network: true\n",
            "f",
        )
        .unwrap();
        assert_eq!(file.endpoints.as_ref().unwrap().1.as_str(), "https://a/token");
        assert_eq!(file.scopes.as_deref(), Some("a b"));
        assert_eq!(file.auth_method, Some(AuthMethod::Post));
        assert!(file.allow_private && !format!("{file:?}").contains("s3cr3t"));
    }

    #[test_case("auth_url: https://a/x" => "f:1: 'token_url' is required where 'auth_url' is given"; "half a pair")]
    #[test_case("auth_url: http://a/x\ntoken_url: https://a/y" => "f:1: auth_url must use HTTPS (got \"http\")"; "plain")]
    #[test_case("client-id: x" => "f:1: unknown key \"client-id\" (did you mean \"client_id\"?)"; "unknown")]
    #[test_case("redirect_uri: https://evil.example/" => "f:1: 'redirect_uri' must be http:// on 127.0.0.1 or localhost: the sign-in ends on this machine"; "elsewhere")]
    fn f15_mistakes_are_told(text: &str) -> String {
        OAuthFile::parse(text, "f").unwrap_err().to_string().replacen("loading config: ", "", 1)
    }
}
