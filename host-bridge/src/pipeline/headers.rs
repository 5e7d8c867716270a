//! Which headers travel: the hop-by-hop ones never (RFC 9110, section 7.6.1), nor what would carry another identity or
//! lead the agent around moat (R2, R7, R21).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Never forwarded in either direction.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "te" | "trailer" | "transfer-encoding" | "upgrade" | "http2-settings"
    ) || name.as_str().starts_with("proxy-")
}

/// What `Connection` names.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect()
}

/// Of a request, what servers and their front ends may take for another path, method or peer: where the request goes was
/// decided by its path.
const ELSEWHERE: [&str; 15] = [
    "cf-connecting-ip",
    "client-ip",
    "true-client-ip",
    "via",
    "x-client-ip",
    "x-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-uri",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
];
/// Of a request, what makes a server answer with a part or in another form of what it would: an echo of the credential
/// that comes in two halves, or in UTF-16, is not found.
const IN_ANOTHER_FORM: [&str; 5] = ["a-im", "accept-charset", "if-range", "range", "want-digest"];

/// Of a request, what may travel upstream, before credentials are looked at (R2). `Host` and the framing are made anew;
/// nothing may name a run (T5).
pub(super) fn to_upstream(headers: &HeaderMap) -> HeaderMap {
    let named = named_by_connection(headers);
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        if !is_hop_by_hop_request(name) && !is_own(name) && !is_alias(name) && !named.contains(name) {
            kept.append(name, value.clone());
        }
    }
    // Compressed bytes cannot be scanned as they pass (section 6.6).
    kept.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    kept
}

fn is_own(name: &HeaderName) -> bool {
    let name = name.as_str();
    matches!(name, "host" | "content-length" | "expect" | "origin" | "forwarded" | "accept-encoding")
        || ELSEWHERE.contains(&name)
        || IN_ANOTHER_FORM.contains(&name)
        || name.starts_with("x-forwarded-")
        || name.starts_with("x-moat-")
        || name.starts_with("moat-")
}

/// Servers behind CGI and its heirs (WSGI, Rack, PHP) cannot tell `_` from `-`: what was judged under one name must not
/// come in under the other.
fn is_alias(name: &HeaderName) -> bool {
    let Some(plain) = with_hyphens(name) else { return false };
    let judged = matches!(
        plain.as_str(),
        "authorization" | "cookie" | "content-type" | "content-encoding" | "last-event-id"
    );
    judged || plain.as_str().starts_with("mcp-") || is_hop_by_hop(&plain) || is_own(&plain)
}

/// The name as a server reads it that cannot tell `_` from `-`.
pub(super) fn plain(name: &HeaderName) -> Cow<'_, HeaderName> {
    with_hyphens(name).map_or(Cow::Borrowed(name), Cow::Owned)
}

/// The name that some take it for, if it is another one.
fn with_hyphens(name: &HeaderName) -> Option<HeaderName> {
    name.as_str().contains('_').then(|| name.as_str().replace('_', "-").parse().ok()).flatten()
}

/// `Proxy-Authorization` stays for the moment: it is dropped with a record, as a credential.
fn is_hop_by_hop_request(name: &HeaderName) -> bool {
    is_hop_by_hop(name) && *name != header::PROXY_AUTHORIZATION
}

/// Of a response, what may travel to the agent (R21). The framing is made anew.
pub(super) fn to_agent(headers: &HeaderMap) -> HeaderMap {
    let named = named_by_connection(headers);
    let own = |name: &HeaderName| {
        matches!(
            name.as_str(),
            "content-length"
                | "content-encoding"
                | "location"
                | "set-cookie"
                | "set-cookie2"
                | "www-authenticate"
                | "authentication-info"
                | "alt-svc"
                | "strict-transport-security"
                | "refresh"
                | "clear-site-data"
        )
    };
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        if !is_hop_by_hop(name) && !own(name) && !named.contains(name) {
            kept.append(name, value.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn names(map: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test_case("connection", "x-gone"; "connection")]
    #[test_case("keep-alive", "5"; "keep alive")]
    #[test_case("te", "trailers"; "te")]
    #[test_case("trailer", "x"; "trailer")]
    #[test_case("transfer-encoding", "chunked"; "transfer encoding")]
    #[test_case("upgrade", "h2c"; "upgrade")]
    #[test_case("proxy-connection", "close"; "proxy connection")]
    #[test_case("proxy-authenticate", "x"; "proxy authenticate")]
    fn r2_hop_by_hop_both_ways(name: &'static str, value: &'static str) {
        let map = headers(&[(name, value), ("x-gone", "1"), ("x-kept", "1")]);
        let connection = name == "connection";
        assert_eq!(names(&to_upstream(&map)).contains(&"x-gone"), !connection);
        assert_eq!(names(&to_agent(&map)).contains(&"x-gone"), !connection);
        assert!(!to_upstream(&map).contains_key(name) && !to_agent(&map).contains_key(name));
        assert!(to_upstream(&map).contains_key("x-kept") && to_agent(&map).contains_key("x-kept"));
    }

    #[test_case("host"; "r3 host")]
    #[test_case("origin"; "origin")]
    #[test_case("forwarded"; "forwarded")]
    #[test_case("x-forwarded-for"; "x forwarded for")]
    #[test_case("expect"; "t8 expect")]
    #[test_case("content-length"; "content length")]
    #[test_case("x-moat-run"; "t5 a header that names a run")]
    #[test_case("x-original-url"; "another path")]
    #[test_case("x-rewrite-url"; "another path for others")]
    #[test_case("x-http-method-override"; "another method")]
    #[test_case("x-real-ip"; "another peer")]
    #[test_case("transfer_encoding"; "framing for CGI")]
    #[test_case("mcp_session_id"; "r15 a session for CGI")]
    #[test_case("x_forwarded_for"; "another peer for CGI")]
    #[test_case("range"; "an echo in halves")]
    #[test_case("if-range"; "an echo in halves, perhaps")]
    #[test_case("accept-charset"; "an echo in UTF-16")]
    fn r2_never_upstream(name: &'static str) {
        assert_eq!(names(&to_upstream(&headers(&[(name, "1")]))), ["accept-encoding"]);
    }

    #[test_case("accept"; "r5 accept")]
    #[test_case("mcp-protocol-version"; "r6 version")]
    #[test_case("mcp-param-region"; "mcp param")]
    #[test_case("last-event-id"; "r16 last event id")]
    #[test_case("x-unknown"; "unknown")]
    #[test_case("x_unknown"; "unknown, with an underscore")]
    fn r2_end_to_end(name: &'static str) {
        assert!(to_upstream(&headers(&[(name, "1")])).contains_key(name));
    }

    #[test_case("location")]
    #[test_case("set-cookie")]
    #[test_case("www-authenticate")]
    #[test_case("alt-svc")]
    #[test_case("strict-transport-security")]
    fn r21_never_to_the_agent(name: &'static str) {
        assert!(to_agent(&headers(&[(name, "1")])).is_empty());
    }
}
