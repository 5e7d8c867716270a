//! A request body that is judged while it passes: no byte leaves here that was not read before.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::Asked;
use crate::pipeline::{error::PipelineError, hold::Charge};

/// What was held back, then the rest.
pub(super) struct Passing<B> {
    held: VecDeque<Bytes>,
    /// For what was held back, until it has left.
    charge: Option<Arc<Charge>>,
    /// `None` when all was read.
    rest: Option<B>,
    asked: Asked,
}

impl<B> Passing<B> {
    pub(super) fn new(held: Vec<Bytes>, charge: Arc<Charge>, rest: Option<B>, asked: Asked) -> Self {
        Self { held: held.into(), charge: Some(charge), rest, asked }
    }
}

impl<B> Body for Passing<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = PipelineError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PipelineError>>> {
        let this = self.get_mut();
        if let Some(data) = this.held.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        this.charge = None;
        loop {
            let Some(rest) = &mut this.rest else { return Poll::Ready(None) };
            let frame = ready!(Pin::new(rest).poll_frame(cx));
            let judged = match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => this.asked.judge().take(&data).map(|()| Some(data)),
                    _ => continue,
                },
                Some(Err(_)) => this.asked.judge().keep(Err(PipelineError::RequestLost)).map(|()| None),
                None => this.asked.judge().finish().map(|()| None),
            };
            if !matches!(judged, Ok(Some(_))) {
                this.rest = None;
            }
            return Poll::Ready(judged.map(|data| data.map(Frame::data)).transpose());
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let held: u64 = self.held.iter().map(|data| data.len() as u64).sum();
        match self.rest.as_ref().map(Body::size_hint) {
            None => SizeHint::with_exact(held),
            Some(rest) => {
                let mut hint = SizeHint::new();
                hint.set_lower(held + rest.lower());
                if let Some(upper) = rest.upper() {
                    hint.set_upper(held + upper);
                }
                hint
            }
        }
    }
}
