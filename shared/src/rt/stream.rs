//! The socket that a tunnel goes over, of whatever family: unix, TCP or vsock.
//!
//! ```text
//! quiet: woken when something came ──► a write finds no room ──► full: woken when there is room, too
//!    ▲                                                              │
//!    └──────────────────────── it was written ◄─────────────────────┘
//! ```
//!
//! tokio's own sockets are always registered for both. The other side's every read from a unix socket is then told as room
//! to write (`unix_write_space` in Linux), and wakes a thread that has nothing to do: twice for each call that goes through
//! a tunnel.

use std::{
    io::{self, Read},
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use socket2::Socket;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use super::watch::watch;

/// A write to a socket whose other end has gone is an error, not a signal (macOS has no such flag, and std ignores the signal).
#[cfg(target_os = "linux")]
const NO_SIGNAL: i32 = nix::libc::MSG_NOSIGNAL;
#[cfg(not(target_os = "linux"))]
const NO_SIGNAL: i32 = 0;

/// An open stream of bytes, of the runtime that it was made in.
#[derive(Debug)]
pub struct Stream {
    /// `None` only when the runtime would not go on watching it.
    socket: Option<AsyncFd<Socket>>,
    /// Registered for room as well.
    full: bool,
    /// Who waits for something to come: a registration forgets it.
    reader: Option<Waker>,
}

impl Stream {
    /// The socket has to be open; it is made non-blocking.
    ///
    /// # Errors
    /// For want of memory, or when it is no socket that can be waited for.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let socket = Some(watch(socket, Interest::READABLE)?);
        Ok(Self { socket, full: false, reader: None })
    }

    fn socket(&self) -> io::Result<&AsyncFd<Socket>> {
        self.socket.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Has it watched for room, or not any more.
    fn watch_for_room(&mut self, full: bool) -> io::Result<()> {
        let interest = if full { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        if let Some(socket) = self.socket.take() {
            self.socket = Some(watch(socket.into_inner(), interest)?);
        }
        self.full = full;
        // Who waits has to say so anew.
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Ok(())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let Poll::Ready(guard) = this.socket()?.poll_read_ready(cx) else {
                match &mut this.reader {
                    Some(reader) => reader.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                return Poll::Pending;
            };
            let mut guard = guard?;
            let room = buffer.initialize_unfilled();
            let most = room.len();
            match guard.try_io(|socket| socket.get_ref().read(room)) {
                Ok(Ok(length)) => {
                    if (1..most).contains(&length) {
                        // That was all: what comes next is told anew, and an end stays told.
                        guard.clear_ready();
                    }
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_nothing_yet) => {}
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let sent = this.socket()?.get_ref().send_with_flags(bytes, NO_SIGNAL);
            match sent {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !this.full {
                        this.watch_for_room(true)?;
                    }
                    // Told before this write, and not true any more: the next time it will be.
                    ready!(this.socket()?.poll_write_ready(cx))?.clear_ready();
                }
                sent => {
                    if this.full {
                        this.watch_for_room(false)?;
                    }
                    return Poll::Ready(sent);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.socket()?.get_ref().shutdown(Shutdown::Write) {
            // The other side was quicker.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            done => done,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn, io::Write, net::TcpListener, os::unix::net::UnixStream, sync::mpsc, thread,
        time::Duration,
    };

    use test_case::test_case;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, split},
        runtime::Handle,
        task::JoinSet,
    };

    use super::*;

    const ROUNDS: u64 = 50;

    fn unix() -> (Socket, Socket) {
        let (one, other) = UnixStream::pair().unwrap();
        (one.into(), other.into())
    }

    fn tcp() -> (Socket, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one.into(), listener.accept().unwrap().0.into())
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    /// Writes of it what there is room for, and no more; how much that was.
    async fn fill(stream: &mut Stream, text: &[u8]) -> usize {
        let mut filled = 0;
        poll_fn(|cx| {
            while let Poll::Ready(length) = Pin::new(&mut *stream).poll_write(cx, &text[filled..]) {
                filled += length.unwrap();
            }
            Poll::Ready(())
        })
        .await;
        assert!(stream.full && filled < text.len(), "{filled} bytes had room");
        filled
    }

    /// Larger than what a kernel holds for a socket, both ways at once, by one task or by two.
    #[test_case(unix(), false; "unix, one task")]
    #[test_case(unix(), true; "unix, two tasks")]
    #[test_case(tcp(), false; "tcp, one task")]
    #[test_case(tcp(), true; "tcp, two tasks")]
    #[tokio::test]
    async fn all_of_it_arrives_and_then_the_end((here, mut there): (Socket, Socket), two: bool) {
        const MUCH: usize = 16 << 20;
        let mut back = there.try_clone().unwrap();
        let mut stream = Stream::new(here).unwrap();
        let filled = fill(&mut stream, &text(MUCH)).await;
        let takes = thread::spawn(move || {
            let mut all = Vec::new();
            there.read_to_end(&mut all).unwrap();
            all
        });
        let gives = thread::spawn(move || {
            back.write_all(&text(MUCH)).unwrap();
            back.shutdown(Shutdown::Write).unwrap();
        });
        let (mut reads, mut writes) = split(stream);
        let write = async move {
            writes.write_all(&text(MUCH)[filled..]).await.unwrap();
            writes.shutdown().await.unwrap();
        };
        let read = async move {
            let mut all = Vec::new();
            reads.read_to_end(&mut all).await.unwrap();
            all
        };
        let all = if two {
            let mut other = JoinSet::new();
            other.spawn(write);
            let all = read.await;
            other.join_all().await;
            all
        } else {
            tokio::join!(write, read).1
        };
        assert_eq!(all, text(MUCH));
        assert_eq!(takes.join().unwrap(), text(MUCH));
        gives.join().unwrap();
    }

    /// An end that was there before what came with it was read is not lost.
    #[test_case(unix(); "unix")]
    #[test_case(tcp(); "tcp")]
    #[tokio::test]
    async fn little_and_the_end_at_once((here, mut there): (Socket, Socket)) {
        there.write_all(b"last").unwrap();
        drop(there);
        let mut stream = Stream::new(here).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"last");
        let gone = loop {
            if let Err(error) = stream.write_all(b"to nobody").await {
                break error;
            }
        };
        assert!(matches!(gone.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{gone}");
    }

    /// Asks and waits, again and again; how often the thread slept meanwhile.
    async fn sleeps(stream: &mut Stream) -> u64 {
        let parked = || Handle::current().metrics().worker_park_count(0);
        let before = parked();
        for _ in 0..ROUNDS {
            stream.write_all(b"?").await.unwrap();
            stream.read_exact(&mut [0]).await.unwrap();
        }
        parked() - before
    }

    /// Once per answer, and not for the other side's reading as well; also after there was no room.
    #[tokio::test]
    async fn it_is_woken_for_what_came_and_for_nothing_else() {
        const MUCH: usize = 4 << 20;
        let (here, mut there) = unix();
        let (is_full, full) = mpsc::channel();
        let other = thread::spawn(move || {
            let answer = |there: &mut Socket| {
                there.read_exact(&mut [0]).unwrap();
                // Whoever is woken by the reading is to sleep again before the answer comes. Too short, and a
                // fault goes unseen; nothing fails for it.
                thread::sleep(Duration::from_millis(2));
                there.write_all(b"!").unwrap();
            };
            (0..ROUNDS).for_each(|_| answer(&mut there));
            full.recv().unwrap();
            there.read_exact(&mut vec![0; MUCH]).unwrap();
            (0..ROUNDS).for_each(|_| answer(&mut there));
        });
        let mut stream = Stream::new(here).unwrap();
        let first = sleeps(&mut stream).await;
        assert!(first <= ROUNDS, "{first} for {ROUNDS} answers");
        let filled = fill(&mut stream, &text(MUCH)).await;
        is_full.send(()).unwrap();
        stream.write_all(&text(MUCH)[filled..]).await.unwrap();
        let second = sleeps(&mut stream).await;
        assert!(second <= ROUNDS + 2, "{second} for {ROUNDS} answers");
        other.join().unwrap();
    }
}
