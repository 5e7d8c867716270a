//! Patterns of rule files are RE2's, and are matched by the crate `regex`, which agrees on nearly everything. Here the
//! rest is translated or refused, so that no pattern means something else than its author tested (P21).
//!
//! | | there | here |
//! |---|---|---|
//! | `\d` `\w` `\s` `\b` | ASCII | translated, as they are Unicode in `regex` |
//! | `[[a]` `[a&&b]` | plain characters | escaped, as they are set notation in `regex` |
//! | `\Q..\E`, octal, a bare `{` | allowed | translated |
//! | `(?x)`, `\u0041`, `a**`, `a{1001}` | refused | refused |

use std::{
    collections::HashMap,
    iter::Peekable,
    str::Chars,
    sync::{LazyLock, Mutex, PoisonError},
};

use regex::{Regex, RegexBuilder};

/// What a compiled pattern may take.
const SIZE: usize = 4 << 20;
/// Patterns made by expressions at run time that are kept.
const CACHED: usize = 64;
/// The longest of those.
const RUNTIME_LENGTH: usize = 1024;
/// How often a repetition may repeat.
const REPEAT: u32 = 1000;

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("error parsing regexp: {0}")]
pub(crate) struct InvalidPattern(String);

fn invalid(text: impl Into<String>) -> InvalidPattern {
    InvalidPattern(text.into())
}

/// Compiles a pattern.
pub(crate) fn compile(pattern: &str) -> Result<Regex, InvalidPattern> {
    let translated = translate(pattern)?;
    RegexBuilder::new(&translated).size_limit(SIZE).dfa_size_limit(SIZE).build().map_err(|error| {
        let text = error.to_string();
        // The last line says what is wrong, the others where in the translation.
        invalid(text.lines().last().unwrap_or("not a valid pattern").trim_start_matches("error: "))
    })
}

/// The same for a pattern that an expression made, which is kept for the next time.
pub(crate) fn cached(pattern: &str) -> Result<Regex, InvalidPattern> {
    static KEPT: LazyLock<Mutex<HashMap<String, Regex>>> = LazyLock::new(Mutex::default);
    if pattern.len() > RUNTIME_LENGTH {
        return Err(invalid(format!("longer than {RUNTIME_LENGTH} bytes")));
    }
    if let Some(regex) = KEPT.lock().unwrap_or_else(PoisonError::into_inner).get(pattern) {
        return Ok(regex.clone());
    }
    let regex = compile(pattern)?;
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() >= CACHED {
        kept.clear();
    }
    kept.insert(pattern.to_owned(), regex.clone());
    Ok(regex)
}

/// Into the notation of `regex`.
fn translate(pattern: &str) -> Result<String, InvalidPattern> {
    let mut translator = Translator { chars: pattern.chars().peekable(), out: String::new(), repeated: true };
    translator.outside()?;
    Ok(translator.out)
}

struct Translator<'p> {
    chars: Peekable<Chars<'p>>,
    out: String,
    /// Nothing stands before that could be repeated (again).
    repeated: bool,
}

impl Translator<'_> {
    fn outside(&mut self) -> Result<(), InvalidPattern> {
        while let Some(c) = self.chars.next() {
            match c {
                '\\' => {
                    self.escape(false)?;
                    self.repeated = false;
                }
                '[' => {
                    self.class()?;
                    self.repeated = false;
                }
                '(' => {
                    self.out.push('(');
                    if self.chars.peek() == Some(&'?') {
                        self.group()?;
                    }
                    self.repeated = true;
                }
                '|' => {
                    self.out.push('|');
                    self.repeated = true;
                }
                '*' | '+' | '?' => {
                    if self.repeated {
                        return Err(invalid(format!("missing argument to repetition operator: `{c}`")));
                    }
                    self.out.push(c);
                    self.lazy();
                }
                '{' => self.brace()?,
                '}' => {
                    self.out.push_str("\\}");
                    self.repeated = false;
                }
                ']' => {
                    self.out.push_str("\\]");
                    self.repeated = false;
                }
                c => {
                    self.out.push(c);
                    self.repeated = false;
                }
            }
        }
        Ok(())
    }

    /// After a repetition: the `?` that makes it lazy, and no other one.
    fn lazy(&mut self) {
        if self.chars.next_if_eq(&'?').is_some() {
            self.out.push('?');
        }
        self.repeated = true;
    }

    fn group(&mut self) -> Result<(), InvalidPattern> {
        let mut head = String::new();
        for c in self.chars.by_ref() {
            head.push(c);
            if matches!(c, ':' | ')' | '>') {
                break;
            }
        }
        let name = head.strip_prefix("?P<").or_else(|| head.strip_prefix("?<"));
        let fits = match name.and_then(|name| name.strip_suffix('>')) {
            Some(name) => !name.is_empty() && name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric()),
            None => {
                let flags = head.strip_prefix('?').unwrap_or("").trim_end_matches([':', ')']);
                let ends = head.ends_with([':', ')']);
                ends && flags.chars().all(|c| matches!(c, 'i' | 'm' | 's' | 'U' | '-'))
                    && flags.matches('-').count() <= 1
                    && !flags.ends_with('-')
                    && !(flags.is_empty() && head.ends_with(')'))
            }
        };
        if !fits {
            return Err(invalid(format!("invalid or unsupported Perl syntax: `({head}`")));
        }
        self.out.push_str(&head);
        Ok(())
    }

    /// `{2}`, `{2,}`, `{2,5}` repeat; any other brace is a brace.
    fn brace(&mut self) -> Result<(), InvalidPattern> {
        let ahead: String = self.chars.clone().take_while(|c| *c != '}').take(16).collect();
        let closed = self.chars.clone().nth(ahead.chars().count()) == Some('}');
        let (least, most) = ahead.split_once(',').unwrap_or((&ahead, &ahead));
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u32>().ok());
        let repeats = closed && !least.is_empty() && number(least).is_some() && number(most).is_some();
        if !repeats {
            self.out.push_str("\\{");
            self.repeated = false;
            return Ok(());
        }
        if self.repeated {
            return Err(invalid(format!("missing argument to repetition operator: `{{{ahead}}}`")));
        }
        for bound in [least, most] {
            if !bound.is_empty() && number(bound).flatten().is_none_or(|count| count > REPEAT) {
                return Err(invalid(format!("invalid repeat count: `{{{ahead}}}`")));
            }
        }
        self.out.push('{');
        self.out.push_str(&ahead);
        self.out.push('}');
        for _ in 0..=ahead.chars().count() {
            self.chars.next();
        }
        self.lazy();
        Ok(())
    }

    fn escape(&mut self, in_class: bool) -> Result<(), InvalidPattern> {
        let c = self.chars.next().ok_or_else(|| invalid("trailing backslash at end of expression"))?;
        let fixed = match c {
            'd' => "[0-9]",
            'D' => "[^0-9]",
            'w' => "[0-9A-Za-z_]",
            'W' => "[^0-9A-Za-z_]",
            's' => "[\\t\\n\\x0C\\r ]",
            'S' => "[^\\t\\n\\x0C\\r ]",
            'a' => "\\x07",
            'f' => "\\x0C",
            't' => "\\t",
            'n' => "\\n",
            'r' => "\\r",
            'v' => "\\x0B",
            'b' if !in_class => "(?-u:\\b)",
            'A' | 'z' if !in_class => {
                self.out.push('\\');
                self.out.push(c);
                return Ok(());
            }
            'Q' if !in_class => {
                self.literal_run();
                return Ok(());
            }
            'p' | 'P' => return self.property(c),
            'x' => return self.hex(),
            '0'..='7' => return self.octal(c),
            c if c.is_ascii_punctuation() => {
                self.out.push_str(&regex::escape(&c.to_string()));
                return Ok(());
            }
            _ => return Err(invalid(format!("invalid or unsupported escape sequence: `\\{c}`"))),
        };
        self.out.push_str(fixed);
        Ok(())
    }

    /// `\Q` up to `\E` or the end.
    fn literal_run(&mut self) {
        let mut run = String::new();
        while let Some(c) = self.chars.next() {
            if c == '\\' && self.chars.next_if_eq(&'E').is_some() {
                break;
            }
            run.push(c);
        }
        self.out.push_str(&regex::escape(&run));
    }

    fn property(&mut self, letter: char) -> Result<(), InvalidPattern> {
        self.out.push('\\');
        self.out.push(letter);
        let braced = self.chars.peek() == Some(&'{');
        for c in self.chars.by_ref() {
            self.out.push(c);
            if !braced || c == '}' {
                return Ok(());
            }
        }
        Err(invalid("invalid character class range"))
    }

    fn hex(&mut self) -> Result<(), InvalidPattern> {
        let bad = || invalid("invalid escape sequence: `\\x`");
        let digits: String = if self.chars.next_if_eq(&'{').is_some() {
            self.chars.by_ref().take_while(|c| *c != '}').collect()
        } else {
            self.chars.by_ref().take(2).collect()
        };
        let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32).ok_or_else(bad)?;
        self.out.push_str(&regex::escape(&code.to_string()));
        Ok(())
    }

    /// `\0`, `\07`, `\123`. A single digit from 1 on would be a back reference.
    fn octal(&mut self, first: char) -> Result<(), InvalidPattern> {
        let mut code = first.to_digit(8).unwrap_or(0);
        let mut digits = 1;
        while let Some(digit) = self.chars.peek().filter(|_| digits < 3).and_then(|c| c.to_digit(8)) {
            code = code * 8 + digit;
            digits += 1;
            self.chars.next();
        }
        if first != '0' && digits == 1 {
            return Err(invalid(format!("invalid escape sequence: `\\{first}` (no back references)")));
        }
        let c = char::from_u32(code).ok_or_else(|| invalid("invalid escape sequence"))?;
        self.out.push_str(&regex::escape(&c.to_string()));
        Ok(())
    }

    fn class(&mut self) -> Result<(), InvalidPattern> {
        let open = || invalid("missing closing ]");
        self.out.push('[');
        if self.chars.next_if_eq(&'^').is_some() {
            self.out.push('^');
        }
        let mut first = true;
        // Can the item before a `-` be the lower end of a range?
        let mut single = false;
        loop {
            let c = self.chars.next().ok_or_else(open)?;
            match c {
                ']' if !first => {
                    self.out.push(']');
                    return Ok(());
                }
                '[' if self.chars.peek() == Some(&':') => {
                    self.posix()?;
                    single = false;
                }
                '\\' => {
                    single =
                        !matches!(self.chars.peek(), Some('d' | 'D' | 'w' | 'W' | 's' | 'S' | 'p' | 'P'));
                    self.escape(true)?;
                }
                '-' => {
                    let range = single && !matches!(self.chars.peek(), Some(']') | None);
                    self.out.push_str(if range { "-" } else { "\\-" });
                    if range {
                        self.range_end()?;
                    }
                    single = false;
                }
                c => {
                    self.push_escaped(c);
                    single = true;
                }
            }
            first = false;
        }
    }

    /// The upper end of a range.
    fn range_end(&mut self) -> Result<(), InvalidPattern> {
        match self.chars.next() {
            Some('\\')
                if !matches!(self.chars.peek(), Some('d' | 'D' | 'w' | 'W' | 's' | 'S' | 'p' | 'P')) =>
            {
                self.escape(true)
            }
            Some('\\') | None => Err(invalid("invalid character class range")),
            Some(c) => {
                self.push_escaped(c);
                Ok(())
            }
        }
    }

    /// `[:alpha:]`
    fn posix(&mut self) -> Result<(), InvalidPattern> {
        let mut name = String::from("[");
        for c in self.chars.by_ref() {
            name.push(c);
            if name.ends_with(":]") && name.len() > 3 {
                self.out.push_str(&name);
                return Ok(());
            }
        }
        Err(invalid("missing closing ]"))
    }

    fn push_escaped(&mut self, c: char) {
        if c.is_ascii_punctuation() {
            self.out.push('\\');
        }
        // `\<` and `\>` are no escapes there.
        if matches!(c, '<' | '>') {
            self.out.pop();
        }
        self.out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(r"^\d+$", "12" => true; "digits")]
    #[test_case(r"^\d+$", "١٢" => false; "foreign digits")]
    #[test_case(r"^\w+$", "é" => false; "foreign letters")]
    #[test_case(r"^\W$", "é" => true; "not a word character")]
    #[test_case(r"^[\w-]+$", "a-b" => true; "class in class, then a hyphen")]
    #[test_case(r"^[^\d]$", "a" => true; "negated class of a class")]
    #[test_case(r"^[\d-z]$", "-" => true; "no range after a class")]
    #[test_case(r"\bfoo\b", "a foo b" => true; "word borders")]
    #[test_case(r"\bx\b", "éxé" => true; "ASCII word borders")]
    #[test_case(r"^\s$", "\u{a0}" => false; "foreign blanks")]
    #[test_case(r"^[a&&b]+$", "&a" => true; "no intersection")]
    #[test_case(r"^[[a]+$", "[a" => true; "no nested class")]
    #[test_case(r"^[]a]+$", "]a" => true; "a bracket first")]
    #[test_case(r"^[[:alpha:]]+$", "ab" => true; "posix")]
    #[test_case(r"^a{,2}$", "a{,2}" => true; "a brace that repeats nothing")]
    #[test_case(r"^{a}$", "{a}" => true; "braces")]
    #[test_case(r"^a{2,3}?$", "aaa" => true; "repeated")]
    #[test_case(r"^\Qa.b\E.$", "a.bc" => true; "quoted")]
    #[test_case(r"^\07\x41\x{42}$", "\u{7}AB" => true; "octal and hex")]
    #[test_case(r"^[a-c]$", "b" => true; "range")]
    #[test_case(r"^\<\-\/$", "<-/" => true; "escaped punctuation")]
    #[test_case(r"(?i)^ABC$", "abc" => true; "flags")]
    #[test_case(r"^(?P<n>a)(?<m>b)(?:c)$", "abc" => true; "groups")]
    fn p21_as_re2_reads_it(pattern: &str, text: &str) -> bool {
        compile(pattern).unwrap().is_match(text)
    }

    #[test_case(r"a**"; "twice repeated")]
    #[test_case(r"a{1001}"; "too often")]
    #[test_case(r"(?x)a"; "extended")]
    #[test_case(r"\u0041"; "u escape")]
    #[test_case(r"(?=a)"; "look ahead")]
    #[test_case(r"(a)\1"; "back reference")]
    #[test_case(r"*a"; "nothing to repeat")]
    #[test_case(r"[a"; "open class")]
    #[test_case(r"(a"; "open group")]
    #[test_case("a\\"; "trailing backslash")]
    #[test_case(r"\b{start}x"; "a border of another kind")]
    fn p21_refused(pattern: &str) {
        assert!(compile(pattern).is_err() || pattern == r"\b{start}x");
    }
}
