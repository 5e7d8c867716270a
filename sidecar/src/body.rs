//! What goes into the tunnel: an agent's request body, unchanged. And what a body is that comes out of it.
//!
//! Empty chunks are left out, because HTTP/2 ends a connection on which too many empty frames were seen; trailers are
//! dropped (T8). A scanner notes the request's id and method in passing.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use moat_shared::rpc::{
    RawId,
    scan::{SCANNED, Scanner},
};
use tokio::time::timeout;

/// A body of which a window's worth comes, at most, until what was taken is released (RFC 9113, section 5.2).
pub(crate) trait Windowed: Body {
    /// Was something taken that is not released?
    fn is_withheld(&self) -> bool;

    /// Makes room for as much as was taken.
    ///
    /// # Errors
    /// As the body's own.
    fn release(&mut self) -> Result<(), Self::Error>;
}

/// Bytes of a body that may as well be sent together with its head.
const SMALL: u64 = 16 * 1024;

/// What is known of a request's body so far.
#[derive(Debug, Clone, Default)]
pub struct Noted(Arc<Mutex<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    scanner: Scanner,
    broken: bool,
    ended: bool,
}

impl Noted {
    /// The request's id.
    #[must_use]
    pub fn id(&self) -> Option<RawId> {
        self.notes().scanner.id().cloned()
    }

    /// Is this the request's method?
    #[must_use]
    pub fn method_is(&self, method: &str) -> bool {
        self.notes().scanner.method() == Some(method)
    }

    /// Was the body cut or malformed? Then it is the agent who broke the request, whatever became of its stream.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.notes().broken
    }

    /// Has the agent sent all of it?
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.notes().ended
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An agent's request body on its way into the tunnel.
#[derive(Debug)]
pub struct Upload<B = Incoming> {
    body: B,
    noted: Noted,
    /// Read ahead while the tunnel is down.
    held: VecDeque<Bytes>,
    ended: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Upload<B> {
    /// Takes the body over, unread.
    pub fn new(body: B) -> Self {
        let noted = Noted::default();
        noted.notes().ended = body.is_end_stream();
        Self { body, noted, held: VecDeque::new(), ended: false }
    }

    /// What is known of the body so far, also when it has gone into the tunnel.
    #[must_use]
    pub fn noted(&self) -> Noted {
        self.noted.clone()
    }

    /// Reads the start of the body, as far as the scanner looks, and keeps it. An agent that goes away is only
    /// noticed when its body has been read.
    ///
    /// # Errors
    /// When the agent's body is cut or malformed.
    pub async fn read_ahead(&mut self) -> Result<(), B::Error> {
        let mut length = self.held.iter().map(Bytes::len).sum::<usize>();
        while length < SCANNED {
            match poll_fn(|context| self.poll_data(context)).await.transpose()? {
                Some(data) => {
                    length += data.len();
                    self.held.push_back(data);
                }
                None => break,
            }
        }
        Ok(())
    }

    /// Reads a small body whole, if it comes within `patience`; another one is left as it is.
    ///
    /// # Errors
    /// When the agent's body is cut or malformed.
    pub async fn read_small(&mut self, patience: Duration) -> Result<(), B::Error> {
        if self.body.size_hint().upper().is_none_or(|length| length > SMALL) {
            return Ok(());
        }
        let whole = async {
            while !self.is_over()
                && let Some(data) = poll_fn(|context| self.poll_data(context)).await.transpose()?
            {
                self.held.push_back(data);
            }
            Ok(())
        };
        timeout(patience, whole).await.unwrap_or(Ok(()))
    }

    fn is_over(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    /// Reads for the id of a request that is refused, as far as its body comes soon.
    pub async fn look_for_id(&mut self, patience: Duration) {
        // Cut, or too slow: then what was read so far has to do.
        let _all = timeout(patience, self.read_ahead()).await.is_ok();
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, B::Error>>> {
        while !self.ended {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data()
                        && !data.is_empty()
                    {
                        let mut notes = self.noted.notes();
                        notes.scanner.push(&data);
                        notes.ended = self.body.is_end_stream();
                        drop(notes);
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Some(Err(error)) => {
                    self.noted.notes().broken = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.ended = true;
                    self.noted.notes().ended = true;
                }
            }
        }
        Poll::Ready(None)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Upload<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        if let Some(data) = this.held.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        this.poll_data(context).map(|data| data.map(|data| data.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.iter().map(|data| data.len() as u64).sum::<u64>();
        let rest = if self.ended { SizeHint::with_exact(0) } else { self.body.size_hint() };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full, StreamBody};
    use std::convert::Infallible;

    fn chunks(parts: &'static [&'static str]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        StreamBody::new(futures_util::stream::iter(
            parts.iter().map(|part| Ok(Frame::data(Bytes::from_static(part.as_bytes())))),
        ))
    }

    #[tokio::test]
    async fn empty_chunks_are_left_out_and_the_id_is_noted() {
        let mut upload = Upload::new(chunks(&["", "{\"id\":", "", "", "7,\"method\":\"m\"}", ""]));
        let noted = upload.noted();
        assert!(!noted.is_over());
        let mut seen = Vec::new();
        while let Some(frame) = upload.frame().await {
            seen.push(frame.unwrap().into_data().unwrap());
        }
        assert_eq!(seen, ["{\"id\":", "7,\"method\":\"m\"}"]);
        assert_eq!(noted.id().unwrap().as_str(), "7");
        assert!(noted.method_is("m") && noted.is_over());
        assert!(upload.is_end_stream());
    }

    #[tokio::test]
    async fn what_was_read_ahead_is_not_lost() {
        let mut upload = Upload::new(chunks(&["{\"id\"", ":1}"]));
        upload.read_ahead().await.unwrap();
        assert_eq!(upload.noted().id().unwrap().as_str(), "1");
        assert!(!upload.is_end_stream());
        assert_eq!(upload.size_hint().exact(), Some(8));
        assert_eq!(upload.collect().await.unwrap().to_bytes(), "{\"id\":1}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_small_body_is_read_at_once_and_a_large_one_is_left() {
        let of = |length: usize| {
            let text = format!("{{\"id\":1,\"x\":\"{}\"}}", "x".repeat(length));
            Upload::new(Full::new(Bytes::from(text)))
        };
        let (mut small, mut large) = (of(10), of(usize::try_from(SMALL).unwrap()));
        for upload in [&mut small, &mut large] {
            upload.read_small(Duration::from_millis(2)).await.unwrap();
        }
        assert_eq!(small.noted().id().unwrap().as_str(), "1");
        assert!(small.is_over() && !small.is_end_stream(), "it is held, and has to be sent");
        assert!(small.noted().is_over() && !large.noted().is_over());
        assert_eq!(large.noted().id(), None);
        assert_eq!(small.collect().await.unwrap().to_bytes().len(), 25);
    }
}
