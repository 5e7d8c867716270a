//! Finds the top-level `id` and `method` of a JSON-RPC request while its bytes pass by.
//!
//! It looks at the first [`SCANNED`] bytes of a body, holds at most one key and one value of them, and judges nothing:
//! what it finds only serves to address an error that the relay has to make itself. A batch (an array), a body that
//! is no JSON object, and an id that is neither string nor number give nothing.
//!
//! ```text
//! Start ─'{'─► Key ─string─► Colon ─':'─► Value ─► Comma ─','─► Key ...
//!   │           └───────────────'}'───────────────────┘
//!   └─ anything else ─► Over                           '}' ─► Over
//! ```

use super::{ID_MAX, RawId};

/// How much of a body is looked at.
pub const SCANNED: usize = 1 << 20;
/// The longest raw key that can be one of ours: `method`, every letter escaped.
const KEY_MAX: usize = 48;
/// The longest raw method that is noted.
const METHOD_MAX: usize = 256;

/// Follows one request body.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    left: usize,
    /// The current key or value, up to its bound.
    token: Vec<u8>,
    /// What the value that comes next belongs to.
    wanted: Wanted,
    id: Option<RawId>,
    method: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// Before a key, or the end of the object.
    Key,
    InKey {
        escaped: bool,
    },
    Colon,
    Value,
    /// Inside a value: how many brackets are open, and whether a string is.
    InString {
        depth: usize,
        escaped: bool,
    },
    InBrackets {
        depth: usize,
    },
    InScalar,
    Comma,
    /// The object is complete, or this is none.
    Over,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Id,
    Method,
    Nothing,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            state: State::Start,
            left: SCANNED,
            token: Vec::new(),
            wanted: Wanted::Nothing,
            id: None,
            method: None,
        }
    }
}

impl Scanner {
    /// Takes the next bytes.
    pub fn push(&mut self, chunk: &[u8]) {
        if self.is_over() {
            return;
        }
        let seen = chunk.len().min(self.left);
        let mut rest = &chunk[..seen];
        while let Some((byte, after)) = rest.split_first() {
            self.state = self.next(*byte);
            rest = match self.state {
                State::Over => return,
                // Of a string that nobody asks for, only the end is looked for.
                State::InString { depth, escaped: false } if depth > 0 || self.wanted == Wanted::Nothing => {
                    &after[memchr::memchr2(b'"', b'\\', after).unwrap_or(after.len())..]
                }
                _ => after,
            };
        }
        self.left -= seen;
    }

    /// Nothing more can be found.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.state == State::Over || self.left == 0
    }

    /// The request's id, as far as is known by now.
    #[must_use]
    pub fn id(&self) -> Option<&RawId> {
        self.id.as_ref()
    }

    /// The request's method, as far as is known by now.
    #[must_use]
    pub fn method(&self) -> Option<&str> {
        self.method.as_deref()
    }

    fn next(&mut self, byte: u8) -> State {
        match (self.state, byte) {
            (
                State::Start | State::Key | State::Colon | State::Value | State::Comma,
                b' ' | b'\t' | b'\r' | b'\n',
            ) => self.state,
            (State::Start, b'{') | (State::Comma, b',') => State::Key,
            (State::Key, b'"') => {
                self.token.clear();
                self.note(byte);
                State::InKey { escaped: false }
            }
            (State::InKey { escaped }, _) => {
                self.note(byte);
                match (escaped, byte) {
                    (false, b'"') => self.key_ends(),
                    _ => State::InKey { escaped: !escaped && byte == b'\\' },
                }
            }
            (State::Colon, b':') => {
                self.token.clear();
                State::Value
            }
            (State::Value, _) => self.value_starts(byte),
            (State::InString { depth, escaped }, _) => self.in_string(depth, escaped, byte),
            (State::InBrackets { depth }, _) => in_brackets(depth, byte),
            (State::InScalar, b',' | b'}' | b' ' | b'\t' | b'\r' | b'\n') => {
                self.value_ends();
                match byte {
                    b',' => State::Key,
                    b'}' => State::Over,
                    _ => State::Comma,
                }
            }
            (State::InScalar, _) => {
                self.note(byte);
                State::InScalar
            }
            // The end, or no JSON object: a batch, a bare value, a syntax error.
            (State::Start | State::Key | State::Colon | State::Comma | State::Over, _) => State::Over,
        }
    }

    fn key_ends(&mut self) -> State {
        self.wanted = match self.token.as_slice() {
            br#""id""# => Wanted::Id,
            br#""method""# => Wanted::Method,
            escaped if escaped.contains(&b'\\') => match serde_json::from_slice::<String>(escaped).as_deref()
            {
                Ok("id") => Wanted::Id,
                Ok("method") => Wanted::Method,
                _ => Wanted::Nothing,
            },
            // Another key, or one that is too long to be ours.
            _ => Wanted::Nothing,
        };
        State::Colon
    }

    fn value_starts(&mut self, byte: u8) -> State {
        // A key that comes twice: the last one counts, as for most decoders.
        match self.wanted {
            Wanted::Id => self.id = None,
            Wanted::Method => self.method = None,
            Wanted::Nothing => {}
        }
        match byte {
            b'{' | b'[' => State::InBrackets { depth: 1 },
            b'"' => {
                self.note(byte);
                State::InString { depth: 0, escaped: false }
            }
            b',' | b'}' | b']' | b':' => State::Over,
            _ => {
                self.note(byte);
                State::InScalar
            }
        }
    }

    fn in_string(&mut self, depth: usize, escaped: bool, byte: u8) -> State {
        if depth == 0 {
            self.note(byte);
        }
        match (escaped, byte, depth) {
            (false, b'"', 0) => {
                self.value_ends();
                State::Comma
            }
            (false, b'"', _) => State::InBrackets { depth },
            _ => State::InString { depth, escaped: !escaped && byte == b'\\' },
        }
    }

    fn value_ends(&mut self) {
        match self.wanted {
            Wanted::Id => self.id = std::str::from_utf8(&self.token).ok().and_then(RawId::parse),
            Wanted::Method => self.method = serde_json::from_slice(&self.token).ok(),
            Wanted::Nothing => {}
        }
        self.wanted = Wanted::Nothing;
    }

    /// Keeps a byte of the current token. One byte over the bound is kept too, so that a token that is too long
    /// cannot be taken for a shorter one.
    fn note(&mut self, byte: u8) {
        let bound = match (self.state, self.wanted) {
            (State::Key | State::InKey { .. }, _) => KEY_MAX,
            (_, Wanted::Id) => ID_MAX,
            (_, Wanted::Method) => METHOD_MAX,
            (_, Wanted::Nothing) => return,
        };
        if self.token.len() <= bound {
            self.token.push(byte);
        }
    }
}

fn in_brackets(depth: usize, byte: u8) -> State {
    match byte {
        b'"' => State::InString { depth, escaped: false },
        b'{' | b'[' => State::InBrackets { depth: depth + 1 },
        b'}' | b']' if depth == 1 => State::Comma,
        b'}' | b']' => State::InBrackets { depth: depth - 1 },
        _ => State::InBrackets { depth },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use test_case::test_case;

    fn scan(body: &[u8]) -> (Option<String>, Option<String>) {
        let mut scanner = Scanner::default();
        scanner.push(body);
        (scanner.id().map(|id| id.as_str().to_owned()), scanner.method().map(str::to_owned))
    }

    #[test_case(r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"id":8,"method":"no"}}"#, Some("7"), Some("tools/call"); "plain")]
    #[test_case(r#"{"params":{"id":8,"a":["}",{"id":9}]},"method":"m","id":"a\"b"}"#, Some(r#""a\"b""#), Some("m"); "nested first")]
    #[test_case(" {\n \"id\" : 1.0e3 ,\"method\":\"x\" } ", Some("1.0e3"), Some("x"); "spaces, and the very token")]
    #[test_case(r#"{"\u0069d":3}"#, Some("3"), None; "escaped key")]
    #[test_case(r#"{"id":null,"method":7}"#, None, None; "no id, no method")]
    #[test_case(r#"{"id":{"id":1}}"#, None, None; "an object is no id")]
    #[test_case(r#"{"id":[1]}"#, None, None; "an array is no id")]
    #[test_case(r#"[{"id":1,"method":"m"}]"#, None, None; "batch")]
    #[test_case(r#""id""#, None, None; "string")]
    #[test_case(r#"{"id":1,"id":2}"#, Some("2"), None; "the last one counts")]
    #[test_case(r#"{"id":1,"id":[]}"#, None, None; "the last one counts, usable or not")]
    #[test_case(r#"{"id":1} {"id":2}"#, Some("1"), None; "trailing bytes")]
    #[test_case(r#"{"id":12"#, None, None; "a cut token is none")]
    #[test_case("", None, None; "nothing")]
    fn finds(body: &str, id: Option<&str>, method: Option<&str>) {
        assert_eq!(scan(body.as_bytes()), (id.map(str::to_owned), method.map(str::to_owned)));
    }

    #[test]
    fn what_is_too_long_is_not_cut() {
        let digits = "1".repeat(ID_MAX + 1);
        assert_eq!(scan(format!(r#"{{"id":{digits},"method":"m"}}"#).as_bytes()), (None, Some("m".into())));
        let method = "m".repeat(METHOD_MAX);
        assert_eq!(scan(format!(r#"{{"method":"{method}","id":1}}"#).as_bytes()), (Some("1".into()), None));
        let key = format!("id{}", " ".repeat(KEY_MAX));
        assert_eq!(scan(format!(r#"{{"{key}":1}}"#).as_bytes()).0, None);
    }

    #[test]
    fn looks_only_at_the_start() {
        let mut scanner = Scanner::default();
        scanner.push(br#"{"params":""#);
        for _ in 0..=SCANNED / 1024 {
            scanner.push(&[b'x'; 1024]);
        }
        assert!(scanner.is_over());
        scanner.push(br#"","id":1}"#);
        assert_eq!(scanner.id(), None);
    }

    fn json() -> impl Strategy<Value = Value> {
        let text = prop_oneof![Just("id".to_owned()), Just("method".to_owned()), ".{0,12}"];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec((text.clone(), inner), 0..5)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(value in json(), pretty in any::<bool>(), cut in 1usize..9) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let mut scanner = Scanner::default();
            for chunk in text.as_bytes().chunks(cut) {
                scanner.push(chunk);
            }
            let id = value.as_object().and_then(|o| o.get("id")).filter(|id| id.is_string() || id.is_number());
            let method = value.as_object().and_then(|o| o.get("method")).and_then(Value::as_str);
            let found = scanner.id().map(|id| serde_json::from_str::<Value>(id.as_str()).unwrap());
            prop_assert_eq!(found.as_ref(), id);
            prop_assert_eq!(scanner.method(), method);
        }

        #[test]
        fn chunking_changes_nothing(bytes in proptest::collection::vec(prop_oneof![
            Just(b'"'), Just(b'\\'), Just(b'{'), Just(b'}'), Just(b'['), Just(b':'), Just(b','), Just(b'i'), Just(b'd'), Just(b'1'), any::<u8>(),
        ], 0..64), cut in 0usize..64) {
            let cut = cut.min(bytes.len());
            let mut parts = Scanner::default();
            parts.push(&bytes[..cut]);
            parts.push(&bytes[cut..]);
            let parts = (parts.id().map(|id| id.as_str().to_owned()), parts.method().map(str::to_owned));
            prop_assert_eq!(parts, scan(&bytes));
        }
    }
}
