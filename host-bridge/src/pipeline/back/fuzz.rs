//! An event stream, followed as [`super::relay`] follows it.

use super::{events::Events, watch::Watch};
use crate::pipeline::{fuzz::chunks, hold::Allowance, parse::Asked};

/// What came of a stream.
pub(in crate::pipeline) struct Stream {
    /// What travelled.
    pub(in crate::pipeline) passed: Vec<u8>,
    /// Requests that wait for a response.
    pub(in crate::pipeline) outstanding: usize,
    /// Can its client resume?
    pub(in crate::pipeline) resumable: bool,
}

impl Stream {
    /// Of the answer to two requests, in chunks of so many bytes.
    pub(in crate::pipeline) fn of(stream: &[u8], chunk: usize) -> Self {
        let asked = Asked::of(r#"[{"id":1,"method":"x"},{"id":"a","method":"x"}]"#);
        let mut events = Events::answering(Watch::new(asked), &Allowance::default());
        let mut passed = Vec::new();
        for bytes in chunks(stream, chunk) {
            // Only a legacy endpoint is ever refused.
            passed.extend_from_slice(&events.push(bytes).expect("no endpoint is looked for"));
        }
        let watch = events.watch().expect("it is watched");
        let (outstanding, resumable) = (watch.outstanding().len(), watch.is_resumable());
        passed.extend_from_slice(&events.finish());
        Self { passed, outstanding, resumable }
    }
}
