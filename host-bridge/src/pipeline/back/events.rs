//! An event stream on its way to the agent: whole events only, as soon as they are whole, unchanged but for one: the
//! first `endpoint` of a legacy GET stream (R14, R22).
//!
//! ```text
//! bytes ──► watch (responses, ids) ──► hold to the event's end ──► endpoint rewritten ──► agent
//!                                          └► longer than EVENT_MAX: passes in parts
//! ```

use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use moat_shared::{limits, sse::Boundaries};

use super::{
    announce::Announcer,
    review::{ANSWER_MAX, Reviewed, Reviewer},
    watch::Watch,
};
use crate::{
    pipeline::{
        hold::{Allowance, Charge},
        place::Placed,
    },
    upstream::legacy::{BadEndpoint, Handle, Handles},
};

/// An event that is held until it is whole. A longer one passes in parts: memory is bounded, whatever an upstream sends.
const EVENT_MAX: usize = 32 * 1024;

/// Follows one event stream.
#[derive(Debug)]
pub(super) struct Events {
    held: BytesMut,
    charge: Charge,
    /// Of what came.
    boundaries: Boundaries,
    /// Where the agent's side stands: between events, but for an event that passes in parts.
    left: Boundaries,
    watch: Option<Watch>,
    endpoint: Option<Endpoint>,
    /// Judges what its events hold.
    reviewer: Option<Reviewer>,
    /// Tells who listens of lists that a changed policy changes.
    announcer: Option<Announcer>,
    start_of_stream: bool,
    /// Of an event that is too long to be judged: nothing passes up to its end.
    skipping: bool,
    /// Keeps the message endpoint alive for as long as the stream.
    handle: Option<Handle>,
}

impl Events {
    /// The answer to a POST, which waits for responses.
    pub(super) fn answering(watch: Watch, allowance: &Allowance) -> Self {
        Self::new(Some(watch), None, allowance)
    }

    /// A stream that nobody waits for: a GET, or `subscriptions/listen`.
    pub(super) fn listening(endpoint: Option<Endpoint>, allowance: &Allowance) -> Self {
        Self::new(None, endpoint, allowance)
    }

    fn new(watch: Option<Watch>, endpoint: Option<Endpoint>, allowance: &Allowance) -> Self {
        Self {
            held: BytesMut::new(),
            charge: Charge::new(allowance),
            boundaries: Boundaries::default(),
            left: Boundaries::default(),
            watch,
            endpoint,
            reviewer: None,
            announcer: None,
            start_of_stream: true,
            skipping: false,
            handle: None,
        }
    }

    /// With a policy that judges each event.
    pub(super) fn reviewed(mut self, reviewer: Reviewer) -> Self {
        self.reviewer = Some(reviewer);
        self
    }

    /// And with somebody who listens.
    pub(super) fn announced(mut self, announcer: Option<Announcer>) -> Self {
        self.announcer = announcer;
        self
    }

    /// What is to be told between two events, if the stream stands there.
    pub(super) fn announce(&mut self, cx: &mut Context<'_>) -> Option<Bytes> {
        let (Some(announcer), Some(reviewer)) = (&mut self.announcer, &self.reviewer) else { return None };
        if !self.left.closing().is_empty() {
            return None;
        }
        match announcer.poll(reviewer, cx) {
            Poll::Ready(events) => Some(events.into()),
            Poll::Pending => None,
        }
    }

    pub(super) fn watch(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    /// What a new event needs before it on the agent's side.
    pub(super) fn closing(&self) -> &'static [u8] {
        self.left.closing()
    }

    /// The next bytes. Returns what may travel; empty when no event is whole.
    pub(super) fn push(&mut self, bytes: Bytes) -> Result<Bytes, BadEndpoint> {
        if let Some(watch) = &mut self.watch {
            watch.push(&bytes);
        }
        let whole = self.boundaries.push(&bytes);
        let ready = match whole {
            Some(end) if self.held.is_empty() => {
                self.held.extend_from_slice(&bytes[end..]);
                bytes.slice(..end)
            }
            Some(end) => {
                self.held.extend_from_slice(&bytes[..end]);
                let ready = self.held.split().freeze();
                self.held.extend_from_slice(&bytes[end..]);
                ready
            }
            None => {
                self.held.extend_from_slice(&bytes);
                let limit = if self.reviewer.is_some() { ANSWER_MAX } else { EVENT_MAX };
                let room = self.charge.set(self.held.len());
                if self.held.len() > limit || !room { self.held.split().freeze() } else { Bytes::new() }
            }
        };
        self.charge.set(self.held.len());
        if whole.is_some() {
            self.left = Boundaries::default();
        } else if !ready.is_empty() {
            self.left = self.boundaries.clone();
        }
        let ready = self.review(ready, whole.is_some());
        self.rewrite(ready)
    }

    /// Must nothing pass unjudged?
    fn judges(&self) -> bool {
        self.reviewer.as_ref().is_some_and(Reviewer::judges_results)
    }

    /// Judges whole events. `whole`: the bytes end with one.
    fn review(&mut self, ready: Bytes, whole: bool) -> Bytes {
        let Some(reviewer) = &self.reviewer else { return ready };
        if ready.is_empty() {
            return ready;
        }
        // A part of an event that is too long to be held.
        if !whole || self.skipping {
            let rest = if whole { events_in(&ready).next().map_or(0, <[u8]>::len) } else { ready.len() };
            let withheld = self.judges();
            let was_skipping = std::mem::replace(&mut self.skipping, !whole);
            if !withheld {
                self.start_of_stream = false;
                return ready;
            }
            if !was_skipping {
                tracing::warn!("an event that is too long to be judged is withheld");
            }
            self.left = Boundaries::default();
            let others = ready.slice(rest..);
            return if others.is_empty() { others } else { self.review(others, true) };
        }
        let mut out: Option<BytesMut> = None;
        let mut at = 0;
        for event in events_in(&ready) {
            let start = at;
            at += event.len();
            let first = std::mem::take(&mut self.start_of_stream);
            if let Some(new) = review_event(event, first, reviewer) {
                out.get_or_insert_with(|| BytesMut::from(&ready[..start])).extend_from_slice(&new);
            } else if let Some(out) = &mut out {
                out.extend_from_slice(event);
            }
        }
        out.map_or(ready, BytesMut::freeze)
    }

    /// What is held when the stream ends properly. No client dispatches an event that is cut off, but it is not ours
    /// to drop.
    pub(super) fn finish(&mut self) -> Bytes {
        let rest = self.held.split().freeze();
        if self.reviewer.is_none() || rest.is_empty() {
            return rest;
        }
        // Some clients do dispatch it, so it is judged like any other.
        let mut event = BytesMut::from(&rest[..]);
        event.extend_from_slice(b"\n\n");
        let whole = event.freeze();
        let judged = self.review(whole.clone(), true);
        if judged == whole { rest } else { judged }
    }

    fn rewrite(&mut self, ready: Bytes) -> Result<Bytes, BadEndpoint> {
        let Some(endpoint) = &mut self.endpoint else { return Ok(ready) };
        match endpoint.push(&ready)? {
            Rewrite::NotYet => Ok(ready),
            Rewrite::Never => {
                self.endpoint = None;
                Ok(ready)
            }
            Rewrite::Done(bytes, handle) => {
                self.endpoint = None;
                self.handle = Some(handle);
                Ok(bytes)
            }
        }
    }
}

/// The whole events of some bytes, one after another, each with its end.
fn events_in(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (mut at, mut line_start) = (0, 0);
        let end = loop {
            let Some(newline) = memchr::memchr2(b'\r', b'\n', &rest[at..]).map(|found| at + found) else {
                break rest.len();
            };
            let after =
                newline + 1 + usize::from(rest[newline] == b'\r' && rest.get(newline + 1) == Some(&b'\n'));
            // An empty line, and something before it.
            if newline == line_start {
                break after;
            }
            line_start = after;
            at = after;
        };
        let (event, others) = rest.split_at(end);
        rest = others;
        Some(event)
    })
}

/// An event as it may go on; `None`: as it is.
fn review_event(event: &[u8], first_of_stream: bool, reviewer: &Reviewer) -> Option<Vec<u8>> {
    let body = if first_of_stream { event.strip_prefix(b"\xef\xbb\xbf").unwrap_or(event) } else { event };
    let (mut data, mut others, mut has_data, mut is_endpoint) = (Vec::new(), Vec::new(), false, false);
    for line in body.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|line| !line.is_empty()) {
        let colon = memchr::memchr(b':', line);
        let (field, value) = colon.map_or((line, &b""[..]), |colon| (&line[..colon], &line[colon + 1..]));
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if field == b"data" {
            if std::mem::replace(&mut has_data, true) {
                data.push(b'\n');
            }
            data.extend_from_slice(value);
            continue;
        }
        if field == b"event" {
            // The last one counts.
            is_endpoint = value == b"endpoint";
        }
        others.extend_from_slice(line);
        others.push(b'\n');
    }
    // A priming event, a comment; or where the old transport's messages go, which is rewritten by itself.
    let is_message = matches!(data.trim_ascii_start().first(), Some(b'{' | b'['));
    if data.is_empty() || (is_endpoint && !is_message) {
        return None;
    }
    let changed = match reviewer.review(&data) {
        Reviewed::AsItIs => return None,
        Reviewed::Changed(bytes) => bytes,
        Reviewed::Withheld if reviewer.waits() => reviewer.instead(),
        Reviewed::Withheld | Reviewed::Dropped => return Some(b": withheld by policy\n\n".to_vec()),
    };
    for line in changed.split(|byte| matches!(byte, b'\r' | b'\n')) {
        others.extend_from_slice(b"data: ");
        others.extend_from_slice(line);
        others.push(b'\n');
    }
    others.push(b'\n');
    Some(others)
}

/// Looks for the `endpoint` event at the start of a stream.
#[derive(Debug)]
pub(super) struct Endpoint {
    placed: Placed,
    handles: Handles,
    seen: usize,
}

enum Rewrite {
    NotYet,
    /// The first event is another one, or too much came before it: a byte copy from here on.
    Never,
    Done(Bytes, Handle),
}

impl Endpoint {
    pub(super) fn new(placed: Placed, handles: Handles) -> Self {
        Self { placed, handles, seen: 0 }
    }

    fn push(&mut self, ready: &Bytes) -> Result<Rewrite, BadEndpoint> {
        let mut start = 0;
        while start < ready.len() {
            let mut boundaries = Boundaries::default();
            let rest = &ready[start..];
            // The end of the first event: the shortest prefix that ends one, with the LF of its CRLF.
            let Some(mut length) = (1..=rest.len()).find(|&n| boundaries.push(&rest[n - 1..n]).is_some())
            else {
                return Ok(Rewrite::Never);
            };
            if rest[length - 1] == b'\r' && rest.get(length) == Some(&b'\n') {
                length += 1;
            }
            let first_of_stream = self.seen == 0 && start == 0;
            match endpoint_in(&rest[..length], first_of_stream) {
                First::Nothing => start += length,
                First::Other => return Ok(Rewrite::Never),
                First::Endpoint(target) => {
                    let run = self.placed.run();
                    let server = self.placed.server();
                    let handle = self.handles.register(&run.id, &server.name, &server.upstream, &target)?;
                    let mut bytes = BytesMut::from(&ready[..start]);
                    bytes.extend_from_slice(
                        format!("event: endpoint\ndata: {}\n\n", handle.path()).as_bytes(),
                    );
                    bytes.extend_from_slice(&rest[length..]);
                    return Ok(Rewrite::Done(bytes.freeze(), handle));
                }
            }
        }
        self.seen += ready.len();
        Ok(if self.seen > limits::LEGACY_PREAMBLE { Rewrite::Never } else { Rewrite::NotYet })
    }
}

enum First {
    /// Comments and blank lines.
    Nothing,
    Other,
    Endpoint(String),
}

/// Reads one event, as its bytes stand.
fn endpoint_in(event: &[u8], first_of_stream: bool) -> First {
    let event = if first_of_stream { event.strip_prefix(b"\xef\xbb\xbf").unwrap_or(event) } else { event };
    let Ok(text) = std::str::from_utf8(event) else { return First::Other };
    let (mut name, mut data) = (None, Vec::new());
    for line in text.split(['\r', '\n']) {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => name = Some(value),
            "data" => data.push(value),
            _ => {}
        }
    }
    match (name, data.is_empty()) {
        (None, true) => First::Nothing,
        (Some("endpoint"), false) => First::Endpoint(data.join("\n")),
        _ => First::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{place, testing};
    use http::Method;
    use test_case::test_case;

    fn legacy() -> (Events, Handles, std::sync::Arc<crate::registry::Run>) {
        let run = testing::run(&[("old", "http://localhost:3001/sse", None)]);
        let handles = Handles::default();
        let placed = place::place(&run, &Method::GET, &"/mcp/old".parse().unwrap(), &handles).unwrap();
        (Events::listening(Some(Endpoint::new(placed, handles.clone())), &Allowance::default()), handles, run)
    }

    fn run_through(stream: &[u8], chunk: usize) -> Result<(String, Option<String>), BadEndpoint> {
        let (mut events, handles, run) = legacy();
        let mut out = Vec::new();
        for bytes in stream.chunks(chunk) {
            out.extend_from_slice(&events.push(Bytes::copy_from_slice(bytes))?);
        }
        out.extend_from_slice(&events.finish());
        let text = String::from_utf8(out).unwrap();
        let handle = text.split("/mcp/old/.message/").nth(1).map(|rest| rest[..32].to_owned());
        let server = &run.servers[0].name;
        let target = handle.as_deref().and_then(|h| handles.find(&run.id, server, h)).map(|t| t.to_string());
        Ok((text, target))
    }

    #[test_case(b"event: endpoint\ndata: /message?sessionId=1\n\n"; "typescript")]
    #[test_case(b"event:endpoint\r\ndata:/message?sessionId=1\r\n\r\n"; "crlf, no space")]
    #[test_case(b"data: /message?sessionId=1\revent: endpoint\r\r"; "cr, data first")]
    #[test_case(b": hello\n\n: again\n\nevent: endpoint\ndata: /message?sessionId=1\n\n"; "after comments")]
    #[test_case(b"\xef\xbb\xbfevent: endpoint\ndata: http://localhost:3001/message?sessionId=1\n\n"; "bom, absolute")]
    fn r22_the_endpoint_is_rewritten(stream: &[u8]) {
        for chunk in [1, 7, stream.len()] {
            let mut stream = stream.to_vec();
            stream.extend_from_slice(b"event: endpoint\ndata: /second\n\n");
            let (text, target) = run_through(&stream, chunk).unwrap();
            assert_eq!(target.as_deref(), Some("/message?sessionId=1"), "{text}");
            assert!(text.ends_with("event: endpoint\ndata: /second\n\n"), "only the first: {text}");
        }
    }

    #[test_case(b"event: message\ndata: {}\n\nevent: endpoint\ndata: /m\n\n"; "not the first")]
    #[test_case(b"id: 1\ndata:\n\nevent: endpoint\ndata: /m\n\n"; "after a priming event")]
    fn r22_nothing_else_is_touched(stream: &[u8]) {
        assert_eq!(run_through(stream, 5).unwrap(), (String::from_utf8(stream.to_vec()).unwrap(), None));
    }

    #[test]
    fn an_endpoint_elsewhere_aborts() {
        let stream = b"event: endpoint\ndata: https://evil.example/m\n\n";
        assert_eq!(run_through(stream, 9), Err(BadEndpoint::Origin));
    }

    #[test]
    fn r14_events_leave_when_they_are_whole() {
        let mut events = Events::listening(None, &Allowance::default());
        assert_eq!(events.push(Bytes::from_static(b"data: a\n")).unwrap(), "");
        assert_eq!(events.push(Bytes::from_static(b"\ndata: b\n\ndata")).unwrap(), "data: a\n\ndata: b\n\n");
        assert_eq!(events.closing(), b"");
        assert_eq!(events.push(Bytes::from_static(b": c\r\n\r\n")).unwrap(), "data: c\r\n\r\n");
    }

    #[test]
    fn an_endless_event_passes_in_parts() {
        let mut events = Events::listening(None, &Allowance::default());
        let big = Bytes::from(vec![b'x'; EVENT_MAX + 1]);
        assert_eq!(events.push(big.clone()).unwrap().len(), big.len());
        assert_eq!(events.closing(), b"\n\n", "an error event after it needs ends of line and event");
    }
}
