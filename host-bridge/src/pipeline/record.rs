//! What the trace says about one exchange: a line when a stream starts, and exactly one when the exchange ends, also
//! when nobody is left to end it.

use std::time::Instant;

use http::{HeaderMap, Method};
use jiff::Timestamp;
use moat_shared::id::RunId;

use super::{parse::Asked, place::Placed, session::SESSION};
use crate::{
    record::{Exchange, Failure, Headers, Recorder},
    server::Server,
};

/// Characters of a header's value that the trace keeps.
const VALUE_MAX: usize = 256;
const REDACTED: &str = "[REDACTED]";

/// One exchange. Dropped without an end, it was cancelled.
#[derive(Debug)]
pub(super) struct Trace {
    recorder: Recorder,
    run: RunId,
    /// `None` when it has ended.
    exchange: Option<Exchange>,
    asked: Asked,
    started: Instant,
}

impl Trace {
    /// An exchange begins: its server is known.
    pub(super) fn begin(recorder: Recorder, placed: &Placed, method: &Method, asked: Asked) -> Self {
        let server = placed.server();
        let exchange = Exchange {
            timestamp: Timestamp::now(),
            method: method.to_string(),
            url: format!("{}{}", server.upstream.origin(), placed.target().path()),
            status: None,
            duration_ms: None,
            headers: Headers::default(),
            server: server.name.clone(),
            rpc_method: None,
            operation: None,
            error: None,
            oauth: None,
        };
        Self {
            recorder,
            run: placed.run().id.clone(),
            exchange: Some(exchange),
            asked,
            started: Instant::now(),
        }
    }

    /// The headers as they are sent.
    pub(super) fn sending(&mut self, server: &Server, headers: &HeaderMap) {
        if let Some(exchange) = &mut self.exchange {
            exchange.headers = redacted(server, headers);
        }
    }

    /// A token was renewed while this exchange waited: a line of its own.
    pub(super) fn renewal(&self, renewal: &crate::oauth::port::Exchanged) {
        let Some(waits) = &self.exchange else { return };
        let exchange = Exchange {
            timestamp: renewal.at,
            method: Method::POST.to_string(),
            url: renewal.url.clone(),
            status: renewal.status,
            duration_ms: Some(u64::try_from(renewal.took.as_millis()).unwrap_or(u64::MAX)),
            headers: Headers::default(),
            server: waits.server.clone(),
            operation: None,
            rpc_method: None,
            error: renewal.status.is_none().then_some(Failure::Lost),
            oauth: Some("refresh".to_owned()),
        };
        self.recorder.exchange(&self.run, exchange);
    }

    /// The upstream's status.
    pub(super) fn status(&mut self, status: u16) {
        if let Some(exchange) = &mut self.exchange {
            exchange.status = Some(status);
        }
    }

    /// A stream starts: it may take hours, so it is in the trace at once.
    pub(super) fn streaming(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.rpc_method = self.asked.method();
            self.recorder.exchange(&self.run, exchange.clone());
        }
    }

    /// The exchange is over.
    pub(super) fn end(&mut self, failure: Option<Failure>) {
        let Some(mut exchange) = self.exchange.take() else { return };
        let duration = self.started.elapsed().as_millis();
        exchange.duration_ms = Some(u64::try_from(duration).unwrap_or(u64::MAX));
        exchange.rpc_method = self.asked.method();
        exchange.operation = self.asked.operation();
        exchange.error = failure;
        self.recorder.exchange(&self.run, exchange);
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.end(Some(Failure::Cancelled));
    }
}

/// Headers for the trace: no credential, no session, no cookie, nothing endless.
fn redacted(server: &Server, headers: &HeaderMap) -> Headers {
    let injected = server.inject.as_ref().map(|injection| &injection.header);
    let mut kept = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let configured = injected.filter(|header| header.name() == name);
        let spelling = configured.map_or(name.as_str(), |header| header.as_str());
        let secret = configured.is_some()
            || value.is_sensitive()
            || *name == SESSION
            || matches!(name.as_str(), "authorization" | "cookie" | "proxy-authorization");
        kept.push((spelling, (!secret).then_some(value.as_bytes())));
    }
    Headers::of(kept, |value, text| match value {
        Some(value) => write_shortened(value, text),
        None => text.push_str(REDACTED),
    })
}

fn write_shortened(value: &[u8], out: &mut String) {
    let text = String::from_utf8_lossy(value);
    let end =
        if text.len() > VALUE_MAX { text.char_indices().nth(VALUE_MAX).map(|(end, _)| end) } else { None };
    out.push_str(&text[..end.unwrap_or(text.len())]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pipeline::testing, record::Record};

    #[test]
    fn secrets_and_sessions_are_redacted() {
        let run = testing::run(&[("context7", "https://h/mcp", Some(("mcp-context7", "CONTEXT7_API_KEY")))]);
        let headers: HeaderMap = [
            ("context7_api_key", "real"),
            ("mcp-session-id", "abc"),
            ("authorization", "x"),
            ("accept", "application/json"),
        ]
        .into_iter()
        .map(|(n, v)| (n.parse::<http::HeaderName>().unwrap(), v.parse::<http::HeaderValue>().unwrap()))
        .collect();
        let kept = redacted(&run.servers[0], &headers);
        assert_eq!(&kept["CONTEXT7_API_KEY"], REDACTED);
        assert_eq!(&kept["mcp-session-id"], REDACTED);
        assert_eq!(&kept["authorization"], REDACTED);
        assert_eq!(&kept["accept"], "application/json");
    }

    #[test]
    fn one_end_whatever_happens() {
        let run = testing::run(&[("a", "https://h/mcp?key=k", None)]);
        let handles = crate::upstream::legacy::Handles::default();
        let uri = "/mcp/a".parse().unwrap();
        let placed = super::super::place::place(&run, &Method::POST, &uri, &handles).unwrap();
        let (recorder, mut records) = Recorder::new(8);
        let begin = || Trace::begin(recorder.clone(), &placed, &Method::POST, Asked::default());
        let mut ended = begin();
        ended.end(None);
        drop(ended);
        drop(begin());
        let mut ends = Vec::new();
        while let Ok(Record::Exchange(_, exchange)) = records.try_recv() {
            assert_eq!(exchange.url, "https://h/mcp", "no query");
            ends.push(exchange.error);
        }
        assert_eq!(ends, [None, Some(Failure::Cancelled)]);
    }
}
