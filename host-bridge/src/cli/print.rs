//! The only place that prints: data to stdout, everything else to stderr. A closed pipe ends the program quietly.
#![expect(clippy::print_stderr, reason = "this is the one module that may print")]

use std::io::{self, IsTerminal, Write};

use super::Failure;
use crate::env::Environment;

/// Writes data to stdout. When nobody reads it any more (`moat logs | head`), the rest is dropped.
pub(crate) fn out(text: &str) {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        note(&format!("Error: writing to stdout: {error}"));
    }
}

/// Writes one line of data to stdout.
pub(crate) fn line(text: &str) {
    out(&format!("{text}\n"));
}

/// Writes much data to stdout, in blocks. When nobody reads it any more, that is the quiet end; whatever else goes
/// wrong, in reading what is written too, is the error.
pub(crate) fn stream(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut stdout = io::BufWriter::with_capacity(64 * 1024, io::stdout().lock());
    match write(&mut stdout).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(error.to_string())),
        _ => Ok(()),
    }
}

/// Is stdout a terminal?
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// May stdout have colours? Only a terminal, and only unless `NO_COLOR` is set.
pub(crate) fn colour(env: &Environment) -> bool {
    is_terminal() && env.get("NO_COLOR").is_none()
}

/// Can somebody be asked?
pub(crate) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Writes a question to stderr; the answer follows on the same line.
pub(crate) fn prompt(question: &str) {
    eprint!("{question}");
    // A question that cannot be seen gets no answer; that is dealt with where the answer is read.
    let _unseen = io::stderr().flush().is_err();
}

/// Says how many lines of a file could not be read.
pub(crate) fn skipped(count: u64, file: &str) {
    match count {
        0 => {}
        1 => note(&format!("1 line of {file} cannot be read and was skipped")),
        count => note(&format!("{count} lines of {file} cannot be read and were skipped")),
    }
}

/// Writes one line for people to stderr.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// Prints a verb's failure and its remedy.
pub(crate) fn failure(failure: &Failure) {
    eprintln!("Error: {}", failure.text);
    if let Some(hint) = &failure.hint {
        eprintln!("\n{hint}");
    }
}

/// Prints clap's help or complaint; returns the exit code.
pub(crate) fn usage(error: &clap::Error) -> u8 {
    let _unwritten = error.print().is_err();
    u8::try_from(error.exit_code()).unwrap_or(moat_shared::exit::USAGE)
}
