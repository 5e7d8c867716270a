//! What PID 1 does next: events in, actions out, no system call inside.
//!
//! ```text
//! Tunnel ──ready──► Hook ──code 0──► Agent ──ended──► Sweep ──alone──► (left)
//!    │                └──other code, stopped──────────►  ▲
//!    └──not ready in time, relay ended, stopped ─────────┘
//! ```
//!
//! The relay runs from the first state to the last. Once it was ready, its end is a matter of restarting it, never
//! of the agent.

use std::time::Duration;

use libc::c_int;
use moat_shared::{exit, plan::Plan};

use crate::escalate::{Escalation, Step};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(u8),
    Signal(u8),
}

impl Ended {
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => exit::from_signal(signal),
        }
    }
}

/// Whose process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Relay,
    /// The hook or the agent, whichever is running.
    Main,
    /// Somebody whose parent is gone.
    Orphan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The first tunnel has not come.
    Tunnel,
    /// The relay may be started again.
    Restart,
    /// The agent had its time to end.
    Grace,
    /// What was killed had its time to go.
    Sweep,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The relay's first hello succeeded.
    Ready,
    /// The relay says that it will not.
    NotReady(String),
    /// The hook or the agent could not be started. Why was told already.
    NotStarted(u8),
    Ended(Who, Ended),
    /// The hook or the agent was stopped by this signal.
    Stopped(c_int),
    Signal(c_int),
    Timer(Timer),
    /// No child is left.
    Alone,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    StartRelay,
    /// Write the agents' files, while the relay connects.
    PutFiles,
    StartHook,
    StartAgent,
    /// Send a signal to the process group of the hook or the agent.
    Forward(c_int),
    /// Give the terminal to the process group of the hook or the agent.
    Foreground,
    Arm(Timer, Duration),
    /// SIGKILL to everything in the sandbox, the relay included.
    KillAll,
    Say(String),
    Leave(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Tunnel,
    Hook,
    Agent,
    Sweep { code: u8 },
}

/// How long PID 1 waits for killed processes to go. Its own end takes the rest.
const SWEEP: Duration = Duration::from_secs(2);
/// The relay's first restart comes after this, each further one after twice as long ...
const RESTART_FIRST: Duration = Duration::from_millis(100);
/// ... but never later than this.
const RESTART_LAST: Duration = Duration::from_secs(5);

/// PID 1's decisions.
#[derive(Debug)]
pub(crate) struct Supervisor {
    phase: Phase,
    escalation: Escalation,
    terminal: bool,
    has_hook: bool,
    grace: Duration,
    /// For the first tunnel.
    patience: Duration,
    /// Ends of the relay since it was last ready.
    relay_ends: u32,
    killing: bool,
    agent_started: bool,
}

impl Supervisor {
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            phase: Phase::Tunnel,
            escalation: Escalation::new(plan.terminal),
            terminal: plan.terminal,
            has_hook: plan.pre_run.is_some(),
            grace: Duration::from_millis(plan.grace_ms),
            patience: Duration::from_millis(plan.tunnel_ms),
            relay_ends: 0,
            killing: false,
            agent_started: false,
        }
    }

    /// The first actions.
    pub(crate) fn begin(&self) -> Vec<Action> {
        vec![Action::StartRelay, Action::Arm(Timer::Tunnel, self.patience), Action::PutFiles]
    }

    /// Has the agent been started, so that terminal and stderr are its own, to the end?
    pub(crate) fn agent_has_the_terminal(&self) -> bool {
        self.agent_started
    }

    /// Is everybody killed and only their end to wait for?
    pub(crate) fn is_sweeping(&self) -> bool {
        matches!(self.phase, Phase::Sweep { .. })
    }

    /// Has the relay been ready once?
    pub(crate) fn had_a_tunnel(&self) -> bool {
        self.phase != Phase::Tunnel
    }

    pub(crate) fn on(&mut self, event: Event) -> Vec<Action> {
        match (self.phase, event) {
            (Phase::Sweep { code }, Event::Alone | Event::Timer(Timer::Sweep)) => vec![Action::Leave(code)],
            // The children of whoever was killed are ours now.
            (Phase::Sweep { .. }, Event::Ended(..)) => vec![Action::KillAll],
            (Phase::Sweep { .. }, _) => vec![],

            (Phase::Tunnel, Event::Ready) => self.after_tunnel(),
            (Phase::Tunnel, event) => self.on_while_waiting(event),

            (_, Event::Ready) => {
                self.relay_ends = 0;
                vec![]
            }
            (_, Event::Ended(Who::Relay, _)) => self.restart_relay(),
            (_, Event::Timer(Timer::Restart)) if !self.killing => vec![Action::StartRelay],
            (Phase::Hook, Event::Ended(Who::Main, ended)) => self.after_hook(ended),
            (Phase::Agent, Event::Ended(Who::Main, ended)) => self.sweep(ended.exit_code()),
            (_, Event::NotStarted(code)) => self.sweep(code),
            (_, Event::Stopped(signal)) => self.on_stopped(signal),
            (_, Event::Signal(signal)) => self.on_signal(signal),
            (_, Event::Timer(Timer::Grace)) => self.kill(),
            (_, Event::Ended(Who::Orphan, _) | Event::NotReady(_) | Event::Timer(_) | Event::Alone) => vec![],
        }
    }

    fn on_while_waiting(&mut self, event: Event) -> Vec<Action> {
        let no_tunnel = |text: String| format!("cannot reach the bridge: {text}; nothing was started");
        let text = match event {
            Event::NotReady(text) => no_tunnel(text),
            Event::Timer(Timer::Tunnel) => {
                no_tunnel(format!("no answer within {} seconds", self.patience.as_secs()))
            }
            Event::Ended(Who::Relay, ended) => no_tunnel(format!("the relay ended ({ended})")),
            // Whoever could not start the relay or write the files has said why.
            Event::NotStarted(code) => return self.sweep(code),
            Event::Signal(signal) => return self.on_signal_while_waiting(signal),
            _ => return vec![],
        };
        let mut actions = vec![Action::Say(text)];
        actions.extend(self.sweep(exit::NO_TUNNEL));
        actions
    }

    fn on_signal_while_waiting(&mut self, signal: c_int) -> Vec<Action> {
        match signal {
            libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT => {
                self.sweep(exit::from_signal(u8::try_from(signal).unwrap_or_default()))
            }
            _ => vec![],
        }
    }

    fn after_tunnel(&mut self) -> Vec<Action> {
        if self.has_hook {
            self.phase = Phase::Hook;
            return vec![Action::StartHook];
        }
        self.start_agent()
    }

    fn start_agent(&mut self) -> Vec<Action> {
        self.phase = Phase::Agent;
        self.agent_started = true;
        vec![Action::StartAgent]
    }

    fn after_hook(&mut self, ended: Ended) -> Vec<Action> {
        if self.escalation.is_terminating() {
            return self.sweep(exit::from_signal(TERM));
        }
        if ended == Ended::Code(0) {
            return self.start_agent();
        }
        let mut actions =
            vec![Action::Say(format!("hooks.pre_run failed ({ended}); the agent was not started"))];
        actions.extend(self.sweep(ended.exit_code()));
        actions
    }

    fn on_signal(&mut self, signal: c_int) -> Vec<Action> {
        match self.escalation.on(signal) {
            Step::Drop => vec![],
            Step::Forward(signal) => vec![Action::Forward(signal)],
            // A stopped process acts on SIGTERM only once it continues.
            Step::Terminate => vec![
                Action::Forward(libc::SIGTERM),
                Action::Forward(libc::SIGCONT),
                Action::Arm(Timer::Grace, self.grace),
            ],
            Step::Kill => self.kill(),
        }
    }

    /// There is no shell above the agent that could continue it, so PID 1 does. Without a terminal a SIGSTOP was
    /// somebody's will and stays.
    fn on_stopped(&self, signal: c_int) -> Vec<Action> {
        match signal {
            libc::SIGTTIN | libc::SIGTTOU => vec![Action::Foreground, Action::Forward(libc::SIGCONT)],
            libc::SIGTSTP => vec![Action::Forward(libc::SIGCONT)],
            _ if self.terminal => vec![Action::Forward(libc::SIGCONT)],
            _ => vec![],
        }
    }

    fn restart_relay(&mut self) -> Vec<Action> {
        if self.killing {
            return vec![];
        }
        let after = RESTART_FIRST.saturating_mul(2u32.saturating_pow(self.relay_ends)).min(RESTART_LAST);
        self.relay_ends = self.relay_ends.saturating_add(1);
        vec![Action::Arm(Timer::Restart, after)]
    }

    fn kill(&mut self) -> Vec<Action> {
        self.killing = true;
        vec![Action::KillAll]
    }

    fn sweep(&mut self, code: u8) -> Vec<Action> {
        self.phase = Phase::Sweep { code };
        vec![Action::KillAll, Action::Arm(Timer::Sweep, SWEEP)]
    }
}

const TERM: u8 = 15;

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

#[cfg(test)]
#[path = "supervise_tests.rs"]
mod tests;
