//! The body of a message on its way into the tunnel.
//!
//! ```text
//! a frame ──► room in the stream's window ──► sent ──► the next one ... ──► END_STREAM
//!    │                                                  ├── the body is cut ──► RST_STREAM(INTERNAL_ERROR)
//!    └── the other side resets the stream ──────────────┴──► over
//! ```
//!
//! Whatever cut it, the code is the same: one that came from an upstream, say that it did not begin and may be asked
//! again (RFC 9113, section 8.7), would be a lie about this stream.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::h2::{Reason, SendStream};
use bytes::Buf;
use http_body::{Body, Frame};

/// Bytes of a body that go with a request's head.
const WITH_HEAD: usize = 16 * 1024;

/// Sends a body to its end, or until the other side wants no more of it. One that is cut does not look complete.
#[derive(Debug)]
#[must_use = "nothing is sent unless this is polled"]
pub struct Sending<B: Body> {
    body: B,
    out: SendStream<B::Data>,
    /// Taken from the body when there was no room for it; and whether it is the last.
    waiting: Option<(B::Data, bool)>,
    /// Bytes that may go without asking for room.
    at_once: usize,
}

// The frame that waits is moved, never pinned.
impl<B: Body + Unpin> Unpin for Sending<B> {}

/// What comes next of a body.
enum Next<D> {
    Data(D, bool),
    /// Nothing, and nothing more.
    Over,
}

impl<B> Sending<B>
where
    B: Body<Data: Buf + Default> + Unpin,
{
    /// This body, to this stream.
    pub fn new(body: B, out: SendStream<B::Data>) -> Self {
        Self { body, out, waiting: None, at_once: 0 }
    }

    /// A small one goes with the head of a request that was just sent, whose stream is not open by then and has no room.
    /// HTTP/2 keeps back what the window does not take.
    pub fn with_head(self) -> Self {
        Self { at_once: WITH_HEAD, ..self }
    }

    fn next(&mut self, context: &mut Context<'_>) -> Poll<Next<B::Data>> {
        if let Some((data, last)) = self.waiting.take() {
            return Poll::Ready(Next::Data(data, last));
        }
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
                // A body may be silent for hours: whoever resets its stream ends it at once.
                let _reset = ready!(self.out.poll_reset(context));
                return Poll::Ready(Next::Over);
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    let last = self.body.is_end_stream();
                    if data.has_remaining() || last {
                        return Poll::Ready(Next::Data(data, last));
                    }
                }
                Some(Ok(Err(frame))) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        // An error here and below means that the stream is over, or the tunnel: whoever waits for the
                        // other half hears of it.
                        drop(self.out.send_trailers(trailers));
                        return Poll::Ready(Next::Over);
                    }
                }
                Some(Err(_)) => {
                    self.out.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(Next::Over);
                }
                None => return Poll::Ready(Next::Data(B::Data::default(), true)),
            }
        }
    }

    /// Is there room in the stream's window for so much? No more is asked for than is needed to begin: what exceeds it waits in
    /// HTTP/2's buffer, one piece at most. `None` when the stream is over.
    fn room(&mut self, length: usize, context: &mut Context<'_>) -> Poll<Option<()>> {
        if let Some(left) = self.at_once.checked_sub(length) {
            self.at_once = left;
            return Poll::Ready(Some(()));
        }
        self.out.reserve_capacity(1);
        while self.out.capacity() == 0 {
            let Some(Ok(_)) = ready!(self.out.poll_capacity(context)) else { return Poll::Ready(None) };
        }
        Poll::Ready(Some(()))
    }
}

impl<B> Future for Sending<B>
where
    B: Body<Data: Buf + Default> + Unpin,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            let Next::Data(data, last) = ready!(this.next(context)) else { return Poll::Ready(()) };
            if data.has_remaining() {
                match this.room(data.remaining(), context) {
                    Poll::Ready(Some(())) => {}
                    Poll::Ready(None) => return Poll::Ready(()),
                    Poll::Pending => {
                        this.waiting = Some((data, last));
                        return Poll::Pending;
                    }
                }
            }
            if this.out.send_data(data, last).is_err() || last {
                return Poll::Ready(());
            }
        }
    }
}
