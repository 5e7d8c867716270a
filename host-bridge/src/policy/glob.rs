//! Patterns over operations, as Go's `path.Match` has them, but that `*` and `?` also match `/` (P6).
//!
//! `*` any run, `?` one character, `[a-c]` and `[^a]` one of a class, `\x` the character itself; braces are literal.

use std::borrow::Cow;

use super::cel::text;

/// A pattern, in its own case and in lower case.
#[derive(Debug, Clone)]
pub(crate) struct Glob {
    own: Pattern,
    /// Where it is another one.
    lower: Option<Pattern>,
    /// No `*` and no `?`: a class counts as exact.
    exact: bool,
    sensitive: bool,
}

/// A pattern in one case. Most rules are of other operations, which their first letters tell.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    /// What stands before the first wildcard or class.
    literal: String,
    rest: Vec<Part>,
}

impl Pattern {
    fn new(pattern: &str) -> Result<Self, InvalidGlob> {
        let mut literal = String::new();
        let mut rest = parse(pattern)?;
        let length = rest.iter().take_while(|part| matches!(part, Part::Char(_))).count();
        for part in rest.drain(..length) {
            if let Part::Char(c) = part {
                literal.push(c);
            }
        }
        Ok(Self { literal, rest })
    }

    fn matches(&self, text: &str) -> bool {
        text.strip_prefix(self.literal.as_str()).is_some_and(|rest| matches(&self.rest, rest))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Char(char),
    One,
    Run,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

/// Why a text is no pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidGlob {
    #[error("a class [...] that does not end")]
    Open,
    #[error("an empty class []")]
    Empty,
    #[error("'-' stands first or last in a class")]
    Hyphen,
    #[error("a backslash at the end")]
    Backslash,
}

/// An operation, in both cases; made once for all rules.
#[derive(Debug)]
pub(crate) struct Operation<'o> {
    own: &'o str,
    lower: Cow<'o, str>,
}

impl<'o> Operation<'o> {
    pub(crate) fn new(operation: &'o str) -> Self {
        Self { own: operation, lower: text::lower(operation) }
    }

    pub(crate) fn own(&self) -> &str {
        self.own
    }

    pub(crate) fn lower(&self) -> &str {
        &self.lower
    }
}

impl Glob {
    /// Reads a pattern. `sensitive`: it matches in its own case only.
    pub(crate) fn new(pattern: &str, sensitive: bool) -> Result<Self, InvalidGlob> {
        let own = Pattern::new(pattern)?;
        let lower = Some(Pattern::new(&text::lower(pattern))?).filter(|lower| *lower != own);
        let exact = !own.rest.iter().any(|part| matches!(part, Part::One | Part::Run));
        Ok(Self { own, lower, exact, sensitive })
    }

    pub(crate) fn is_exact(&self) -> bool {
        self.exact
    }

    /// Does the text before the first wildcard name a method, as in `resources/read:*` (P30)?
    pub(crate) fn names_a_method(&self) -> bool {
        self.own.literal.contains('/')
    }

    /// Could it match something that begins so, and does it name a method?
    pub(crate) fn may_name(&self, start: &str) -> bool {
        let literal = &self.own.literal;
        self.names_a_method() && (literal.starts_with(start) || start.starts_with(literal.as_str()))
    }

    /// Unless it is sensitive, the pattern matches the lower-cased operation, or its lower-cased self does (P5).
    pub(crate) fn matches(&self, operation: &Operation<'_>) -> bool {
        if self.sensitive {
            return self.own.matches(operation.own);
        }
        let in_lower_case = |lower: &Pattern| lower.matches(&operation.lower);
        self.own.matches(&operation.lower) || self.lower.as_ref().is_some_and(in_lower_case)
    }
}

fn parse(pattern: &str) -> Result<Vec<Part>, InvalidGlob> {
    let mut chars = pattern.chars().peekable();
    let mut parts = Vec::new();
    while let Some(c) = chars.next() {
        parts.push(match c {
            '*' => {
                // `**` is `*`.
                if parts.last() == Some(&Part::Run) {
                    continue;
                }
                Part::Run
            }
            '?' => Part::One,
            '\\' => Part::Char(chars.next().ok_or(InvalidGlob::Backslash)?),
            '[' => {
                let negated = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                let end = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next() {
                    None => Err(InvalidGlob::Open),
                    Some('-') => Err(InvalidGlob::Hyphen),
                    Some(']') => Err(InvalidGlob::Empty),
                    Some('\\') => chars.next().ok_or(InvalidGlob::Open),
                    Some(c) => Ok(c),
                };
                loop {
                    if chars.peek() == Some(&']') && !ranges.is_empty() {
                        chars.next();
                        break;
                    }
                    let low = end(&mut chars)?;
                    let high = if chars.next_if_eq(&'-').is_some() {
                        if chars.peek() == Some(&']') {
                            return Err(InvalidGlob::Hyphen);
                        }
                        end(&mut chars)?
                    } else {
                        low
                    };
                    ranges.push((low, high));
                }
                Part::Class { negated, ranges }
            }
            c => Part::Char(c),
        });
    }
    Ok(parts)
}

/// Linear in the text for each run of the pattern: only the last run is ever tried again.
fn matches(parts: &[Part], text: &str) -> bool {
    let (mut at, mut rest) = (0, text.chars());
    let mut again: Option<(usize, std::str::Chars<'_>)> = None;
    loop {
        let mut ahead = rest.clone();
        match (parts.get(at), ahead.next()) {
            (Some(Part::Run), _) => {
                again = Some((at, rest.clone()));
                at += 1;
                continue;
            }
            (None, None) => return true,
            (Some(part), Some(c)) if part.takes(c) => {
                at += 1;
                rest = ahead;
                continue;
            }
            _ => {}
        }
        let Some((run, from)) = &mut again else { return false };
        if from.next().is_none() {
            return false;
        }
        at = *run + 1;
        rest = from.clone();
    }
}

impl Part {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Char(own) => *own == c,
            Self::One => true,
            Self::Run => false,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn matches(pattern: &str, operation: &str, sensitive: bool) -> bool {
        Glob::new(pattern, sensitive).unwrap().matches(&Operation::new(operation))
    }

    #[test_case("wipe_*", "wipe_board" => true)]
    #[test_case("wipe_*", "swipe_board" => false; "the whole string")]
    #[test_case("get_?", "get_" => false; "one is not none")]
    #[test_case("*", "user/update" => true; "P6 a run")]
    #[test_case("user?update", "user/update" => true; "P6 one")]
    #[test_case("[a-c]x", "bx" => true; "range")]
    #[test_case("[^a]x", "/x" => true; "a class can match a slash")]
    #[test_case("[!a]", "!" => true; "no negation by exclamation mark")]
    #[test_case("{a,b}", "a" => false; "braces are literal")]
    #[test_case("**a", "xa" => true; "two runs are one")]
    #[test_case("a\\*", "a*" => true; "escaped")]
    #[test_case("archiveBoard", "archiveBoard" => true; "P5 E3 a capital in the pattern")]
    #[test_case("archiveboard", "ARCHIVEBOARD" => true; "P5 a capital in the operation")]
    #[test_case("[^A-Z]*", "Abc" => true; "P5 folding the pattern alone would narrow")]
    #[test_case("*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac" => false; "no blow-up")]
    fn p5_p6(pattern: &str, operation: &str) -> bool {
        matches(pattern, operation, false)
    }

    #[test_case("archiveBoard", "ARCHIVEBOARD" => false)]
    #[test_case("archiveBoard", "archiveBoard" => true)]
    fn case_sensitive(pattern: &str, operation: &str) -> bool {
        matches(pattern, operation, true)
    }

    #[test_case("a[" => InvalidGlob::Open)]
    #[test_case("a[]" => InvalidGlob::Empty)]
    #[test_case("a[-b]" => InvalidGlob::Hyphen; "first")]
    #[test_case("a[b-]" => InvalidGlob::Hyphen; "last")]
    #[test_case("a\\" => InvalidGlob::Backslash)]
    fn p7_malformed(pattern: &str) -> InvalidGlob {
        Glob::new(pattern, false).unwrap_err()
    }

    #[test_case("resources/read:file:///*" => true)]
    #[test_case("prompts/*" => true)]
    #[test_case("*/x" => false; "after a wildcard")]
    #[test_case("delete_*" => false)]
    fn p30_names_a_method(pattern: &str) -> bool {
        Glob::new(pattern, false).unwrap().names_a_method()
    }

    /// The definition, without any cleverness.
    fn slow(parts: &[Part], text: &[char]) -> bool {
        match (parts.first(), text.first()) {
            (None, None) => true,
            (Some(Part::Run), _) => (0..=text.len()).any(|skip| slow(&parts[1..], &text[skip..])),
            (Some(part), Some(c)) => part.takes(*c) && slow(&parts[1..], &text[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matches_as_defined(pattern in "[ab*?]{0,8}", text in "[abA/]{0,10}") {
            let parts = parse(&pattern).unwrap();
            let chars: Vec<char> = text.chars().collect();
            prop_assert_eq!(super::matches(&parts, &text), slow(&parts, &chars));
            prop_assert_eq!(Pattern::new(&pattern).unwrap().matches(&text), slow(&parts, &chars));
        }

        #[test]
        fn case_only_widens(pattern in "[aAbB*?]{0,8}", text in "[aAbB]{0,8}") {
            let sensitive = Glob::new(&pattern, true).unwrap();
            let operation = Operation::new(&text);
            let keep = sensitive.own.matches(&operation.lower);
            prop_assert!(!keep || Glob::new(&pattern, false).unwrap().matches(&operation));
        }

        #[test]
        fn never_panics(pattern in ".{0,24}", text in ".{0,24}") {
            if let Ok(glob) = Glob::new(&pattern, false) {
                glob.matches(&Operation::new(&text));
            }
        }
    }
}
