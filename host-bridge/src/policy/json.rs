//! JSON as it is judged: a tree that knows where each of its strings stands in the bytes, so that a redaction replaces
//! exactly those.
//!
//! Refused is what two decoders could read differently, also where a whole body was read strictly before: keys twice
//! or apart only by case in one object, lone surrogates, numbers that a double does not hold (P27).

mod pass;

use std::{borrow::Cow, cell::OnceCell, ops::Range};

use moat_shared::limits;

use super::cel::text;

/// A value and the bytes of its token.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) span: Range<usize>,
    pub(crate) data: Data,
}

#[derive(Debug)]
pub(crate) enum Data {
    Null,
    Bool(bool),
    /// Every JSON number is a double.
    Number(f64),
    Text(Text),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// A string in its two cases, the lower made when it is first asked for.
#[derive(Debug, Default)]
pub(crate) struct Text {
    original: String,
    lower: OnceCell<Option<String>>,
}

impl Text {
    pub(crate) fn new(original: String) -> Self {
        Self { original, lower: OnceCell::new() }
    }

    /// What a redaction wrote: later rules see it as it is.
    pub(crate) fn written(text: String) -> Self {
        Self { original: text, lower: OnceCell::from(None) }
    }

    pub(crate) fn original(&self) -> &str {
        &self.original
    }

    pub(crate) fn lower(&self) -> &str {
        let lower = self.lower.get_or_init(|| match text::lower(&self.original) {
            Cow::Borrowed(_) => None,
            Cow::Owned(lower) => Some(lower),
        });
        lower.as_deref().unwrap_or(&self.original)
    }
}

/// Why a text is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("not valid JSON")]
    Syntax,
    #[error("a key is given twice")]
    Duplicate,
    #[error("keys differ only by case")]
    Case,
    #[error("a string that is not Unicode")]
    Surrogate,
    #[error("a number that a double does not hold")]
    Number,
    #[error("nested too deep")]
    Depth,
    #[error("too many values")]
    Size,
}

/// Values of one document. A legal message has thousands at most.
const NODES: usize = 1 << 20;

/// Which numbers are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// Only those that every reader holds alike: what is judged.
    Exact,
    /// Any that is a number: what a server answers.
    Any,
}

impl Node {
    /// Of nothing that stands anywhere.
    pub(crate) fn made(data: Data) -> Self {
        Self { span: 0..0, data }
    }

    /// Reads a whole text.
    pub(crate) fn parse(bytes: &[u8], numbers: Numbers) -> Result<Self, Unreadable> {
        Self::outline(bytes, numbers, usize::MAX)
    }

    /// The same, but of lists and maps so deep in it nothing is kept: each is checked, and is empty here.
    pub(crate) fn outline(bytes: &[u8], numbers: Numbers, depth: usize) -> Result<Self, Unreadable> {
        let text = std::str::from_utf8(bytes).map_err(|_| Unreadable::Syntax)?;
        let mut reader = Reader { text, at: 0, nodes: 0, numbers, kept: depth };
        reader.blanks();
        let node = reader.value(0)?;
        reader.blanks();
        if reader.at == text.len() { Ok(node) } else { Err(Unreadable::Syntax) }
    }

    /// A key's value, of a map.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        match &mut self.data {
            Data::Map(entries) => entries.iter_mut().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The entries of a map; of anything else, none.
    pub(crate) fn entries(&self) -> &[(String, Self)] {
        match &self.data {
            Data::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list; of anything else, none.
    pub(crate) fn items(&self) -> &[Self] {
        match &self.data {
            Data::List(items) => items,
            _ => &[],
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Text(text) => Some(text.original()),
            _ => None,
        }
    }

    pub(crate) fn is_true(&self) -> bool {
        matches!(self.data, Data::Bool(true))
    }

    pub(crate) fn is_map(&self) -> bool {
        matches!(self.data, Data::Map(_))
    }

    /// Calls `found` with every string below and at this value.
    pub(crate) fn strings<'n>(&'n self, found: &mut impl FnMut(&'n Self, &'n Text)) {
        match &self.data {
            Data::Text(text) => found(self, text),
            Data::List(items) => items.iter().for_each(|item| item.strings(found)),
            Data::Map(entries) => entries.iter().for_each(|(_, value)| value.strings(found)),
            Data::Null | Data::Bool(_) | Data::Number(_) => {}
        }
    }

    /// The same, to change them.
    pub(crate) fn strings_mut(&mut self, found: &mut impl FnMut(&Range<usize>, &mut Text)) {
        match &mut self.data {
            Data::Text(text) => found(&self.span, text),
            Data::List(items) => items.iter_mut().for_each(|item| item.strings_mut(found)),
            Data::Map(entries) => entries.iter_mut().for_each(|(_, value)| value.strings_mut(found)),
            Data::Null | Data::Bool(_) | Data::Number(_) => {}
        }
    }
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    nodes: usize,
    numbers: Numbers,
    /// Lists and maps so deep are passed over.
    kept: usize,
}

impl<'t> Reader<'t> {
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blanks(&mut self) {
        while matches!(self.byte(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> Result<(), Unreadable> {
        if self.byte() != Some(byte) {
            return Err(Unreadable::Syntax);
        }
        self.at += 1;
        Ok(())
    }

    fn value(&mut self, depth: usize) -> Result<Node, Unreadable> {
        self.count(depth)?;
        let start = self.at;
        let data = match self.byte().ok_or(Unreadable::Syntax)? {
            b'{' if depth >= self.kept => self.pass_map(depth).map(|()| Data::Map(Vec::new()))?,
            b'[' if depth >= self.kept => self.pass_list(depth).map(|()| Data::List(Vec::new()))?,
            b'{' => self.map(depth)?,
            b'[' => self.list(depth)?,
            b'"' => Data::Text(Text::new(self.string()?)),
            b't' => self.word("true", Data::Bool(true))?,
            b'f' => self.word("false", Data::Bool(false))?,
            b'n' => self.word("null", Data::Null)?,
            _ => Data::Number(self.number()?),
        };
        Ok(Node { span: start..self.at, data })
    }

    /// One more value.
    fn count(&mut self, depth: usize) -> Result<(), Unreadable> {
        self.nodes += 1;
        match () {
            () if depth > limits::JSON_DEPTH => Err(Unreadable::Depth),
            () if self.nodes > NODES => Err(Unreadable::Size),
            () => Ok(()),
        }
    }

    fn word(&mut self, word: &str, data: Data) -> Result<Data, Unreadable> {
        if !self.text[self.at..].starts_with(word) {
            return Err(Unreadable::Syntax);
        }
        self.at += word.len();
        Ok(data)
    }

    fn map(&mut self, depth: usize) -> Result<Data, Unreadable> {
        self.take(b'{')?;
        let mut entries: Vec<(String, Node)> = Vec::new();
        self.blanks();
        if self.byte() == Some(b'}') {
            self.at += 1;
            return Ok(Data::Map(entries));
        }
        loop {
            self.blanks();
            let key = self.string()?;
            self.blanks();
            self.take(b':')?;
            self.blanks();
            let value = self.value(depth + 1)?;
            entries.push((key, value));
            self.blanks();
            match self.byte() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(Unreadable::Syntax),
            }
        }
        self.at += 1;
        distinct(&entries)?;
        Ok(Data::Map(entries))
    }

    fn list(&mut self, depth: usize) -> Result<Data, Unreadable> {
        self.take(b'[')?;
        let mut items = Vec::new();
        self.blanks();
        if self.byte() == Some(b']') {
            self.at += 1;
            return Ok(Data::List(items));
        }
        loop {
            self.blanks();
            items.push(self.value(depth + 1)?);
            self.blanks();
            match self.byte() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(Unreadable::Syntax),
            }
        }
        self.at += 1;
        Ok(Data::List(items))
    }

    fn string(&mut self) -> Result<String, Unreadable> {
        self.take(b'"')?;
        let rest: &'t str = &self.text[self.at..];
        let end = memchr::memchr2(b'"', b'\\', rest.as_bytes()).ok_or(Unreadable::Syntax)?;
        // Control characters may not stand in a string as they are.
        let plain =
            |part: &str| if part.bytes().any(|b| b < 0x20) { Err(Unreadable::Syntax) } else { Ok(()) };
        plain(&rest[..end])?;
        let mut out = rest[..end].to_owned();
        self.at += end;
        loop {
            match self.byte().ok_or(Unreadable::Syntax)? {
                b'"' => {
                    self.at += 1;
                    return Ok(out);
                }
                b'\\' => {
                    self.at += 1;
                    out.push(self.escape()?);
                }
                _ => {
                    let rest: &'t str = &self.text[self.at..];
                    let end = memchr::memchr2(b'"', b'\\', rest.as_bytes()).ok_or(Unreadable::Syntax)?;
                    plain(&rest[..end])?;
                    out.push_str(&rest[..end]);
                    self.at += end;
                }
            }
        }
    }

    fn escape(&mut self) -> Result<char, Unreadable> {
        let letter = self.byte().ok_or(Unreadable::Syntax)?;
        self.at += 1;
        Ok(match letter {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hex()?;
                if !(0xd800..0xe000).contains(&first) {
                    return char::from_u32(first).ok_or(Unreadable::Surrogate);
                }
                if first >= 0xdc00 || self.byte() != Some(b'\\') {
                    return Err(Unreadable::Surrogate);
                }
                self.at += 1;
                self.take(b'u').map_err(|_| Unreadable::Surrogate)?;
                let second = self.hex()?;
                if !(0xdc00..0xe000).contains(&second) {
                    return Err(Unreadable::Surrogate);
                }
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return char::from_u32(code).ok_or(Unreadable::Surrogate);
            }
            _ => return Err(Unreadable::Syntax),
        })
    }

    fn hex(&mut self) -> Result<u32, Unreadable> {
        let digits = self.text.get(self.at..self.at + 4).ok_or(Unreadable::Syntax)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Unreadable::Syntax);
        }
        self.at += 4;
        u32::from_str_radix(digits, 16).map_err(|_| Unreadable::Syntax)
    }

    fn number(&mut self) -> Result<f64, Unreadable> {
        let start = self.at;
        let digits = |this: &mut Self| {
            let from = this.at;
            while this.byte().is_some_and(|b| b.is_ascii_digit()) {
                this.at += 1;
            }
            this.at - from
        };
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        let leading_zero = self.byte() == Some(b'0');
        let whole = digits(self);
        if whole == 0 || (leading_zero && whole > 1) {
            return Err(Unreadable::Syntax);
        }
        let mut integer = true;
        if self.byte() == Some(b'.') {
            self.at += 1;
            integer = false;
            if digits(self) == 0 {
                return Err(Unreadable::Syntax);
            }
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.at += 1;
            integer = false;
            if matches!(self.byte(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if digits(self) == 0 {
                return Err(Unreadable::Syntax);
            }
        }
        let token = &self.text[start..self.at];
        let value: f64 = token.parse().map_err(|_| Unreadable::Number)?;
        if self.numbers == Numbers::Any {
            return Ok(value);
        }
        // Beyond 2^53 two integers can share a double; what a rule sees would not be what the server reads.
        let exact = !integer
            || value.abs() <= 9_007_199_254_740_992.0
                && token.parse::<i64>().is_ok_and(|v| v.unsigned_abs() <= 1 << 53);
        if value.is_finite() && exact { Ok(value) } else { Err(Unreadable::Number) }
    }
}

/// No two keys are the same, or apart only by case.
fn distinct(entries: &[(String, Node)]) -> Result<(), Unreadable> {
    let clash = |a: &str, b: &str| if a == b { Unreadable::Duplicate } else { Unreadable::Case };
    if entries.len() <= 12 {
        for (index, (key, _)) in entries.iter().enumerate() {
            if let Some((other, _)) = entries[..index].iter().find(|(other, _)| folds_alike(other, key)) {
                return Err(clash(other, key));
            }
        }
        return Ok(());
    }
    let mut folded: Vec<(String, &str)> =
        entries.iter().map(|(key, _)| (key.chars().map(fold).collect(), key.as_str())).collect();
    folded.sort_unstable();
    match folded.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(clash(pair[0].1, pair[1].1)),
        None => Ok(()),
    }
}

/// As the laxest decoder folds keys: ASCII case, `ſ` as `s`, the Kelvin sign as `k`.
fn fold(c: char) -> char {
    match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_lowercase().next().unwrap_or(c),
    }
}

/// Are two keys the same to the laxest decoder?
pub(crate) fn folds_alike(a: &str, b: &str) -> bool {
    if a.is_ascii() && b.is_ascii() {
        return a.eq_ignore_ascii_case(b);
    }
    a.chars().map(fold).eq(b.chars().map(fold))
}

/// A text as a JSON string, quotes and all.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn parse(text: &str) -> Result<Node, Unreadable> {
        Node::parse(text.as_bytes(), Numbers::Exact)
    }

    #[test_case(r#"{"a":1,"a":2}"# => Unreadable::Duplicate; "twice")]
    #[test_case(r#"{"a":1,"\u0061":2}"# => Unreadable::Duplicate; "twice, escaped")]
    #[test_case(r#"{"a":{"b":1,"B":2}}"# => Unreadable::Case; "by case, below")]
    #[test_case("{\"kind\":1,\"\u{212a}ind\":2}" => Unreadable::Case; "kelvin")]
    #[test_case(r#"["\ud800"]"# => Unreadable::Surrogate; "lone high")]
    #[test_case(r#"["\udc00"]"# => Unreadable::Surrogate; "lone low")]
    #[test_case(r#"["\ud800\u0041"]"# => Unreadable::Surrogate; "not a pair")]
    #[test_case("9007199254740993" => Unreadable::Number; "beyond 2 to the 53")]
    #[test_case("1e999" => Unreadable::Number; "overflow")]
    #[test_case("01" => Unreadable::Syntax; "leading zero")]
    #[test_case("1." => Unreadable::Syntax; "no fraction")]
    #[test_case("[1,]" => Unreadable::Syntax; "trailing comma")]
    #[test_case("\"\t\"" => Unreadable::Syntax; "control")]
    #[test_case("1 2" => Unreadable::Syntax; "trailing")]
    fn p27_refused(text: &str) -> Unreadable {
        parse(text).unwrap_err()
    }

    #[test]
    fn p27_many_keys_are_compared_as_few_are() {
        let keys: Vec<String> = (0..40).map(|n| format!("\"key{n}\":0")).collect();
        assert!(parse(&format!("{{{}}}", keys.join(","))).is_ok());
        let text = format!("{{{},\"KEY7\":0}}", keys.join(","));
        assert_eq!(parse(&text).unwrap_err(), Unreadable::Case);
    }

    #[test]
    fn strings_know_their_places() {
        let text = r#" {"a":["x","\u0041\n"]} "#;
        let node = parse(text).unwrap();
        let mut found = Vec::new();
        node.strings(&mut |node, s| found.push((&text[node.span.clone()], s.original().to_owned())));
        assert_eq!(found, [("\"x\"", "x".to_owned()), (r#""\u0041\n""#, "A\n".to_owned())]);
    }

    fn same(node: &Node, value: &serde_json::Value) -> bool {
        match (&node.data, value) {
            (Data::Null, serde_json::Value::Null) => true,
            (Data::Bool(a), serde_json::Value::Bool(b)) => a == b,
            (Data::Number(a), serde_json::Value::Number(b)) => Some(*a) == b.as_f64(),
            (Data::Text(a), serde_json::Value::String(b)) => a.original() == b,
            (Data::List(a), serde_json::Value::Array(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
            }
            (Data::Map(a), serde_json::Value::Object(b)) => {
                a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
            }
            _ => false,
        }
    }

    proptest! {
        /// Whatever is read is read as serde_json reads it, and nothing is read that it does not read.
        #[test]
        fn agrees_with_another_reader(text in r#"[\[\]{}:,"a-cA-C0-3.eE+\\u \-]{0,24}|(\{"[ab]":(\[?-?[0-9]{1,3}(\.[0-9])?\]?|"[a-z\\]{0,4}"|null|true)\})"#) {
            if let Ok(node) = Node::parse(text.as_bytes(), Numbers::Exact) {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                prop_assert!(same(&node, &value), "{}", text);
            }
        }
    }
}
