//! JSON-RPC as far as both ends speak it themselves: the id of a request, and the error in its answer.
//!
//! [`scan`] finds a request's id and method while its bytes pass by; it judges nothing.

pub mod scan;

use crate::wire::ErrorKind;

/// The longest id that is echoed; a longer one is answered with `null`.
pub const ID_MAX: usize = 1024;

/// A JSON-RPC request's id: the very token that the client sent, a string or a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawId(String);

impl RawId {
    /// The token, if it is a JSON string or number of at most [`ID_MAX`] bytes.
    #[must_use]
    pub fn parse(token: &str) -> Option<Self> {
        let first = token.bytes().next()?;
        let scalar = first == b'"' || first == b'-' || first.is_ascii_digit();
        let whole = scalar
            && token.len() <= ID_MAX
            && serde_json::from_str::<serde::de::IgnoredAny>(token).is_ok()
            && token.trim() == token;
        whole.then(|| Self(token.to_owned()))
    }

    /// The token as it was sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An error that relay or bridge make themselves (mcp-relay section 7).
#[derive(Debug, Clone)]
pub struct OwnError<'a> {
    /// The request's id, `null` when there is none or it is not known.
    pub id: Option<&'a RawId>,
    /// What happened; chooses the HTTP status.
    pub kind: ErrorKind,
    /// The server's name, when the request got as far.
    pub server: Option<&'a str>,
    /// What to tell the person behind the agent: what happened and what to do. No secret, no URL with a query.
    pub message: &'a str,
    /// The JSON-RPC code; [`OwnError::CODE`] unless the specification has one for the case.
    pub code: i32,
}

impl OwnError<'_> {
    /// The code that reads well in all three agents: internal error.
    pub const CODE: i32 = -32603;
    /// Parse error.
    pub const PARSE: i32 = -32700;
    /// Invalid request.
    pub const INVALID: i32 = -32600;
    /// HeaderMismatch of MCP 2026-07-28.
    pub const HEADER_MISMATCH: i32 = -32020;

    /// The code of a kind, where nothing more is known than the kind.
    #[must_use]
    pub const fn code_of(kind: ErrorKind) -> i32 {
        match kind {
            ErrorKind::BadRequest | ErrorKind::TooLarge | ErrorKind::MethodNotAllowed => Self::INVALID,
            _ => Self::CODE,
        }
    }

    /// The JSON-RPC response. The id is the very token of the request.
    #[must_use]
    pub fn body(&self) -> String {
        let mut data = serde_json::json!({"source": "moat", "kind": self.kind});
        if let Some(server) = self.server {
            data["server"] = server.into();
        }
        let error = serde_json::json!({"code": self.code, "message": self.message, "data": data});
        let id = self.id.map_or("null", RawId::as_str);
        format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
    }

    /// The same as one event of an event stream.
    #[must_use]
    pub fn event(&self) -> String {
        format!("event: message\ndata: {}\n\n", self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("1" => true)]
    #[test_case("-7.5e3" => true)]
    #[test_case(r#""listen:0""# => true)]
    #[test_case("null" => false)]
    #[test_case("{}" => false)]
    #[test_case("1 " => false; "trailing space")]
    #[test_case("1,\"x\":2" => false; "injection")]
    #[test_case("" => false; "empty")]
    fn ids(token: &str) -> bool {
        RawId::parse(token).is_some()
    }

    #[test]
    fn an_error_carries_the_very_id() {
        let id = RawId::parse("1.0").unwrap();
        let error = OwnError {
            id: Some(&id),
            kind: ErrorKind::UpstreamLost,
            server: Some("notion"),
            message: "moat: lost \"it\"\nall",
            code: OwnError::CODE,
        };
        assert!(error.body().contains(r#""id":1.0,"#));
        let value: serde_json::Value = serde_json::from_str(&error.body()).unwrap();
        assert_eq!(value["error"]["data"]["kind"], "upstream_lost");
        assert_eq!(error.event().matches('\n').count(), 3, "an event's data is one line");
    }
}
