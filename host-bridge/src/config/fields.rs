//! Reading a mapping's fields: each accessor reports what is wrong with its value and goes on.

use std::collections::BTreeMap;

use super::{
    problem::Report,
    yaml::{Entry, Node, Value, as_bool},
};

/// A mapping and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'n> {
    /// Like `mcp[0]`; empty at the top level.
    pub(crate) at: String,
    pub(crate) line: usize,
    entries: &'n [Entry],
}

/// A string and its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) line: usize,
    pub(crate) text: String,
}

impl<'n> Fields<'n> {
    /// The fields of a node that must be a mapping; `what` is what its place is called.
    pub(crate) fn of(node: &'n Node, at: String, what: &str, report: &mut Report) -> Option<Self> {
        match &node.value {
            Value::Map(entries) => Some(Self { at, line: node.line, entries }),
            _ => {
                report.problem(node.line, "", format_args!("{what} must be a mapping, not {}", node.kind()));
                None
            }
        }
    }

    /// Reports keys that are there twice or do not belong here.
    pub(crate) fn check_keys(&self, known: &[&str], report: &mut Report) {
        for (index, entry) in self.entries.iter().enumerate() {
            if let Some(first) = self.entries[..index].iter().find(|earlier| earlier.key == entry.key) {
                let text = format_args!("duplicate key {:?} (first on line {})", entry.key, first.line);
                report.problem(entry.line, &self.at, text);
            } else if !known.contains(&entry.key.as_str()) {
                report.unknown_key(entry.line, &self.at, &entry.key, known);
            }
        }
    }

    /// As [`Self::check_keys`] where any key is free.
    pub(crate) fn check_duplicates(&self, report: &mut Report) {
        let known: Vec<_> = self.entries.iter().map(|entry| entry.key.as_str()).collect();
        self.check_keys(&known, report);
    }

    /// Every key, once, with its value.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &'n Entry> {
        let entries = self.entries;
        entries.iter().enumerate().filter_map(move |(index, entry)| {
            (!entries[..index].iter().any(|earlier| earlier.key == entry.key)).then_some(entry)
        })
    }

    /// A key's value, null included.
    pub(crate) fn raw(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
    }

    /// A key's value; null is none.
    pub(crate) fn node(&self, key: &str) -> Option<&'n Node> {
        self.raw(key).filter(|node| !node.is_null())
    }

    /// A string; numbers and booleans are taken as they are written.
    pub(crate) fn text(&self, key: &str, report: &mut Report) -> Option<Text> {
        let node = self.node(key)?;
        match &node.value {
            Value::Scalar { text, .. } => Some(Text { line: node.line, text: text.clone() }),
            _ => {
                self.wrong(node, key, "a string", report);
                None
            }
        }
    }

    pub(crate) fn flag(&self, key: &str, report: &mut Report) -> Option<bool> {
        let node = self.node(key)?;
        let flag = match &node.value {
            Value::Scalar { text, .. } => as_bool(text),
            _ => None,
        };
        if flag.is_none() {
            self.wrong(node, key, "true or false", report);
        }
        flag
    }

    pub(crate) fn list(&self, key: &str, report: &mut Report) -> Option<&'n [Node]> {
        let node = self.node(key)?;
        match &node.value {
            Value::List(items) => Some(items),
            _ => {
                self.wrong(node, key, "a list", report);
                None
            }
        }
    }

    /// A list of strings.
    pub(crate) fn texts(&self, key: &str, report: &mut Report) -> Option<Vec<Text>> {
        let items = self.list(key, report)?;
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match &item.value {
                Value::Scalar { text, .. } if !item.is_null() => {
                    texts.push(Text { line: item.line, text: text.clone() });
                }
                _ => self.wrong(item, &format!("{key}[{index}]"), "a string", report),
            }
        }
        Some(texts)
    }

    /// The fields of a key whose value must be a mapping, at `<at>.<key>`.
    pub(crate) fn map(&self, key: &str, report: &mut Report) -> Option<Self> {
        let node = self.node(key)?;
        match &node.value {
            Value::Map(entries) => Some(Self { at: self.path(key), line: node.line, entries }),
            _ => {
                self.wrong(node, key, "a mapping", report);
                None
            }
        }
    }

    /// A mapping of strings; null is the empty string.
    pub(crate) fn text_map(&self, key: &str, report: &mut Report) -> BTreeMap<String, Text> {
        let Some(fields) = self.map(key, report) else { return BTreeMap::new() };
        fields.check_duplicates(report);
        let mut map = BTreeMap::new();
        for Entry { line, key, value } in fields.entries() {
            let text = match &value.value {
                Value::Scalar { .. } if value.is_null() => String::new(),
                Value::Scalar { text, .. } => text.clone(),
                _ => {
                    fields.wrong(value, key, "a string", report);
                    continue;
                }
            };
            map.insert(key.clone(), Text { line: *line, text });
        }
        map
    }

    /// A key's full path.
    pub(crate) fn path(&self, key: &str) -> String {
        if self.at.is_empty() { key.to_owned() } else { format!("{}.{key}", self.at) }
    }

    fn wrong(&self, node: &Node, key: &str, wanted: &str, report: &mut Report) {
        report.problem(node.line, &self.at, format_args!("'{key}' must be {wanted}, not {}", node.kind()));
    }
}
