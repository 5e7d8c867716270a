//! What is wrong with a file: every mistake with its line, told in one go; and what is only worth a warning.

use std::{borrow::Cow, fmt, io};

use moat_shared::hint::Hint;

use super::{suggest, yaml::Malformed};

/// Why a file cannot be used.
#[derive(Debug)]
pub(crate) enum Problems {
    /// It cannot be read.
    Reading { file: String, source: io::Error },
    /// It is no YAML.
    Parsing { file: String, source: Malformed },
    /// It says what cannot be; in the order of the lines.
    Invalid { file: String, list: Vec<Problem> },
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) line: usize,
    pub(crate) text: String,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("loading config: ")?;
        match self {
            Self::Reading { file, .. } => write!(f, "reading {file}"),
            Self::Parsing { file, source } => write!(f, "parsing {file}: {source}"),
            Self::Invalid { file, list } => match list.as_slice() {
                [Problem { line, text }] => write!(f, "{file}:{line}: {text}"),
                many => {
                    write!(f, "{file} has {} problems", many.len())?;
                    many.iter().try_for_each(|Problem { line, text }| {
                        write!(f, "\n  {file}:{line}: {}", text.replace('\n', "\n    "))
                    })
                }
            },
        }
    }
}

impl std::error::Error for Problems {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Reading { source, .. } => Some(source),
            // Shown already.
            Self::Parsing { .. } | Self::Invalid { .. } => None,
        }
    }
}

impl Hint for Problems {
    fn hint(&self) -> Option<Cow<'_, str>> {
        None
    }
}

/// Something about a file that does not stop a run: `moat.yaml: 'services' is not supported yet and is ignored`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Warning(pub(crate) String);

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Collects what a file's sections complain about.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) file: String,
    problems: Vec<Problem>,
    pub(crate) warnings: Vec<Warning>,
}

impl Report {
    pub(crate) fn new(file: &str) -> Self {
        Self { file: file.to_owned(), problems: Vec::new(), warnings: Vec::new() }
    }

    /// A mistake at a place like `mcp[0]`; an empty place is the file's top level.
    pub(crate) fn problem(&mut self, line: usize, at: &str, text: impl fmt::Display) {
        let text = printable(&text.to_string());
        let text =
            if at.is_empty() { text } else { format!("{}: {text}", printable(at).replace('\n', "\\n")) };
        self.problems.push(Problem { line, text });
    }

    /// A key that does not exist here.
    pub(crate) fn unknown_key(&mut self, line: usize, at: &str, key: &str, known: &[&str]) {
        let shown: String = key.chars().take(80).collect();
        let hint = match suggest::nearest(key, known) {
            Some(near) => format!(" (did you mean {near:?}?)"),
            None => String::new(),
        };
        self.problem(line, at, format_args!("unknown key {shown:?}{hint}"));
    }

    /// A known key that does nothing yet.
    pub(crate) fn ignored(&mut self, key: &str) {
        self.warning(format_args!("'{key}' is not supported yet and is ignored"));
    }

    /// A known key that would restrict the run and cannot be enforced: the run must not start without it.
    pub(crate) fn unenforced(&mut self, line: usize, at: &str, what: impl fmt::Display) {
        self.problem(
            line,
            at,
            format_args!("{what} is not supported yet, and a run does not start without it"),
        );
    }

    pub(crate) fn warning(&mut self, text: impl fmt::Display) {
        self.warnings.push(Warning(printable(&format!("{}: {text}", self.file))));
    }

    /// Everything that was wrong, by line, and the warnings.
    pub(crate) fn into_parts(mut self) -> (Vec<Problem>, Vec<String>) {
        self.problems.sort_by_key(|problem| problem.line);
        (self.problems, self.warnings.into_iter().map(|warning| warning.0).collect())
    }

    /// Everything that was wrong, by line; or the warnings.
    pub(crate) fn finish(mut self) -> Result<Vec<Warning>, Problems> {
        if self.problems.is_empty() {
            return Ok(self.warnings);
        }
        self.problems.sort_by_key(|problem| problem.line);
        Err(Problems::Invalid { file: self.file, list: self.problems })
    }
}

/// A file may be a stranger's: what it says must not reach the terminal as an escape sequence.
fn printable(text: &str) -> String {
    let plain = |c: char| !c.is_control() || c == '\n';
    text.chars().flat_map(|c| if plain(c) { vec![c] } else { c.escape_unicode().collect() }).collect()
}
