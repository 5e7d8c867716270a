//! The body of a response to an agent: a few bytes of our own, or what comes through the tunnel.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::queue::{Cut, Reader};
use crate::body::Noted;

/// The body of a response to an agent.
#[derive(Debug)]
pub(crate) enum Answer {
    Whole(Option<Bytes>),
    /// What the pump brings, and what is known of the request's own body.
    Streamed {
        reader: Reader,
        upload: Noted,
    },
    /// Its rest is written by somebody else.
    Elsewhere,
}

impl Answer {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes))
    }

    pub(crate) const fn empty() -> Self {
        Self::Whole(None)
    }

    /// Takes over what is still to come, unless the agent is not done with its request.
    pub(crate) fn take_rest(&mut self) -> Option<Reader> {
        match self {
            Self::Streamed { upload, .. } if upload.is_over() => {}
            Self::Streamed { .. } | Self::Whole(_) | Self::Elsewhere => return None,
        }
        match mem::replace(self, Self::Elsewhere) {
            Self::Streamed { reader, .. } => Some(reader),
            Self::Whole(_) | Self::Elsewhere => None,
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed { reader, .. } => Pin::new(reader).poll_frame(context),
            Self::Elsewhere => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Streamed { reader, .. } => reader.is_end_stream(),
            Self::Elsewhere => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streamed { .. } | Self::Elsewhere => SizeHint::default(),
        }
    }
}
