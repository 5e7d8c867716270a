//! Can a client that loses this event stream resume it? Only if an event with an id reached it whole (R18).

/// Follows an event stream and watches for `id:` fields.
#[derive(Debug, Default)]
pub(crate) struct EventIds {
    after_cr: bool,
    line: Line,
    /// The id field of the event that is not complete yet: whether it has a value.
    pending: Option<bool>,
    resumable: bool,
}

/// How much of the current line was recognised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Line {
    #[default]
    Empty,
    I,
    Id,
    /// After the colon, and perhaps its one space.
    Colon,
    Space,
    Value,
    Other,
}

impl EventIds {
    /// Takes the next bytes. Of a line that is no id, only the end is looked for.
    pub(crate) fn push(&mut self, mut chunk: &[u8]) {
        while let Some((byte, rest)) = chunk.split_first() {
            match byte {
                b'\n' if self.after_cr => self.after_cr = false,
                b'\n' | b'\r' => {
                    self.after_cr = *byte == b'\r';
                    self.line_ends();
                }
                _ => {
                    self.after_cr = false;
                    self.line = match (self.line, byte) {
                        (Line::Empty, b'i') => Line::I,
                        (Line::I, b'd') => Line::Id,
                        (Line::Id, b':') => Line::Colon,
                        (Line::Colon, b' ') => Line::Space,
                        (Line::Colon | Line::Space | Line::Value, _) => Line::Value,
                        _ => Line::Other,
                    };
                }
            }
            chunk = match self.line {
                Line::Value | Line::Other => {
                    &rest[memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len())..]
                }
                _ => rest,
            };
        }
    }

    /// Does the client hold an id to resume from?
    pub(crate) fn resumable(&self) -> bool {
        self.resumable
    }

    fn line_ends(&mut self) {
        match self.line {
            Line::Empty => self.resumable = self.pending.take().unwrap_or(self.resumable),
            Line::Value => self.pending = Some(true),
            // A field without a value resets the id.
            Line::Id | Line::Colon | Line::Space => self.pending = Some(false),
            Line::I | Line::Other => {}
        }
        self.line = Line::Empty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case("data: a\n\n" => false; "none")]
    #[test_case("id: 1\ndata:\n\n" => true; "priming event")]
    #[test_case("id:1\r\ndata: a\r\n\r\n" => true; "crlf")]
    #[test_case("data: a\rid: 1\r\r" => true; "cr")]
    #[test_case("id: 1\n\ndata: b\n\n" => true; "the id stays")]
    #[test_case("id: 1\ndata: a\n" => false; "the event is not complete")]
    #[test_case("id: 1\r\ndata: a\r\n" => false; "the event is not complete with crlf")]
    #[test_case("id: 1\n\nid\n\n" => false; "reset")]
    #[test_case("id: 1\n\nid:\n\n" => false; "reset with a colon")]
    #[test_case("idea: 1\n\n" => false; "another field")]
    #[test_case(" id: 1\n\n" => false; "a space in front")]
    #[test_case("data: id: 1\n\n" => false; "in data")]
    #[test_case(":id: 1\n\n" => false; "in a comment")]
    fn ids(stream: &str) -> bool {
        let mut ids = EventIds::default();
        ids.push(stream.as_bytes());
        ids.resumable()
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'i'), Just(b'd'), Just(b':'), Just(b'x')], 0..48),
            cut in 0usize..48,
        ) {
            let cut = cut.min(bytes.len());
            let mut whole = EventIds::default();
            whole.push(&bytes);
            let mut parts = EventIds::default();
            parts.push(&bytes[..cut]);
            parts.push(&bytes[cut..]);
            prop_assert_eq!(whole.resumable(), parts.resumable());
        }
    }
}
