//! `WWW-Authenticate`: what a server says about the token it wants (RFC 9110 section 11.6.1, RFC 6750, RFC 9728).

use http::{HeaderMap, header::WWW_AUTHENTICATE};

use super::token::printable;

/// The first `Bearer` challenge that says something.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) resource_metadata: Option<String>,
    pub(crate) scope: Option<String>,
    pub(crate) error: Option<String>,
}

impl Challenge {
    /// Of an answer's headers. `None`: none of them asks for a bearer token.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut found: Option<Self> = None;
        for challenge in values.flat_map(bearer) {
            let merged = found.get_or_insert_with(Self::default);
            merged.resource_metadata = merged.resource_metadata.take().or(challenge.resource_metadata);
            merged.scope = merged.scope.take().or(challenge.scope);
            merged.error = merged.error.take().or(challenge.error);
        }
        found
    }
}

/// All `Bearer` challenges of one header.
fn bearer(text: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut is_bearer = false;
    for item in items(text) {
        let (scheme, parameter) = match item.split_once(char::is_whitespace) {
            // `Scheme name=value`; spaces around `=` belong to a parameter.
            Some((scheme, rest)) if is_token(scheme) && !rest.trim_start().starts_with('=') => {
                (Some(scheme), rest.trim())
            }
            _ if is_token(item) => (Some(item), ""),
            _ => (None, item),
        };
        if let Some(scheme) = scheme {
            is_bearer = scheme.eq_ignore_ascii_case("bearer");
            if is_bearer {
                found.push(Challenge::default());
            }
        }
        let (true, Some(challenge), Some((name, value))) =
            (is_bearer, found.last_mut(), parameter.split_once('='))
        else {
            continue;
        };
        let value = unquoted(value.trim());
        match name.trim().to_ascii_lowercase().as_str() {
            "resource_metadata" => challenge.resource_metadata = Some(value),
            "scope" => challenge.scope = Some(printable(&value, 4096)).filter(|scope| !scope.is_empty()),
            "error" => challenge.error = Some(printable(&value, 64)),
            _ => {}
        }
    }
    found
}

/// The text at its commas, except for those in quotes.
fn items(text: &str) -> Vec<&str> {
    let (mut items, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                items.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(text[start..].trim());
    items.retain(|item| !item.is_empty());
    items
}

fn unquoted(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut plain = String::with_capacity(inner.len());
    let mut escaped = false;
    for c in inner.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            plain.push(c);
            escaped = false;
        }
    }
    plain
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn of(values: &[&str]) -> Option<(Option<String>, Option<String>, Option<String>)> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::of(&headers).map(|c| (c.resource_metadata, c.scope, c.error))
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test_case(&[] => None)]
    #[test_case(&["Basic realm=\"x\""] => None; "another scheme")]
    #[test_case(&["Bearer"] => Some((None, None, None)); "bare")]
    #[test_case(&["bearer resource_metadata=\"https://h/m\", scope=\"a b\""] => Some((some("https://h/m"), some("a b"), None)))]
    #[test_case(&["Bearer scope=a,error=invalid_token"] => Some((None, some("a"), some("invalid_token"))); "tokens")]
    #[test_case(&["Basic realm=\"a, Bearer scope=evil\", Bearer scope=\"good\""] => Some((None, some("good"), None)); "quoted comma")]
    #[test_case(&["Bearer realm=\"x\\\"y\", scope = \"s\""] => Some((None, some("s"), None)); "escape and spaces")]
    #[test_case(&["Digest nonce=\"n\"", "Bearer scope=\"two\""] => Some((None, some("two"), None)); "two headers")]
    #[test_case(&["DPoP algs=\"ES256\", Bearer error=\"insufficient_scope\", scope=\"w\""] => Some((None, some("w"), some("insufficient_scope"))); "second of two")]
    #[test_case(&["Bearer scope=\"x\", Basic scope=\"y\""] => Some((None, some("x"), None)); "first of two")]
    fn d1_challenges(values: &[&str]) -> Option<(Option<String>, Option<String>, Option<String>)> {
        of(values)
    }
}
