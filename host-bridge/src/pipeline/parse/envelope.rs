//! What a JSON-RPC body says, as far as anybody has to know: method, id, and the names that MCP's headers repeat.
//!
//! ```text
//! {"jsonrpc", "id", "method", "params": {"name", "uri", "taskId", "arguments", "_meta"}}     depth 1, 2
//! [ the same, ... ]                                                                          depth 2, 3
//! ```
//!
//! A key that equals one of these names but for its case is refused, alone or beside the right one: some decoders
//! take it, others do not. `ſ` (U+017F) and the Kelvin sign (U+212A) fold to `s` and `k` in some of them.

use moat_shared::rpc::{ID_MAX, RawId};

use super::json::{Fault, Kind, Visitor};

/// Messages of one batch.
const BATCH_MAX: usize = 1024;
/// A method's name.
const METHOD_MAX: usize = 1024;
/// A tool's or prompt's name, or a resource's URI; the header that repeats it has the same bound.
const NAME_MAX: usize = moat_shared::limits::HEADER_LIST as usize;

const MESSAGE_NAMES: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
const PARAMS_NAMES: [&str; 5] = ["name", "uri", "taskId", "arguments", "_meta"];

/// One message, as far as it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) method: Option<String>,
    pub(crate) id: Option<RawId>,
    pub(crate) name: Option<String>,
    pub(crate) uri: Option<String>,
    pub(crate) task: Option<String>,
    /// Has it `result` or `error`?
    pub(crate) response: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Id,
    Method,
    Params,
    Outcome,
    Name,
    Uri,
    Task,
}

/// Reads messages while the body passes.
#[derive(Debug, Default)]
pub(crate) struct Envelope {
    batch: bool,
    messages: Vec<Message>,
    in_params: bool,
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
                "result" | "error" => Some(Field::Outcome),
                _ => None,
            };
        } else if depth == self.level() + 1 && self.in_params {
            refuse_variants(key, &PARAMS_NAMES)?;
            self.field = match key {
                "name" => Some(Field::Name),
                "uri" => Some(Field::Uri),
                "taskId" => Some(Field::Task),
                _ => None,
            };
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
            (Field::Method, Kind::String) => Ok(METHOD_MAX),
            (Field::Method, _) | (Field::Id, Kind::Object | Kind::Array) => Err(Fault::NotRpc),
            // A byte more than can be echoed, so that a longer id is seen as such.
            (Field::Id, _) => Ok(ID_MAX + 1),
            (Field::Name | Field::Uri | Field::Task, Kind::String) => Ok(NAME_MAX),
            (Field::Params, kind) => {
                self.in_params = kind == Kind::Object;
                self.field = None;
                Ok(0)
            }
            (Field::Outcome, _) => {
                self.field = None;
                if let Some(message) = self.messages.last_mut() {
                    message.response = true;
                }
                Ok(0)
            }
            _ => {
                self.field = None;
                Ok(0)
            }
        }
    }

    fn end(&mut self, depth: usize, kind: Kind, token: Option<&str>) -> Result<(), Fault> {
        if self.in_params && depth == self.level() {
            self.in_params = false;
        }
        if depth == 0 && self.batch && self.messages.is_empty() {
            return Err(Fault::NotRpc);
        }
        let Some(field) = self.field.take() else { return Ok(()) };
        let Some(message) = self.messages.last_mut() else { return Ok(()) };
        let text = |token: Option<&str>| -> Result<String, Fault> {
            serde_json::from_str(token.ok_or(Fault::TooLong)?).map_err(|_| Fault::Ambiguous)
        };
        match field {
            Field::Id if kind == Kind::Word && token != Some("null") => return Err(Fault::NotRpc),
            Field::Id => {
                if let Some(token) = token.filter(|token| token.starts_with('"')) {
                    serde_json::from_str::<String>(token).map_err(|_| Fault::Ambiguous)?;
                }
                message.id = token.and_then(RawId::parse);
            }
            Field::Method => message.method = Some(text(token)?),
            Field::Name => message.name = Some(text(token)?),
            Field::Uri => message.uri = Some(text(token)?),
            Field::Task => message.task = Some(text(token)?),
            Field::Params | Field::Outcome => {}
        }
        Ok(())
    }
}

/// Refuses a key that is one of the names but for its case.
fn refuse_variants(key: &str, names: &[&str]) -> Result<(), Fault> {
    if names.iter().any(|name| *name != key && folds_to(key, name)) {
        return Err(Fault::KeyCase);
    }
    Ok(())
}

/// Equality as the laxest decoder sees it.
fn folds_to(key: &str, name: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(name.chars().map(fold))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::parse::json::{Duplicates, Reader};
    use test_case::test_case;

    fn read(text: &str) -> Result<Envelope, Fault> {
        let mut envelope = Envelope::default();
        let mut reader = Reader::new(Duplicates::Refused);
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
    #[test_case(r#"[{"id":1},{"Method":"x"}]"# => Fault::KeyCase; "in a batch")]
    #[test_case(r#"{"method":"a","method":"b"}"# => Fault::DuplicateKey; "twice")]
    #[test_case(r#"{"params":{"name":"a","n\u0061me":"b"}}"# => Fault::DuplicateKey; "twice, escaped")]
    #[test_case(r#"{"method":5}"# => Fault::NotRpc; "method is a number")]
    #[test_case(r#"{"method":["x"]}"# => Fault::NotRpc; "method is a list")]
    #[test_case(r#"{"id":{}}"# => Fault::NotRpc; "id is an object")]
    #[test_case(r#"{"id":true}"# => Fault::NotRpc; "id is true")]
    #[test_case(r#"{"method":"\ud800"}"# => Fault::Ambiguous; "half a pair in the method")]
    #[test_case(r#""text""# => Fault::NotRpc; "a string")]
    #[test_case("[]" => Fault::NotRpc; "empty batch")]
    #[test_case("[1]" => Fault::NotRpc; "batch of numbers")]
    fn refused(text: &str) -> Fault {
        read(text).unwrap_err()
    }

    #[test]
    fn reads_what_matters_wherever_it_stands() {
        let text = r#"{"params":{"x":{"name":"no","uri":["no"]},"name":"n\u00e4me","uri":"u:x","arguments":{"name":"no","Name":1}},
            "method":"tools/call","id":"a\"b","jsonrpc":"2.0"}"#;
        let envelope = read(text).unwrap();
        let expected = Message {
            method: Some("tools/call".to_owned()),
            id: RawId::parse(r#""a\"b""#),
            name: Some("n\u{e4}me".to_owned()),
            uri: Some("u:x".to_owned()),
            task: None,
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

    #[test]
    fn an_id_too_long_to_echo_is_none() {
        let long = format!(r#"{{"id":"{}","method":"x"}}"#, "y".repeat(5000));
        assert_eq!(read(&long).unwrap().messages()[0].id, None);
    }
}
