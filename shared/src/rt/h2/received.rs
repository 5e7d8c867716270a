//! The body of a message as it comes out of the tunnel.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::h2::RecvStream;
use bytes::Bytes;
use http::{HeaderMap, header::CONTENT_LENGTH};
use http_body::{Body, Frame, SizeHint};

use super::pulse::Heard;

/// Data, then trailers. What is taken makes room for more (RFC 9113, section 5.2), now or when it is said; a stream that
/// was reset is an error, however politely.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    heard: Heard,
    /// Bytes that were taken and have not made room so far.
    withheld: usize,
    /// What is to come, if that was said.
    left: Option<u64>,
}

impl Received {
    /// The body that this stream carries.
    pub fn new(stream: RecvStream, heard: Heard) -> Self {
        heard.note();
        Self { stream, heard, withheld: 0, left: None }
    }

    /// The same, as long as its head says: HTTP/2 holds whoever sends it to that (RFC 9113, section 8.1.1). Two lengths
    /// are none.
    #[must_use]
    pub fn of_length(mut self, head: &HeaderMap) -> Self {
        let mut lengths = head.get_all(CONTENT_LENGTH).iter();
        if let (Some(length), None) = (lengths.next(), lengths.next()) {
            self.left = length.to_str().ok().and_then(|length| length.parse().ok());
        }
        self
    }

    /// Takes what came and makes no room for more: whoever does not pass it on, but takes it nonetheless, is sent a window's
    /// worth at most.
    ///
    /// # Errors
    /// As a body's.
    pub fn poll_withheld(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ::h2::Error>>> {
        if let Some(data) = ready!(self.stream.poll_data(context)?) {
            self.heard.note();
            self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
            self.withheld += data.len();
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(self.stream.poll_trailers(context)?);
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    /// Was something taken that has made no room?
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        self.withheld > 0
    }

    /// Makes room for as much as was taken.
    ///
    /// # Errors
    /// As a body's.
    pub fn release(&mut self) -> Result<(), ::h2::Error> {
        match std::mem::take(&mut self.withheld) {
            0 => Ok(()),
            taken => self.stream.flow_control().release_capacity(taken),
        }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = ::h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ::h2::Error>>> {
        let frame = ready!(self.poll_withheld(context));
        self.release()?;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}
