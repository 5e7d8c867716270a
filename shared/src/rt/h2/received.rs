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

/// Data, then trailers. What is taken makes room for more (RFC 9113, section 5.2); a stream that was reset is an error,
/// however politely.
#[derive(Debug)]
pub struct Received {
    stream: RecvStream,
    heard: Heard,
    /// What is to come, if that was said.
    left: Option<u64>,
}

impl Received {
    /// The body that this stream carries.
    pub fn new(stream: RecvStream, heard: Heard) -> Self {
        heard.note();
        Self { stream, heard, left: None }
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
}

impl Body for Received {
    type Data = Bytes;
    type Error = ::h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ::h2::Error>>> {
        let this = &mut *self;
        if let Some(data) = ready!(this.stream.poll_data(context)?) {
            this.heard.note();
            this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
            this.stream.flow_control().release_capacity(data.len())?;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers = ready!(this.stream.poll_trailers(context)?);
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}
