//! One tunnel: handshake and hello under a deadline, then streams until the run is over or somebody leaves.

use std::sync::Arc;

use moat_shared::{
    id::RunId,
    limits,
    rt::{
        drain::Drain,
        exec::Owned,
        gulp::Gulp,
        h2::{
            pulse::Pulse,
            serve::{Broken, serve},
        },
        stream::Stream,
    },
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_rustls::server::TlsStream;

use super::{Door, Shared, carrier::Origin, half_open::Guard, session::Session};
use crate::{
    identity,
    registry::{Place, RegistryError, Ticket},
};

/// A connection that was accepted.
pub(super) struct Connection<D> {
    shared: Arc<Shared<D>>,
    half_open: Guard,
    drain: Drain,
    deadline: Instant,
    origin: Origin,
    /// How it came about, for people.
    via: &'static str,
}

/// Why a tunnel that was open ended.
enum End {
    Closed(Result<(), Broken>),
    RunOver,
    NoHello,
    Evicted,
}

impl<D: Door> Connection<D> {
    pub(super) fn new(
        shared: Arc<Shared<D>>,
        half_open: Guard,
        drain: Drain,
        origin: Origin,
        via: &'static str,
    ) -> Self {
        let deadline = Instant::now() + shared.patience;
        Self { shared, half_open, drain, deadline, origin, via }
    }

    /// Serves it to its end.
    pub(super) async fn serve(mut self, stream: Stream) {
        let handshake =
            timeout_at(self.deadline, self.shared.tls.accept(Gulp::new(stream, limits::TUNNEL_READ)));
        let stream = tokio::select! {
            done = handshake => done,
            () = self.half_open.evicted() => return tracing::debug!("a connection made room before it said who it is"),
            () = self.drain.signalled() => return,
        };
        let stream = match stream {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::warn!(%error, "a tunnel was refused"),
            Err(_) => return tracing::debug!("a connection did not say who it is in time"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let Some(run) = certificate.and_then(identity::run_of) else {
            return tracing::warn!("a tunnel was refused: its certificate names no run");
        };
        if let Origin::Dialled { run: wanted, .. } = &self.origin
            && *wanted != run
        {
            return tracing::warn!(%wanted, found = %run, "a tunnel was refused: another run answers where one was dialled");
        }
        let ticket = match self.shared.registry.admit(run.clone()).await {
            Ok(ticket) => Some(ticket),
            Err(error @ RegistryError::Unknown(_)) => {
                tracing::warn!(%run, %error, "a tunnel is refused");
                None
            }
            Err(error) => return tracing::error!(%run, %error, "a tunnel was refused"),
        };
        self.open(stream, run, ticket).await;
    }

    /// HTTP/2 on it, hello first.
    async fn open(mut self, stream: TlsStream<Gulp<Stream>>, run: RunId, ticket: Option<Ticket>) {
        let (to_us, mut places) = mpsc::channel(1);
        let session = Session::new(Arc::clone(&self.shared), run.clone(), ticket.clone(), self.via, to_us);
        // Nobody else has them, so whatever ends this ends every stream.
        let tasks = Owned::default();
        let mut connection =
            Box::pin(serve(stream, Pulse::USUAL, self.drain.signalled(), &tasks, |request| {
                session.serve(request)
            }));

        let mut half_open = Some(self.half_open);
        // While this lives the run has no other tunnel.
        let mut _place: Option<Place> = None;
        let end = loop {
            tokio::select! {
                biased; // what revokes comes before what serves
                () = revoked(ticket.clone()) => break End::RunOver,
                Some(taken) = places.recv() => {
                    _place = Some(taken);
                    half_open = None;
                }
                () = evicted(&mut half_open) => break End::Evicted,
                () = sleep_until(self.deadline), if half_open.is_some() => break End::NoHello,
                done = &mut connection => break End::Closed(done),
            }
        };
        report(&run, &end);
    }
}

async fn revoked(ticket: Option<Ticket>) {
    match ticket {
        Some(mut ticket) => ticket.revoked().await,
        None => std::future::pending().await,
    }
}

async fn evicted(half_open: &mut Option<Guard>) {
    match half_open {
        Some(guard) => guard.evicted().await,
        None => std::future::pending().await,
    }
}

fn report(run: &RunId, end: &End) {
    match end {
        End::Closed(Ok(())) => tracing::info!(%run, "tunnel closed"),
        End::Closed(Err(error)) => {
            tracing::info!(%run, error = %crate::cli::with_causes(error), "tunnel lost");
        }
        End::RunOver => tracing::info!(%run, "tunnel closed: the run is over"),
        End::NoHello => tracing::warn!(%run, "tunnel closed: no hello in time"),
        End::Evicted => tracing::warn!(%run, "tunnel closed: too many that did not say hello"),
    }
}
