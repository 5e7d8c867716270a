//! Tells a client that listens when a changed policy shows it another list (P37).
//!
//! Only of lists whose changes the server announces itself, and on a `subscriptions/listen` only of those that were asked
//! for: one notification a list, between two events of the server's. What it announces is the client's to ask for again; each
//! call is judged by the new rules whether it does or not.

use std::{
    fmt,
    task::{Context, Poll, ready},
};

use futures_util::future::BoxFuture;
use moat_shared::rpc::RawId;
use tokio::sync::watch;

use super::review::Reviewer;
use crate::pipeline::parse::Asked;

const NAMES: [&str; 3] = ["tools", "prompts", "resources"];

/// Announces changes on one stream.
pub(super) struct Announcer {
    /// Of `subscriptions/listen`: the request, which names the subscription.
    subscription: Option<RawId>,
    wanted: [bool; 3],
    /// What was hidden when the client was told last.
    hiding: [Vec<String>; 3],
    /// The next change of the policy; `None`: there will be none.
    next: BoxFuture<'static, Option<watch::Receiver<u64>>>,
}

impl Announcer {
    /// For a stream that a GET opened, or `subscriptions/listen`.
    pub(super) fn new(reviewer: &Reviewer, asked: &Asked) -> Self {
        let subscription = asked.id();
        let wanted = if subscription.is_some() { asked.listens_for() } else { [true; 3] };
        let next = changed(reviewer.bound().changes());
        Self { subscription, wanted, hiding: reviewer.hiding(), next }
    }

    /// The next events for the client, which may only stand between two others.
    pub(super) fn poll(&mut self, reviewer: &Reviewer, cx: &mut Context<'_>) -> Poll<String> {
        loop {
            let Some(changes) = ready!(self.next.as_mut().poll(cx)) else {
                self.next = Box::pin(std::future::pending());
                return Poll::Pending;
            };
            self.next = changed(changes);
            let (hiding, announced) = (reviewer.hiding(), reviewer.bound().announced());
            let differs =
                |list: &usize| announced[*list] && self.wanted[*list] && hiding[*list] != self.hiding[*list];
            let events: String =
                (0..NAMES.len()).filter(differs).map(|list| self.event(NAMES[list])).collect();
            self.hiding = hiding;
            if !events.is_empty() {
                return Poll::Ready(events);
            }
        }
    }

    fn event(&self, list: &str) -> String {
        let params = self.subscription.as_ref().map(|id| {
            format!(r#","params":{{"_meta":{{"io.modelcontextprotocol/subscriptionId":{}}}}}"#, id.as_str())
        });
        let params = params.unwrap_or_default();
        format!(
            "event: message\ndata: {{\"jsonrpc\":\"2.0\",\"method\":\"notifications/{list}/list_changed\"{params}}}\n\n"
        )
    }
}

impl fmt::Debug for Announcer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Announcer").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

/// Whoever waits keeps the receiver, so that no change is missed.
fn changed(mut changes: watch::Receiver<u64>) -> BoxFuture<'static, Option<watch::Receiver<u64>>> {
    Box::pin(async move { changes.changed().await.is_ok().then_some(changes) })
}
