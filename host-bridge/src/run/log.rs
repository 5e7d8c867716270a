//! `runs/<run_id>/logs.jsonl`: what the sandbox printed, line by line, written while it does. One writer per run.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::Serialize;

use crate::disk;

/// A line that never ends is written in pieces of this size.
const LINE_MAX: usize = 1 << 20;

#[derive(Serialize)]
struct Line<'a> {
    ts: Timestamp,
    line: &'a str,
}

/// The file, shared by the streams of one run.
#[derive(Debug, Clone)]
pub(crate) struct Log(Arc<Mutex<File>>);

impl Log {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(disk::append(path)?))))
    }

    /// One stream's way into the file.
    pub(crate) fn stream(&self) -> Stream {
        Stream { log: self.clone(), partial: Vec::new() }
    }

    fn write(&self, line: &[u8]) -> io::Result<()> {
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
        let mut text = serde_json::to_vec(&Line { ts: Timestamp::now(), line: &line })?;
        text.push(b'\n');
        // One write per line, so that a reader never sees two lines mixed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text)
    }
}

/// Cuts one stream into lines. What has no end yet is written when the stream is dropped.
#[derive(Debug)]
pub(crate) struct Stream {
    log: Log,
    partial: Vec<u8>,
}

impl Stream {
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end + 1..];
            self.flush()?;
        }
        self.partial.extend_from_slice(bytes);
        if self.partial.len() >= LINE_MAX { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self.log.write(&self.partial);
        self.partial.clear();
        written
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.partial.is_empty()
            && let Err(error) = self.flush()
        {
            tracing::error!("the last line of the log was not written: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(chunks: &[&[u8]]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs.jsonl");
        let mut stream = Log::open(&path).unwrap().stream();
        for chunk in chunks {
            stream.push(chunk).unwrap();
        }
        drop(stream);
        let text = std::fs::read_to_string(path).unwrap();
        let line = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["line"].clone();
        text.lines().map(|text| line(text).as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn lines_across_chunks() {
        assert_eq!(logged(&[b"on", b"e\r\ntwo\n\nlast"]), ["one", "two", "", "last"]);
    }

    #[test]
    fn bytes_that_are_not_text() {
        assert_eq!(logged(&[b"a\xffb\n"]), ["a\u{fffd}b"]);
    }

    #[test]
    fn a_line_of_a_megabyte_is_one_line() {
        let line = vec![b'x'; LINE_MAX - 1];
        assert_eq!(
            logged(&[&line, b"\nnext\n"]).iter().map(String::len).collect::<Vec<_>>(),
            [LINE_MAX - 1, 4]
        );
    }

    #[test]
    fn an_endless_line_does_not_stay_in_memory() {
        let piece = vec![b'x'; LINE_MAX];
        assert_eq!(logged(&[&piece, &piece]).len(), 2);
    }
}
