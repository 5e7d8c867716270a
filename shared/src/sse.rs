//! Where events end in a `text/event-stream`, over arbitrary chunks.
//!
//! Lines end with CR, LF or CRLF; an empty line ends an event (WHATWG HTML, section 9.2.5). This finds ends, it does
//! not read events, holds no bytes and never fails.

/// Follows a stream and knows whether it stands between two events.
#[derive(Debug, Clone)]
pub struct Boundaries {
    line_is_empty: bool,
    after_cr: bool,
    between_events: bool,
}

impl Default for Boundaries {
    fn default() -> Self {
        Self { line_is_empty: true, after_cr: false, between_events: true }
    }
}

impl Boundaries {
    /// Takes the next bytes. Returns how many of them belong to events that are now complete, or `None` when no
    /// event ends in this chunk.
    pub fn push(&mut self, chunk: &[u8]) -> Option<usize> {
        let mut end = None;
        let mut at = 0;
        while let Some(length) = memchr::memchr2(b'\r', b'\n', &chunk[at..]) {
            self.text(length);
            at += length + 1;
            let cr = chunk[at - 1] == b'\r';
            if std::mem::take(&mut self.after_cr) && !cr {
                // The second half of CRLF: belongs to the line that the CR ended.
                if self.between_events {
                    end = Some(at);
                }
                continue;
            }
            if self.line_is_empty {
                self.between_events = true;
                end = Some(at);
            }
            self.line_is_empty = true;
            self.after_cr = cr;
        }
        self.text(chunk.len() - at);
        end
    }

    /// So many bytes of a line.
    fn text(&mut self, length: usize) {
        if length > 0 {
            self.line_is_empty = false;
            self.after_cr = false;
            self.between_events = false;
        }
    }

    /// Would bytes written now stand between two events?
    #[must_use]
    pub fn between_events(&self) -> bool {
        self.between_events
    }

    /// What must be written so that a new event can start here: nothing, or the ends of line and event.
    #[must_use]
    pub fn closing(&self) -> &'static [u8] {
        match (self.between_events, self.line_is_empty && !self.after_cr) {
            (true, _) => b"",
            (false, true) => b"\n",
            // Inside a line; or after a CR, whose line a single LF would only finish.
            (false, false) => b"\n\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case(b"data: a\n\n" => (Some(9), true); "lf")]
    #[test_case(b"data: a\r\n\r\n" => (Some(11), true); "crlf")]
    #[test_case(b"data: a\r\r" => (Some(9), true); "cr")]
    #[test_case(b"data: a\n" => (None, false); "line only")]
    #[test_case(b"data: a\n\ndata: b" => (Some(9), false); "second is open")]
    #[test_case(b":\n\n" => (Some(3), true); "comment")]
    #[test_case(b"" => (None, true); "nothing")]
    fn ends(bytes: &[u8]) -> (Option<usize>, bool) {
        let mut boundaries = Boundaries::default();
        (boundaries.push(bytes), boundaries.between_events())
    }

    #[test_case(b"data: a\n\n", b""; "between")]
    #[test_case(b"data: a\n", b"\n"; "after a line")]
    #[test_case(b"data: a\r", b"\n\n"; "between cr and lf")]
    #[test_case(b"data: a", b"\n\n"; "inside a line")]
    fn closing(bytes: &[u8], expected: &[u8]) {
        let mut boundaries = Boundaries::default();
        boundaries.push(bytes);
        assert_eq!(boundaries.closing(), expected);
    }

    /// Byte by byte, as the specification has it.
    fn slowly(bytes: &[u8]) -> (Option<usize>, bool) {
        let (mut end, mut empty, mut after_cr, mut between) = (None, true, false, true);
        for (index, byte) in bytes.iter().enumerate() {
            let second_half = after_cr && *byte == b'\n';
            after_cr = *byte == b'\r';
            match byte {
                b'\r' | b'\n' => {
                    between |= empty && !second_half;
                    if between {
                        end = Some(index + 1);
                    }
                    empty = true;
                }
                _ => (empty, between) = (false, false),
            }
        }
        (end, between)
    }

    proptest! {
        #[test]
        fn a_leap_is_as_good_as_many_steps(bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'x')], 0..64)) {
            prop_assert_eq!(ends(&bytes), slowly(&bytes));
        }

        #[test]
        fn chunking_changes_nothing(bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'x')], 0..64), cut in 0usize..64) {
            let cut = cut.min(bytes.len());
            let mut whole = Boundaries::default();
            let end = whole.push(&bytes);
            let mut parts = Boundaries::default();
            let first = parts.push(&bytes[..cut]);
            let second = parts.push(&bytes[cut..]).map(|n| n + cut).or(first);
            prop_assert_eq!(end, second);
            prop_assert_eq!(whole.between_events(), parts.between_events());
        }

        #[test]
        fn after_closing_an_event_can_start(bytes in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'x')], 0..64)) {
            let mut boundaries = Boundaries::default();
            boundaries.push(&bytes);
            let closing = boundaries.closing();
            boundaries.push(closing);
            prop_assert!(boundaries.between_events());
        }
    }
}
