//! What the bridge holds for a run: of answers that it does not read, and of long heads. Bounded per stream, and per run.
//!
//! ```text
//! upstream ──► body ──► Paced ──frames──► HTTP/2's send buffer ──► tunnel
//!                         ▲                      │ sent, or reset
//!                         └─────── room ◄────────┘
//! ```
//!
//! A stream whose last frame has left may always have another, so that no stream waits for a sibling; more than that is
//! taken from what the run shares. A stream that has to wait is not read from its upstream, which is then held back by
//! its own flow control. Nothing here is shared between runs.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http::Request;
use http_body::{Body, Frame, SizeHint};

/// Bytes of one stream that may wait to be sent.
const PER_STREAM: usize = 64 * 1024;
/// Bytes of all streams of one run that may, apart from one frame of each.
const PER_RUN: usize = 16 << 20;
/// A longer frame is sent in parts: as much as fits into one TLS record with the frame's head.
const FRAME: usize = 16 * 1024 - 9;

/// A head of this length counts for nothing: thousands of streams may be open.
const HEAD_FREE: usize = 2 * 1024;
/// Bytes of all longer heads of a run's open streams. One is kept more than once: on its way, and in the buffers of its
/// upstream's connection for as long as the answer streams.
const HEADS_PER_RUN: usize = 8 << 20;

/// The budget of one run's tunnel.
#[derive(Debug, Clone, Default)]
pub(super) struct Budget(Arc<Held>);

/// Bytes that are held.
#[derive(Debug, Default)]
struct Held {
    answers: AtomicUsize,
    heads: AtomicUsize,
}

impl Budget {
    /// Takes in a request, unless too many others have long heads.
    pub(super) fn admit<B>(&self, request: &Request<B>) -> Option<Admitted> {
        // What HTTP/2 counts as a field's length (RFC 9113, section 6.5.2).
        let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        let length = (target + fields.sum::<usize>()).saturating_sub(HEAD_FREE);
        let held = self.0.heads.fetch_add(length, Ordering::AcqRel) + length;
        let admitted = Admitted { length, budget: self.clone() };
        (length == 0 || held <= HEADS_PER_RUN).then_some(admitted)
    }
}

/// A request that was taken in, until its answer is over.
#[derive(Debug)]
pub(super) struct Admitted {
    length: usize,
    budget: Budget,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.budget.0.heads.fetch_sub(self.length, Ordering::AcqRel);
    }
}

/// What one stream has waiting.
#[derive(Debug)]
struct Stream {
    unsent: AtomicUsize,
    budget: Budget,
    body: AtomicWaker,
}

impl Stream {
    fn is_full(&self) -> bool {
        match self.unsent.load(Ordering::Acquire) {
            0 => false,
            unsent => unsent >= PER_STREAM || self.budget.0.answers.load(Ordering::Acquire) >= PER_RUN,
        }
    }
}

/// A body that gives no more than its stream and its run have room for.
#[derive(Debug)]
pub(super) struct Paced<B> {
    body: B,
    /// Of a frame that is sent in parts.
    rest: Bytes,
    stream: Arc<Stream>,
    _request: Option<Admitted>,
}

impl<B> Paced<B> {
    /// The answer to a request; one that was not taken in has none to hold.
    pub(super) fn new(body: B, budget: &Budget, request: Option<Admitted>) -> Self {
        let stream = Stream { unsent: AtomicUsize::new(0), budget: budget.clone(), body: AtomicWaker::new() };
        Self { body, rest: Bytes::new(), stream: Arc::new(stream), _request: request }
    }
}

impl<B> Body for Paced<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Charged;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Charged>, B::Error>>> {
        let this = self.get_mut();
        if this.stream.is_full() {
            this.stream.body.register(cx.waker());
            // It may have been sent meanwhile.
            if this.stream.is_full() {
                return Poll::Pending;
            }
        }
        // Empty frames are left out: HTTP/2 ends a connection on which too many were seen.
        while this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => this.rest = bytes,
                    // The upstream's were dropped long before: these say how the answer ends (T3).
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let bytes = this.rest.split_to(this.rest.len().min(FRAME));
        if this.rest.is_empty() {
            // An empty one would still hold the memory.
            this.rest = Bytes::new();
        }
        Poll::Ready(Some(Ok(Frame::data(Charged::new(bytes, &this.stream)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rest.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}

/// Bytes that count until they are dropped: sent, or reset. None at all count for no stream.
#[derive(Debug, Default)]
pub(super) struct Charged {
    bytes: Bytes,
    charge: usize,
    stream: Option<Arc<Stream>>,
}

impl Charged {
    fn new(bytes: Bytes, stream: &Arc<Stream>) -> Self {
        let charge = bytes.len();
        stream.unsent.fetch_add(charge, Ordering::AcqRel);
        stream.budget.0.answers.fetch_add(charge, Ordering::AcqRel);
        Self { bytes, charge, stream: Some(Arc::clone(stream)) }
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        let Some(stream) = &self.stream else { return };
        stream.budget.0.answers.fetch_sub(self.charge, Ordering::AcqRel);
        stream.unsent.fetch_sub(self.charge, Ordering::AcqRel);
        stream.body.wake();
    }
}

impl Buf for Charged {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};
    use std::{convert::Infallible, task::Waker};

    /// Never runs out of frames of this size.
    fn flood(size: usize) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let frame = move || Ok(Frame::data(Bytes::from(vec![b'x'; size])));
        StreamBody::new(futures_util::stream::iter(std::iter::repeat_with(frame)))
    }

    /// Everything that a body gives while nothing is sent.
    fn drain(body: &mut (impl Body<Data = Charged, Error = Infallible> + Unpin)) -> Vec<Charged> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut frames = Vec::new();
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut *body).poll_frame(&mut cx) {
            frames.push(frame.into_data().unwrap());
        }
        frames
    }

    fn bytes(frames: &[Charged]) -> usize {
        frames.iter().map(Buf::remaining).sum()
    }

    #[test]
    fn a_stream_that_is_not_read_holds_little() {
        let budget = Budget::default();
        for size in [1, 1000, FRAME, 1 << 20] {
            let mut body = Paced::new(flood(size), &budget, None);
            let frames = drain(&mut body);
            assert!((PER_STREAM..PER_STREAM + FRAME).contains(&bytes(&frames)), "{}", bytes(&frames));
            assert!(frames.iter().all(|frame| frame.remaining() <= FRAME));
        }
        assert_eq!(budget.0.answers.load(Ordering::Relaxed), 0, "what is dropped counts no longer");
    }

    #[tokio::test]
    async fn what_says_how_an_answer_ends_passes() {
        let trailers = http::HeaderMap::from_iter([(http::header::VIA, "x".parse().unwrap())]);
        let frames =
            [Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let collected = Paced::new(body, &Budget::default(), None).collect().await.unwrap();
        assert!(collected.trailers().is_some());
    }

    #[test]
    fn many_streams_hold_what_the_run_may_and_each_can_still_send() {
        const STREAMS: usize = 2000;
        let budget = Budget::default();
        let mut bodies: Vec<_> = (0..STREAMS).map(|_| Paced::new(flood(FRAME), &budget, None)).collect();
        let mut unsent: Vec<_> = bodies.iter_mut().map(drain).collect();
        let held: usize = unsent.iter().map(|frames| bytes(frames)).sum();
        assert!(held <= PER_RUN + STREAMS * FRAME, "{held}");
        assert!(unsent.iter().all(|frames| !frames.is_empty()), "a stream waits for its siblings");
        // The last one is read, while all the others are not.
        for _ in 0..100 {
            unsent[STREAMS - 1].clear();
            unsent[STREAMS - 1] = drain(&mut bodies[STREAMS - 1]);
            assert_eq!(bytes(&unsent[STREAMS - 1]), FRAME);
        }
        // Another run has its own.
        assert!(bytes(&drain(&mut Paced::new(flood(FRAME), &Budget::default(), None))) >= PER_STREAM);
    }

    #[test]
    fn long_heads_are_counted_for_as_long_as_their_answers_last() {
        let budget = Budget::default();
        let request =
            |length: usize| Request::get("/mcp/x").header("x", "v".repeat(length)).body(()).unwrap();
        let mut open = Vec::new();
        while let Some(admitted) = budget.admit(&request(60_000)) {
            open.push(Paced::new(flood(1), &budget, Some(admitted)));
        }
        assert!((100..200).contains(&open.len()), "{}", open.len());
        assert!(budget.admit(&request(500)).is_some(), "short ones are taken in always");
        open.pop();
        assert!(budget.admit(&request(60_000)).is_some());
        open.clear();
        assert_eq!(budget.0.heads.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_stream_that_waits_is_woken() {
        let mut body = Paced::new(flood(PER_STREAM), &Budget::default(), None);
        let frames = drain(&mut body);
        let (next, ()) = tokio::join!(body.frame(), async {
            tokio::task::yield_now().await;
            drop(frames);
        });
        assert!(next.unwrap().is_ok());
    }

    #[tokio::test]
    async fn nothing_is_lost_or_changed() {
        let parts: Vec<Vec<u8>> = [0, 1, FRAME, FRAME + 1, 5 * FRAME].map(|size| vec![7; size]).into();
        let stream =
            parts.clone().into_iter().map(|part| Ok::<_, Infallible>(Frame::data(Bytes::from(part))));
        let mut body =
            Paced::new(StreamBody::new(futures_util::stream::iter(stream)), &Budget::default(), None);
        let mut seen = Vec::new();
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            assert!(data.has_remaining(), "an empty frame");
            seen.extend_from_slice(data.chunk());
        }
        assert_eq!(seen, parts.concat());
    }
}
