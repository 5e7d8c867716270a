//! The only place that prints: data to stdout, everything else to stderr. A closed pipe ends the program quietly.
#![expect(clippy::print_stderr, reason = "this is the one module that may print")]

use std::io::{self, Write};

use super::Failure;

/// Writes data to stdout. When nobody reads it any more (`moat logs | head`), the rest is dropped.
pub(crate) fn out(text: &str) {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    if let Err(error) = written {
        if error.kind() != io::ErrorKind::BrokenPipe {
            note(&format!("Error: writing to stdout: {error}"));
        }
    }
}

/// Writes one line of data to stdout.
pub(crate) fn line(text: &str) {
    out(&format!("{text}\n"));
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
