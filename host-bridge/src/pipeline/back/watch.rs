//! Watches an event stream for the responses that the request waits for (section 6.1), without holding an event.
//!
//! Lines are read as WHATWG HTML, section 9.2, has them: CR, LF or CRLF, an optional space after the colon, a byte order
//! mark at the start, `data` over several lines joined by a line feed.

use std::collections::HashSet;

use moat_shared::rpc::{ID_MAX, RawId};

use crate::pipeline::parse::{
    Asked, Fault,
    json::{Kind, Reader, Rigour, Visitor},
};

/// Follows the events of one answer.
#[derive(Debug)]
pub(super) struct Watch {
    asked: Asked,
    /// So many of the request's ids have been looked at: of one whose body is still on its way there may be more.
    seen: usize,
    /// Those of them that have no response, as [`canonical`] writes them.
    waiting: HashSet<String>,
    /// Nothing more is waited for.
    satisfied: bool,
    /// An event had an id: the client can resume (R18 a).
    resumable: bool,
    line: Line,
    start_of_stream: bool,
    after_cr: bool,
    event: Option<(Reader, Answer)>,
}

/// Where in a line.
#[derive(Debug)]
enum Line {
    /// The field's name so far, at most a few bytes.
    Field(Vec<u8>),
    /// After the colon of `data`: a space is skipped.
    DataStart,
    Data,
    /// The rest does not matter.
    Skip,
}

/// Longer than any field's name.
const FIELD_MAX: usize = 8;
const BOM: &[u8] = b"\xef\xbb\xbf";

impl Watch {
    pub(super) fn new(asked: Asked) -> Self {
        Self {
            asked,
            seen: 0,
            waiting: HashSet::new(),
            satisfied: false,
            resumable: false,
            line: Line::Field(Vec::new()),
            start_of_stream: true,
            after_cr: false,
            event: None,
        }
    }

    /// Did an event carry an id?
    pub(super) fn is_resumable(&self) -> bool {
        self.resumable
    }

    /// The requests that have no response yet.
    pub(super) fn outstanding(&self) -> Vec<RawId> {
        let mut place = 0;
        let mut ids = self.asked.ids();
        ids.retain(|id| {
            place += 1;
            place > self.seen || self.waiting.contains(&canonical(id.as_str()))
        });
        ids
    }

    /// The next bytes of the stream.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while !self.satisfied && !bytes.is_empty() {
            if std::mem::take(&mut self.after_cr) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = memchr::memchr2(b'\r', b'\n', bytes);
            self.part_of_line(&bytes[..end.unwrap_or(bytes.len())]);
            let Some(end) = end else { return };
            self.end_of_line();
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
        }
    }

    fn part_of_line(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match &mut self.line {
                Line::Field(name) => {
                    let colon = bytes.iter().take(FIELD_MAX + BOM.len()).position(|byte| *byte == b':');
                    let taken = colon.unwrap_or_else(|| bytes.len().min(FIELD_MAX + BOM.len()));
                    name.extend_from_slice(&bytes[..taken]);
                    bytes = &bytes[taken..];
                    if colon.is_some() {
                        bytes = &bytes[1..];
                        let name = std::mem::take(name);
                        self.line = self.field(&name);
                    } else if name.len() > FIELD_MAX + BOM.len() {
                        self.line = Line::Skip;
                    }
                }
                Line::DataStart => {
                    bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
                    self.line = Line::Data;
                }
                Line::Data => {
                    self.data(bytes);
                    return;
                }
                Line::Skip => return,
            }
        }
    }

    fn field(&mut self, name: &[u8]) -> Line {
        let first = std::mem::take(&mut self.start_of_stream);
        let name = if first { name.strip_prefix(BOM).unwrap_or(name) } else { name };
        match name {
            b"data" => {
                if self.event.is_some() {
                    self.data(b"\n");
                }
                Line::DataStart
            }
            b"id" => {
                self.resumable = true;
                Line::Skip
            }
            _ => Line::Skip,
        }
    }

    fn data(&mut self, bytes: &[u8]) {
        let (reader, answer) =
            self.event.get_or_insert_with(|| (Reader::new(Rigour::Lenient), Answer::default()));
        if !answer.unreadable && reader.push(bytes, answer).is_err() {
            answer.unreadable = true;
        }
    }

    fn end_of_line(&mut self) {
        match std::mem::replace(&mut self.line, Line::Field(Vec::new())) {
            Line::Field(name) if name.is_empty() => self.end_of_event(),
            // A field without a colon has an empty value.
            Line::Field(name) => {
                self.field(&name);
            }
            _ => {}
        }
    }

    fn end_of_event(&mut self) {
        let Some((mut reader, mut answer)) = self.event.take() else { return };
        if answer.unreadable || reader.finish(&mut answer).is_err() || answer.ids.is_empty() {
            return;
        }
        // Only what is waited for is remembered: a batch is bounded, an upstream's stream is not. Each id is read once: a
        // batch of a thousand that is answered in a thousand events would cost a million readings else.
        let ids = self.asked.ids();
        self.waiting.extend(ids.iter().skip(self.seen).map(|id| canonical(id.as_str())));
        self.seen = ids.len();
        for answered in answer.ids {
            self.waiting.remove(&canonical(&answered));
        }
        self.satisfied = self.waiting.is_empty();
    }
}

/// Responses in one event whose ids are remembered: no request asks for more.
const IDS_MAX: usize = 1024;

/// The ids of the responses in one event.
#[derive(Debug, Default)]
struct Answer {
    unreadable: bool,
    batch: bool,
    ids: Vec<String>,
    id: Option<String>,
    outcome: bool,
    next_is_id: bool,
}

impl Answer {
    fn level(&self) -> usize {
        if self.batch { 2 } else { 1 }
    }
}

impl Visitor for Answer {
    fn key(&mut self, depth: usize, key: &str) -> Result<(), Fault> {
        self.next_is_id = depth == self.level() && key == "id";
        self.outcome |= depth == self.level() && matches!(key, "result" | "error");
        Ok(())
    }

    fn begin(&mut self, depth: usize, kind: Kind) -> Result<usize, Fault> {
        if depth == 0 {
            self.batch = kind == Kind::Array;
        }
        Ok(if self.next_is_id { ID_MAX + 1 } else { 0 })
    }

    fn end(&mut self, depth: usize, kind: Kind, token: Option<&str>) -> Result<(), Fault> {
        if std::mem::take(&mut self.next_is_id) {
            self.id = token.map(str::to_owned);
        } else if depth + 1 == self.level() && kind == Kind::Object {
            let id = self.id.take();
            if std::mem::take(&mut self.outcome) && self.ids.len() < IDS_MAX {
                self.ids.extend(id);
            }
        }
        Ok(())
    }
}

/// One spelling of an id for all: a server may write `1.0` as `1`, or escape a string in another way.
fn canonical(token: &str) -> String {
    use serde_json::Value;
    match serde_json::from_str::<Value>(token) {
        // Zero has a sign.
        Ok(Value::Number(number)) => {
            number.as_f64().map_or_else(|| token.to_owned(), |number| (number + 0.0).to_string())
        }
        Ok(value) => value.to_string(),
        Err(_) => token.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    fn watch(request: &str, stream: &[u8], chunk: usize) -> (usize, bool) {
        let mut watch = Watch::new(Asked::of(request));
        for bytes in stream.chunks(chunk.max(1)) {
            watch.push(bytes);
        }
        (watch.outstanding().len(), watch.is_resumable())
    }

    const ONE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"x"}"#;

    #[test_case(b"data: {\"id\":1,\"result\":{}}\n\n" => (0, false); "answered")]
    #[test_case(b"data:{\"id\":1,\"error\":{\"code\":1}}\r\n\r\n" => (0, false); "error, crlf, no space")]
    #[test_case(b"\xef\xbb\xbfdata: {\"id\":1,\"result\":{}}\r\r" => (0, false); "bom, cr")]
    #[test_case(b": c\nevent: message\nid: 7\ndata: {\"id\":1,\ndata: \"result\":{}}\n\n" => (0, true); "several lines")]
    #[test_case(b"data: {\"id\":1.0,\"result\":{}}\n\n" => (0, false); "the same number")]
    #[test_case(b"data: [{\"id\":2,\"result\":1},{\"id\":1,\"result\":1}]\n\n" => (0, false); "in a batch")]
    #[test_case(b"data: {\"result\":{\"id\":2},\"id\":1}\n\n" => (0, false); "id last")]
    #[test_case(b"data: {\"id\":2,\"result\":{}}\n\n" => (1, false); "another id")]
    #[test_case(b"data: {\"id\":1,\"method\":\"ping\"}\n\n" => (1, false); "a request of the server's")]
    #[test_case(b"data: {\"method\":\"n\",\"params\":{\"id\":1,\"result\":{}}}\n\n" => (1, false); "not at the top")]
    #[test_case(b"data: {\"id\":1,\"result\":{}}\n" => (1, false); "the event is not over")]
    #[test_case(b"data: {\"id\":1,\"result\":\n\n" => (1, false); "cut")]
    #[test_case(b"datax: {\"id\":1,\"result\":{}}\n\n" => (1, false); "another field")]
    #[test_case(b"id: 7\ndata:\n\n" => (1, true); "priming event")]
    #[test_case(b"id\n\n" => (1, true); "id without a value")]
    #[test_case(b"data: {\"id\":1,\"result\":[1e999,12345678901234567891,\"\\ud800\",{\"a\":1,\"A\":2,\"a\":3,\"\\udc00\":4}]}\n\n" => (0, false); "what no request may hold")]
    #[test_case(b"data: not json\n\ndata: {\"id\":1,\"result\":{}}\n\n" => (0, false); "after an unreadable one")]
    fn one(stream: &[u8]) -> (usize, bool) {
        watch(ONE, stream, stream.len())
    }

    #[test]
    fn each_of_a_batch_is_waited_for() {
        let request = r#"[{"id":1,"method":"x"},{"id":"b","method":"x"},{"method":"n"}]"#;
        assert_eq!(watch(request, b"data: {\"id\":\"\\u0062\",\"result\":{}}\n\n", 100).0, 1);
    }

    #[test_case("1", "1.0"; "a whole number")]
    #[test_case("1", "1e0"; "with an exponent")]
    #[test_case("0", "-0.0"; "zero")]
    #[test_case(r#""b""#, r#""\u0062""#; "an escape")]
    fn one_spelling(a: &str, b: &str) {
        assert_eq!(canonical(a), canonical(b));
    }

    #[test]
    fn a_number_is_no_string() {
        assert_ne!(canonical("1"), canonical(r#""1""#));
    }

    /// As many readings as there are ids, and not as many as there are pairs of them.
    #[test]
    fn a_large_batch_that_is_answered_one_by_one() {
        let batch: Vec<String> = (0..1024).map(|id| format!(r#"{{"id":{id},"method":"x"}}"#)).collect();
        let mut watch = Watch::new(Asked::of(&format!("[{}]", batch.join(","))));
        for id in 0..1023 {
            watch.push(format!("data: {{\"id\":{id},\"result\":1}}\n\n").as_bytes());
            assert_eq!(watch.waiting.len(), 1023 - id);
        }
        assert_eq!(watch.outstanding().iter().map(RawId::as_str).collect::<Vec<_>>(), ["1023"]);
    }

    proptest! {
        #[test]
        fn chunks_change_nothing(chunk in 1usize..40, case in 0usize..3) {
            let streams: [&[u8]; 3] = [
                b": c\r\nevent: message\r\nid: 7\r\ndata: {\"id\":1,\r\ndata: \"result\":{}}\r\n\r\n",
                b"\xef\xbb\xbfdata: {\"id\":2,\"result\":{}}\n\nid: 3\ndata: {\"id\":1,\"result\":\"\xc3\xa4\"}\n\n",
                b"retry: 3\rdata:x\r\rdata: {\"id\":1}\r\r",
            ];
            let stream = streams[case];
            prop_assert_eq!(watch(ONE, stream, chunk), watch(ONE, stream, stream.len()));
        }
    }
}
