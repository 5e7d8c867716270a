//! How long an agent's connection may be idle, and how long a head may take that has begun.
//!
//! ```text
//!           ┌───────────────────────────────────────────────────────┐
//!           ▼                                                       │
//! accepted: idle ──first bytes──► head ──request──► in flight ──answer is out
//!           │ hyper's timer       │ ours
//!           ▼ minutes             ▼ seconds
//!           closed                closed
//! ```
//!
//! hyper has one timer for both. But clients keep idle connections for a minute or more, and a POST that meets our
//! close on its way is lost; a head that dribbles, on the other hand, must not get minutes.
//!
//! Bytes that come while a request is in flight are its body's, or a head's that was sent ahead: such a head is hurried
//! once more of it comes, and has the patience for idle connections until then.
//!
//! Both begin anew when hyper gets a connection back.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// How far the requests of one connection are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    asked: AtomicUsize,
    answered: AtomicUsize,
    /// hyper has written out all that it had.
    flushed: AtomicBool,
}

impl Progress {
    /// A request's head is complete.
    pub(crate) fn asked(&self) -> InFlight {
        self.0.asked.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(&self.0))
    }

    /// Has hyper written out all that it had, since [`InFlight::await_flush`]?
    pub(crate) fn is_flushed(&self) -> bool {
        self.0.flushed.load(Ordering::Relaxed)
    }

    /// The number of the head that comes next, unless a request is in flight.
    fn awaited(&self) -> Option<usize> {
        let asked = self.0.asked.load(Ordering::Relaxed);
        (asked == self.0.answered.load(Ordering::Relaxed)).then_some(asked)
    }
}

/// A request whose answer is not out yet.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Counts>);

impl InFlight {
    /// Asks to be told when hyper has written out all that it has: it flushes its connection then, and not before.
    pub(crate) fn await_flush(&self) {
        self.0.flushed.store(false, Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.answered.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection whose reads fail when a head takes too long.
#[derive(Debug)]
pub(crate) struct Hurried<S> {
    stream: S,
    patience: Duration,
    progress: Progress,
    head: Option<Head>,
}

/// A head that has begun.
#[derive(Debug)]
struct Head {
    number: usize,
    deadline: Instant,
    /// Only for heads that do not come in one piece.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Head {
    fn late(&mut self) -> Pin<&mut Sleep> {
        let deadline = self.deadline;
        self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline))).as_mut()
    }
}

impl<S> Hurried<S> {
    pub(crate) fn new(stream: S, patience: Duration, progress: Progress) -> Self {
        Self { stream, patience, progress, head: None }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }

    fn begin(&mut self) {
        if let (None, Some(number)) = (&self.head, self.progress.awaited()) {
            self.head = Some(Head { number, deadline: Instant::now() + self.patience, timer: None });
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Hurried<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let awaited = this.progress.awaited();
        this.head.take_if(|head| awaited != Some(head.number));
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            this.begin();
        }
        if let (Poll::Pending, Some(head)) = (&read, &mut this.head) {
            ready!(head.late().poll(context));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Hurried<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.progress.0.flushed.store(true, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const PATIENCE: Duration = Duration::from_secs(10);
    const LONG: Duration = Duration::from_secs(240);

    async fn is_late(stream: &mut Hurried<impl AsyncRead + Unpin>) -> bool {
        let read = tokio::time::timeout(LONG, stream.read_u8()).await;
        read.is_ok_and(|read| read.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut))
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_head_that_has_begun_is_hurried() {
        let (mut agent, relay) = duplex(64);
        let progress = Progress::default();
        let mut relay = Hurried::new(relay, PATIENCE, progress.clone());
        for _ in 0..2 {
            assert!(!is_late(&mut relay).await, "idle");
            agent.write_all(b"H").await.unwrap();
            relay.read_u8().await.unwrap();
            let request = progress.asked();
            assert!(!is_late(&mut relay).await, "in flight");
            agent.write_all(b"b").await.unwrap();
            relay.read_u8().await.unwrap();
            assert!(!is_late(&mut relay).await, "in its body");
            drop(request);
        }
        assert!(!is_late(&mut relay).await, "idle again");
        agent.write_all(b"H").await.unwrap();
        relay.read_u8().await.unwrap();
        let begun = Instant::now();
        tokio::time::sleep(PATIENCE * 3 / 4).await;
        agent.write_all(b"e").await.unwrap();
        relay.read_u8().await.unwrap();
        assert!(is_late(&mut relay).await, "a head that dribbles");
        assert_eq!(begun.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_was_complete_at_once_leaves_no_timer() {
        let (mut agent, relay) = duplex(64);
        let progress = Progress::default();
        let mut relay = Hurried::new(relay, PATIENCE, progress.clone());
        agent.write_all(b"H").await.unwrap();
        relay.read_u8().await.unwrap();
        drop(progress.asked());
        assert!(!is_late(&mut relay).await);
    }
}
