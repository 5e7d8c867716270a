//! Watching over a sandbox that runs: its end, and whoever says that it is to end.
//!
//! ```text
//! runs ──► has a tunnel ──► ended
//!   │ a signal, `moat stop`, the bridge forgets the run: passed on, wait, kill, again
//!   └────────────────────────────────────────────────────────────────────────────────► ended
//! ```

use std::{io, time::Duration};

use nix::sys::signal::Signal;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    attach::Attached,
    metadata::Record,
    signals::{Signals, Told},
};
use crate::{
    cli::{Failure, print},
    control::api::HoldEvent,
    home::Home,
    runtime::{self, Running},
};

/// From a stop to SIGKILL: more than PID 1 takes for the same.
const PATIENCE: Duration = Duration::from_millis(runtime::GRACE_MS + 3_000);
/// An engine that does not answer is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// A sandbox, and everybody who has something to say about it.
pub(super) struct Watch<'a, R> {
    pub(super) running: R,
    pub(super) home: &'a Home,
    pub(super) record: &'a mut Record,
    pub(super) signals: &'a mut Signals,
    /// What the bridge tells.
    pub(super) told: mpsc::Receiver<HoldEvent>,
    /// The task that listens to it.
    pub(super) _holding: JoinSet<()>,
    /// When it is ended without asking.
    pub(super) deadline: Option<Instant>,
}

/// What has happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Tunnel,
    Ended(u8),
}

impl<R: Running> Watch<'_, R> {
    /// Until it ends, and what its exit code is.
    pub(super) async fn end(&mut self, user: &Attached) -> Result<u8, Failure> {
        loop {
            if let Seen::Ended(code) = self.next(Some(user)).await? {
                return Ok(code);
            }
        }
    }

    /// Until it has a tunnel, or ends. `user`: who is attached to it, if somebody is.
    pub(super) async fn next(&mut self, user: Option<&Attached>) -> Result<Seen, Failure> {
        let note = |text: &str| user.map_or_else(|| print::note(text), |user| user.note(text));
        loop {
            let patience = self.deadline;
            let out_of_patience = async {
                match patience {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let stop = tokio::select! {
                code = self.running.wait() => {
                    let failed = |error| Failure::new(format!("waiting for the sandbox: {error}"));
                    return code.map(Seen::Ended).map_err(failed);
                }
                () = out_of_patience => {
                    let killed = told_in_time(self.running.kill()).await;
                    // Again, until it has ended.
                    self.deadline = killed.err().map(|error| {
                        note(&format!("Warning: the sandbox was not ended: {error}"));
                        Instant::now() + ASK_AGAIN
                    });
                    continue;
                }
                told = self.signals.next() => match told {
                    Told::Resized => {
                        if let Some(user) = user {
                            user.resize();
                        }
                        continue;
                    }
                    Told::Stop(signal) => signal,
                },
                Some(event) = self.told.recv() => match event {
                    HoldEvent::Held => continue,
                    HoldEvent::Tunnel => return Ok(Seen::Tunnel),
                    HoldEvent::Warning { text } => {
                        note(&text);
                        continue;
                    }
                    HoldEvent::Stop => Signal::SIGTERM,
                    HoldEvent::Ended { reason } => {
                        note(&format!("Warning: the run has ended for the bridge: {reason}"));
                        Signal::SIGTERM
                    }
                },
            };
            if self.deadline.is_none() {
                self.deadline = Some(Instant::now() + PATIENCE);
                self.record.stopping(self.home).map_err(|error| Failure::from_error(&error))?;
            }
            // What it was not told ends by force when the time is over.
            if let Err(error) = told_in_time(self.running.signal(stop)).await {
                note(&format!("Warning: the sandbox was not told to stop: {error}"));
            }
        }
    }
}

/// An engine that hangs keeps nobody from asking again.
async fn told_in_time(telling: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    tokio::time::timeout(ASK_AGAIN, telling).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
