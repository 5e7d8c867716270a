//! Keeps a request below the configured URL: what the agent adds to the path stays below the configured path, what it
//! adds to the query never replaces the configured query (R1, section 6.5).
//!
//! The rest of the path is refused, not repaired: what two servers could read differently (dot segments, encoded
//! slashes and percent signs, backslashes, control bytes, empty segments) has no use in an MCP URL. What passes is
//! sent as the agent wrote it.

use http::uri::PathAndQuery;
use percent_encoding::percent_decode_str;

use crate::server::Upstream;

/// Joins the agent's rest and query below the upstream's URL.
pub(super) fn join(
    upstream: &Upstream,
    rest: &str,
    query: Option<&str>,
) -> Result<PathAndQuery, &'static str> {
    check_rest(rest)?;
    let mut target = String::with_capacity(upstream.path().len() + rest.len() + 1);
    target.push_str(upstream.path());
    if !rest.is_empty() {
        // Both have the slash, or the configured path has none at its end.
        if target.ends_with('/') {
            target.pop();
        }
        target.push_str(rest);
    }
    match (upstream.query().filter(|q| !q.is_empty()), query.filter(|q| !q.is_empty())) {
        (None, None) => {}
        (Some(query), None) | (None, Some(query)) => {
            target.push('?');
            target.push_str(query);
        }
        (Some(ours), Some(theirs)) => {
            if overrides(ours, theirs) {
                return Err("the query repeats a parameter of the configured URL");
            }
            target.push('?');
            target.push_str(ours);
            target.push('&');
            target.push_str(theirs);
        }
    }
    let joined: PathAndQuery = target.parse().map_err(|_| "it is not a URL path")?;
    // What is read as a fragment is left out: `key#x` was judged, and `key` would be sent.
    if joined.as_str() == target { Ok(joined) } else { Err("a fragment") }
}

/// May this stand below the configured path? Empty, or `/` and segments.
fn check_rest(rest: &str) -> Result<(), &'static str> {
    if rest.is_empty() {
        return Ok(());
    }
    if !rest.starts_with('/') || rest.contains("//") {
        return Err("an empty path segment");
    }
    if rest.bytes().any(|b| !b.is_ascii_graphic() || matches!(b, b'\\' | b'#')) {
        return Err("a byte that a path must not hold");
    }
    if !is_well_encoded(rest) {
        return Err("a broken percent encoding");
    }
    for segment in rest.split('/') {
        let decoded = percent_decode_str(segment).decode_utf8().map_err(|_| "a path that is not UTF-8")?;
        if decoded.contains(|c: char| c.is_control() || matches!(c, '/' | '\\')) {
            return Err("an encoded slash, backslash or control byte");
        }
        if decoded.contains('%')
            && decoded.bytes().zip(1..).any(|(b, i)| b == b'%' && is_hex_pair(&decoded, i))
        {
            return Err("a doubly encoded path");
        }
        // `..;x` is `..` to servers that know path parameters, `..%23x` and `..%3Fx` to those that decode before they read.
        let name = decoded.split([';', '#', '?']).next().unwrap_or_default().trim();
        if matches!(name, "." | "..") {
            return Err("a dot segment");
        }
    }
    Ok(())
}

fn is_hex_pair(text: &str, at: usize) -> bool {
    text.as_bytes().get(at..at + 2).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit))
}

fn is_well_encoded(text: &str) -> bool {
    text.bytes().zip(1..).all(|(b, i)| b != b'%' || is_hex_pair(text, i))
}

/// Does the agent's query name a parameter that the configured query has? Some servers read the last one.
fn overrides(ours: &str, theirs: &str) -> bool {
    let names = |query: &str| -> Vec<String> {
        url::form_urlencoded::parse(query.replace(';', "&").as_bytes())
            .map(|(name, _)| meant(&name))
            .collect()
    };
    let ours = names(ours);
    names(theirs).iter().any(|theirs| ours.contains(theirs))
}

/// A parameter's name as the most lenient reader takes it: `key[]`, ` key`, `k.ey` and `KEY\0x` are names of old
/// acquaintances to some.
fn meant(name: &str) -> String {
    let name = name.trim_start();
    let end = name.find(['[', '\0']).filter(|end| *end > 0).unwrap_or(name.len());
    name[..end].trim_end().replace(['.', ' ', '['], "_").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn upstream(url: &str) -> Upstream {
        Upstream::try_from(url.to_owned()).unwrap()
    }

    #[test_case("https://h/mcp", "", None => "/mcp"; "nothing added")]
    #[test_case("https://h", "", None => "/"; "no path")]
    #[test_case("https://h/mcp", "/", None => "/mcp/"; "slash")]
    #[test_case("https://h/mcp/", "/tools", None => "/mcp/tools"; "one slash between")]
    #[test_case("https://h/", "/tools", None => "/tools"; "below the root")]
    #[test_case("https://h/mcp", "/a%20b/c.d", None => "/mcp/a%20b/c.d"; "as written")]
    #[test_case("https://h/mcp?key=k", "", None => "/mcp?key=k"; "R1 configured query kept")]
    #[test_case("https://h/mcp?key=k", "", Some("a=b") => "/mcp?key=k&a=b"; "R1 merged after it")]
    #[test_case("https://h/mcp", "", Some("sessionId=1") => "/mcp?sessionId=1"; "R1 the agent's query")]
    fn joined(url: &str, rest: &str, query: Option<&str>) -> String {
        join(&upstream(url), rest, query).unwrap().to_string()
    }

    #[test_case("/.."; "up")]
    #[test_case("/../admin"; "up and down")]
    #[test_case("/x/../../admin"; "further up")]
    #[test_case("/%2e%2e/admin"; "encoded")]
    #[test_case("/..%23%23k"; "before an encoded fragment")]
    #[test_case("/..%3fk"; "before an encoded query")]
    #[test_case("/%2E%2e/admin"; "mixed case")]
    #[test_case("/.%2e"; "half encoded")]
    #[test_case("/..%2fadmin"; "encoded slash")]
    #[test_case("/%2Fadmin"; "encoded slash first")]
    #[test_case("/..%5cadmin"; "encoded backslash")]
    #[test_case("/..\\admin"; "backslash")]
    #[test_case("/%252e%252e/admin"; "twice encoded")]
    #[test_case("/..;/admin"; "path parameter")]
    #[test_case("/..;a=b"; "path parameter with value")]
    #[test_case("/%2e%2e%3b/x"; "encoded path parameter")]
    #[test_case("/./x"; "dot")]
    #[test_case("//evil.example/x"; "empty segment")]
    #[test_case("/a//b"; "empty segment inside")]
    #[test_case("/%00"; "nul")]
    #[test_case("/a%0d%0aX:y"; "line break")]
    #[test_case("/%7f"; "delete")]
    #[test_case("/%c0%ae%c0%ae/"; "overlong")]
    #[test_case("/%zz"; "broken encoding")]
    #[test_case("/%2"; "short encoding")]
    #[test_case("x"; "no slash")]
    #[test_case("/#a"; "fragment")]
    fn refused(rest: &str) {
        assert!(join(&upstream("https://h/mcp"), rest, None).is_err());
    }

    #[test_case("key=mine"; "same name")]
    #[test_case("a=1&KEY=mine"; "case")]
    #[test_case("%6bey=mine"; "encoded")]
    #[test_case("a;key=mine"; "semicolon")]
    #[test_case("key[]=mine"; "a list")]
    #[test_case("key%5Bx%5D=mine"; "a map, encoded")]
    #[test_case("+key=mine"; "space before")]
    #[test_case("key%00x=mine"; "cut by a zero")]
    #[test_case("key#"; "with a fragment, which is left out")]
    #[test_case("key#?#x"; "with more of them")]
    fn a_configured_parameter_is_never_replaced(query: &str) {
        assert!(join(&upstream("https://h/mcp?key=k"), "", Some(query)).is_err());
    }

    #[test_case("read_only", "read.only=0"; "dot")]
    #[test_case("read_only", "read+only=0"; "space")]
    #[test_case("a[b]", "a[c]=0"; "lists")]
    fn nor_under_a_name_that_some_take_for_it(ours: &str, theirs: &str) {
        assert!(join(&upstream(&format!("https://h/mcp?{ours}=1")), "", Some(theirs)).is_err());
    }

    proptest! {
        /// Whatever passes stays below the configured path, for one decoder as for two in a row.
        #[test]
        fn nothing_leaves(rest in "(/|\\.|%2e|%2E|%2f|%5c|%25|;|a|\\\\|%00|%c0|%ae){0,10}") {
            if let Ok(target) = join(&upstream("https://h/a/b"), &rest, None) {
                let mut path = target.path().to_owned();
                for _ in 0..3 {
                    let resolved = url::Url::parse(&format!("https://h{path}")).unwrap();
                    prop_assert!(resolved.path() == "/a/b" || resolved.path().starts_with("/a/b/"), "{}", path);
                    path = percent_decode_str(&path).decode_utf8().unwrap().into_owned();
                }
            }
        }
    }
}
