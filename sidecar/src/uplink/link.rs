//! What the uplink's task says of its state, and how requests wait for it.

use std::sync::Arc;

use moat_shared::{hello::Hello, wire::ErrorKind};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::exchange::Sender;

/// The state of the tunnel, as its task last said.
#[derive(Debug, Clone)]
pub(crate) enum Link {
    /// There is none, and this is why; the uplink keeps trying.
    Down(Arc<str>),
    /// The bridge, or this side, will have none of it. The uplink keeps trying, since the bridge may be replaced.
    Refused(Arc<Refusal>),
    /// Requests can be sent.
    Open(Opened),
    /// The relay stops.
    Draining,
}

/// Why there will be no tunnel until something is done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) kind: ErrorKind,
    /// What happened and what to do.
    pub(crate) message: String,
}

/// A tunnel that stands.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    /// Which one: a request that found this one closed waits for a later one.
    pub(crate) generation: u64,
    pub(crate) sender: Sender,
    pub(crate) bridge: Arc<Hello>,
    pub(crate) protocol: u32,
}

/// Why a request cannot be sent.
#[derive(Debug, Clone)]
pub(crate) enum Unavailable {
    /// The wait is over; this is why the tunnel is down.
    Down(Arc<str>),
    Refused(Arc<Refusal>),
    Draining,
}

/// How the first attempts to open the tunnel went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstOutcome {
    /// It stands.
    Open,
    /// It will not; this is why.
    Refused(String),
    /// The uplink was stopped.
    Stopped,
}

/// The relay's handle on the tunnel.
#[derive(Debug, Clone)]
pub struct Tunnel(watch::Receiver<Link>);

impl Tunnel {
    pub(crate) fn new(link: watch::Receiver<Link>) -> Self {
        Self(link)
    }

    /// The state right now.
    pub(crate) fn state(&self) -> Link {
        self.0.borrow().clone()
    }

    /// A tunnel that stands and is later than `seen`, waited for until the deadline. A refusal is an answer at once:
    /// waiting does not mend it.
    pub(crate) async fn opened(&self, seen: Option<u64>, deadline: Instant) -> Result<Opened, Unavailable> {
        // Nearly always it is there.
        if let Link::Open(opened) = &*self.0.borrow()
            && seen.is_none_or(|seen| opened.generation > seen)
        {
            return Ok(opened.clone());
        }
        let mut link = self.0.clone();
        let settled = link.wait_for(|link| match link {
            Link::Open(opened) => seen.is_none_or(|seen| opened.generation > seen),
            Link::Refused(_) | Link::Draining => true,
            Link::Down(_) => false,
        });
        let settled = timeout_at(deadline, settled).await.ok().and_then(Result::ok).map(|link| link.clone());
        match settled {
            Some(Link::Open(opened)) => Ok(opened),
            Some(Link::Refused(refusal)) => Err(Unavailable::Refused(refusal)),
            Some(Link::Draining) => Err(Unavailable::Draining),
            Some(Link::Down(why)) => Err(Unavailable::Down(why)),
            None => Err(self.why_not()),
        }
    }

    /// How the first hello ended.
    pub async fn first_outcome(&self) -> FirstOutcome {
        let mut link = self.0.clone();
        match link.wait_for(|link| !matches!(link, Link::Down(_))).await.as_deref() {
            Ok(Link::Open(_)) => FirstOutcome::Open,
            Ok(Link::Refused(refusal)) => FirstOutcome::Refused(refusal.message.clone()),
            Ok(Link::Draining | Link::Down(_)) | Err(_) => FirstOutcome::Stopped,
        }
    }

    fn why_not(&self) -> Unavailable {
        match self.state() {
            Link::Down(why) => Unavailable::Down(why),
            Link::Refused(refusal) => Unavailable::Refused(refusal),
            Link::Open(_) => Unavailable::Down("it broke just now".into()),
            Link::Draining => Unavailable::Draining,
        }
    }
}
