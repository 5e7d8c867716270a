//! What a JSON-RPC body says, as far as anybody has to know: method, id, and the names that MCP's headers repeat.
//!
//! ```text
//! {"jsonrpc", "id", "method", "params": {"name", "uri", "taskId", "arguments", "_meta": {..}}}     depth 1, 2, 3
//! [ the same, ... ]                                                                                depth 2, 3, 4
//! ```
//!
//! A key that equals one of these names but for its case is refused, alone or beside the right one: some decoders
//! take it, others do not ([`super::json::fold`]). So is a message of which it is not clear what it is (request,
//! notification or response), and a name that is no string.

use moat_shared::rpc::{ID_MAX, RawId};

use super::json::{Fault, Kind, Visitor, fold::is_variant};

/// Messages of one batch.
const BATCH_MAX: usize = 1024;
/// A method's name.
const METHOD_MAX: usize = 1024;
/// A tool's or prompt's name, or a resource's URI; the header that repeats it has the same bound.
const NAME_MAX: usize = moat_shared::limits::HEADER_LIST as usize;
/// A version is a date.
const VERSION_MAX: usize = 256;

const MESSAGE_NAMES: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
const PARAMS_NAMES: [&str; 8] =
    ["name", "uri", "taskId", "arguments", "_meta", "protocolVersion", "cursor", "requestId"];
const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const META_NAMES: [&str; 3] =
    [META_VERSION, "io.modelcontextprotocol/clientInfo", "io.modelcontextprotocol/clientCapabilities"];

/// One message, as far as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) method: Option<String>,
    pub(crate) id: Option<RawId>,
    pub(crate) name: Option<String>,
    pub(crate) uri: Option<String>,
    pub(crate) task: Option<String>,
    /// The revision that `_meta` names (2026-07-28).
    pub(crate) version: Option<String>,
    /// Has it `result` or `error`?
    pub(crate) response: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Id,
    Method,
    Params,
    Result,
    Error,
    Name,
    Uri,
    Task,
    Arguments,
    Meta,
    Version,
}

/// What of a message only matters until it is over.
#[derive(Debug, Default)]
struct Shape {
    null_id: bool,
    result: bool,
    error: bool,
    /// What was there and is not what the methods of MCP take.
    odd: Vec<Field>,
}

/// Reads messages while the body passes.
#[derive(Debug, Default)]
pub(crate) struct Envelope {
    batch: bool,
    messages: Vec<Message>,
    /// Of the last message.
    shape: Shape,
    in_params: bool,
    in_meta: bool,
    /// What the value that comes next is.
    field: Option<Field>,
}

impl Envelope {
    /// The messages so far; the last one may be incomplete.
    pub(crate) fn messages(&self) -> &[Message] {
        &self.messages
    }
    pub(crate) fn is_batch(&self) -> bool {
        self.batch
    }

    /// Containers around a message's keys.
    fn level(&self) -> usize {
        if self.batch { 2 } else { 1 }
    }

    fn top(&mut self, kind: Kind) -> Result<(), Fault> {
        match kind {
            Kind::Object => self.messages.push(Message::default()),
            Kind::Array => self.batch = true,
            _ => return Err(Fault::NotRpc),
        }
        Ok(())
    }

    fn element(&mut self, kind: Kind) -> Result<(), Fault> {
        if kind != Kind::Object {
            return Err(Fault::NotRpc);
        }
        if self.messages.len() == BATCH_MAX {
            return Err(Fault::TooLong);
        }
        self.messages.push(Message::default());
        Ok(())
    }

    /// The last message is whole: is it clear what it is?
    fn message_ends(&mut self) -> Result<(), Fault> {
        let shape = std::mem::take(&mut self.shape);
        let Some((message, before)) = self.messages.split_last() else { return Ok(()) };
        let Some(method) = message.method.as_deref() else {
            // A response has one outcome.
            return if shape.result != shape.error { Ok(()) } else { Err(Fault::NotRpc) };
        };
        // Both a request and a response; or a request that some take for a notification.
        if message.response || shape.null_id {
            return Err(Fault::NotRpc);
        }
        let taken: &[Field] = match method {
            "tools/call" | "prompts/get" => &[Field::Name, Field::Arguments],
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" => &[Field::Uri],
            method if method.starts_with("tasks/") => &[Field::Task],
            _ => &[],
        };
        if shape.odd.iter().any(|odd| taken.contains(odd) || matches!(odd, Field::Params | Field::Version)) {
            return Err(Fault::Params);
        }
        // Two answers with one id are told apart by nobody; and no session starts inside a batch.
        let repeated =
            message.id.is_some() && before.iter().any(|other| !other.response && other.id == message.id);
        if self.batch && (repeated || method == "initialize") {
            return Err(Fault::Batch);
        }
        Ok(())
    }
}

impl Visitor for Envelope {
    fn key(&mut self, depth: usize, key: &str) -> Result<(), Fault> {
        self.field = None;
        if depth == self.level() {
            refuse_variants(key, &MESSAGE_NAMES)?;
            self.field = match key {
                "id" => Some(Field::Id),
                "method" => Some(Field::Method),
                "params" => Some(Field::Params),
                "result" => Some(Field::Result),
                "error" => Some(Field::Error),
                _ => None,
            };
        } else if depth == self.level() + 1 && self.in_params {
            refuse_variants(key, &PARAMS_NAMES)?;
            self.field = match key {
                "name" => Some(Field::Name),
                "uri" => Some(Field::Uri),
                "taskId" => Some(Field::Task),
                "arguments" => Some(Field::Arguments),
                "_meta" => Some(Field::Meta),
                _ => None,
            };
        } else if depth == self.level() + 2 && self.in_meta {
            refuse_variants(key, &META_NAMES)?;
            self.field = (key == META_VERSION).then_some(Field::Version);
        }
        Ok(())
    }

    fn begin(&mut self, depth: usize, kind: Kind) -> Result<usize, Fault> {
        match depth {
            0 => self.top(kind)?,
            1 if self.batch => self.element(kind)?,
            _ => {}
        }
        let Some(field) = self.field else { return Ok(0) };
        match (field, kind) {
            (Field::Method, Kind::String) => return Ok(METHOD_MAX),
            (Field::Method, _) => return Err(Fault::NotRpc),
            (Field::Id, Kind::Object | Kind::Array) => return Err(Fault::Id),
            (Field::Id, _) => return Ok(ID_MAX),
            (Field::Name | Field::Uri | Field::Task, Kind::String) => return Ok(NAME_MAX),
            (Field::Version, Kind::String) => return Ok(VERSION_MAX),
            // `null` is as good as absent, to all; `true` is not.
            (Field::Params | Field::Arguments | Field::Meta, Kind::Word) => return Ok("null".len()),
            (Field::Params, Kind::Object) => self.in_params = true,
            (Field::Meta, Kind::Object) => self.in_meta = true,
            (Field::Arguments, Kind::Object) => {}
            (Field::Result | Field::Error, _) => {
                self.shape.result |= field == Field::Result;
                self.shape.error |= field == Field::Error;
                if let Some(message) = self.messages.last_mut() {
                    message.response = true;
                }
            }
            _ => self.shape.odd.push(field),
        }
        self.field = None;
        Ok(0)
    }

    fn end(&mut self, depth: usize, kind: Kind, token: Option<&str>) -> Result<(), Fault> {
        self.in_params &= depth != self.level();
        self.in_meta &= depth != self.level() + 1;
        if depth + 1 == self.level() && kind == Kind::Object {
            self.message_ends()?;
        }
        if depth == 0 && self.batch && self.messages.is_empty() {
            return Err(Fault::NotRpc);
        }
        let Some(field) = self.field.take() else { return Ok(()) };
        let Some(message) = self.messages.last_mut() else { return Ok(()) };
        let text = |token: Option<&str>| -> Result<String, Fault> {
            let text: String =
                serde_json::from_str(token.ok_or(Fault::TooLong)?).map_err(|_| Fault::Ambiguous)?;
            // Where a NUL ends a text, it is another one.
            if text.contains('\0') { Err(Fault::Ambiguous) } else { Ok(text) }
        };
        match field {
            Field::Id if token == Some("null") => self.shape.null_id = true,
            Field::Id => message.id = Some(id(kind, token)?),
            Field::Method => message.method = Some(text(token)?),
            Field::Name => message.name = Some(text(token)?),
            Field::Uri => message.uri = Some(text(token)?),
            Field::Task => message.task = Some(text(token)?),
            Field::Version => message.version = Some(text(token)?),
            Field::Params | Field::Arguments | Field::Meta if token != Some("null") => {
                self.shape.odd.push(field)
            }
            _ => {}
        }
        Ok(())
    }
}

/// A string that can be echoed, or an integer: 1.0 is `1` to some and another id to others.
fn id(kind: Kind, token: Option<&str>) -> Result<RawId, Fault> {
    let token = token.ok_or(Fault::Id)?;
    let read_alike = match kind {
        Kind::String => !token.contains("\\u0000"),
        Kind::Number => token != "-0" && token.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit()),
        _ => false,
    };
    RawId::parse(token).filter(|_| read_alike).ok_or(Fault::Id)
}

/// Refuses a key that is one of the names but for its case.
fn refuse_variants(key: &str, names: &[&str]) -> Result<(), Fault> {
    if is_variant(key, names) {
        return Err(Fault::KeyCase);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::parse::json::{Reader, Rigour};
    use test_case::test_case;

    fn read(text: &str) -> Result<Envelope, Fault> {
        let mut envelope = Envelope::default();
        let mut reader = Reader::new(Rigour::Strict);
        for chunk in text.as_bytes().chunks(3) {
            reader.push(chunk, &mut envelope)?;
        }
        reader.finish(&mut envelope)?;
        Ok(envelope)
    }

    #[test_case(r#"{"method":"tools/call","METHOD":"ping"}"# => Fault::KeyCase; "known failure 9")]
    #[test_case(r#"{"METHOD":"ping"}"# => Fault::KeyCase; "alone")]
    #[test_case(r#"{"Id":1}"# => Fault::KeyCase; "id")]
    #[test_case("{\"param\u{17f}\":{}}" => Fault::KeyCase; "long s")]
    #[test_case(r#"{"param\u017f":{}}"# => Fault::KeyCase; "long s, escaped")]
    #[test_case("{\"params\":{\"ta\u{17f}\u{212a}Id\":\"x\"}}" => Fault::KeyCase; "kelvin")]
    #[test_case(r#"{"params":{"Name":"x"}}"# => Fault::KeyCase; "name")]
    #[test_case(r#"{"params":{"ARGUMENTS":{}}}"# => Fault::KeyCase; "arguments")]
    #[test_case(r#"[{"id":1,"method":"y"},{"Method":"x"}]"# => Fault::KeyCase; "in a batch")]
    #[test_case(r#"{"method":"a","method":"b"}"# => Fault::DuplicateKey; "twice")]
    #[test_case(r#"{"params":{"name":"a","n\u0061me":"b"}}"# => Fault::DuplicateKey; "twice, escaped")]
    #[test_case(r#"{"method":5}"# => Fault::NotRpc; "method is a number")]
    #[test_case(r#"{"method":["x"]}"# => Fault::NotRpc; "method is a list")]
    #[test_case(r#"{"id":{}}"# => Fault::Id; "id is an object")]
    #[test_case(r#"{"id":true}"# => Fault::Id; "id is true")]
    #[test_case(r#"{"id":1.0}"# => Fault::Id; "id is a fraction")]
    #[test_case(r#"{"id":-0}"# => Fault::Id; "id is minus zero")]
    #[test_case(r#"{"id":1e3}"# => Fault::Id; "id has an exponent")]
    #[test_case(r#"{"id":9007199254740993}"# => Fault::Number; "id beyond a double")]
    #[test_case(r#"{"id":"a\u0000"}"# => Fault::Id; "nul in an id")]
    #[test_case(r#"{"id":null,"method":"x"}"# => Fault::NotRpc; "null id of a request")]
    #[test_case(r#"{"id":1}"# => Fault::NotRpc; "neither request nor response")]
    #[test_case("{}" => Fault::NotRpc; "nothing")]
    #[test_case(r#"{"id":1,"method":"x","result":1}"# => Fault::NotRpc; "request and response")]
    #[test_case(r#"{"id":1,"error":{},"result":1}"# => Fault::NotRpc; "two outcomes")]
    #[test_case(r#"{"id":1,"method":"x","params":[]}"# => Fault::Params; "params is a list")]
    #[test_case(r#"{"id":1,"method":"x","params":true}"# => Fault::Params; "params is true")]
    #[test_case(r#"{"params":{"name":5},"id":1,"method":"tools/call"}"# => Fault::Params; "name is a number")]
    #[test_case(r#"{"params":{"name":null},"id":1,"method":"tools/call"}"# => Fault::Params; "name is null")]
    #[test_case(r#"{"params":{"arguments":[]},"id":1,"method":"tools/call"}"# => Fault::Params; "arguments is a list")]
    #[test_case(r#"{"params":{"uri":["x"]},"id":1,"method":"resources/read"}"# => Fault::Params; "uri is a list")]
    #[test_case(r#"{"params":{"_meta":{"io.modelcontextprotocol/protocolVersion":1}},"method":"x"}"# => Fault::Params; "version is a number")]
    #[test_case(r#"{"params":{"_meta":{"IO.modelcontextprotocol/protocolVersion":"1"}},"method":"x"}"# => Fault::KeyCase; "case of the version")]
    #[test_case(r#"{"params":{"a":1,"A":2}}"# => Fault::KeyCase; "two keys but for case")]
    #[test_case(r#"{"method":"a\u0000b"}"# => Fault::Ambiguous; "nul in the method")]
    #[test_case(r#"{"params":{"x":["\ud83d"]}}"# => Fault::Ambiguous; "half a pair in an argument")]
    #[test_case(r#"[{"id":1,"method":"x"},{"id":1,"method":"y"}]"# => Fault::Batch; "one id twice")]
    #[test_case(r#"[{"id":1,"method":"initialize"}]"# => Fault::Batch; "a session starts in a batch")]
    #[test_case(r#"{"method":"\ud800"}"# => Fault::Ambiguous; "half a pair in the method")]
    #[test_case(r#""text""# => Fault::NotRpc; "a string")]
    #[test_case("[]" => Fault::NotRpc; "empty batch")]
    #[test_case("[1]" => Fault::NotRpc; "batch of numbers")]
    fn refused(text: &str) -> Fault {
        read(text).unwrap_err()
    }

    #[test]
    fn reads_what_matters_wherever_it_stands() {
        let text = r#"{"params":{"x":{"name":"no","uri":["no"]},"name":"n\u00e4me","uri":"u:x","arguments":{"Name":1},
            "_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"},"y":{"_meta":{"taskId":5}}},
            "method":"tools/call","id":"a\"b","jsonrpc":"2.0"}"#;
        let envelope = read(text).unwrap();
        let expected = Message {
            method: Some("tools/call".to_owned()),
            id: RawId::parse(r#""a\"b""#),
            name: Some("n\u{e4}me".to_owned()),
            uri: Some("u:x".to_owned()),
            task: None,
            version: Some("2026-07-28".to_owned()),
            response: false,
        };
        assert_eq!(envelope.messages(), [expected]);
    }

    #[test]
    fn reads_every_element_of_a_batch() {
        let envelope = read(r#"[{"id":1,"method":"a"},{"method":"b"},{"id":2,"result":{}}]"#).unwrap();
        assert!(envelope.is_batch());
        let methods: Vec<_> = envelope.messages().iter().map(|m| m.method.as_deref()).collect();
        assert_eq!(methods, [Some("a"), Some("b"), None]);
        assert!(envelope.messages()[2].response);
    }

    /// Nobody could be told that such a request was lost.
    #[test]
    fn an_id_too_long_to_echo_is_refused() {
        let long = format!(r#"{{"id":"{}","method":"x"}}"#, "y".repeat(ID_MAX));
        assert_eq!(read(&long).unwrap_err(), Fault::Id);
    }

    #[test_case(r#"{"id":1,"method":"x","params":null}"#; "no params")]
    #[test_case(r#"{"id":1,"method":"tools/call","params":{"name":"x","arguments":null,"_meta":null}}"#; "no arguments")]
    #[test_case(r#"{"id":1,"method":"acme/run","params":{"name":5,"arguments":[1]}}"#; "a method of somebody's own")]
    #[test_case(r#"{"id":null,"error":{"code":1}}"#; "an error for nobody")]
    #[test_case(r#"{"id":"\ud83d\ude00","result":1}"#; "a whole pair")]
    fn passes(text: &str) {
        read(text).unwrap();
    }
}
