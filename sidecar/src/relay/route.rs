//! Where a request goes: one table over its path, whatever form its target had.
//!
//! Only a path that means the same to every reader goes into the tunnel: no dot segments, nothing encoded that
//! separates or names segments, no empty segments. The bridge checks again; it trusts nobody in here.

use moat_shared::{
    id::ServerName,
    wire::{HEALTH_PATH, MCP_PREFIX},
};

/// Where a request goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Into the tunnel, for this server.
    Server(ServerName),
    /// An OAuth probe: answered here, never forwarded (mcp-relay section 5).
    OAuthProbe,
    /// The relay's own state.
    Health,
    /// Nothing is there.
    Nowhere,
}

/// Looks the path up.
pub(crate) fn route(path: &str) -> Route {
    if path == HEALTH_PATH {
        return Route::Health;
    }
    if is_oauth_probe(path) {
        return Route::OAuthProbe;
    }
    let Some(below) = path.strip_prefix(MCP_PREFIX) else { return Route::Nowhere };
    let (server, rest) = below.split_once('/').map_or((below, None), |(server, rest)| (server, Some(rest)));
    match server.parse() {
        Ok(server) if rest.is_none_or(is_plain) => Route::Server(server),
        _ => Route::Nowhere,
    }
}

fn is_oauth_probe(path: &str) -> bool {
    matches!(path, "/register" | "/authorize" | "/token")
        || path.split('/').any(|segment| segment.eq_ignore_ascii_case(".well-known"))
}

/// Does the rest of the path mean the same to every reader? A final slash is fine.
fn is_plain(rest: &str) -> bool {
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        if segment.is_empty() && !last {
            return false;
        }
        if matches!(segment, "." | "..") || !segment.bytes().all(is_path_byte) || !is_plainly_encoded(segment)
        {
            return false;
        }
    }
    true
}

fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'#' | b'?')
}

/// Every percent sign starts an encoded byte, and none of them is a separator, a dot, a percent sign or a control.
fn is_plainly_encoded(segment: &str) -> bool {
    segment.split('%').skip(1).all(|after| {
        let byte = after.get(..2).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => !matches!(byte, b'/' | b'\\' | b'.' | b'%') && !byte.is_ascii_control(),
            None => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("/mcp/notion" => "notion"; "plain")]
    #[test_case("/mcp/notion/" => "notion"; "final slash")]
    #[test_case("/mcp/notion/a/b" => "notion"; "rest")]
    #[test_case("/mcp/notion/a%20b%C3%A9" => "notion"; "encoded, harmless")]
    #[test_case("/mcp/notion/.message/abc" => "notion"; "legacy handle")]
    #[test_case("/mcp/notion/..." => "notion"; "three dots are a name")]
    #[test_case("/mcp/.well-known" => "oauth"; "well known as a server")]
    #[test_case("/.well-known/oauth-protected-resource" => "oauth"; "probe at the root")]
    #[test_case("/.well-known/oauth-protected-resource/mcp/notion" => "oauth"; "probe with a path")]
    #[test_case("/mcp/notion/.well-known/openid-configuration" => "oauth"; "probe below the server")]
    #[test_case("/mcp/notion/a/.Well-Known/x" => "oauth"; "probe deeper, other case")]
    #[test_case("/register" => "oauth")]
    #[test_case("/authorize" => "oauth")]
    #[test_case("/token" => "oauth")]
    #[test_case("/healthz" => "health")]
    #[test_case("/healthz/" => "nowhere"; "not quite health")]
    #[test_case("/" => "nowhere"; "root")]
    #[test_case("*" => "nowhere"; "asterisk")]
    #[test_case("/mcp" => "nowhere"; "no server")]
    #[test_case("/mcp/" => "nowhere"; "empty server")]
    #[test_case("/MCP/notion" => "nowhere"; "case counts")]
    #[test_case("//mcp/notion" => "nowhere"; "two slashes in front")]
    #[test_case("/mcp//notion" => "nowhere"; "two slashes before")]
    #[test_case("/mcp/notion//x" => "nowhere"; "two slashes after")]
    #[test_case("/mcp/.." => "nowhere"; "dots as a server")]
    #[test_case("/mcp/notion/.." => "nowhere"; "up")]
    #[test_case("/mcp/notion/../other" => "nowhere"; "aside")]
    #[test_case("/mcp/notion/./x" => "nowhere"; "dot")]
    #[test_case("/mcp/notion/%2e%2e/x" => "nowhere"; "encoded dots")]
    #[test_case("/mcp/notion/.%2E/x" => "nowhere"; "half encoded dots")]
    #[test_case("/mcp/notion/..%2fx" => "nowhere"; "encoded slash")]
    #[test_case("/mcp/notion/a%5cb" => "nowhere"; "encoded backslash")]
    #[test_case("/mcp/notion/a\\b" => "nowhere"; "backslash")]
    #[test_case("/mcp/notion/a%00" => "nowhere"; "encoded zero")]
    #[test_case("/mcp/notion/a%0d%0ax" => "nowhere"; "encoded line end")]
    #[test_case("/mcp/notion/a%252e" => "nowhere"; "encoded twice")]
    #[test_case("/mcp/notion/a%2" => "nowhere"; "cut encoding")]
    #[test_case("/mcp/notion/a%zz" => "nowhere"; "no encoding")]
    #[test_case("/mcp/notion/é" => "nowhere"; "not ascii")]
    #[test_case("/mcp/no%74ion" => "nowhere"; "encoded server")]
    fn routes(path: &str) -> String {
        match route(path) {
            Route::Server(server) => server.to_string(),
            Route::OAuthProbe => "oauth".into(),
            Route::Health => "health".into(),
            Route::Nowhere => "nowhere".into(),
        }
    }
}
