//! Writes what is left of an answer to the agent, in the chunks of HTTP/1.1 (RFC 9112, section 7.1).
//!
//! ```text
//! waits for the queue ──bytes──► writes a chunk ──┬─ more ──► waits
//!   │                               │             ├─ complete ──► last chunk ──► done
//!   └────────── agent gone ─────────┴──► failed   └─ cut ──► failed, without the last chunk (T3)
//! ```
//!
//! The head is out already. What the agent sends meanwhile is kept for whoever reads its next request; its end is that
//! of the answer (R17). Nothing here takes memory while nothing comes.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use super::{
    queue::{Cut, Reader},
    rewind::Rewind,
};

/// What an agent may send ahead. After so much its going away is noticed by the next write.
const AHEAD: usize = 8 * 1024;
/// Pieces of the queue that become one chunk.
const PIECES: usize = 16;
/// A chunk in one write: its size, its pieces, its end, and the last chunk's.
const SLICES: usize = PIECES + 3;

/// Writes the stream to its end, after which the connection is the next request's.
///
/// # Errors
/// When the agent has gone, or the stream was cut: then this connection is good for nothing more.
pub(crate) async fn write(stream: &mut Rewind, reader: Reader) -> io::Result<()> {
    let mut chunks = Chunks { reader, unwritten: VecDeque::new(), end: None };
    poll_fn(|context| {
        if let Poll::Ready(gone) = stream.poll_gone(context, AHEAD) {
            return Poll::Ready(Err(gone));
        }
        chunks.poll_write(stream, context)
    })
    .await
}

struct Chunks {
    reader: Reader,
    unwritten: VecDeque<Bytes>,
    end: Option<Result<(), Cut>>,
}

impl Chunks {
    fn poll_write(&mut self, stream: &mut Rewind, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.unwritten.is_empty() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let used =
                    slices.iter_mut().zip(&self.unwritten).map(|(slice, piece)| *slice = IoSlice::new(piece));
                let used = used.count();
                match ready!(Pin::new(&mut *stream).poll_write_vectored(context, &slices[..used]))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.advance(written),
                }
            }
            if let Some(end) = self.end {
                return Poll::Ready(end.map_err(io::Error::other));
            }
            self.frame_more(context);
            if self.unwritten.is_empty() && self.end.is_none() {
                self.unwritten = VecDeque::new(); // an empty one would still hold its memory
                return Poll::Pending;
            }
        }
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(piece) = self.unwritten.front_mut().filter(|_| written > 0) {
            let length = piece.len().min(written);
            piece.advance(length);
            written -= length;
            if piece.is_empty() {
                self.unwritten.pop_front();
            }
        }
    }

    /// Makes one chunk of what there is, and the last one at the end.
    fn frame_more(&mut self, context: &mut Context<'_>) {
        let mut length = 0;
        while self.unwritten.len() < PIECES && self.end.is_none() {
            match self.reader.poll_next(context) {
                Poll::Ready(Some(Ok(bytes))) => {
                    length += bytes.len();
                    self.unwritten.push_back(bytes);
                }
                Poll::Ready(Some(Err(cut))) => self.end = Some(Err(cut)),
                Poll::Ready(None) => self.end = Some(Ok(())),
                Poll::Pending => break,
            }
        }
        if length > 0 {
            self.unwritten.push_front(format!("{length:x}\r\n").into());
            self.unwritten.push_back(Bytes::from_static(b"\r\n"));
        }
        if matches!(self.end, Some(Ok(()))) {
            self.unwritten.push_back(Bytes::from_static(b"0\r\n\r\n"));
        }
    }
}
