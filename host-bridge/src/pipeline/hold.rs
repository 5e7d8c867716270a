//! What is held back until it can be judged: in few pieces, however small those are that come, and bounded per run.
//!
//! ```text
//! piece ──► Hold ──► one whole, or its pieces ──► body, which keeps the Charge until it has left
//!             └── grows the Charge ──► Allowance of the run ──► full: who can pass on what it holds does so, who
//!                                                              would have to judge it refuses
//! ```
//!
//! Without the first a body in frames of one byte costs fifty times its length; without the second a run with thousands of
//! streams holds as much as all their limits together. What waits to be sent to the sandbox is the tunnel's to bound.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use moat_shared::id::RunId;

use super::Incomplete;

/// Bytes that all requests and answers of one run may hold together.
const PER_RUN: usize = 64 << 20;
/// A smaller piece is copied: it may keep a buffer alive that is much longer than itself.
const SMALL: usize = 8 * 1024;
/// Copies come together up to this length.
const TOGETHER: usize = 64 * 1024;

/// What each run holds, for as long as it holds anything.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowances(Arc<Mutex<HashMap<RunId, Weak<AtomicUsize>>>>);

impl Allowances {
    pub(super) fn of(&self, run: &RunId) -> Allowance {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = runs.get(run).and_then(Weak::upgrade) {
            return Allowance(held);
        }
        if runs.len() == runs.capacity() {
            runs.retain(|_, held| held.strong_count() > 0);
        }
        let allowance = Allowance::default();
        runs.insert(run.clone(), Arc::downgrade(&allowance.0));
        allowance
    }
}

/// What one run holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowance(Arc<AtomicUsize>);

#[cfg(test)]
impl Allowance {
    /// Bytes that are held now.
    pub(super) fn held(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A part of it, until it is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    allowance: Allowance,
    bytes: usize,
}

impl Charge {
    pub(super) fn new(allowance: &Allowance) -> Self {
        Self { allowance: allowance.clone(), bytes: 0 }
    }

    /// So many bytes are held now. `false`: that is more than the run may hold.
    pub(super) fn set(&mut self, bytes: usize) -> bool {
        let held = &self.allowance.0;
        let all = if bytes >= self.bytes {
            let more = bytes - self.bytes;
            if more == 0 {
                held.load(Ordering::Relaxed)
            } else {
                held.fetch_add(more, Ordering::Relaxed) + more
            }
        } else {
            let less = self.bytes - bytes;
            held.fetch_sub(less, Ordering::Relaxed) - less
        };
        self.bytes = bytes;
        all <= PER_RUN
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Pieces that are held.
#[derive(Debug)]
pub(super) struct Hold {
    pieces: Vec<Bytes>,
    /// Copies of small ones, which come after the pieces.
    tail: BytesMut,
    length: usize,
    charge: Charge,
}

impl Hold {
    pub(super) fn new(allowance: &Allowance) -> Self {
        Self { pieces: Vec::new(), tail: BytesMut::new(), length: 0, charge: Charge::new(allowance) }
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Holds one more. `false`: the run holds more than it may. A `last` piece will not be held for long.
    pub(super) fn push(&mut self, piece: Bytes, last: bool) -> bool {
        self.length += piece.len();
        if piece.len() >= SMALL || last && self.length == piece.len() {
            self.seal();
            self.pieces.push(piece);
        } else {
            self.tail.extend_from_slice(&piece);
            if self.tail.len() >= TOGETHER {
                self.seal();
            }
        }
        self.charge.set(self.length)
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// In the order in which they came.
    pub(super) fn into_pieces(mut self) -> (Vec<Bytes>, Charge) {
        self.seal();
        (self.pieces, self.charge)
    }

    /// As one.
    pub(super) fn into_whole(self) -> (Bytes, Charge) {
        let (mut pieces, charge) = self.into_pieces();
        let whole = match pieces.len() {
            1 => pieces.swap_remove(0),
            _ => Bytes::from(pieces.concat()),
        };
        (whole, charge)
    }
}

/// A body that was held whole, charged until it has left.
#[derive(Debug)]
pub(super) struct Kept {
    bytes: Bytes,
    _charge: Charge,
}

impl Kept {
    pub(super) fn new(bytes: Bytes, mut charge: Charge) -> Self {
        charge.set(bytes.len());
        Self { bytes, _charge: charge }
    }
}

impl Body for Kept {
    type Data = Bytes;
    type Error = Incomplete;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Incomplete>>> {
        let bytes = std::mem::take(&mut self.bytes);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(last: u8) -> RunId {
        RunId::from_random([0, 0, 0, 0, 0, last])
    }

    #[test]
    fn small_pieces_come_together_in_their_order() {
        let mut hold = Hold::new(&Allowance::default());
        let text: Vec<u8> = (0..200_000usize).map(|at| u8::try_from(at % 251).unwrap()).collect();
        for byte in text[..100_000].chunks(1) {
            assert!(hold.push(Bytes::copy_from_slice(byte), false));
        }
        assert!(hold.push(Bytes::copy_from_slice(&text[100_000..]), true));
        assert_eq!(hold.len(), text.len());
        assert!(hold.pieces.len() <= 3, "{}", hold.pieces.len());
        assert_eq!(hold.into_whole().0, text);
    }

    #[test]
    fn a_small_piece_keeps_no_long_buffer_alive() {
        let mut hold = Hold::new(&Allowance::default());
        let long = Bytes::from(vec![0; 1 << 20]);
        hold.push(long.slice(..10), false);
        hold.push(long.slice(10..20), true);
        assert!(long.is_unique());
        // What goes on at once is not copied.
        let mut hold = Hold::new(&Allowance::default());
        hold.push(long.slice(..10), true);
        assert_eq!(hold.into_whole().0.as_ptr(), long.as_ptr());
    }

    #[test]
    fn a_run_holds_no_more_than_it_may_and_others_do_not_notice() {
        let allowances = Allowances::default();
        let (one, other): (RunId, RunId) = (run(1), run(2));
        let mut holds: Vec<Hold> = (0..4).map(|_| Hold::new(&allowances.of(&one))).collect();
        let quarter = Bytes::from(vec![0; PER_RUN / 4]);
        for hold in &mut holds {
            assert!(hold.push(quarter.clone(), false));
        }
        assert!(!holds[0].push(Bytes::from_static(b"x"), false));
        assert!(Hold::new(&allowances.of(&other)).push(quarter.clone(), false));
        drop(holds.pop());
        assert!(holds[0].push(Bytes::from_static(b"x"), false), "there is room again");
        let (pieces, charge) = holds.remove(0).into_pieces();
        drop((pieces, holds));
        assert_eq!(allowances.of(&one).held(), PER_RUN / 4 + 2, "until what was taken from it has left");
        drop(charge);
        assert_eq!(allowances.of(&one).held(), 0);
    }

    #[test]
    fn runs_that_hold_nothing_are_forgotten() {
        let allowances = Allowances::default();
        for last in 0..=u8::MAX {
            drop(allowances.of(&run(last)));
        }
        assert!(allowances.0.lock().unwrap().len() < 10);
    }
}
