//! The bridge's end of the tunnels.
//!
//! ```text
//! accept ──► TLS ──► run admitted ──► HTTP/2 ──► hello ──► open ──► draining ──► (gone)
//!    └──────────── half-open: deadline, evicted by newer ones ────┘     └─ run ended, replaced, lost ──►┘
//! ```
//!
//! The accept loop awaits nobody. Who calls is read from the certificate, whether it is served is the registry's word,
//! and what is asked goes through the [`Door`]. Any byte stream will do: [`carrier`] says which there are, and [`dial`] goes
//! to the sandboxes that cannot come here.
//! What was accepted is served by one of a few threads ([`workers`]).

mod budget;
mod carrier;
mod connection;
mod dial;
mod ending;
mod half_open;
mod workers;

use std::{io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use moat_shared::{limits, rt::drain::Drain};
use tokio::{net::UnixListener, sync::mpsc, task::JoinSet};
use tokio_rustls::TlsAcceptor;

pub(crate) use self::dial::Dial;
use self::{
    carrier::{Carrier, Origin},
    half_open::HalfOpen,
    workers::Workers,
};
use crate::registry::{Registry, Run};

/// Tunnels that have not said hello yet. Beyond this the oldest goes: who is honest needs milliseconds.
const HALF_OPEN: usize = 256;
/// How long one that was made to go takes to give its descriptor back.
const EVICTED: Duration = Duration::from_millis(1);
/// How long a lack of file descriptors holds up the accept loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is behind the tunnels: takes every request of a run that is served.
pub(crate) trait Door: Send + Sync + 'static {
    /// The answer's body.
    type Body: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;

    /// Answers one request. Dropped when the stream is cancelled, the tunnel lost or the run over.
    fn handle(
        &self,
        run: &Arc<Run>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The listener, and the threads that serve what comes in.
pub(crate) struct Tunnels {
    listener: UnixListener,
    workers: Workers,
    registry: Registry,
    /// Sandboxes that are to be dialled.
    dials: mpsc::UnboundedReceiver<Dial>,
}

/// What the tunnels of a worker share.
struct Shared<D> {
    tls: TlsAcceptor,
    registry: Registry,
    door: D,
    /// For handshake and hello together.
    patience: Duration,
}

impl Tunnels {
    /// Takes the socket at `path`. Whoever calls this holds the lock that says no other bridge does. There is a worker
    /// for each of the doors.
    pub(crate) fn bind<D: Door>(
        path: &Path,
        tls: rustls::ServerConfig,
        registry: Registry,
        dials: mpsc::UnboundedReceiver<Dial>,
        doors: Vec<D>,
    ) -> io::Result<Self> {
        Self::patient(path, tls, registry, dials, doors, limits::HANDSHAKE)
    }

    fn patient<D: Door>(
        path: &Path,
        tls: rustls::ServerConfig,
        registry: Registry,
        dials: mpsc::UnboundedReceiver<Dial>,
        doors: Vec<D>,
        patience: Duration,
    ) -> io::Result<Self> {
        // The relay in the sandbox has another uid. On the host the directory above, 0700, keeps others out; and TLS
        // keeps out whoever has no run's key.
        let listener = crate::bridge::listen(path, 0o666)?;
        let tls = TlsAcceptor::from(Arc::new(tls));
        let shared = |door| Arc::new(Shared { tls: tls.clone(), registry: registry.clone(), door, patience });
        let workers = Workers::start(doors.into_iter().map(shared).collect())?;
        Ok(Self { listener, workers, registry, dials })
    }

    /// Serves until the drain has been signalled and every tunnel is gone. Dropping this ends them all.
    pub(crate) async fn run(self, mut drain: Drain) {
        let Self { listener, workers, registry, mut dials } = self;
        let half_open = HalfOpen::new(HALF_OPEN);
        let (dialled, mut arriving) = mpsc::channel(1);
        let mut diallers = JoinSet::new();
        loop {
            let come = tokio::select! {
                biased; // a drain must win over a ready listener
                () = drain.signalled() => break,
                Some(_) = diallers.join_next() => continue,
                Some(dial) = dials.recv() => {
                    diallers.spawn(dial::keep(dial, registry.clone(), dialled.clone()));
                    continue;
                }
                Some(arrived) = arriving.recv() => Ok(arrived),
                accepted = listener.accept() => {
                    accepted.map(|(stream, _)| (Carrier::Unix(stream), Origin::Accepted))
                }
            };
            let taken = come.and_then(|come| workers.take(come, half_open.enter(), drain.clone()));
            if let Err(error) = taken {
                // A lack of descriptors: whoever did not say who he is gives one back.
                if half_open.evict_oldest() {
                    tokio::time::sleep(EVICTED).await;
                    continue;
                }
                tracing::error!(%error, "accepting a tunnel failed");
                tokio::select! {
                    () = drain.signalled() => break,
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                }
            }
        }
        drop((listener, diallers));
        workers.finish().await;
    }
}

#[cfg(test)]
mod tests;
