//! The answer's body on its way to the agent, frame by frame: decoded, cleaned of the credential, cut at events.
//!
//! ```text
//! upstream ──► decode ──► scrub ──► events ──► agent
//!     │ ended properly ──► the end, unless a response is missing that cannot come on another stream
//!     └ lost ──► Loss
//! ```
//!
//! Dropping it aborts the upstream (R17) and ends the trace.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use moat_shared::grant::GrantName;

use super::{
    decode::{self, Decoder},
    events::Events,
    watch::Watch,
};
use crate::{
    pipeline::{error::PipelineError, hold::Charge, place::Placed, record::Trace},
    record::{AuditEvent, Failure, Recorder},
    upstream::scan::Scrubber,
};

/// The body ended before its time: the stream to the agent is reset, never ended (T3).
#[derive(Debug, thiserror::Error)]
#[error("the upstream's answer is not complete")]
pub(crate) struct Incomplete(pub(crate) Failure);

/// One answer's body.
#[derive(Debug)]
pub(super) struct Relay<U> {
    /// `None` when nothing more comes from there.
    upstream: Option<U>,
    /// Received, not yet worked on.
    input: Bytes,
    out: VecDeque<Bytes>,
    decoder: Option<Decoder>,
    scrub: Option<Scrub>,
    events: Option<Events>,
    server: String,
    trace: Trace,
    /// Somebody waits for a response in it, and nothing came so far.
    awaited: bool,
    /// Nothing of it has gone to the agent: whoever holds it answers for it, and logs.
    held: bool,
    /// For what was given back, until it has left.
    charge: Option<Charge>,
    incomplete: Option<Incomplete>,
}

/// Replaces the credential, and records the first time.
#[derive(Debug)]
pub(super) struct Scrub {
    pub(super) scrubber: Scrubber,
    pub(super) placed: Placed,
    pub(super) grant: GrantName,
    pub(super) recorder: Recorder,
    pub(super) recorded: bool,
}

impl Scrub {
    fn push(&mut self, bytes: Bytes) -> Bytes {
        let clean = self.scrubber.push(bytes);
        self.record();
        clean
    }

    fn finish(&mut self) -> Bytes {
        let rest = self.scrubber.finish();
        self.record();
        rest
    }

    fn record(&mut self) {
        if self.scrubber.found() > 0 && !std::mem::replace(&mut self.recorded, true) {
            reflected(&self.recorder, &self.placed, &self.grant, "body");
        }
    }
}

/// Records that an upstream echoed the credential.
pub(super) fn reflected(recorder: &Recorder, placed: &Placed, grant: &GrantName, place: &str) {
    let server = placed.server();
    recorder.audit(
        &placed.run().id,
        AuditEvent::SecretReflected {
            grant: grant.clone(),
            host: server.upstream.host().to_owned(),
            server: server.name.clone(),
            place: place.to_owned(),
        },
    );
}

impl<U> Relay<U> {
    pub(super) fn new(
        upstream: U,
        decoder: Option<Decoder>,
        scrub: Option<Scrub>,
        events: Option<Events>,
        server: String,
        awaited: bool,
        trace: Trace,
    ) -> Self {
        Self {
            upstream: Some(upstream),
            input: Bytes::new(),
            out: VecDeque::new(),
            decoder,
            scrub,
            events,
            server,
            trace,
            awaited,
            held: false,
            charge: None,
            incomplete: None,
        }
    }

    /// The trace of an answer that will not be passed on.
    pub(super) fn into_trace(self) -> Trace {
        self.trace
    }

    /// What comes is not passed on yet.
    pub(super) fn hold(&mut self) {
        self.held = true;
    }

    /// Gives bytes back that were taken from here: they come first, and from now on all of it is passed on.
    pub(super) fn give_back(&mut self, (pieces, charge): (Vec<Bytes>, Charge)) {
        self.held = false;
        self.charge = Some(charge);
        for bytes in pieces.into_iter().rev() {
            self.out.push_front(bytes);
        }
    }

    fn emit(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.out.push_back(bytes);
        }
    }

    /// Works on what was received. `Err` when it cannot be passed on.
    fn work(&mut self) -> Result<(), Failure> {
        let length =
            if self.decoder.is_some() { decode::SLICE.min(self.input.len()) } else { self.input.len() };
        let slice = self.input.split_to(length);
        let bytes = match &mut self.decoder {
            Some(decoder) => decoder.push(&slice).map_err(|_| Failure::Invalid)?,
            None => slice,
        };
        self.pass(bytes)
    }

    fn pass(&mut self, bytes: Bytes) -> Result<(), Failure> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.awaited = false;
        let clean = match &mut self.scrub {
            Some(scrub) => scrub.push(bytes),
            None => bytes,
        };
        self.cut(clean)
    }

    fn cut(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let ready = match &mut self.events {
            Some(events) => events.push(bytes).map_err(|error| {
                tracing::warn!(server = self.server, %error, "the stream was refused");
                Failure::Invalid
            })?,
            None => bytes,
        };
        self.emit(ready);
        Ok(())
    }

    /// The upstream ended properly.
    fn finish(&mut self) -> Result<(), Failure> {
        if let Some(decoder) = &mut self.decoder {
            let rest = decoder.finish().map_err(|_| Failure::Lost)?;
            self.pass(rest)?;
        }
        if let Some(scrub) = &mut self.scrub {
            let rest = scrub.finish();
            self.cut(rest)?;
        }
        // A server may end a stream with event ids before the response, to be polled (2025-11-25, SEP-1699): the client
        // waits for as long as `retry:` says and resumes. A reset in its place would be a loss, and waits for nothing.
        let waits = |watch: &Watch| !watch.is_resumable() && !watch.outstanding().is_empty();
        if self.events.as_ref().and_then(Events::watch).is_some_and(waits) || self.awaited {
            return Err(Failure::Lost);
        }
        if let Some(events) = &mut self.events {
            let rest = events.finish();
            self.emit(rest);
        }
        self.trace.end(None);
        Ok(())
    }

    /// The answer cannot be completed (R18): the client resumes, or gets an error for each request that still waits.
    fn lose(&mut self, failure: Failure) {
        if !self.held {
            tracing::warn!(server = self.server, ?failure, "an answer of the upstream is not complete");
        }
        self.trace.end(Some(failure));
        let waiting = self
            .events
            .as_ref()
            .and_then(|events| Some((events, events.watch()?)))
            .filter(|(_, watch)| !watch.is_resumable())
            .map(|(events, watch)| (events.closing(), watch.outstanding()))
            .filter(|(_, outstanding)| !outstanding.is_empty());
        let Some((closing, outstanding)) = waiting else {
            self.incomplete = Some(Incomplete(failure));
            return;
        };
        let error = PipelineError::incomplete(failure, self.server.clone());
        self.emit(Bytes::from_static(closing));
        for id in outstanding {
            self.emit(error.event(&id, &self.server).into());
        }
    }
}

impl<U> Body for Relay<U>
where
    U: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = Incomplete;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Incomplete>>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.out.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            this.charge = None;
            let step = if !this.input.is_empty() {
                this.work()
            } else {
                let Some(upstream) = &mut this.upstream else {
                    return Poll::Ready(this.incomplete.take().map(Err));
                };
                let next = Pin::new(upstream).poll_frame(cx);
                if next.is_pending()
                    && let Some(news) = this.events.as_mut().and_then(|events| events.announce(cx))
                {
                    return Poll::Ready(Some(Ok(Frame::data(news))));
                }
                match ready!(next) {
                    Some(Ok(frame)) => {
                        // Trailers are dropped (T8).
                        this.input = frame.into_data().unwrap_or_default();
                        Ok(())
                    }
                    Some(Err(_)) => Err(Failure::Lost),
                    None => {
                        this.upstream = None;
                        this.finish()
                    }
                }
            };
            if let Err(failure) = step {
                this.upstream = None;
                this.input = Bytes::new();
                this.lose(failure);
            }
        }
    }
}
