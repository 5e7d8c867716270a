//! One run that is served: its one tunnel, who holds it, and what went wrong.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use moat_shared::{endpoint::Dialler, id::ServerName};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::Instant,
};

use super::super::{Run, Ticket};
use crate::{
    control::api::{HoldEvent, PolicyState, RunStatus, ServerStatus, TunnelStatus},
    pipeline::{News, Notice},
    server::Server,
    tunnel::via,
};

const SAME_WARNING: Duration = Duration::from_secs(60);

/// A run that is served.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) run: Arc<Run>,
    /// Dropping it revokes every ticket.
    alive: watch::Sender<()>,
    /// The last tunnel, which is gone when the other end is.
    tunnel: Option<(oneshot::Sender<()>, TunnelStatus)>,
    /// Held by the tunnel that there is.
    seat: Arc<Semaphore>,
    pub(super) holds: Vec<mpsc::Sender<HoldEvent>>,
    pub(super) stop_asked: bool,
    troubles: BTreeMap<ServerName, Trouble>,
}

#[derive(Debug)]
struct Trouble {
    text: String,
    told: Instant,
    /// The server has answered since.
    mended: bool,
}

impl Entry {
    pub(super) fn new(run: Arc<Run>) -> Self {
        Self {
            run,
            alive: watch::Sender::new(()),
            tunnel: None,
            seat: Arc::new(Semaphore::new(1)),
            holds: Vec::new(),
            stop_asked: false,
            troubles: BTreeMap::new(),
        }
    }

    pub(super) fn ticket(&self) -> Ticket {
        Ticket { run: Arc::clone(&self.run), alive: self.alive.subscribe(), seat: Arc::clone(&self.seat) }
    }

    pub(super) fn attach(&mut self, status: TunnelStatus) -> oneshot::Receiver<()> {
        let (keep, shown) = oneshot::channel();
        // Its holder hears of it before the sandbox does, and so before anything is started there.
        if self.tunnel.replace((keep, status)).is_none() {
            for hold in &self.holds {
                self.tell(hold, HoldEvent::Tunnel);
            }
        }
        shown
    }

    /// Has it a tunnel, or had it one since this bridge started?
    pub(super) const fn had_a_tunnel(&self) -> bool {
        self.tunnel.is_some()
    }

    pub(super) fn ask_to_stop(&mut self) {
        self.stop_asked = true;
        for hold in &self.holds {
            self.tell(hold, HoldEvent::Stop);
        }
    }

    pub(super) fn tell(&self, hold: &mpsc::Sender<HoldEvent>, event: HoldEvent) {
        if let Err(mpsc::error::TrySendError::Full(event)) = hold.try_send(event) {
            tracing::warn!(run = %self.run.id, ?event, "the run's holder does not read what it is told");
        }
    }

    /// Nobody holds it and the process that would is gone.
    pub(super) fn is_over(&mut self) -> bool {
        self.holds.retain(|hold| !hold.is_closed());
        self.holds.is_empty() && !self.run.holder.is_alive()
    }

    /// What goes wrong is shown in `moat status`, and to the holder; the same thing at most once a minute.
    pub(super) fn note(&mut self, notice: Notice) {
        let now = Instant::now();
        let last = self.troubles.get_mut(&notice.server);
        let text = match (notice.news, last) {
            (News::Mended, Some(last)) => return last.mended = true,
            (News::Mended, None) => return,
            (News::Trouble(text), Some(last))
                if last.text == text && now.duration_since(last.told) < SAME_WARNING =>
            {
                return last.mended = false;
            }
            (News::Trouble(text), _) => text,
        };
        for hold in &self.holds {
            self.tell(hold, HoldEvent::Warning { text: text.clone() });
        }
        self.troubles.insert(notice.server, Trouble { text, told: now, mended: false });
    }

    pub(super) fn status(&self) -> RunStatus {
        let open = self.tunnel.as_ref().filter(|(keep, _)| !keep.is_closed());
        let server = |server: &Server| ServerStatus {
            name: server.name.clone(),
            last_error: self
                .troubles
                .get(&server.name)
                .filter(|trouble| !trouble.mended)
                .and_then(|trouble| trouble.text.lines().next())
                .map(str::to_owned),
            policy: PolicyState::of(server).map(|policy| policy.line()),
        };
        RunStatus {
            run: self.run.id.clone(),
            name: self.run.name.clone(),
            runtime: self.run.runtime.clone(),
            registered: self.run.registered,
            carrier: carrier(&self.run),
            tunnel: open.map(|(_, status)| status.clone()),
            had_tunnel: Some(self.had_a_tunnel()),
            servers: self.run.servers.iter().map(server).collect(),
        }
    }
}

/// How the run's tunnel comes about, for people.
fn carrier(run: &Run) -> String {
    let ways = [(&run.dial, Dialler::Bridge), (&run.listen, Dialler::Sidecar)];
    let own = ways.into_iter().find_map(|(at, dialler)| Some((at.as_ref()?, dialler)));
    own.map_or_else(|| "unix".to_owned(), |(at, dialler)| format!("{} at {at}", via(at, dialler)))
}
