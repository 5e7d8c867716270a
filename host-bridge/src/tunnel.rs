//! The bridge's end of the tunnels.
//!
//! ```text
//! accept ──► TLS ──► run admitted ──► HTTP/2 ──► hello ──► open ──► draining ──► (gone)
//!    └──────────── half-open: deadline, evicted by newer ones ────┘     └─ run ended, replaced, lost ──►┘
//! ```
//!
//! The accept loop awaits nobody. Who calls is read from the certificate, whether it is served is the registry's word,
//! and what is asked goes through the [`Door`]. Any byte stream will do: [`carrier`] says which there are, and [`dial`] goes
//! to the sandboxes that cannot come here, [`ports`] is where those come to that cannot come to the one socket of all.
//! What was accepted is served by one of a few threads ([`workers`]).

mod budget;
mod carrier;
mod connection;
mod dial;
mod ending;
mod half_open;
mod hybrid;
mod ports;
mod session;
mod workers;

use std::{collections::HashMap, io, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use moat_shared::{
    limits,
    rt::{drain::Drain, h2::received::Received},
};
use tokio::{
    net::UnixListener,
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;

use self::{carrier::Origin, half_open::HalfOpen, ports::Table, workers::Workers};
pub(crate) use self::{
    carrier::via,
    dial::Dial,
    ports::{Open, Ports},
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
        request: Request<Received>,
    ) -> impl Future<Output = Response<Self::Body>> + Send;
}

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The listener, and the threads that serve what comes in.
pub(crate) struct Tunnels {
    listener: UnixListener,
    workers: Workers,
    registry: Registry,
    asked: Asked,
}

/// What the tunnels are asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Sandboxes that are to be dialled.
    dials: mpsc::UnboundedReceiver<Dial>,
    /// Ports that sandboxes are to find.
    opens: mpsc::UnboundedReceiver<Open>,
}

#[cfg(test)]
impl Asked {
    /// The next sandbox that is to be dialled.
    pub(crate) async fn next_dial(&mut self) -> Option<Dial> {
        self.dials.recv().await
    }
}

/// Asks them.
#[derive(Debug, Clone)]
pub(crate) struct Asks {
    pub(crate) dials: mpsc::UnboundedSender<Dial>,
    pub(crate) ports: Ports,
}

/// Both ends.
pub(crate) fn asks() -> (Asks, Asked) {
    let ((dials, to_dial), (opens, to_open)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    (Asks { dials, ports: Ports(opens) }, Asked { dials: to_dial, opens: to_open })
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
        asked: Asked,
        doors: Vec<D>,
    ) -> io::Result<Self> {
        Self::patient(path, tls, registry, asked, doors, limits::HANDSHAKE)
    }

    fn patient<D: Door>(
        path: &Path,
        tls: rustls::ServerConfig,
        registry: Registry,
        asked: Asked,
        doors: Vec<D>,
        patience: Duration,
    ) -> io::Result<Self> {
        // The relay in the sandbox has another uid. On the host the directory above, 0700, keeps others out; and TLS
        // keeps out whoever has no run's key.
        let listener = crate::bridge::listen(path, 0o666)?;
        let tls = TlsAcceptor::from(Arc::new(tls));
        let shared = |door| Arc::new(Shared { tls: tls.clone(), registry: registry.clone(), door, patience });
        let workers = Workers::start(doors.into_iter().map(shared).collect())?;
        Ok(Self { listener, workers, registry, asked })
    }

    /// Serves until the drain has been signalled and every tunnel is gone. Dropping this ends them all.
    pub(crate) async fn run(self, mut drain: Drain) {
        let Self { listener, workers, registry, asked } = self;
        let Asked { mut dials, mut opens } = asked;
        let half_open = HalfOpen::new(HALF_OPEN);
        let (dialled, mut arriving) = mpsc::channel(1);
        let mut diallers = JoinSet::new();
        let mut dialling = HashMap::new();
        let mut ports = Table::new(registry.clone(), dialled.clone());
        loop {
            let come = tokio::select! {
                biased; // a drain must win over a ready listener
                () = drain.signalled() => break,
                Some(_) = diallers.join_next() => continue,
                Some(dial) = dials.recv() => {
                    let run = dial.run.clone();
                    let keeping = diallers.spawn(dial::keep(dial, registry.clone(), dialled.clone()));
                    dialling.retain(|_, keeping: &mut AbortHandle| !keeping.is_finished());
                    // A run is dialled where it was said last, and nowhere else.
                    if let Some(before) = dialling.insert(run, keeping) {
                        before.abort();
                    }
                    continue;
                }
                Some(wanted) = opens.recv() => {
                    ports.open(wanted);
                    continue;
                }
                Some(()) = ports.released() => continue,
                Some(arrived) = arriving.recv() => Ok(arrived),
                accepted = listener.accept() => {
                    accepted
                        .and_then(|(stream, _)| stream.into_std())
                        .map(|stream| (stream.into(), Origin::Accepted("unix")))
                }
            };
            let error = match come {
                Ok(come) => {
                    workers.take(come, half_open.enter(), drain.clone());
                    continue;
                }
                Err(error) => error,
            };
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
        drop((listener, diallers, ports));
        workers.finish().await;
    }
}

#[cfg(test)]
mod tests;
