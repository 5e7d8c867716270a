//! Splices members into and out of the objects of a JSON text.
//!
//! An inserted member is one run of bytes before the closing brace: blanks, name, value; and a comma directly after
//! the member before it. Removing takes exactly these away, so comments near them stay.

use std::ops::Range;

use serde::Serialize;
use serde_json::{Value, ser::PrettyFormatter};

use super::parse::{Comment, Comments, Kind, Member, Node, Parsed, Syntax, line_of, parse};

/// A text that cannot be edited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EditError {
    Syntax(Syntax),
    /// The path leads through something that is not an object.
    NotAnObject {
        line: usize,
        path: String,
    },
    /// The path leads through a name that is there twice: readers differ in which one counts.
    Twice {
        line: usize,
        name: String,
    },
}

impl From<Syntax> for EditError {
    fn from(syntax: Syntax) -> Self {
        Self::Syntax(syntax)
    }
}

/// A JSON text under edit.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    text: String,
    allowed: Comments,
    root: Node,
    comments: Vec<Comment>,
    /// What stands between colon and brace of an object that an edit had to make.
    made: &'static str,
}

impl Text {
    pub(crate) fn new(text: &str, comments: Comments) -> Result<Self, EditError> {
        let Parsed { root, comments: found } = parse(text, comments)?;
        if root.members().is_none() {
            let path = "the document".to_owned();
            return Err(EditError::NotAnObject { line: line_of(text, root.span.start), path });
        }
        Ok(Self { text: text.to_owned(), allowed: comments, root, comments: found, made: " " })
    }

    /// Objects that an edit has to make are spelled with these blanks before their brace.
    pub(crate) fn spelling_made_objects(mut self, blanks: &'static str) -> Self {
        self.made = blanks;
        self
    }

    pub(crate) fn into_string(self) -> String {
        self.text
    }

    /// The members of the object at `path`; none when there is no such object.
    pub(crate) fn members(&self, path: &[&str]) -> Result<Vec<(&str, usize, Value)>, EditError> {
        let Some(node) = self.find(path)? else { return Ok(Vec::new()) };
        Ok(node
            .members()
            .unwrap_or_default()
            .iter()
            .map(|member| (&*member.name, line_of(&self.text, member.name_span.start), member.value.value()))
            .collect())
    }

    /// Takes the members that `which` picks out of the object at `path`.
    pub(crate) fn remove(
        &mut self,
        path: &[&str],
        which: impl Fn(&str, &Value) -> bool,
    ) -> Result<(), EditError> {
        let Some(node) = self.find(path)? else { return Ok(()) };
        let members = node.members().unwrap_or_default();
        let goes: Vec<bool> =
            members.iter().map(|member| which(&member.name, &member.value.value())).collect();
        let cuts = self.cuts(members, &goes);
        self.splice(cuts.into_iter().map(|cut| (cut, String::new())).collect())
    }

    /// Removes the member `name` of the document when its value is an empty object that an edit has made.
    pub(crate) fn remove_made(&mut self, name: &str) -> Result<(), EditError> {
        let made = self.root.get(name).is_some_and(|member| {
            let between = self.text.get(member.name_span.end..member.value.span.start);
            member.value.members().is_some_and(<[_]>::is_empty)
                && between.is_some_and(|between| between.strip_prefix(':') == Some(self.made))
        });
        if made { self.remove(&[], |member, _| member == name) } else { Ok(()) }
    }

    /// Puts members at the end of the object at `path`, which is made when it is missing.
    pub(crate) fn insert<T: Serialize>(
        &mut self,
        path: &[&str],
        entries: &[(String, T)],
    ) -> Result<(), EditError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.make(path)?;
        let Some(node) = self.find(path)? else { return Ok(()) };
        let layout = self.layout(node);
        let members = node.members().unwrap_or_default();
        let mut text = String::new();
        for (index, (name, value)) in entries.iter().enumerate() {
            text.push_str(if index > 0 { "," } else { "" });
            layout.member(&mut text, name, value);
        }
        self.append(node.span.clone(), members.last().map(|member| member.value.span.end), text)
    }

    /// Sets the member at `path` when it is missing.
    pub(crate) fn set_if_missing(&mut self, path: &[&str], value: bool) -> Result<(), EditError> {
        let Some((name, parents)) = path.split_last() else { return Ok(()) };
        let there = self.find(parents)?.is_some_and(|node| node.get(name).is_some());
        if there { Ok(()) } else { self.insert(parents, &[((*name).to_owned(), value)]) }
    }

    /// Sets the member at `path`, replacing a scalar that is there.
    pub(crate) fn set(&mut self, path: &[&str], value: bool) -> Result<(), EditError> {
        self.set_if_missing(path, value)?;
        let Some((name, parents)) = path.split_last() else { return Ok(()) };
        let Some(member) = self.find(parents)?.and_then(|node| node.get(name)) else { return Ok(()) };
        if member.value.kind == Kind::Scalar(Value::Bool(value)) {
            return Ok(());
        }
        self.splice(vec![(member.value.span.clone(), value.to_string())])
    }

    /// Puts the names that it lacks into the list at `path`, which is made when it is missing. What is there and no
    /// list stays as it is.
    pub(crate) fn add_to_list(&mut self, path: &[&str], names: &[&str]) -> Result<(), EditError> {
        let Some((last, parents)) = path.split_last() else { return Ok(()) };
        let Some(member) = self.find(parents)?.and_then(|node| node.get(last)) else {
            return if names.is_empty() {
                Ok(())
            } else {
                self.insert(parents, &[((*last).to_owned(), names)])
            };
        };
        let Value::Array(mut list) = member.value.value() else { return Ok(()) };
        let before = list.len();
        for name in names {
            if !list.iter().any(|there| there == name) {
                list.push(Value::from(*name));
            }
        }
        if list.len() == before {
            return Ok(());
        }
        self.splice(vec![(member.value.span.clone(), Value::from(list).to_string())])
    }

    /// The object at `path`, or `None` when it is missing.
    fn find(&self, path: &[&str]) -> Result<Option<&Node>, EditError> {
        let mut node = &self.root;
        for (depth, name) in path.iter().enumerate() {
            let mut named = node.members().unwrap_or_default().iter().filter(|member| member.name == *name);
            let Some(member) = named.next() else { return Ok(None) };
            let line = line_of(&self.text, member.name_span.start);
            if named.next().is_some() {
                return Err(EditError::Twice { line, name: (*name).to_owned() });
            }
            node = &member.value;
            if node.members().is_none() {
                let path = path.get(..=depth).unwrap_or_default().join(".");
                return Err(EditError::NotAnObject { line, path: format!("\"{path}\"") });
            }
        }
        Ok(Some(node))
    }

    /// Makes the objects of `path` that are missing.
    fn make(&mut self, path: &[&str]) -> Result<(), EditError> {
        for depth in 0..path.len() {
            let (Some(here), Some(name)) = (path.get(..=depth), path.get(depth)) else { continue };
            if self.find(here)?.is_some() {
                continue;
            }
            let parents = path.get(..depth).unwrap_or_default();
            let Some(node) = self.find(parents)? else { continue };
            let layout = self.layout(node);
            let end = layout.lines.as_ref().map(|indent| format!("\n{indent}")).unwrap_or_default();
            let mut text = String::new();
            layout.name(&mut text, name);
            text.push_str(&format!(":{}{{{end}}}", self.made));
            let last = node.members().and_then(<[_]>::last).map(|member| member.value.span.end);
            self.append(node.span.clone(), last, text)?;
        }
        Ok(())
    }

    /// How new members of this object are laid out.
    fn layout(&self, node: &Node) -> Layout {
        let empty = node.members().is_none_or(<[_]>::is_empty);
        let inside = self.text.get(node.span.clone()).unwrap_or_default();
        if !inside.contains('\n') {
            return Layout { empty, lines: None, unit: "  ".into() };
        }
        let outer = self.indent_at(node.span.start);
        let first = node.members().and_then(<[_]>::first);
        let indent =
            first.map_or_else(|| format!("{outer}  "), |member| self.indent_at(member.name_span.start));
        let unit = indent.strip_prefix(&outer).filter(|unit| !unit.is_empty()).unwrap_or("  ").to_owned();
        Layout { empty, lines: Some(indent), unit }
    }

    /// The blanks at the start of the line of this byte.
    fn indent_at(&self, offset: usize) -> String {
        let before = self.text.get(..offset).unwrap_or_default();
        let line = before.rsplit('\n').next().unwrap_or_default();
        line.chars().take_while(|c| matches!(c, ' ' | '\t')).collect()
    }

    /// Writes `text` as the last thing in the object; `last` is the end of the member before it.
    fn append(&mut self, object: Range<usize>, last: Option<usize>, text: String) -> Result<(), EditError> {
        let after = last.unwrap_or(object.start + 1);
        // Comments up to the brace belong to what is there already.
        let inner = after..object.end;
        let comments = self.comments.iter().map(|comment| comment.span.end);
        let place = comments.rev().find(|end| inner.contains(end)).unwrap_or(after);
        let mut splices = Vec::new();
        if let Some(last) = last {
            splices.push((last..last, ",".to_owned()));
        }
        splices.push((place..place, text));
        self.splice(splices)
    }

    /// What has to go so that these members are gone: each with the blanks before it, and one comma each.
    fn cuts(&self, members: &[Member], goes: &[bool]) -> Vec<Range<usize>> {
        let last_kept = goes.iter().rposition(|goes| !goes);
        let mut cuts = Vec::new();
        for (index, member) in members.iter().enumerate().filter(|(index, _)| goes.get(*index) == Some(&true))
        {
            let kept_after = last_kept.is_some_and(|kept| kept > index);
            let comma = if kept_after {
                member.comma
            } else {
                index.checked_sub(1).and_then(|before| members.get(before)).and_then(|member| member.comma)
            };
            cuts.push(self.blanks_before(member)..member.value.span.end);
            cuts.extend(comma.map(|comma| comma..comma + 1));
        }
        cuts.sort_by_key(|cut| cut.start);
        self.keep_comments_closed(joined(cuts))
    }

    /// Where the blanks before a member begin. Trailing blanks of a line comment are the comment's.
    fn blanks_before(&self, member: &Member) -> usize {
        let name = member.name_span.start;
        let before = self.text.get(..name).unwrap_or_default();
        let start = before.trim_end_matches([' ', '\t', '\n', '\r']).len();
        let comment = self.comments.iter().map(|comment| comment.span.end).rfind(|end| *end <= name);
        start.max(comment.unwrap_or_default())
    }

    /// The newline that ends a line comment stays, unless another one follows the cut.
    fn keep_comments_closed(&self, mut cuts: Vec<Range<usize>>) -> Vec<Range<usize>> {
        for cut in &mut cuts {
            let after_comment =
                self.comments.iter().any(|comment| comment.line && comment.span.end == cut.start);
            let follows = self.text.get(cut.end..).unwrap_or_default().trim_start_matches([' ', '\t', '\r']);
            if after_comment && !follows.starts_with('\n') {
                cut.start += 1;
            }
        }
        cuts
    }

    /// Replaces ranges, which must be sorted and apart.
    fn splice(&mut self, splices: Vec<(Range<usize>, String)>) -> Result<(), EditError> {
        let mut text = String::with_capacity(self.text.len() + 256);
        let mut at = 0;
        for (range, new) in splices {
            text.push_str(self.text.get(at..range.start).unwrap_or_default());
            text.push_str(&new);
            at = range.end;
        }
        text.push_str(self.text.get(at..).unwrap_or_default());
        let parsed = parse(&text, self.allowed)?;
        (self.root, self.comments, self.text) = (parsed.root, parsed.comments, text);
        Ok(())
    }
}

/// Ranges that touch become one.
fn joined(ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

/// How new members of an object are laid out.
struct Layout {
    /// Nothing is in the object yet.
    empty: bool,
    /// The indentation of each member's own line, or all in one line.
    lines: Option<String>,
    /// One step of indentation.
    unit: String,
}

impl Layout {
    fn name(&self, to: &mut String, name: &str) {
        match &self.lines {
            Some(indent) => to.push_str(&format!("\n{indent}{}", Value::from(name))),
            None if to.is_empty() && self.empty => to.push_str(&Value::from(name).to_string()),
            None => to.push_str(&format!(" {}", Value::from(name))),
        }
    }

    fn member<T: Serialize>(&self, to: &mut String, name: &str, value: &T) {
        self.name(to, name);
        to.push_str(": ");
        match &self.lines {
            Some(indent) => to.push_str(&pretty(value, &self.unit).replace('\n', &format!("\n{indent}"))),
            None => to.push_str(&serde_json::to_string(value).unwrap_or_default()),
        }
    }
}

/// Pretty JSON with this indentation.
pub(crate) fn pretty<T: Serialize>(value: &T, unit: &str) -> String {
    let mut bytes = Vec::new();
    let formatter = PrettyFormatter::with_indent(unit.as_bytes());
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    // Our own types, with string keys, into memory: there is nothing that could fail.
    let _written = value.serialize(&mut serializer);
    String::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
