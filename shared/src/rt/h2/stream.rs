//! One stream at the end that answers, from its request to its answer's end.
//!
//! ```text
//! answering ──► head ──┬── no body ──► END_STREAM
//!     │                └── sending: the body, what is there of it with the head
//!     └── reset by the other side, at any time ──► dropped, with all that is done for it
//! ```
//!
//! What the answer takes is gone when its body streams: that may last for hours.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use ::h2::{Reason, server::SendResponse};
use bytes::Buf;
use http::{HeaderValue, Response, header::CONTENT_LENGTH};
use http_body::Body;
use pin_project_lite::pin_project;

use super::send::Sending;

pin_project! {
    /// A stream whose answer comes from `F`.
    #[project = StateOf]
    pub(super) enum Stream<F, B>
    where
        B: Body,
    {
        Answering { #[pin] answer: F, reply: SendResponse<B::Data> },
        Sending { body: Sending<B> },
    }
}

impl<F, B> Stream<F, B>
where
    B: Body,
{
    pub(super) fn new(answer: F, reply: SendResponse<B::Data>) -> Self {
        Self::Answering { answer, reply }
    }
}

impl<F, B> Future for Stream<F, B>
where
    F: Future<Output = Response<B>>,
    B: Body<Data: Buf + Default> + Unpin,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let StateOf::Answering { answer, reply } = self.as_mut().project() {
            let Poll::Ready(answer) = answer.poll(context) else {
                // Whether it was reset, or the tunnel lost.
                let _over = ready!(reply.poll_reset(context));
                return Poll::Ready(());
            };
            let Some(body) = head(answer, reply) else { return Poll::Ready(()) };
            self.set(Self::Sending { body });
        }
        match self.project() {
            StateOf::Sending { body } => Pin::new(body).poll(context),
            StateOf::Answering { .. } => Poll::Pending,
        }
    }
}

/// Sends an answer's head. What is left to send is its body.
fn head<B>(answer: Response<B>, reply: &mut SendResponse<B::Data>) -> Option<Sending<B>>
where
    B: Body<Data: Buf + Default> + Unpin,
{
    let (mut head, body) = answer.into_parts();
    let over = body.is_end_stream();
    if !over && let Some(length) = body.size_hint().exact() {
        head.headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    match reply.send_response(Response::from_parts(head, ()), over) {
        Ok(out) => (!over).then(|| Sending::new(body, out)),
        Err(_) => {
            // Reset meanwhile; or no head of HTTP/2, which is not to be waited for.
            reply.send_reset(Reason::INTERNAL_ERROR);
            None
        }
    }
}
