//! Goes to the sandboxes that cannot come here, and goes again when a tunnel is lost, for as long as the run is served.
//!
//! ```text
//! Dial ──► connect ──► a worker: TLS, hello, streams ──► over ──► pause ──┐
//!             ▲ └──► nobody there ──► pause                               │
//!             └───────────────────────────────────────────────────────────┘   the run is over ──► (gone)
//! ```
//!
//! An engine that publishes a port accepts before the sandbox does: what is closed at once counts as an attempt in vain.

use moat_shared::{
    endpoint::{Dialler, Endpoint},
    id::RunId,
    limits,
    rt::backoff::{Attempt, Backoff},
};
use socket2::Socket;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use super::carrier::{self, Origin, via};
use crate::registry::Registry;

/// A sandbox that is to be dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dial {
    pub(crate) run: RunId,
    pub(crate) endpoint: Endpoint,
}

/// A socket to a sandbox.
pub(super) type Dialled = (Socket, Origin);

/// Keeps the run's tunnel open. Returns when the run is over, or nobody takes what was dialled.
pub(super) async fn keep(dial: Dial, registry: Registry, to: mpsc::Sender<Dialled>) {
    let Dial { run, endpoint } = dial;
    let Ok(mut ticket) = registry.admit(run.clone()).await else { return };
    let via = via(&endpoint, Dialler::Bridge);
    let dialling = async {
        let mut backoff = Backoff::default();
        loop {
            let attempt = match timeout(limits::HANDSHAKE, carrier::dial(&endpoint)).await {
                Ok(Ok(socket)) => {
                    let since = Instant::now();
                    let (over, is_over) = oneshot::channel();
                    if to
                        .send((socket, Origin::Dialled { run: run.clone(), via, _over: over }))
                        .await
                        .is_err()
                    {
                        return;
                    }
                    // Dropped with the tunnel: that is the news.
                    let _over = is_over.await;
                    Attempt::Stood(since.elapsed())
                }
                Ok(Err(error)) => {
                    tracing::debug!(%run, %endpoint, %error, "a sandbox cannot be reached");
                    Attempt::Nobody
                }
                Err(_) => Attempt::InVain,
            };
            sleep(backoff.pause(attempt)).await;
        }
    };
    tokio::select! {
        () = ticket.revoked() => {}
        () = dialling => {}
    }
}
