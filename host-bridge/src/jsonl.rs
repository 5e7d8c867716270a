//! Reading of JSON-lines files of any size with bounded memory: the last lines by seeking backwards, and lines that
//! are still being written. It writes nothing.
//!
//! A line that is not what it should be is counted and skipped: one damaged line hides no other.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use serde::{Serialize, de::DeserializeOwned};

/// The longest line that is read; a longer one is skipped. Programs print lines of a megabyte.
const LINE_MAX: usize = 16 << 20;
const BLOCK: u64 = 64 * 1024;

/// The lines of a file, from a place on. The file may grow.
#[derive(Debug)]
pub(crate) struct Lines {
    file: BufReader<File>,
    /// A line that has no end yet.
    partial: Vec<u8>,
    /// The partial line is longer than [`LINE_MAX`]; what follows of it is dropped.
    too_long: bool,
    skipped: u64,
}

impl Lines {
    /// The lines of this file from its start; `None` when there is no such file.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        };
        let file = BufReader::with_capacity(64 * 1024, file);
        Ok(Some(Self { file, partial: Vec::new(), too_long: false, skipped: 0 }))
    }

    /// Goes to where the last `count` lines start.
    pub(crate) fn seek_to_last(&mut self, count: u64) -> io::Result<()> {
        let start = start_of_last(self.file.get_mut(), count)?;
        self.file.seek(SeekFrom::Start(start))?;
        Ok(())
    }

    /// The next line that can be read as `T`; `None` at the end of what is there now. Call again when it grew.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        while self.read_line()? {
            let parsed = if self.too_long { None } else { serde_json::from_slice(&self.partial).ok() };
            let blank = !self.too_long && self.partial.iter().all(u8::is_ascii_whitespace);
            self.partial.clear();
            self.too_long = false;
            match parsed {
                Some(value) => return Ok(Some(value)),
                None if blank => {}
                None => self.skipped += 1,
            }
        }
        Ok(None)
    }

    /// Writes all lines that there are now as one JSON array. Returns how many.
    pub(crate) fn write_array<T: DeserializeOwned + Serialize>(
        &mut self,
        out: &mut dyn io::Write,
    ) -> io::Result<u64> {
        let mut written = 0;
        out.write_all(b"[")?;
        while let Some(value) = self.next::<T>()? {
            out.write_all(if written == 0 { b"\n  " } else { b",\n  " })?;
            serde_json::to_writer(&mut *out, &value)?;
            written += 1;
        }
        out.write_all(if written == 0 { b"]" } else { b"\n]" })?;
        Ok(written)
    }

    /// Lines that could not be read, the last one included if it never came to its end.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped + u64::from(!self.partial.is_empty())
    }

    /// Completes the partial line. True when it is complete.
    fn read_line(&mut self) -> io::Result<bool> {
        loop {
            let available = match self.file.fill_buf() {
                Ok([]) => return Ok(false),
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            if self.partial.len() + part.len() > LINE_MAX {
                self.too_long = true;
            }
            if !self.too_long {
                self.partial.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.file.consume(used);
            if end.is_some() {
                return Ok(true);
            }
        }
    }
}

/// Where the last `count` lines of a file start. A last line without an end counts as one.
fn start_of_last(file: &mut File, count: u64) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if count == 0 {
        return Ok(end);
    }
    let mut found = 0;
    let mut block_end = end;
    let mut block = Vec::new();
    while block_end > 0 {
        let block_start = block_end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(block_start))?;
        block.clear();
        file.take(block_end - block_start).read_to_end(&mut block)?;
        for (index, byte) in (block_start..block_end).rev().zip(block.iter().rev()) {
            // The end of the last line starts no further one.
            if *byte == b'\n' && index + 1 != end {
                found += 1;
                if found == count {
                    return Ok(index + 1);
                }
            }
        }
        block_end = block_start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;
    use test_case::test_case;

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        file
    }

    fn read(lines: &mut Lines) -> Vec<Value> {
        std::iter::from_fn(|| lines.next().unwrap()).collect()
    }

    #[test_case("1\n2\n3\n", 2 => vec![2, 3])]
    #[test_case("1\n2\n3\n", 0 => Vec::<u64>::new(); "none")]
    #[test_case("1\n2\n3\n", 9 => vec![1, 2, 3]; "fewer than asked for")]
    #[test_case("", 5 => Vec::<u64>::new(); "empty")]
    #[test_case("\n\n1\n", 5 => vec![1]; "blank lines")]
    fn last_lines(text: &str, count: u64) -> Vec<u64> {
        let file = file(text.as_bytes());
        let mut lines = Lines::open(file.path()).unwrap().unwrap();
        lines.seek_to_last(count).unwrap();
        read(&mut lines).iter().map(|value| value.as_u64().unwrap()).collect()
    }

    #[test]
    fn a_damaged_line_is_counted_and_hides_no_other() {
        let file = file(b"1\n{oops\n\xff\xfe\n2\n{\"cut\":");
        let mut lines = Lines::open(file.path()).unwrap().unwrap();
        assert_eq!(read(&mut lines), [1, 2]);
        assert_eq!(lines.skipped(), 3);
    }

    #[test]
    fn a_line_of_a_megabyte_is_read_and_a_monstrous_one_skipped() {
        let mega = "x".repeat(1 << 20);
        let monster = "y".repeat(LINE_MAX + 1);
        let file = file(format!("\"{mega}\"\n\"{monster}\"\n3\n").as_bytes());
        let mut lines = Lines::open(file.path()).unwrap().unwrap();
        assert_eq!(read(&mut lines), [Value::from(mega), Value::from(3)]);
        assert_eq!(lines.skipped(), 1);
    }

    #[test]
    fn a_line_is_read_once_it_is_complete() {
        let mut file = file(b"1\n\"ab");
        let mut lines = Lines::open(file.path()).unwrap().unwrap();
        assert_eq!(read(&mut lines), [1]);
        file.write_all(b"cd\"\n").unwrap();
        assert_eq!(read(&mut lines), ["abcd"]);
        assert_eq!(lines.skipped(), 0);
    }

    #[test_case("" => "[]"; "empty")]
    #[test_case("1\nx\n2\n" => "[\n  1,\n  2\n]"; "one is damaged")]
    fn arrays(text: &str) -> String {
        let file = file(text.as_bytes());
        let mut out = Vec::new();
        Lines::open(file.path()).unwrap().unwrap().write_array::<Value>(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn no_file_is_none() {
        assert!(Lines::open(Path::new("/nonexistent/x.jsonl")).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn the_last_lines_are_those_of_the_whole_file(lengths in proptest::collection::vec(1_usize..40_000, 0..12), count in 0_usize..14) {
            let all: Vec<String> = lengths.iter().enumerate().map(|(n, length)| format!("{n}{}", "a".repeat(*length))).collect();
            let text: String = all.iter().map(|line| format!("\"{line}\"\n")).collect();
            let file = file(text.as_bytes());
            let mut lines = Lines::open(file.path()).unwrap().unwrap();
            lines.seek_to_last(count as u64).unwrap();
            prop_assert_eq!(read(&mut lines), &all[all.len().saturating_sub(count)..]);
        }
    }
}
