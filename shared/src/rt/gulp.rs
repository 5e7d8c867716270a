//! Between TLS and its socket: few large system calls in the place of many small ones.
//!
//! rustls asks for 4 KiB at a time, a quarter of a record, and each record, which may be one of many streams' frames,
//! would be written by itself. Here what is written leaves when it is flushed, or when a good deal has come together; and
//! a read that fills what it was given is followed by a large one. Nothing is kept while nothing moves.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that are written before they are flushed.
const MOST: usize = 64 * 1024;
/// A buffer that grew larger is given back when it is empty.
const KEPT: usize = 4 * 1024;

/// A stream of bytes that is read and written in gulps.
#[derive(Debug)]
pub struct Gulp<S> {
    stream: S,
    /// What one large read may take.
    large: usize,
    /// Of what a large read gave, from `taken` to `end` was not taken yet. Empty, or as long as such a read may be.
    ahead: Vec<u8>,
    taken: usize,
    end: usize,
    /// The last read took all that it had room for: there is more.
    more: bool,
    /// Written by the one side and not by the other.
    behind: Vec<u8>,
    written: usize,
}

impl<S> Gulp<S> {
    /// `large` is how much may be read at once, and held.
    pub fn new(stream: S, large: usize) -> Self {
        Self {
            stream,
            large,
            ahead: Vec::new(),
            taken: 0,
            end: 0,
            more: false,
            behind: Vec::new(),
            written: 0,
        }
    }

    /// The stream itself.
    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncWrite + Unpin> Gulp<S> {
    /// Writes what there is.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.behind.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.behind[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length => self.written += length,
            }
        }
        self.written = 0;
        self.behind.clear();
        if self.behind.capacity() > KEPT {
            self.behind = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Waits until there is room; how much.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.behind.len() >= MOST {
            ready!(self.poll_drain(cx))?;
        }
        Poll::Ready(Ok(MOST - self.behind.len()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gulp<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.taken == this.end {
            let (before, room) = (buffer.filled().len(), buffer.remaining());
            if !this.more || room >= this.large {
                ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
                this.more = room > 0 && buffer.filled().len() - before == room;
                return Poll::Ready(Ok(()));
            }
            this.ahead.resize(this.large, 0);
            let mut ahead = ReadBuf::new(&mut this.ahead);
            let read = Pin::new(&mut this.stream).poll_read(cx, &mut ahead);
            (this.taken, this.end) = (0, ahead.filled().len());
            this.more = this.end == this.large;
            if this.end == 0 {
                // Nothing for now, nothing any more, or an error.
                this.ahead = Vec::new();
                return read;
            }
        }
        let length = buffer.remaining().min(this.end - this.taken);
        buffer.put_slice(&this.ahead[this.taken..this.taken + length]);
        this.taken += length;
        if this.taken == this.end && !this.more {
            this.ahead = Vec::new();
            (this.taken, this.end) = (0, 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gulp<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let length = bytes.len().min(ready!(this.poll_room(cx))?);
        this.behind.extend_from_slice(&bytes[..length]);
        Poll::Ready(Ok(length))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut room = ready!(this.poll_room(cx))?;
        let mut all = 0;
        for slice in slices {
            let length = slice.len().min(room);
            this.behind.extend_from_slice(&slice[..length]);
            room -= length;
            all += length;
        }
        Poll::Ready(Ok(all))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// Counts what the socket is asked.
    #[derive(Debug)]
    struct Counted<S> {
        stream: S,
        reads: usize,
        writes: usize,
    }

    impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.reads += 1;
            Pin::new(&mut self.stream).poll_read(cx, buffer)
        }
    }

    impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.writes += 1;
            Pin::new(&mut self.stream).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }

    fn pair(size: usize) -> (Gulp<Counted<tokio::io::DuplexStream>>, tokio::io::DuplexStream) {
        let (here, there) = duplex(size);
        (Gulp::new(Counted { stream: here, reads: 0, writes: 0 }, 32 * 1024), there)
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    #[tokio::test]
    async fn what_is_written_leaves_at_once_when_it_is_flushed_and_not_before() {
        let (mut gulp, mut there) = pair(1 << 20);
        for part in text(3000).chunks(100) {
            gulp.write_all(part).await.unwrap();
        }
        assert_eq!(gulp.get_ref().writes, 0);
        gulp.flush().await.unwrap();
        assert_eq!(gulp.get_ref().writes, 1);
        let mut seen = vec![0; 3000];
        there.read_exact(&mut seen).await.unwrap();
        assert_eq!(seen, text(3000));
        gulp.write_all(&text(10 * MOST)).await.unwrap();
        gulp.flush().await.unwrap();
        assert!(gulp.get_ref().writes <= 12, "{}", gulp.get_ref().writes);
        assert!(gulp.behind.capacity() <= KEPT, "given back");
        gulp.write_all(b"last").await.unwrap();
        gulp.shutdown().await.unwrap();
        drop(gulp);
        let mut rest = Vec::new();
        there.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, [&text(10 * MOST)[..], b"last"].concat());
    }

    #[tokio::test]
    async fn a_reader_that_is_slow_gets_everything() {
        let (mut gulp, mut there) = pair(1000);
        let write = async {
            gulp.write_all(&text(300_000)).await.unwrap();
            gulp.shutdown().await.unwrap();
        };
        let mut seen = Vec::new();
        let (read, ()) = tokio::join!(there.read_to_end(&mut seen), write);
        assert_eq!((read.unwrap(), seen), (300_000, text(300_000)));
    }

    #[tokio::test]
    async fn much_is_read_with_few_reads_and_little_with_small_ones() {
        let (mut gulp, mut there) = pair(1 << 20);
        let mut small = [0; 4096];
        there.write_all(&text(500)).await.unwrap();
        assert_eq!(gulp.read(&mut small).await.unwrap(), 500);
        assert_eq!(gulp.ahead.capacity(), 0, "nothing is held for little");
        there.write_all(&text(512 * 1024)).await.unwrap();
        drop(there);
        let mut seen = Vec::new();
        loop {
            let length = gulp.read(&mut small).await.unwrap();
            if length == 0 {
                break;
            }
            seen.extend_from_slice(&small[..length]);
        }
        assert_eq!(seen, text(512 * 1024));
        assert!(gulp.get_ref().reads <= 20, "{}", gulp.get_ref().reads);
        assert_eq!(gulp.ahead.capacity(), 0, "given back");
    }
}
