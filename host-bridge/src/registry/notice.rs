//! What the pipeline tells the holder of a run: an upstream that fails, and that it works again.

use moat_shared::id::{RunId, ServerName};
use tokio::sync::mpsc;

/// Tells the registry how a run's servers fare. Never waits: a notice that does not fit is dropped, because the trace
/// and the log have it as well.
#[derive(Debug, Clone)]
pub(crate) struct Notices(mpsc::Sender<Notice>);

/// One of them.
#[derive(Debug)]
pub(super) struct Notice {
    pub(super) run: RunId,
    pub(super) server: ServerName,
    pub(super) news: News,
}

#[derive(Debug)]
pub(super) enum News {
    Failed { error: String, warning: Option<String> },
    Works,
}

const QUEUE: usize = 256;

impl Notices {
    pub(super) fn new() -> (Self, mpsc::Receiver<Notice>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// A request failed: `error` is one line for `moat status`; `warning` goes to the terminal of the run's holder,
    /// the same one at most once a minute.
    pub(crate) fn failed(&self, run: &RunId, server: &ServerName, error: String, warning: Option<String>) {
        self.send(run, server, News::Failed { error, warning });
    }

    /// The server works: its last error is history.
    pub(crate) fn works(&self, run: &RunId, server: &ServerName) {
        self.send(run, server, News::Works);
    }

    fn send(&self, run: &RunId, server: &ServerName, news: News) {
        let notice = Notice { run: run.clone(), server: server.clone(), news };
        if self.0.try_send(notice).is_err() {
            tracing::debug!(%run, %server, "a notice was dropped");
        }
    }
}
