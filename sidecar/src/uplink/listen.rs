//! Where the bridge dials: a port or a socket that others may connect to as well, and of which only the bridge gets anything.
//!
//! ```text
//! accept ──► TLS, we are its client ──► proves to be the bridge ──► the tunnel; all others are dropped
//!    │             └──► does not, or not in time ──► dropped, never mentioned
//!    └──► too many at once ──► the oldest makes room
//! ```
//!
//! Who connects first has no claim: handshakes run side by side, so that somebody who says nothing keeps nobody waiting.
//! While a tunnel stands whoever comes is turned away at once.

use std::{collections::VecDeque, fmt, io, os::unix::net, sync::Arc, time::Duration};

use moat_shared::{
    endpoint::Endpoint,
    limits,
    rt::{stream::Stream, vsock},
};
use rustls::ClientConfig;
use tokio::{
    net::{TcpListener, UnixListener},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::greet::{Secured, secure};

/// Handshakes at a time: the bridge needs milliseconds for its own.
const CALLERS: usize = 64;
/// How long a lack of file descriptors holds up the next attempt.
const PAUSE: Duration = Duration::from_millis(100);

/// A port or a socket that is listened to.
#[derive(Debug)]
pub(crate) struct Listening {
    /// As it came to be: a port may have been left to the kernel.
    at: Endpoint,
    listener: Listener,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
    Vsock(vsock::Listener),
}

impl Listening {
    /// `None` where the bridge cannot dial.
    ///
    /// # Errors
    /// When the port is not to be had.
    pub(super) fn at(endpoint: Endpoint) -> Option<io::Result<Self>> {
        match endpoint {
            Endpoint::Tcp(address) => Some(std::net::TcpListener::bind(address).and_then(|listener| {
                listener.set_nonblocking(true)?;
                let at = Endpoint::Tcp(listener.local_addr()?);
                Ok(Self { at, listener: Listener::Tcp(TcpListener::from_std(listener)?) })
            })),
            Endpoint::Vsock { cid, port } => Some(
                vsock::Listener::bind(cid, port)
                    .map(|listener| Self { at: endpoint, listener: Listener::Vsock(listener) }),
            ),
            Endpoint::Unix(_) | Endpoint::Hybrid { .. } => None,
        }
    }

    /// A socket that PID 1 listens at, in a directory that this process could not write to.
    ///
    /// # Errors
    /// When it cannot be used.
    pub(super) fn of_pid_1(at: Endpoint, listener: net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { at, listener: Listener::Unix(UnixListener::from_std(listener)?) })
    }

    pub(super) const fn endpoint(&self) -> &Endpoint {
        &self.at
    }

    /// The first caller that proves to be the bridge. The caller sets the deadline.
    pub(super) async fn authenticated(&self, tls: &Arc<ClientConfig>) -> Secured {
        let mut handshakes = JoinSet::new();
        let mut callers: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            tokio::select! {
                biased; // whoever is through comes before whoever knocks
                Some(done) = handshakes.join_next() => {
                    // Strangers fail in many ways, none of which is news.
                    if let Ok(Ok(Ok(stream))) = done {
                        return stream;
                    }
                }
                stream = self.accept() => {
                    callers.retain(|caller| !caller.is_finished());
                    if callers.len() >= CALLERS
                        && let Some(oldest) = callers.pop_front()
                    {
                        oldest.abort();
                    }
                    let tls = Arc::clone(tls);
                    callers.push_back(handshakes.spawn(async move {
                        timeout(limits::HANDSHAKE, secure(stream, &tls)).await
                    }));
                }
            }
        }
    }

    /// Turns away whoever comes. Never returns.
    pub(super) async fn turn_away(&self) {
        loop {
            drop(self.accept().await);
        }
    }

    async fn accept(&self) -> Stream {
        loop {
            match self.listener.accept().await {
                Ok(stream) => return stream,
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<Stream> {
        Stream::new(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Without it small frames wait for each other; that is slow, and no reason to refuse.
                let _as_it_is = stream.set_nodelay(true).is_err();
                stream.into_std()?.into()
            }
            Self::Unix(listener) => listener.accept().await?.0.into_std()?.into(),
            Self::Vsock(listener) => listener.accept().await?,
        })
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (the bridge connects)", self.at)
    }
}
