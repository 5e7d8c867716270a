//! A door for `cargo bench-policy`: requests and lists through the very steps that the pipeline takes, without a network.
//!
//! No part of what moat does.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use tokio::sync::mpsc;

use super::{
    back::review::{Reviewed, Reviewer},
    decide::decide,
    hold::Allowance,
    parse::{Asked, parse},
    place::place,
};
use crate::{
    policy::{
        bound::{Bound, Source},
        file::{self, Scopes},
    },
    record::{Record, Recorder},
    registry::Run,
    upstream::legacy::Handles,
};

/// A server with a policy, or without.
#[derive(Debug)]
pub struct Served {
    run: Arc<Run>,
    recorder: Recorder,
    _records: mpsc::Receiver<Record>,
}

impl Served {
    /// Served by these rules: a rule file without its scope. None: without a policy.
    ///
    /// # Errors
    /// What is wrong with the rules.
    pub fn by(rules: Option<&str>) -> Result<Self, String> {
        let bound = match rules {
            None => None,
            Some(rules) => {
                let loaded = file::read(&format!("scope: x\n{rules}"), "x.yaml", &Scopes::of_server("x"))
                    .map_err(|problems| format!("{problems:?}"))?;
                Some(Bound::new(Source::Inline, &loaded.policy.set))
            }
        };
        let run = serde_json::json!({
            "run_id": "run_000000000001",
            "name": "bench",
            "runtime": "process",
            "workspace": "/",
            "mcp_servers": [{"name": "x", "url": "http://127.0.0.1:1/mcp"}],
            "holder": {"pid": 1, "started": 1},
            "registered": "2026-01-01T00:00:00Z",
        });
        let mut run: Run = serde_json::from_value(run).map_err(|error| error.to_string())?;
        run.servers[0].policy = bound;
        let (recorder, records) = Recorder::new(1);
        Ok(Self { run: Arc::new(run), recorder, _records: records })
    }

    /// Reads a request with this body and judges it. May it be sent?
    ///
    /// # Errors
    /// When it is refused, the reason.
    pub fn call(&self, body: &Bytes) -> Result<(), String> {
        let uri = "/mcp/x".parse().map_err(|_| "no path")?;
        let placed = place(&self.run, &Method::POST, &uri, &Handles::default()).map_err(|e| e.to_string())?;
        let request = Request::post(uri)
            .header("content-type", "application/json")
            .body(Full::new(body.clone()))
            .map_err(|error| error.to_string())?;
        let asked = Asked::default();
        // The whole body is there: nothing waits.
        let Poll::Ready(parsed) = pin!(parse(placed, request, &asked, &Allowance::default()))
            .poll(&mut Context::from_waker(Waker::noop()))
        else {
            return Err("it waited".to_owned());
        };
        let parsed = parsed.map_err(|error| error.to_string())?;
        decide(parsed, &self.recorder).map(drop).map_err(|error| error.to_string())
    }

    /// What is shown of the answer to a `tools/list`.
    ///
    /// # Errors
    /// When it is withheld.
    pub fn list(&self, answer: &[u8]) -> Result<usize, String> {
        let uri = "/mcp/x".parse().map_err(|_| "no path")?;
        let placed = place(&self.run, &Method::POST, &uri, &Handles::default()).map_err(|e| e.to_string())?;
        let Some(reviewer) = Reviewer::new(&placed, None, false, &self.recorder) else {
            return Ok(answer.len());
        };
        match reviewer.review(answer) {
            Reviewed::AsItIs => Ok(answer.len()),
            Reviewed::Changed(shown) => Ok(shown.len()),
            Reviewed::Withheld | Reviewed::Dropped => Err("withheld".to_owned()),
        }
    }
}
