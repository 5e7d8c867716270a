//! YAML as a tree of nodes that know their lines, so that every problem of a file can be told at once.
//!
//! Built from the parser's events, not through serde: a serde visit stops at the first mistake and drops duplicate
//! keys. What a plain scalar means is decided by whoever reads it; the tree keeps its text. Size, depth and what
//! aliases expand to are bounded.

use std::collections::HashMap;

use serde_yaml::granit_parser::{self as granit, Event, Parser, ScalarStyle, StrInput, options};

/// A file; a configuration is a few kilobytes.
pub(crate) const FILE: u64 = 1 << 20;
/// How deep a document may nest.
const DEPTH: usize = 64;
/// What a document may weigh once aliases are expanded: its text, and [`NODE`] bytes for each node.
const WEIGHT: usize = 16 << 20;
/// About what a node takes beside its text.
const NODE: usize = 64;

/// A value and the line it starts on.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) value: Value,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// A scalar's text; `plain` when it was written without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    /// In the file's order, duplicate keys included.
    Map(Vec<Entry>),
}

/// One key of a mapping.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) line: usize,
    pub(crate) key: String,
    pub(crate) value: Node,
}

/// The text is no YAML, or more of it than we read.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {text}")]
pub(crate) struct Malformed {
    pub(crate) line: usize,
    pub(crate) text: String,
}

impl Node {
    /// Nothing, or an explicit null.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// What people call this kind of value.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.value {
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Scalar { .. } if self.is_null() => "empty",
            Value::Scalar { plain: true, text } if as_bool(text).is_some() => "a boolean",
            Value::Scalar { plain: true, text } if text.parse::<f64>().is_ok() => "a number",
            Value::Scalar { .. } => "a string",
        }
    }
}

/// The booleans of YAML 1.1, which the files in use were written for.
pub(crate) fn as_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// Parses a file of one document. `None`: there is nothing in it.
pub(crate) fn parse(text: &str) -> Result<Option<Node>, Malformed> {
    let options = options! {
        block_nesting_limit: DEPTH,
        flow_nesting_limit: DEPTH,
        emit_comments: false,
    };
    let mut builder = Builder {
        text,
        events: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        weight: 0,
    };
    builder.document()
}

struct Builder<'t> {
    text: &'t str,
    events: Parser<'t, StrInput<'t>>,
    anchors: HashMap<usize, Built>,
    weight: usize,
}

/// A node with what it adds to the document's measures.
#[derive(Clone)]
struct Built {
    node: Node,
    height: usize,
    weight: usize,
}

impl<'t> Builder<'t> {
    fn document(&mut self) -> Result<Option<Node>, Malformed> {
        let mut root = None;
        loop {
            let (event, line) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::DocumentStart(..) if root.is_some() => {
                    return Err(malformed(line, "a second document; the file must have one"));
                }
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                other => root = Some(self.node(other, line, 0)?.node),
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, usize), Malformed> {
        match self.events.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(of_scanner(&error, self.text)),
            None => Ok((Event::StreamEnd, 0)),
        }
    }

    fn node(&mut self, event: Event<'t>, line: usize, depth: usize) -> Result<Built, Malformed> {
        if depth >= DEPTH {
            return Err(malformed(line, format!("nested deeper than {DEPTH} levels")));
        }
        let (anchor, built) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tagged_text = tag.is_some_and(|tag| tag.core_suffix() == Some("str"));
                let plain = style == ScalarStyle::Plain && !tagged_text;
                let weight = self.charge(NODE + text.len(), line)?;
                let value = Value::Scalar { text: text.into_owned(), plain };
                (anchor, Built { node: Node { line, value }, height: 1, weight })
            }
            Event::SequenceStart(_, anchor, _) => (anchor, self.list(line, depth)?),
            Event::MappingStart(_, anchor, _) => (anchor, self.map(line, depth)?),
            Event::Alias(target) => (0, self.alias(target, line, depth)?),
            _ => return Err(malformed(line, "a value was expected")),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, built.clone());
        }
        Ok(built)
    }

    fn list(&mut self, line: usize, depth: usize) -> Result<Built, Malformed> {
        let mut weight = self.charge(NODE, line)?;
        let (mut items, mut height) = (Vec::new(), 0);
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                break;
            }
            let item = self.node(event, at, depth + 1)?;
            height = height.max(item.height);
            weight += item.weight;
            items.push(item.node);
        }
        Ok(Built { node: Node { line, value: Value::List(items) }, height: height + 1, weight })
    }

    fn map(&mut self, line: usize, depth: usize) -> Result<Built, Malformed> {
        let mut weight = self.charge(NODE, line)?;
        let (mut entries, mut merged, mut height) = (Vec::new(), Vec::new(), 0);
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                break;
            }
            let Value::Scalar { text: key, plain } = self.node(event, at, depth + 1)?.node.value else {
                return Err(malformed(at, "a key must be a string"));
            };
            let (event, value_at) = self.next()?;
            let value = self.node(event, value_at, depth + 1)?;
            height = height.max(value.height);
            weight += value.weight + NODE + key.len();
            if plain && key == "<<" {
                merge(&value.node, at, &mut merged)?;
            } else {
                entries.push(Entry { line: at, key, value: value.node });
            }
        }
        // What a mapping says itself wins over what it merges in.
        for entry in merged {
            if !entries.iter().any(|own: &Entry| own.key == entry.key) {
                entries.push(entry);
            }
        }
        Ok(Built { node: Node { line, value: Value::Map(entries) }, height: height + 1, weight })
    }

    fn alias(&mut self, target: usize, line: usize, depth: usize) -> Result<Built, Malformed> {
        let Some(built) = self.anchors.get(&target) else {
            return Err(malformed(line, "an alias refers to the value that it is part of"));
        };
        let (weight, height) = (built.weight, built.height);
        if depth + height > DEPTH {
            return Err(malformed(line, format!("nested deeper than {DEPTH} levels")));
        }
        self.charge(weight, line)?;
        let mut built = self.anchors[&target].clone();
        built.node.line = line;
        Ok(built)
    }

    /// Counts before anything is copied.
    fn charge(&mut self, weight: usize, line: usize) -> Result<usize, Malformed> {
        self.weight += weight;
        if self.weight > WEIGHT {
            return Err(malformed(line, "the document is too large, or its aliases expand to too much"));
        }
        Ok(weight)
    }
}

fn merge(value: &Node, line: usize, into: &mut Vec<Entry>) -> Result<(), Malformed> {
    match &value.value {
        Value::Map(entries) => into.extend(entries.iter().cloned()),
        Value::List(maps) if maps.iter().all(|map| matches!(map.value, Value::Map(_))) => {
            maps.iter().try_for_each(|map| merge(map, line, into))?;
        }
        _ => return Err(malformed(line, "'<<' takes a mapping or a list of mappings")),
    }
    Ok(())
}

fn malformed(line: usize, text: impl Into<String>) -> Malformed {
    Malformed { line, text: text.into() }
}

/// The scanner's complaint, in words that help with the two commonest accidents.
fn of_scanner(error: &granit::ScanError, text: &str) -> Malformed {
    use granit::ErrorKind as Kind;

    let line = error.marker().line();
    match error.kind() {
        Kind::BomInsideDocument => {
            malformed(line, "a byte-order mark inside the file; save it as plain UTF-8")
        }
        Kind::TabNotAllowed
        | Kind::TabInBlockIndentation
        | Kind::TabInIndentation
        | Kind::TabInPlainScalar => {
            // The scanner names the value before the tab.
            let indented_by_tab =
                |line: &&str| line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
            let later = text.lines().skip(line.saturating_sub(1)).take_while(|line| !indented_by_tab(line));
            let line = (line + later.count()).min(text.lines().count());
            malformed(line, "a tab where YAML wants spaces; indent with spaces")
        }
        kind => malformed(line, kind.to_string()),
    }
}
