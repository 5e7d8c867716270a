//! How a signal from outside is passed on: as it is, or, when it asks for the end again, harder.
//!
//! ```text
//! gentle ──TERM──► terminating ──TERM, INT, QUIT──► killed
//!    └──INT, QUIT──► asked ──INT, QUIT, TERM──► terminating
//! ```
//!
//! On a terminal, INT and QUIT are keys that the agent has its own use for; they never escalate.

use libc::c_int;

/// What to do with a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send it on.
    Forward(c_int),
    /// Send SIGTERM and let the grace period begin.
    Terminate,
    /// SIGKILL, now.
    Kill,
    /// Not for the agent.
    Drop,
}

/// How hard was asked so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Gentle,
    Asked,
    Terminating,
}

/// Counts the signals that ask for the end.
#[derive(Debug)]
pub(crate) struct Escalation {
    level: Level,
    terminal: bool,
}

impl Escalation {
    pub(crate) fn new(terminal: bool) -> Self {
        Self { level: Level::Gentle, terminal }
    }

    /// Was the end asked for with SIGTERM?
    pub(crate) fn is_terminating(&self) -> bool {
        self.level == Level::Terminating
    }

    pub(crate) fn on(&mut self, signal: c_int) -> Step {
        match signal {
            libc::SIGTERM => self.terminate(),
            libc::SIGINT | libc::SIGQUIT if self.terminal => Step::Forward(signal),
            libc::SIGINT | libc::SIGQUIT if self.level == Level::Gentle => {
                self.level = Level::Asked;
                Step::Forward(signal)
            }
            libc::SIGINT | libc::SIGQUIT => self.terminate(),
            // SIGCHLD is the reaper's; the others are about PID 1 itself: its own pipes, its own place in the
            // background, its own faults.
            libc::SIGCHLD | libc::SIGPIPE | libc::SIGTTIN | libc::SIGTTOU => Step::Drop,
            libc::SIGSEGV
            | libc::SIGBUS
            | libc::SIGFPE
            | libc::SIGILL
            | libc::SIGTRAP
            | libc::SIGSYS
            | libc::SIGABRT => Step::Drop,
            _ => Step::Forward(signal),
        }
    }

    fn terminate(&mut self) -> Step {
        if self.is_terminating() {
            return Step::Kill;
        }
        self.level = Level::Terminating;
        Step::Terminate
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(false, &[libc::SIGTERM] => Step::Terminate; "term")]
    #[test_case(false, &[libc::SIGTERM, libc::SIGTERM] => Step::Kill; "term twice")]
    #[test_case(false, &[libc::SIGTERM, libc::SIGINT] => Step::Kill; "int after term")]
    #[test_case(false, &[libc::SIGINT] => Step::Forward(libc::SIGINT); "int")]
    #[test_case(false, &[libc::SIGINT, libc::SIGINT] => Step::Terminate; "int twice")]
    #[test_case(false, &[libc::SIGINT, libc::SIGQUIT, libc::SIGINT] => Step::Kill; "three times")]
    #[test_case(true, &[libc::SIGINT, libc::SIGINT, libc::SIGINT] => Step::Forward(libc::SIGINT); "a key")]
    #[test_case(true, &[libc::SIGTERM, libc::SIGTERM] => Step::Kill; "term on a terminal")]
    #[test_case(true, &[libc::SIGTERM, libc::SIGWINCH] => Step::Forward(libc::SIGWINCH); "size while stopping")]
    #[test_case(false, &[libc::SIGHUP, libc::SIGHUP] => Step::Forward(libc::SIGHUP); "hup is only passed on")]
    #[test_case(false, &[libc::SIGUSR1] => Step::Forward(libc::SIGUSR1); "usr1")]
    #[test_case(false, &[libc::SIGCONT] => Step::Forward(libc::SIGCONT); "cont")]
    #[test_case(false, &[40] => Step::Forward(40); "real-time")]
    #[test_case(false, &[libc::SIGCHLD] => Step::Drop; "chld")]
    #[test_case(false, &[libc::SIGTTOU] => Step::Drop; "ttou")]
    #[test_case(false, &[libc::SIGPIPE] => Step::Drop; "pipe")]
    fn last_step(terminal: bool, signals: &[c_int]) -> Step {
        let mut escalation = Escalation::new(terminal);
        signals.iter().map(|signal| escalation.on(*signal)).last().unwrap()
    }
}
