//! What the headers `Mcp-Method` and `Mcp-Name` say about the body; a policy, a proxy or a server that reads the one
//! must not be told something else by the other (R9).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderMap;

use super::envelope::{Envelope, Message};
use crate::pipeline::error::PipelineError;

const METHOD: &str = "mcp-method";
const NAME: &str = "mcp-name";

/// The headers' values, decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Claims {
    method: Option<Vec<u8>>,
    name: Option<Vec<u8>>,
}

impl Claims {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, PipelineError> {
        Ok(Self { method: one(headers, METHOD, "Mcp-Method")?, name: one(headers, NAME, "Mcp-Name")? })
    }

    /// Does the body say the same?
    pub(super) fn check(&self, envelope: &Envelope) -> Result<(), PipelineError> {
        if self.method.is_none() && self.name.is_none() {
            return Ok(());
        }
        let mismatch = |header| Err(PipelineError::HeaderMismatch { header });
        let message = match envelope.messages() {
            [message] if !envelope.is_batch() => message,
            _ => return mismatch("Mcp-Method"),
        };
        let method = message.method.as_deref();
        if self.method.as_deref().is_some_and(|claimed| Some(claimed) != method.map(str::as_bytes)) {
            return mismatch("Mcp-Method");
        }
        match (&self.name, named(message)) {
            (Some(claimed), Named::As(name)) if Some(claimed.as_slice()) != name.map(str::as_bytes) => {
                mismatch("Mcp-Name")
            }
            _ => Ok(()),
        }
    }
}

/// What `Mcp-Name` repeats, by method.
enum Named<'a> {
    As(Option<&'a str>),
    /// A method that the specification gives no name: its server may know.
    Unknown,
}

fn named(message: &Message) -> Named<'_> {
    match message.method.as_deref() {
        Some("tools/call" | "prompts/get") => Named::As(message.name.as_deref()),
        Some("resources/read") => Named::As(message.uri.as_deref()),
        Some(method) if method.starts_with("tasks/") => Named::As(message.task.as_deref()),
        _ => Named::Unknown,
    }
}

/// The one value of a header, out of its base64 sentinel `=?base64?...?=`.
fn one(headers: &HeaderMap, name: &str, title: &'static str) -> Result<Option<Vec<u8>>, PipelineError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(PipelineError::HeaderTwice(title));
    }
    let bytes = value.as_bytes();
    let sentinel = bytes.strip_prefix(b"=?base64?").and_then(|rest| rest.strip_suffix(b"?="));
    match sentinel {
        None => Ok(Some(bytes.to_vec())),
        Some(text) => match STANDARD.decode(text) {
            Ok(decoded) => Ok(Some(decoded)),
            Err(_) => Err(PipelineError::HeaderMismatch { header: title }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::parse::json::{Duplicates, Reader};
    use test_case::test_case;

    fn check(headers: &[(&str, &str)], body: &str) -> Result<(), PipelineError> {
        let map: HeaderMap = headers
            .iter()
            .map(|(n, v)| (n.parse::<http::HeaderName>().unwrap(), v.parse::<http::HeaderValue>().unwrap()))
            .collect();
        let mut envelope = Envelope::default();
        let mut reader = Reader::new(Duplicates::Refused);
        reader.push(body.as_bytes(), &mut envelope).unwrap();
        reader.finish(&mut envelope).unwrap();
        Claims::of(&map)?.check(&envelope)
    }

    const CALL: &str = r#"{"method":"tools/call","params":{"name":"add"}}"#;
    const READ: &str = r#"{"method":"resources/read","params":{"uri":"a:b"}}"#;

    #[test_case(&[], CALL => true; "no headers")]
    #[test_case(&[("mcp-method", "tools/call"), ("mcp-name", "add")], CALL => true; "agree")]
    #[test_case(&[("mcp-method", "TOOLS/CALL")], CALL => false; "T7 case of the value")]
    #[test_case(&[("mcp-method", "ping")], CALL => false; "other method")]
    #[test_case(&[("mcp-name", "sub")], CALL => false; "other name")]
    #[test_case(&[("mcp-name", "=?base64?YWRk?=")], CALL => true; "sentinel")]
    #[test_case(&[("mcp-name", "=?base64?c3Vi?=")], CALL => false; "sentinel of another")]
    #[test_case(&[("mcp-name", "=?base64?!?=")], CALL => false; "broken sentinel")]
    #[test_case(&[("mcp-name", "a:b")], READ => true; "uri")]
    #[test_case(&[("mcp-name", "add")], r#"{"method":"tools/call"}"# => false; "no name")]
    #[test_case(&[("mcp-name", "x")], r#"{"method":"acme/run"}"# => true; "a method we do not know")]
    #[test_case(&[("mcp-method", "ping")], r#"[{"method":"ping"}]"# => false; "batch")]
    #[test_case(&[("mcp-method", "ping"), ("mcp-method", "ping")], r#"{"method":"ping"}"# => false; "twice")]
    fn r9(headers: &[(&str, &str)], body: &str) -> bool {
        check(headers, body).is_ok()
    }
}
