//! What lies between the pump that reads the tunnel and the agent that reads the relay: bounded, small chunks merged.
//!
//! ```text
//! pump ──push──► Queue ──Reader──► hyper, or chunks ──► agent
//!   ◄──── has room / reader is gone ────┘
//! ```

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use moat_shared::limits;
use tokio::{sync::Notify, time::timeout};

/// Chunks below this size are merged while the reader is busy, so that tiny events do not cost an allocation each.
const SMALL: usize = 4096;

/// The broken end of a response: the connection to the agent is cut, so that nothing looks complete that is not (T3).
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the response was cut short")]
pub(crate) struct Cut;

/// How the response ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Complete,
    Cut,
}

/// Why nothing can be pushed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stuck {
    /// The agent went away.
    Gone,
    /// The agent took nothing for too long.
    Stalled,
}

/// The pump's end.
#[derive(Debug)]
pub(crate) struct Queue(Arc<Shared>);

/// The agent's end: the body of the response.
#[derive(Debug)]
pub(crate) struct Reader(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// The reader took something, or is gone.
    moved: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// In order; what is in `tail` comes after it.
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    length: usize,
    end: Option<End>,
    waker: Option<Waker>,
    gone: bool,
    /// Nothing was taken since the reader last had to wait.
    flushed: bool,
}

/// A queue and its reader.
pub(crate) fn queue() -> (Queue, Reader) {
    let shared = Arc::new(Shared::default());
    (Queue(Arc::clone(&shared)), Reader(shared))
}

impl Queue {
    /// Appends bytes; never an empty chunk.
    pub(crate) fn push(&self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.0.state();
        state.append(bytes);
        state.wake();
    }

    /// Nothing comes any more.
    pub(crate) fn end(&self, end: End) {
        let mut state = self.0.state();
        state.end = Some(end);
        state.wake();
    }

    /// Gives up on a reader that is stuck, and on what it did not take.
    pub(crate) fn abandon(&self) {
        self.0.state().discard();
        self.end(End::Cut);
    }

    /// Has the reader taken everything?
    pub(crate) fn is_empty(&self) -> bool {
        self.0.state().length == 0
    }

    /// May the sender send more?
    pub(crate) fn has_room(&self) -> bool {
        self.0.state().has_room()
    }

    /// Waits until there is room. A reader that takes nothing for `patience` is stuck; one that reads slowly is not.
    pub(crate) async fn room(&self, patience: Duration) -> Result<(), Stuck> {
        loop {
            let moved = self.0.moved.notified();
            {
                let state = self.0.state();
                if state.gone {
                    return Err(Stuck::Gone);
                }
                if state.has_room() {
                    return Ok(());
                }
            }
            timeout(patience, moved).await.map_err(|_elapsed| Stuck::Stalled)?;
        }
    }

    /// Returns when the agent has gone away.
    pub(crate) async fn gone(&self) {
        loop {
            let moved = self.0.moved.notified();
            if self.0.state().gone {
                return;
            }
            moved.await;
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let mut state = self.0.state();
        // A pump that is torn down without a word has not finished its response.
        state.end.get_or_insert(End::Cut);
        state.wake();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.gone = true;
        state.discard();
        drop(state);
        self.0.moved.notify_one();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.length < limits::STALLED_READER
    }

    fn append(&mut self, bytes: Bytes) {
        self.length += bytes.len();
        let idle = self.chunks.is_empty() && self.tail.is_empty();
        if idle || bytes.len() >= SMALL {
            self.seal();
            self.chunks.push_back(bytes);
            return;
        }
        self.tail.extend_from_slice(&bytes);
        if self.tail.len() >= SMALL {
            self.seal();
        }
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            let sealed = self.tail.split().freeze();
            self.chunks.push_back(sealed);
        }
    }

    fn take(&mut self) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.seal();
        }
        let bytes = self.chunks.pop_front()?;
        self.length -= bytes.len();
        Some(bytes)
    }

    fn discard(&mut self) {
        self.chunks = VecDeque::new();
        self.tail = BytesMut::new();
        self.length = 0;
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Reader {
    /// What comes next.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Cut>>> {
        let mut state = self.0.state();
        if let Some(bytes) = state.take() {
            state.flushed = false;
            drop(state);
            self.0.moved.notify_one();
            return Poll::Ready(Some(Ok(bytes)));
        }
        let end = state.end;
        match end {
            Some(End::Complete) => Poll::Ready(None),
            // hyper drops what it has buffered when a body fails, and writes it out when a body has nothing more for
            // now: so the agent gets what came before the cut, and the head in any case.
            Some(End::Cut) if !std::mem::replace(&mut state.flushed, true) => {
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Some(End::Cut) => Poll::Ready(Some(Err(Cut))),
            None => {
                state.flushed = true;
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Body for Reader {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.poll_next(context).map_ok(Frame::data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use proptest::prelude::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    proptest! {
        #[test]
        fn order_is_kept(sizes in proptest::collection::vec((prop_oneof![Just(0usize), 1..6000usize], 0usize..3), 0..24)) {
            let (queue, mut reader) = queue();
            let mut context = Context::from_waker(Waker::noop());
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            let mut next = |received: &mut Vec<u8>| match Pin::new(&mut reader).poll_frame(&mut context) {
                Poll::Ready(Some(Ok(frame))) => { let data = frame.into_data().unwrap();
                    assert!(!data.is_empty());
                    received.extend_from_slice(&data); true }
                _ => false,
            };
            for (index, (size, reads)) in sizes.into_iter().enumerate() {
                let chunk = vec![u8::try_from(index).unwrap(); size];
                sent.extend_from_slice(&chunk);
                queue.push(chunk.into());
                for _ in 0..reads { next(&mut received); }
            }
            while next(&mut received) {}
            prop_assert_eq!(sent, received);
            prop_assert!(queue.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_is_not_a_stalled_one() {
        let (queue, mut reader) = queue();
        for _ in 0..2 * limits::STALLED_READER / SMALL {
            queue.push(Bytes::from_static(&[0; SMALL]));
        }
        let slow = async {
            while !queue.is_empty() {
                tokio::time::sleep(PATIENCE / 2).await;
                reader.frame().await.unwrap().unwrap();
            }
        };
        let (room, ()) = tokio::join!(queue.room(PATIENCE), slow);
        assert_eq!(room, Ok(()));
        for _ in 0..limits::STALLED_READER / SMALL {
            queue.push(Bytes::from_static(&[0; SMALL]));
        }
        assert_eq!(queue.room(PATIENCE).await, Err(Stuck::Stalled));
        queue.abandon();
        assert!(reader.frame().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_goes_away_is_noticed() {
        let (queue, reader) = queue();
        let noticed = timeout(PATIENCE, async { tokio::join!(queue.gone(), async { drop(reader) }) }).await;
        assert!(noticed.is_ok());
        assert_eq!(queue.room(PATIENCE).await, Err(Stuck::Gone));
    }

    #[tokio::test]
    async fn a_pump_that_dies_cuts_the_response() {
        let (queue, mut reader) = queue();
        queue.push(Bytes::from_static(b"half"));
        drop(queue);
        assert!(reader.frame().await.unwrap().is_ok());
        assert!(reader.frame().await.unwrap().is_err());
    }
}
