//! What the user or the system tells the command that holds a run.

use std::io;

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

/// Told so far, in order.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
    quit: tokio::signal::unix::Signal,
    window: tokio::signal::unix::Signal,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// To end, in this way.
    Stop(Signal),
    /// The terminal has another size.
    Resized,
}

impl Signals {
    /// From now on none of them ends this process by itself.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            window: signal(SignalKind::window_change())?,
        })
    }

    /// The next one. May be dropped and called again without losing one.
    pub(crate) async fn next(&mut self) -> Told {
        tokio::select! {
            Some(()) = self.interrupt.recv() => Told::Stop(Signal::SIGINT),
            Some(()) = self.terminate.recv() => Told::Stop(Signal::SIGTERM),
            Some(()) = self.hang_up.recv() => Told::Stop(Signal::SIGHUP),
            Some(()) = self.quit.recv() => Told::Stop(Signal::SIGQUIT),
            Some(()) = self.window.recv() => Told::Resized,
            else => std::future::pending().await,
        }
    }

    /// The next that says to stop.
    pub(crate) async fn stop(&mut self) -> Signal {
        loop {
            if let Told::Stop(signal) = self.next().await {
                return signal;
            }
        }
    }
}
