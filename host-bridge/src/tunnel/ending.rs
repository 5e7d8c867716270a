//! How an answer that is not complete ends on the tunnel (T3): by a reset, or by a trailer for a relay that takes them.
//!
//! A reset throws away what is queued of its stream at either end. The trailer comes in its turn: the agent gets every
//! event that came before the loss, among them the id from which its client resumes.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header::TE};
use http_body::{Body, Frame, SizeHint};
use moat_shared::wire;

/// Does this relay read trailers?
pub(super) fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.get(TE).is_some_and(|value| value == "trailers")
}

/// An answer whose loss becomes a trailer.
#[derive(Debug)]
pub(super) struct Ending<B> {
    body: B,
    over: bool,
}

impl<B> Ending<B> {
    pub(super) fn new(body: B) -> Self {
        Self { body, over: false }
    }
}

impl<B> Body for Ending<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let Some(Err(_)) = frame else { return Poll::Ready(frame) };
        this.over = true;
        let trailer = (HeaderName::from_static(wire::INCOMPLETE), HeaderValue::from_static("1"));
        Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::from_iter([trailer])))))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};

    #[tokio::test]
    async fn a_loss_comes_behind_what_was_sent() {
        let frames = [Ok(Frame::data(Bytes::from_static(b"id: 1\n\n"))), Err("lost")];
        let mut body = Ending::new(StreamBody::new(futures_util::stream::iter(frames)));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "id: 1\n\n");
        let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers[wire::INCOMPLETE], "1");
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }
}
