//! Where things are in a JSON text: a strict parser (RFC 8259) that keeps spans, and skips comments where allowed.

use std::ops::Range;

use moat_shared::limits;
use serde_json::Value;

/// May the text hold `//` and `/* */` comments? Gemini's settings may; Claude's files may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comments {
    Allowed,
    Refused,
}

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Syntax {
    pub(crate) line: usize,
    pub(crate) reason: String,
}

/// A value and where it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) span: Range<usize>,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Object(Vec<Member>),
    Array(Vec<Node>),
    /// A string, number, boolean or null.
    Scalar(Value),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) name_span: Range<usize>,
    pub(crate) value: Node,
    /// The comma after the value, when there is one.
    pub(crate) comma: Option<usize>,
}

impl Node {
    pub(crate) fn members(&self) -> Option<&[Member]> {
        match &self.kind {
            Kind::Object(members) => Some(members),
            _ => None,
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Member> {
        self.members()?.iter().find(|member| member.name == name)
    }

    /// The value without its place.
    pub(crate) fn value(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::Array(nodes) => nodes.iter().map(Self::value).collect(),
            Kind::Object(members) => {
                members.iter().map(|member| (member.name.clone(), member.value.value())).collect()
            }
        }
    }
}

/// The line, from 1, in which the byte is.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// A comment and where it is; the end of its line is not part of a line comment.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Comment {
    pub(crate) span: Range<usize>,
    pub(crate) line: bool,
}

/// A text that was read.
#[derive(Debug, Clone)]
pub(crate) struct Parsed {
    pub(crate) root: Node,
    pub(crate) comments: Vec<Comment>,
}

/// Reads the whole text.
pub(crate) fn parse(text: &str, comments: Comments) -> Result<Parsed, Syntax> {
    let mut parser = Parser { text, at: 0, comments, found: Vec::new(), depth: 0 };
    // Editors on Windows write a byte order mark; the agents skip it.
    if text.starts_with('\u{feff}') {
        parser.at = '\u{feff}'.len_utf8();
    }
    parser.skip()?;
    let root = parser.value()?;
    parser.skip()?;
    if parser.at < text.len() {
        return Err(parser.error("there is something after the end of the document"));
    }
    Ok(Parsed { root, comments: parser.found })
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    comments: Comments,
    found: Vec<Comment>,
    depth: usize,
}

impl Parser<'_> {
    fn error(&self, reason: impl Into<String>) -> Syntax {
        Syntax { line: line_of(self.text, self.at), reason: reason.into() }
    }

    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Over blanks and comments.
    fn skip(&mut self) -> Result<(), Syntax> {
        loop {
            let rest = self.rest();
            let blanks = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
            self.at += blanks;
            let rest = self.rest();
            if !rest.starts_with("//") && !rest.starts_with("/*") {
                return Ok(());
            }
            if self.comments == Comments::Refused {
                return Err(self.error("comments are not allowed in this file"));
            }
            let line = rest.starts_with("//");
            let length = if line {
                rest.find('\n').unwrap_or(rest.len())
            } else {
                let end = rest.get(2..).and_then(|inner| inner.find("*/"));
                end.ok_or_else(|| self.error("a comment does not end"))? + 4
            };
            self.found.push(Comment { span: self.at..self.at + length, line });
            self.at += length;
        }
    }

    fn value(&mut self) -> Result<Node, Syntax> {
        let start = self.at;
        let kind = match self.peek() {
            Some(b'{') => self.nested(Self::object)?,
            Some(b'[') => self.nested(Self::array)?,
            Some(b'"') => Kind::Scalar(Value::String(self.string()?)),
            Some(_) => Kind::Scalar(self.word()?),
            None => return Err(self.error("the document ends too early")),
        };
        Ok(Node { span: start..self.at, kind })
    }

    fn nested(&mut self, inner: fn(&mut Self) -> Result<Kind, Syntax>) -> Result<Kind, Syntax> {
        self.depth += 1;
        if self.depth > limits::JSON_DEPTH {
            return Err(self.error("it is nested too deeply"));
        }
        self.at += 1;
        let kind = inner(self)?;
        self.depth -= 1;
        Ok(kind)
    }

    fn object(&mut self) -> Result<Kind, Syntax> {
        let mut members: Vec<Member> = Vec::new();
        loop {
            self.skip()?;
            match self.peek() {
                Some(b'}') if members.is_empty() => break,
                Some(b'"') => {}
                Some(b'}') => return Err(self.error("a comma without a member after it")),
                _ => return Err(self.error("a member's name in double quotes is missing")),
            }
            let start = self.at;
            let name = self.string()?;
            let name_span = start..self.at;
            self.skip()?;
            self.expect(b':', "a colon is missing")?;
            self.skip()?;
            let value = self.value()?;
            self.skip()?;
            let comma = (self.peek() == Some(b',')).then_some(self.at);
            members.push(Member { name, name_span, value, comma });
            if comma.is_none() {
                break;
            }
            self.at += 1;
        }
        self.expect(b'}', "a comma or a closing brace is missing")?;
        Ok(Kind::Object(members))
    }

    fn array(&mut self) -> Result<Kind, Syntax> {
        let mut nodes = Vec::new();
        self.skip()?;
        if self.peek() != Some(b']') {
            loop {
                self.skip()?;
                nodes.push(self.value()?);
                self.skip()?;
                if self.peek() != Some(b',') {
                    break;
                }
                self.at += 1;
            }
        }
        self.expect(b']', "a comma or a closing bracket is missing")?;
        Ok(Kind::Array(nodes))
    }

    fn expect(&mut self, byte: u8, otherwise: &str) -> Result<(), Syntax> {
        if self.peek() != Some(byte) {
            return Err(self.error(otherwise));
        }
        self.at += 1;
        Ok(())
    }

    fn string(&mut self) -> Result<String, Syntax> {
        let start = self.at;
        let mut escaped = false;
        for (offset, byte) in self.rest().bytes().enumerate().skip(1) {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    let end = start + offset + 1;
                    let quoted = self.text.get(start..end).unwrap_or_default();
                    let string = serde_json::from_str(quoted)
                        .map_err(|_| self.error("a string holds something that JSON does not allow"))?;
                    self.at = end;
                    return Ok(string);
                }
                _ => {}
            }
        }
        Err(self.error("a string does not end"))
    }

    fn word(&mut self) -> Result<Value, Syntax> {
        let rest = self.rest();
        let length = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-' | '.'))
            .unwrap_or(rest.len());
        let word = rest.get(..length).unwrap_or_default();
        let value = serde_json::from_str(word).map_err(|_| self.error("a value is missing or misspelt"))?;
        self.at += length;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case("{" => 1; "open")]
    #[test_case("{\n\"a\": }" => 2; "no value")]
    #[test_case("{\"a\": 1,}" => 1; "trailing comma")]
    #[test_case("[1,]" => 1; "trailing comma in a list")]
    #[test_case("{\"a\" 1}" => 1; "no colon")]
    #[test_case("{a: 1}" => 1; "bare name")]
    #[test_case("{} {}" => 1; "two documents")]
    #[test_case("\n\n\"abc" => 3; "open string")]
    #[test_case("\"a\nb\"" => 1; "newline in a string")]
    #[test_case("// no\n{}" => 1; "comment")]
    #[test_case("" => 1; "nothing")]
    #[test_case("nul" => 1; "misspelt")]
    #[test_case("01" => 1; "not a number")]
    fn refused(text: &str) -> usize {
        parse(text, Comments::Refused).unwrap_err().line
    }

    #[test]
    fn depth_has_a_bound() {
        let text = "[".repeat(limits::JSON_DEPTH + 1);
        assert_eq!(parse(&text, Comments::Refused).unwrap_err().reason, "it is nested too deeply");
    }

    #[test]
    fn comments_are_skipped_where_allowed() {
        let text = "// a\n{ /* b } */ \"c\": /* d */ \"// not one\" // e\n} // f";
        let parsed = parse(text, Comments::Allowed).unwrap();
        assert_eq!(parsed.root.value(), serde_json::json!({"c": "// not one"}));
        assert!(parse("{} /*", Comments::Allowed).is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(".*", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn reads_what_serde_writes(value in any_json(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            prop_assert_eq!(parse(&text, Comments::Refused).unwrap().root.value(), value);
        }

        /// Never accepts what serde_json refuses, never panics.
        #[test]
        fn as_strict_as_serde(text in "[\\[\\]{}:,\"a1\\\\ \n-.truefalsn]{0,24}") {
            let ours = parse(&text, Comments::Refused);
            let theirs = serde_json::from_str::<Value>(&text);
            prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?}", text);
        }
    }
}
