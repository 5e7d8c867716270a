//! Host and Origin: who may speak to the relay at all (R4).
//!
//! A page in a browser can make a foreign name resolve to 127.0.0.1, but it cannot make that name one of ours.

use http::{
    HeaderMap, Uri,
    header::{HOST, ORIGIN},
    uri::Scheme,
};

const NAMES: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];

/// Knows the relay's own authority.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    port: u16,
}

/// The request is not for this relay, or not from here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Foreign {
    #[error(
        "moat: the relay answers only to its own address (127.0.0.1, localhost or [::1], with its port); it is no \
         proxy for other hosts: set NO_PROXY, or take the server's URL from the agent's configuration"
    )]
    Host,
    #[error("moat: the relay answers no web pages: the request's Origin is not on this machine's loopback")]
    Origin,
}

impl Guard {
    pub(crate) fn new(port: u16) -> Self {
        Self { port }
    }

    /// Judges the request's target and its headers alike: a target in absolute form counts like a Host header, and
    /// at least one of them has to be there.
    pub(crate) fn check(&self, target: &Uri, headers: &HeaderMap) -> Result<(), Foreign> {
        let scheme = target.scheme().is_none_or(|scheme| *scheme == Scheme::HTTP);
        let mut hosts = 0;
        let named = target.authority().map(|authority| authority.as_str().as_bytes());
        for host in named.into_iter().chain(headers.get_all(HOST).iter().map(|host| host.as_bytes())) {
            hosts += 1;
            if !self.is_ours(host) {
                return Err(Foreign::Host);
            }
        }
        if !scheme || hosts == 0 || headers.get_all(HOST).iter().count() > 1 {
            return Err(Foreign::Host);
        }
        if headers.get_all(ORIGIN).iter().all(|origin| is_loopback_origin(origin.as_bytes())) {
            Ok(())
        } else {
            Err(Foreign::Origin)
        }
    }

    fn is_ours(&self, authority: &[u8]) -> bool {
        match split(authority) {
            Some((_, Some(port))) => port == self.port,
            Some((_, None)) => self.port == 80,
            None => false,
        }
    }
}

/// `http://<loopback>[:<any port>]`: a local tool of the agent's, not a page from the net.
fn is_loopback_origin(origin: &[u8]) -> bool {
    let authority = origin.strip_prefix(b"http://").or_else(|| origin.strip_prefix(b"https://"));
    authority.and_then(split).is_some()
}

/// A loopback name and its port; `None` for any other name or anything that is not just these two.
fn split(authority: &[u8]) -> Option<(&'static str, Option<u16>)> {
    let authority = std::str::from_utf8(authority).ok()?;
    NAMES.into_iter().find_map(|name| {
        let (host, rest) = authority.split_at_checked(name.len())?;
        if !host.eq_ignore_ascii_case(name) {
            return None;
        }
        match rest.strip_prefix(':') {
            Some(port) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
                Some((name, Some(port.parse().ok()?)))
            }
            None if rest.is_empty() => Some((name, None)),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use test_case::test_case;

    fn check(target: &str, hosts: &[&str], origins: &[&str]) -> Result<(), Foreign> {
        let mut request = Request::builder().uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        for origin in origins {
            request = request.header(ORIGIN, *origin);
        }
        let request = request.body(()).unwrap();
        Guard::new(4000).check(request.uri(), request.headers())
    }

    #[test_case("/x", &["127.0.0.1:4000"] => true; "literal")]
    #[test_case("/x", &["LocalHost:4000"] => true; "name")]
    #[test_case("/x", &["[::1]:4000"] => true; "ipv6")]
    #[test_case("http://127.0.0.1:4000/x", &["127.0.0.1:4000"] => true; "absolute")]
    #[test_case("http://localhost:4000/x", &[] => true; "absolute and no header, as in http 2")]
    #[test_case("127.0.0.1:4000", &["127.0.0.1:4000"] => true; "connect")]
    #[test_case("/x", &[] => false; "none")]
    #[test_case("/x", &["127.0.0.1"] => false; "no port")]
    #[test_case("/x", &["127.0.0.1:4001"] => false; "other port")]
    #[test_case("/x", &["127.0.0.1:04000000"] => false; "port too long")]
    #[test_case("/x", &["127.0.0.1:"] => false; "empty port")]
    #[test_case("/x", &["127.0.0.1:+4000"] => false; "signed port")]
    #[test_case("/x", &["127.0.0.1.evil.example:4000"] => false; "longer name")]
    #[test_case("/x", &["localhost.:4000"] => false; "dotted name")]
    #[test_case("/x", &["evil.example:4000"] => false; "rebinding")]
    #[test_case("/x", &["u@127.0.0.1:4000"] => false; "user")]
    #[test_case("/x", &["127.0.0.1:4000", "127.0.0.1:4000"] => false; "two headers")]
    #[test_case("/x", &["127.0.0.1:4000", "evil.example"] => false; "two names")]
    #[test_case("http://evil.example/x", &["127.0.0.1:4000"] => false; "foreign target")]
    #[test_case("http://evil.example@127.0.0.1:4000/x", &["127.0.0.1:4000"] => false; "user in the target")]
    #[test_case("http://127.0.0.1:4000/x", &["evil.example"] => false; "foreign header")]
    #[test_case("https://127.0.0.1:4000/x", &["127.0.0.1:4000"] => false; "other scheme")]
    #[test_case("example.com:443", &["example.com:443"] => false; "connect elsewhere")]
    fn hosts(target: &str, hosts: &[&str]) -> bool {
        check(target, hosts, &[]) != Err(Foreign::Host)
    }

    #[test_case(&[] => true; "absent")]
    #[test_case(&["http://localhost:6274"] => true; "any port")]
    #[test_case(&["https://127.0.0.1"] => true; "no port")]
    #[test_case(&["http://[::1]:1"] => true; "ipv6")]
    #[test_case(&["null"] => false; "null")]
    #[test_case(&[""] => false; "empty")]
    #[test_case(&["http://evil.example"] => false; "page")]
    #[test_case(&["http://localhost.evil.example"] => false; "longer name")]
    #[test_case(&["http://localhost:1/"] => false; "more than an origin")]
    #[test_case(&["file://localhost"] => false; "scheme")]
    #[test_case(&["http://localhost", "http://evil.example"] => false; "two")]
    fn origins(origins: &[&str]) -> bool {
        check("/x", &["127.0.0.1:4000"], origins) != Err(Foreign::Origin)
    }
}
