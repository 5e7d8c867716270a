//! What PID 1 tells people: lines on stderr, never once the agent has the terminal.

use std::{error::Error, io::Write};

/// Writes one line. Where stderr is closed there is nobody to tell.
pub(crate) fn line(text: &str) {
    let _nobody_there = writeln!(std::io::stderr(), "moat: {text}");
}

/// Writes an error with its causes.
pub(crate) fn error(error: &dyn Error) {
    line(&chain(error));
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
