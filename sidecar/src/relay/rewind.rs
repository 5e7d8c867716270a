//! A connection whose first bytes were read already: they come first again.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// An agent's connection, and what of it was read already.
#[derive(Debug)]
pub(crate) struct Rewind {
    first: Bytes,
    stream: TcpStream,
}

impl Rewind {
    pub(crate) fn new(first: Bytes, stream: TcpStream) -> Self {
        Self { first, stream }
    }

    /// Puts more in front: bytes that came before what is still to be read.
    pub(crate) fn before(self, first: Bytes) -> Self {
        if self.first.is_empty() {
            return Self { first, stream: self.stream };
        }
        Self { first: [first, self.first].concat().into(), stream: self.stream }
    }

    /// Keeps what comes early, up to so many bytes and some, and has no buffer while nothing does. Tells when nobody is
    /// at the other end any more; not while there are that many bytes.
    pub(crate) fn poll_gone(&mut self, context: &mut Context<'_>, most: usize) -> Poll<io::Error> {
        while self.first.len() < most {
            let mut early = [MaybeUninit::uninit(); 1024];
            let mut early = ReadBuf::uninit(&mut early);
            match ready!(Pin::new(&mut self.stream).poll_read(context, &mut early)) {
                Ok(()) if early.filled().is_empty() => {
                    return Poll::Ready(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(()) => self.first = [&self.first, early.filled()].concat().into(),
                Err(error) => return Poll::Ready(error),
            }
        }
        Poll::Pending
    }
}

impl AsyncRead for Rewind {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first[..length]);
        self.first.advance(length);
        if self.first.is_empty() {
            // An empty one would still hold the memory.
            self.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewind {
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
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
