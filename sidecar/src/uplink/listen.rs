//! Where the bridge dials: a port that anybody in reach may connect to, and of which only the bridge gets anything.
//!
//! ```text
//! accept ──► TLS, we are its client ──► proves to be the bridge ──► the tunnel; all others are dropped
//!    │             └──► does not, or not in time ──► dropped, never mentioned
//!    └──► too many at once ──► the oldest makes room
//! ```
//!
//! Who connects first has no claim: handshakes run side by side, so that somebody who says nothing keeps nobody waiting.
//! While a tunnel stands whoever comes is turned away at once.

use std::{collections::VecDeque, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use moat_shared::limits;
use rustls::ClientConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::greet::{Secured, secure};

/// Handshakes at a time: the bridge needs milliseconds for its own.
const CALLERS: usize = 64;
/// How long a lack of file descriptors holds up the next attempt.
const PAUSE: Duration = Duration::from_millis(100);

/// A port that is listened to.
#[derive(Debug)]
pub(crate) struct Listening {
    address: SocketAddr,
    listener: TcpListener,
}

impl Listening {
    /// # Errors
    /// When the port is not to be had.
    pub(super) fn at(address: SocketAddr) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { address: listener.local_addr()?, listener: TcpListener::from_std(listener)? })
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
                        timeout(limits::HANDSHAKE, secure(Box::new(stream), &tls)).await
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

    async fn accept(&self) -> TcpStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    // Without it small frames wait for each other; that is slow, and no reason to refuse.
                    let _as_it_is = stream.set_nodelay(true).is_err();
                    return stream;
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tcp:{} (the bridge connects)", self.address)
    }
}
