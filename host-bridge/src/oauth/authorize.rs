//! One authorization request: its URL, and what an answer to it may look like (RFC 6749, 7636, 8252, 8707, 9207).
//!
//! [`Pending`] is one value: state, verifier, issuer, redirect URI, resource and client belong together, and the exchange
//! consumes it. [`Pending::judge`] decides about every answer, whichever way it comes.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use moat_shared::secret::Secret;
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};
use url::Url;

use super::{discovery::Authority, token::printable};

/// A request that waits for its answer.
#[derive(Debug)]
pub(crate) struct Pending {
    state: Secret<String>,
    verifier: Secret<String>,
    /// Who may answer.
    issuer: Option<String>,
    /// Without an issuer: the origins that `iss` may have.
    origins: Vec<String>,
    promises_iss: bool,
    pub(crate) redirect_uri: String,
}

/// What an answer is.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Not an answer to this request. Nothing happens.
    Stray,
    /// From another issuer, or nobody says from whom. What else it says is not read.
    OtherIssuer {
        said: Option<String>,
    },
    /// The server said no.
    Refused {
        error: String,
        description: Option<String>,
    },
    Code(Secret<String>),
}

impl Pending {
    /// # Errors
    /// When the system gives no random bytes.
    pub(crate) fn new(authority: &Authority, redirect_uri: String) -> Result<Self, ring::error::Unspecified> {
        let origins =
            [&authority.auth_url, &authority.token_url].map(|url| url.origin().ascii_serialization());
        Ok(Self {
            state: random()?,
            verifier: random()?,
            issuer: authority.issuer.clone(),
            origins: origins.into(),
            promises_iss: authority.promises_iss,
            redirect_uri,
        })
    }

    /// Where the person goes. The endpoint's own query stays.
    pub(crate) fn url(
        &self,
        endpoint: &Url,
        client_id: &str,
        scope: Option<&str>,
        resource: Option<&str>,
        prompt_consent: bool,
    ) -> Url {
        let hash = digest(&SHA256, self.verifier.expose().as_bytes());
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(hash);
        let mut url = endpoint.clone();
        {
            let mut query = url.query_pairs_mut();
            query
                .append_pair("response_type", "code")
                .append_pair("client_id", client_id)
                .append_pair("redirect_uri", &self.redirect_uri)
                .append_pair("state", self.state.expose())
                .append_pair("code_challenge", &challenge)
                .append_pair("code_challenge_method", "S256");
            if let Some(scope) = scope {
                query.append_pair("scope", scope);
            }
            if let Some(resource) = resource {
                query.append_pair("resource", resource);
            }
            if prompt_consent {
                query.append_pair("prompt", "consent");
            }
        }
        url
    }

    /// Judges the query of an answer: state first, then the issuer, and only then what it says (O7).
    pub(crate) fn judge(&self, query: &str) -> Verdict {
        let pairs: Vec<(String, String)> =
            url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let mut twice = false;
        let mut one = |name: &str| {
            let mut values = pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
            let first = values.next();
            twice |= values.next().is_some();
            first
        };
        let (state, code, iss, error) = (one("state"), one("code"), one("iss"), one("error"));
        if twice || !state.is_some_and(|state| equal(state, self.state.expose())) {
            return Verdict::Stray;
        }
        let right = match (iss, &self.issuer) {
            (Some(iss), Some(issuer)) => iss == issuer,
            (Some(iss), None) => {
                let origin = Url::parse(iss).ok().map(|url| url.origin().ascii_serialization());
                origin.is_some_and(|origin| self.origins.contains(&origin))
            }
            (None, _) => !self.promises_iss,
        };
        if !right {
            return Verdict::OtherIssuer { said: iss.map(|iss| printable(iss, 200)) };
        }
        if let Some(error) = error {
            let description = pairs.iter().find(|(key, _)| key == "error_description");
            return Verdict::Refused {
                error: printable(error, 64),
                description: description.map(|(_, text)| printable(text, 200)).filter(|t| !t.is_empty()),
            };
        }
        match code {
            Some(code) if !code.is_empty() => Verdict::Code(Secret::new(code.to_owned())),
            _ => Verdict::Stray,
        }
    }

    pub(crate) fn verifier(&self) -> &Secret<String> {
        &self.verifier
    }

    #[cfg(test)]
    pub(crate) fn state(&self) -> &str {
        self.state.expose()
    }
}

/// 32 random bytes, in base64url.
fn random() -> Result<Secret<String>, ring::error::Unspecified> {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    SystemRandom::new().fill(bytes.as_mut())?;
    Ok(Secret::new(BASE64_URL_SAFE_NO_PAD.encode(*bytes)))
}

/// In constant time.
fn equal(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().zip(other.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
pub(crate) fn pending_for_tests(issuer: Option<&str>, promises_iss: bool) -> Pending {
    let url = |path: &str| Url::parse(&format!("https://as.example{path}")).unwrap();
    let authority = Authority {
        issuer: issuer.map(str::to_owned),
        auth_url: url("/authorize?tenant=1"),
        token_url: url("/token"),
        registration_url: None,
        revocation_url: None,
        device_url: None,
        promises_iss,
        auth_methods: Vec::new(),
        takes_documents: false,
        scopes: Vec::new(),
    };
    Pending::new(&authority, "http://127.0.0.1:5000/callback".to_owned()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    const ISSUER: Option<&str> = Some("https://as.example");

    fn verdict(issuer: Option<&str>, promises: bool, query: &str) -> &'static str {
        let pending = pending_for_tests(issuer, promises);
        let query = query.replace("STATE", pending.state());
        match pending.judge(&query) {
            Verdict::Stray => "stray",
            Verdict::OtherIssuer { .. } => "issuer",
            Verdict::Refused { .. } => "refused",
            Verdict::Code(code) => {
                assert_eq!(code.expose(), "c");
                "code"
            }
        }
    }

    #[test_case(ISSUER, false, "code=c&state=STATE" => "code"; "no iss, none promised")]
    #[test_case(ISSUER, true, "code=c&state=STATE&iss=https://as.example" => "code"; "iss as promised")]
    #[test_case(ISSUER, false, "code=c&state=STATE&iss=https%3A%2F%2Fas.example" => "code"; "iss not promised, right")]
    #[test_case(ISSUER, true, "code=c&state=STATE" => "issuer"; "iss missing")]
    #[test_case(ISSUER, false, "code=c&state=STATE&iss=https://evil.example" => "issuer"; "another iss")]
    #[test_case(ISSUER, true, "code=c&state=STATE&iss=https://as.example/" => "issuer"; "nothing is normalised")]
    #[test_case(ISSUER, true, "error=access_denied&state=STATE&iss=https://evil.example" => "issuer"; "o7 iss before error")]
    #[test_case(None, false, "code=c&state=STATE&iss=https://as.example" => "code"; "explicit endpoints, their origin")]
    #[test_case(None, false, "code=c&state=STATE&iss=https://evil.example" => "issuer"; "explicit endpoints, another origin")]
    #[test_case(ISSUER, false, "error=access_denied&state=STATE" => "refused")]
    #[test_case(ISSUER, false, "error=access_denied" => "stray"; "f6 an error without state")]
    #[test_case(ISSUER, false, "code=c" => "stray"; "no state")]
    #[test_case(ISSUER, false, "code=c&state=wrong" => "stray"; "wrong state")]
    #[test_case(ISSUER, false, "code=c&state=STATE&state=STATE" => "stray"; "state twice")]
    #[test_case(ISSUER, false, "code=c&code=d&state=STATE" => "stray"; "code twice")]
    #[test_case(ISSUER, false, "code=c&state=STATE&iss=https://as.example&iss=https://as.example" => "stray"; "iss twice")]
    #[test_case(ISSUER, false, "code=&state=STATE" => "stray"; "an empty code")]
    #[test_case(ISSUER, false, "" => "stray"; "nothing")]
    fn a10_answers(issuer: Option<&str>, promises: bool, query: &str) -> &'static str {
        verdict(issuer, promises, query)
    }

    #[test]
    fn the_request_says_all_and_keeps_the_endpoint_s_query() {
        let pending = pending_for_tests(ISSUER, true);
        let endpoint = Url::parse("https://as.example/authorize?tenant=1").unwrap();
        let url = pending.url(&endpoint, "me", Some("a b"), Some("https://h/mcp"), true);
        let pairs: std::collections::BTreeMap<_, _> = url.query_pairs().into_owned().collect();
        let verifier = pending.verifier().expose();
        let challenge = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
        assert_eq!(pairs["tenant"], "1");
        assert_eq!(pairs["code_challenge"], challenge);
        assert_eq!(pairs["code_challenge_method"], "S256");
        assert_eq!(pairs["resource"], "https://h/mcp");
        assert_eq!(pairs["scope"], "a b");
        assert_eq!(pairs["prompt"], "consent");
        assert_eq!(pairs["redirect_uri"], "http://127.0.0.1:5000/callback");
        assert!(verifier.len() == 43 && !url.as_str().contains(verifier.as_str()));
        assert!(!format!("{pending:?}").contains(verifier.as_str()));
        assert_ne!(pending.state(), pending_for_tests(ISSUER, true).state());
    }
}
