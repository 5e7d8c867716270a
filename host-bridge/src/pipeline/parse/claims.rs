//! What the headers `Mcp-Method`, `Mcp-Name` and `MCP-Protocol-Version` say about the body; a policy, a proxy or a
//! server that reads the one must not be told something else by the other (R9). None of them is demanded.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderMap;

use super::{
    envelope::{Envelope, Message},
    json::Fault,
};
use crate::pipeline::error::PipelineError;

const METHOD: &str = "mcp-method";
const NAME: &str = "mcp-name";
const VERSION: &str = "mcp-protocol-version";
/// The revisions that know batches.
const BATCHING: [&[u8]; 2] = [b"2024-11-05", b"2025-03-26"];

/// The headers' values, decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Claims {
    method: Option<Vec<u8>>,
    name: Option<Vec<u8>>,
    version: Option<Vec<u8>>,
}

impl Claims {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, PipelineError> {
        Ok(Self {
            method: decoded(headers, METHOD, "Mcp-Method")?,
            name: decoded(headers, NAME, "Mcp-Name")?,
            version: one(headers, VERSION, "MCP-Protocol-Version")?.map(<[u8]>::to_vec),
        })
    }

    /// Does the body say the same?
    pub(super) fn check(&self, envelope: &Envelope) -> Result<(), PipelineError> {
        self.check_version(envelope)?;
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

    /// Of which revision is it? A batch is not of one that has none; where header and body both say, they agree.
    fn check_version(&self, envelope: &Envelope) -> Result<(), PipelineError> {
        let stateless = envelope.messages().iter().any(|message| message.version.is_some());
        let batching = self.version.as_deref().is_none_or(|version| BATCHING.contains(&version));
        if envelope.is_batch() && (stateless || !batching) {
            return Err(PipelineError::Body(Fault::Batch));
        }
        let Some(claimed) = self.version.as_deref() else { return Ok(()) };
        let agrees = |said: &str| said.as_bytes() == claimed;
        match envelope.messages().iter().filter_map(|message| message.version.as_deref()).all(agrees) {
            true => Ok(()),
            false => Err(PipelineError::HeaderMismatch { header: "MCP-Protocol-Version" }),
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

/// The one value of a header.
fn one<'a>(
    headers: &'a HeaderMap,
    name: &str,
    title: &'static str,
) -> Result<Option<&'a [u8]>, PipelineError> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err(PipelineError::HeaderTwice(title));
    }
    Ok(value.map(http::HeaderValue::as_bytes))
}

/// The same, out of its base64 sentinel `=?base64?...?=`.
fn decoded(headers: &HeaderMap, name: &str, title: &'static str) -> Result<Option<Vec<u8>>, PipelineError> {
    let Some(bytes) = one(headers, name, title)? else { return Ok(None) };
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
    use crate::pipeline::parse::json::{Reader, Rigour};
    use test_case::test_case;

    fn check(headers: &[(&str, &str)], body: &str) -> Result<(), PipelineError> {
        let map: HeaderMap = headers
            .iter()
            .map(|(n, v)| (n.parse::<http::HeaderName>().unwrap(), v.parse::<http::HeaderValue>().unwrap()))
            .collect();
        let mut envelope = Envelope::default();
        let mut reader = Reader::new(Rigour::Strict);
        reader.push(body.as_bytes(), &mut envelope).unwrap();
        reader.finish(&mut envelope).unwrap();
        Claims::of(&map)?.check(&envelope)
    }

    const CALL: &str = r#"{"method":"tools/call","params":{"name":"add"}}"#;
    const MODERN: &str =
        r#"{"method":"ping","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
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
    #[test_case(&[], r#"[{"method":"ping"}]"# => true; "batch, revision not said")]
    #[test_case(&[("mcp-protocol-version", "2025-03-26")], r#"[{"method":"ping"}]"# => true; "batch of its time")]
    #[test_case(&[("mcp-protocol-version", "2025-06-18")], r#"[{"method":"ping"}]"# => false; "batch, too late")]
    #[test_case(&[("mcp-protocol-version", "DRAFT")], r#"[{"method":"ping"}]"# => false; "batch, who knows when")]
    #[test_case(&[], r#"[{"method":"ping","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}]"# => false; "batch, the body says too late")]
    #[test_case(&[("mcp-protocol-version", "2026-07-28")], MODERN => true; "versions agree")]
    #[test_case(&[("mcp-protocol-version", "2025-11-25")], MODERN => false; "versions differ")]
    #[test_case(&[], MODERN => true; "one version is said")]
    #[test_case(&[("mcp-protocol-version", "2025-11-25")], CALL => true; "the header alone")]
    #[test_case(&[("mcp-protocol-version", "2026-07-28"), ("mcp-protocol-version", "2026-07-28")], MODERN => false; "version twice")]
    #[test_case(&[("mcp-method", "ping"), ("mcp-method", "ping")], r#"{"method":"ping"}"# => false; "twice")]
    fn r9(headers: &[(&str, &str)], body: &str) -> bool {
        check(headers, body).is_ok()
    }
}
