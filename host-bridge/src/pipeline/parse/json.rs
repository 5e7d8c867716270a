//! A strict JSON reader that takes bytes as they come, holds none of them but the token it was asked for, and tells a
//! [`Visitor`] where it is.
//!
//! Refused is what two decoders could read differently: bytes that are not UTF-8, a key twice in one object (also in
//! another case: Go takes the last one), half a surrogate pair, numbers outside the grammar or that a double does not
//! hold, nesting beyond a limit, anything after the value.

pub(super) mod fold;
mod keys;
mod number;
mod utf8;

use moat_shared::limits;

use self::{
    keys::{Hasher, Keys},
    number::Number,
    utf8::Utf8,
};

/// Why a text is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("not valid JSON")]
    Syntax,
    #[error("not valid UTF-8")]
    Utf8,
    #[error("bytes after the JSON value")]
    Trailing,
    #[error("the body ends inside the JSON value")]
    Truncated,
    #[error("a number that not every reader can hold")]
    Number,
    #[error("a key is given twice")]
    DuplicateKey,
    #[error("a key differs only by case from one that has a meaning")]
    KeyCase,
    #[error("a text that not every reader reads alike")]
    Ambiguous,
    #[error("an id that not every reader reads alike: it must be a short string or an integer")]
    Id,
    #[error("params, or what this method takes in it, is of the wrong type")]
    Params,
    #[error("a batch, or a message in it, that this protocol version does not have")]
    Batch,
    #[error("nested too deep")]
    Depth,
    #[error("too long")]
    TooLong,
    #[error("not a JSON-RPC message")]
    NotRpc,
    #[error("a POST body must be application/json, not encoded")]
    MediaType,
}

impl Fault {
    /// Is it about size?
    pub(crate) fn is_size(self) -> bool {
        matches!(self, Self::TooLong)
    }
    /// Is it no JSON at all, rather than JSON that is refused?
    pub(crate) fn is_syntax(self) -> bool {
        matches!(self, Self::Syntax | Self::Utf8 | Self::Trailing | Self::Truncated)
    }
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    String,
    Number,
    /// `true`, `false`, `null`.
    Word,
}

/// Told of the text's structure. Depth is the number of containers around the thing.
pub(crate) trait Visitor {
    /// A key, decoded. The value comes next.
    fn key(&mut self, depth: usize, key: &str) -> Result<(), Fault>;
    /// A value starts. Says how many bytes of its token to keep; 0 for none. Containers are never kept.
    fn begin(&mut self, depth: usize, kind: Kind) -> Result<usize, Fault>;
    /// A value is over; its token, raw, where it was asked for and not longer.
    fn end(&mut self, depth: usize, kind: Kind, token: Option<&str>) -> Result<(), Fault>;
}

/// How much is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rigour {
    /// A request: whatever two decoders could read differently.
    Strict,
    /// An upstream's answer, which is not ours to judge: what is no JSON.
    Lenient,
}

/// Keys alive in all open objects. A legal message has a handful.
const LIVE_KEYS: usize = 64 * 1024;
/// Bytes of one key.
const KEY_MAX: usize = 4096;
/// Bytes of one number.
const NUMBER_MAX: usize = 1024;
/// Integers of so many digits are exact in a double, whatever they are.
const EXACT_DIGITS: usize = 15;
/// How deep an answer may nest; each level costs memory.
const LENIENT_DEPTH: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A value must come.
    Value,
    /// After `[`: a value or `]`.
    FirstElement,
    /// After `{`: a key or `}`.
    FirstKey,
    /// After `,` in an object.
    Key,
    Colon,
    /// After a value in a container: `,` or the end.
    Next,
    Text(Text),
    Number(Number),
    /// What is left of `true`, `false` or `null`.
    Word(&'static [u8]),
    Done,
}

/// Inside a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Plain,
    Escape,
    Hex(u8),
}

#[derive(Debug)]
struct Frame {
    object: bool,
    keys: Keys,
}

/// The reader.
#[derive(Debug)]
pub(crate) struct Reader {
    state: State,
    stack: Vec<Frame>,
    rigour: Rigour,
    hasher: Hasher,
    live_keys: usize,
    is_key: bool,
    /// The token that is kept, raw.
    token: Vec<u8>,
    keep: usize,
    kept_whole: bool,
    /// The code unit of an escape, as far as it was read.
    unit: u16,
    /// The first half of a surrogate pair came; the second must follow.
    half: bool,
    utf8: Utf8,
}

impl Reader {
    pub(crate) fn new(rigour: Rigour) -> Self {
        Self {
            state: State::Value,
            stack: Vec::new(),
            rigour,
            hasher: Hasher::default(),
            live_keys: 0,
            is_key: false,
            token: Vec::new(),
            keep: 0,
            kept_whole: true,
            unit: 0,
            half: false,
            utf8: Utf8::default(),
        }
    }

    fn is_strict(&self) -> bool {
        self.rigour == Rigour::Strict
    }

    /// Is the value complete? Only white space may follow.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes the next bytes.
    pub(crate) fn push(&mut self, bytes: &[u8], visitor: &mut impl Visitor) -> Result<(), Fault> {
        self.utf8.push(bytes)?;
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            match self.state {
                State::Text(Text::Plain) => at += self.plain(&bytes[at..], visitor)?,
                State::Text(text) => {
                    self.escape(text, byte)?;
                    at += 1;
                }
                State::Number(number) => match number.next(byte) {
                    Some(next) => {
                        self.state = State::Number(next);
                        self.keep_bytes(&[byte])?;
                        at += 1;
                    }
                    // Not the number's byte any more: read it again after it.
                    None => self.end_number(number, visitor)?,
                },
                State::Word(rest) => {
                    if rest.first() != Some(&byte) {
                        return Err(Fault::Syntax);
                    }
                    self.keep_bytes(&[byte])?;
                    at += 1;
                    match &rest[1..] {
                        [] => self.end_scalar(Kind::Word, visitor)?,
                        rest => self.state = State::Word(rest),
                    }
                }
                _ => {
                    if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                        self.structure(byte, visitor)?;
                    }
                    at += 1;
                }
            }
        }
        Ok(())
    }

    /// The text is over.
    pub(crate) fn finish(&mut self, visitor: &mut impl Visitor) -> Result<(), Fault> {
        self.utf8.finish()?;
        if let State::Number(number) = self.state {
            self.end_number(number, visitor)?;
        }
        if self.is_done() { Ok(()) } else { Err(Fault::Truncated) }
    }

    /// A byte between tokens.
    fn structure(&mut self, byte: u8, visitor: &mut impl Visitor) -> Result<(), Fault> {
        match (self.state, byte) {
            (State::FirstElement, b']') | (State::FirstKey, b'}') => self.close(visitor),
            (State::FirstKey | State::Key, b'"') => {
                self.is_key = true;
                self.begin_token(KEY_MAX, byte, State::Text(Text::Plain))
            }
            (State::Colon, b':') => {
                self.state = State::Value;
                Ok(())
            }
            (State::Next, b',') => {
                let object = self.stack.last().is_some_and(|frame| frame.object);
                self.state = if object { State::Key } else { State::Value };
                Ok(())
            }
            (State::Next, b']' | b'}') => {
                let object = self.stack.last().is_some_and(|frame| frame.object);
                if object == (byte == b'}') { self.close(visitor) } else { Err(Fault::Syntax) }
            }
            (State::Value | State::FirstElement, _) => self.value(byte, visitor),
            (State::Done, _) => Err(Fault::Trailing),
            _ => Err(Fault::Syntax),
        }
    }

    /// The first byte of a value.
    fn value(&mut self, byte: u8, visitor: &mut impl Visitor) -> Result<(), Fault> {
        let (kind, state) = match byte {
            b'{' => (Kind::Object, State::FirstKey),
            b'[' => (Kind::Array, State::FirstElement),
            b'"' => (Kind::String, State::Text(Text::Plain)),
            b'-' => (Kind::Number, State::Number(Number::Minus)),
            b'0' => (Kind::Number, State::Number(Number::Zero)),
            b'1'..=b'9' => (Kind::Number, State::Number(Number::Digits)),
            b't' => (Kind::Word, State::Word(b"rue")),
            b'f' => (Kind::Word, State::Word(b"alse")),
            b'n' => (Kind::Word, State::Word(b"ull")),
            _ => return Err(Fault::Syntax),
        };
        let keep = visitor.begin(self.stack.len(), kind)?;
        match kind {
            Kind::Object | Kind::Array => {
                let deepest = if self.is_strict() { limits::RPC_DEPTH } else { LENIENT_DEPTH };
                if self.stack.len() >= deepest {
                    return Err(Fault::Depth);
                }
                self.stack.push(Frame { object: kind == Kind::Object, keys: Keys::default() });
                self.state = state;
                Ok(())
            }
            Kind::Number => self.begin_token(NUMBER_MAX, byte, state),
            Kind::String | Kind::Word => self.begin_token(keep, byte, state),
        }
    }

    fn begin_token(&mut self, keep: usize, byte: u8, state: State) -> Result<(), Fault> {
        self.token.clear();
        self.keep = keep;
        self.kept_whole = keep > 0;
        self.state = state;
        self.keep_bytes(&[byte])
    }

    fn keep_bytes(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if !self.kept_whole {
            return Ok(());
        }
        if self.token.len() + bytes.len() <= self.keep {
            self.token.extend_from_slice(bytes);
        } else if self.is_strict() && (self.is_key || matches!(self.state, State::Number(_))) {
            return Err(Fault::TooLong);
        } else {
            self.kept_whole = false;
            self.token.clear();
        }
        Ok(())
    }

    /// Inside a string, up to the next quote or backslash. Returns how many bytes were taken.
    fn plain(&mut self, bytes: &[u8], visitor: &mut impl Visitor) -> Result<usize, Fault> {
        let special = memchr::memchr2(b'"', b'\\', bytes);
        let text = &bytes[..special.unwrap_or(bytes.len())];
        if text.iter().any(|byte| *byte < 0x20) {
            return Err(Fault::Syntax);
        }
        // Whatever stands here that is no escape leaves the pair broken.
        if self.half && (!text.is_empty() || special.is_some_and(|at| bytes[at] == b'"')) {
            self.broken_pair()?;
        }
        let Some(special) = special else {
            self.keep_bytes(text)?;
            return Ok(text.len());
        };
        self.keep_bytes(&bytes[..=special])?;
        if bytes[special] == b'\\' {
            self.state = State::Text(Text::Escape);
        } else if std::mem::take(&mut self.is_key) {
            self.end_key(visitor)?;
        } else {
            self.end_scalar(Kind::String, visitor)?;
        }
        Ok(special + 1)
    }

    fn escape(&mut self, text: Text, byte: u8) -> Result<(), Fault> {
        let next = match (text, byte) {
            (Text::Escape, b'u') => {
                self.unit = 0;
                Text::Hex(4)
            }
            (Text::Escape, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                if self.half {
                    self.broken_pair()?;
                }
                Text::Plain
            }
            (Text::Hex(left), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.unit = self.unit << 4 | u16::try_from(digit).unwrap_or_default();
                if left == 1 {
                    self.end_unit()?;
                    Text::Plain
                } else {
                    Text::Hex(left - 1)
                }
            }
            _ => return Err(Fault::Syntax),
        };
        self.state = State::Text(next);
        self.keep_bytes(&[byte])
    }

    /// An escaped code unit is whole: a pair is two of them, in their order.
    fn end_unit(&mut self) -> Result<(), Fault> {
        match (self.half, self.unit) {
            (true, 0xdc00..=0xdfff) => self.half = false,
            (true, _) | (false, 0xdc00..=0xdfff) => self.broken_pair()?,
            (false, 0xd800..=0xdbff) => self.half = true,
            (false, _) => {}
        }
        Ok(())
    }

    /// Half a surrogate pair is kept, replaced or refused, depending on who reads it.
    fn broken_pair(&mut self) -> Result<(), Fault> {
        self.half = false;
        if self.is_strict() { Err(Fault::Ambiguous) } else { Ok(()) }
    }

    fn end_key(&mut self, visitor: &mut impl Visitor) -> Result<(), Fault> {
        let key: std::borrow::Cow<'_, str> = if !self.kept_whole {
            // Too long to mean anything; only an answer's comes here.
            "".into()
        } else if self.token.contains(&b'\\') {
            match serde_json::from_slice::<String>(&self.token) {
                Ok(key) => key.into(),
                Err(_) if self.is_strict() => return Err(Fault::Ambiguous),
                Err(_) => "".into(),
            }
        } else {
            let inner = self.token.get(1..self.token.len().saturating_sub(1)).unwrap_or_default();
            std::str::from_utf8(inner).map_err(|_| Fault::Utf8)?.into()
        };
        if self.rigour == Rigour::Strict
            && let Some(frame) = self.stack.last_mut()
        {
            frame.keys.insert(self.hasher.key(&key))?;
            self.live_keys += 1;
            if self.live_keys > LIVE_KEYS {
                return Err(Fault::TooLong);
            }
        }
        self.state = State::Colon;
        visitor.key(self.stack.len(), &key)
    }

    fn end_number(&mut self, number: Number, visitor: &mut impl Visitor) -> Result<(), Fault> {
        if !number.may_end() {
            return Err(Fault::Syntax);
        }
        let text = std::str::from_utf8(&self.token).map_err(|_| Fault::Utf8)?;
        if self.is_strict() && !is_one_number(text) {
            return Err(Fault::Number);
        }
        self.end_scalar(Kind::Number, visitor)
    }

    fn end_scalar(&mut self, kind: Kind, visitor: &mut impl Visitor) -> Result<(), Fault> {
        self.after_value();
        let token = if self.kept_whole {
            Some(std::str::from_utf8(&self.token).map_err(|_| Fault::Utf8)?)
        } else {
            None
        };
        visitor.end(self.stack.len(), kind, token)
    }

    fn close(&mut self, visitor: &mut impl Visitor) -> Result<(), Fault> {
        let Some(frame) = self.stack.pop() else { return Err(Fault::Syntax) };
        self.live_keys -= frame.keys.len();
        self.after_value();
        visitor.end(self.stack.len(), if frame.object { Kind::Object } else { Kind::Array }, None)
    }

    fn after_value(&mut self) {
        self.state = if self.stack.is_empty() { State::Done } else { State::Next };
    }
}

/// Is this the same number to all who read it? 1e999 is an error, infinity or null; an integer that a double does not
/// hold is another one to readers who know doubles alone (RFC 8259, section 6; RFC 7493, section 2.2).
fn is_one_number(text: &str) -> bool {
    let integer = text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
    if integer && text.len() <= EXACT_DIGITS {
        return true;
    }
    let Ok(double) = text.parse::<f64>() else { return false };
    double.is_finite() && (!integer || format!("{double:.0}") == text)
}

#[cfg(test)]
mod tests;
