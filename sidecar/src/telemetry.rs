//! Log lines on stderr: few, one line each, nothing secret.

use std::{fmt, io::Write};

/// Writes one line. A log that cannot be written is no reason to stop.
#[macro_export]
macro_rules! log {
    ($($text:tt)*) => { $crate::telemetry::line(format_args!($($text)*)) };
}

/// Writes one line to stderr.
pub fn line(text: fmt::Arguments<'_>) {
    let line = format!("moat-sidecar: {text}\n");
    let _lost = std::io::stderr().lock().write_all(line.as_bytes()).is_err();
}
