//! The loop of PID 1: waits for signals, children, timers and the relay, asks the [`Supervisor`], does what it says.
//!
//! One thread, one poll. No decision is taken here.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use moat_shared::{exec::Told, exit, plan::Plan};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::SigSet,
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{self, Pid},
};

use crate::{
    environ,
    exec::{self, Door},
    files,
    relay::{self, Relay},
    say,
    spawn::{self, Program, Session},
    supervise::{Action, Event, Supervisor, Timer, Who},
    sys::{self, Waited},
    terminal,
};

/// Blocks every signal and makes them readable instead. First of all: PID 1 has no default actions.
pub(crate) fn take_signals() -> io::Result<SignalFd> {
    let all = SigSet::all();
    all.thread_block()?;
    Ok(SignalFd::with_flags(&all, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// Is this process its namespace's first, so that killing everybody means the sandbox and nothing else?
pub(crate) fn is_pid_1() -> bool {
    unistd::getpid().as_raw() == 1
}

/// PID 1 at work.
#[derive(Debug)]
pub(crate) struct Pid1<'a> {
    plan: &'a Plan,
    supervisor: Supervisor,
    relay: Relay,
    signals: SignalFd,
    /// The hook or the agent; also its process group.
    main: Option<Pid>,
    timers: BTreeMap<Timer, Instant>,
    files_are_in: bool,
    /// Where further commands come from.
    door: Option<Door>,
}

/// What an action led to.
enum Outcome {
    Done,
    Event(Event),
    Leave(u8),
}

impl<'a> Pid1<'a> {
    pub(crate) fn new(plan: &'a Plan, relay: Relay, signals: SignalFd, door: Option<Door>) -> Self {
        let supervisor = Supervisor::new(plan);
        let timers = BTreeMap::new();
        Self { plan, supervisor, relay, signals, main: None, timers, files_are_in: false, door }
    }

    /// Runs to the end and returns the exit code.
    pub(crate) fn run(&mut self) -> io::Result<u8> {
        let mut actions = VecDeque::from(self.supervisor.begin());
        loop {
            while let Some(action) = actions.pop_front() {
                match self.perform(action)? {
                    Outcome::Done => {}
                    Outcome::Event(event) => actions.extend(self.supervisor.on(event)),
                    Outcome::Leave(code) => return Ok(code),
                }
            }
            for event in self.next_events()? {
                actions.extend(self.supervisor.on(event));
            }
        }
    }

    /// Are there files to take out again?
    pub(crate) fn has_put_files_in(&self) -> bool {
        self.files_are_in
    }

    fn perform(&mut self, action: Action) -> io::Result<Outcome> {
        match action {
            Action::StartRelay => return Ok(self.start_relay()),
            Action::PutFiles => return Ok(self.put_files()),
            Action::StartHook => return Ok(self.start_hook()),
            Action::StartAgent => return Ok(self.start_agent()),
            Action::Forward(signal) => {
                if let Some(group) = self.main {
                    sys::kill(Pid::from_raw(-group.as_raw()), signal)?;
                }
            }
            Action::Foreground => {
                if let Some(group) = self.main {
                    terminal::bring_to_foreground(io::stdin().as_fd(), group)?;
                }
            }
            Action::Arm(timer, after) => {
                self.timers.insert(timer, Instant::now() + after);
            }
            Action::KillAll => kill_all()?,
            Action::Say(text) => say::line(&text),
            Action::Leave(code) => return Ok(Outcome::Leave(code)),
        }
        Ok(Outcome::Done)
    }

    fn start_relay(&mut self) -> Outcome {
        let first = !self.supervisor.had_a_tunnel();
        if first {
            self.relay.open_log();
        }
        match self.relay.start(!first) {
            Ok(()) => Outcome::Done,
            Err(error) if first => {
                say::error(&error);
                Outcome::Event(Event::NotStarted(exit::SETUP))
            }
            Err(error) => {
                relay::note(&mut self.relay, &error);
                Outcome::Event(Event::Ended(Who::Relay, crate::supervise::Ended::Code(exit::SETUP)))
            }
        }
    }

    fn put_files(&mut self) -> Outcome {
        match files::put_in(self.plan) {
            Ok(()) => {
                self.files_are_in = true;
                Outcome::Done
            }
            Err(error) => {
                say::error(&error);
                self.relay.silence();
                Outcome::Event(Event::NotStarted(exit::SETUP))
            }
        }
    }

    /// `sh -c` in the workspace as the agent's user. The agent's stdin and stdout are not the hook's: it reads
    /// nothing and writes to stderr.
    fn start_hook(&mut self) -> Outcome {
        let script = self.plan.pre_run.clone().unwrap_or_default();
        let null = std::fs::File::open("/dev/null").map(Into::into);
        let stderr = io::stderr().as_fd().try_clone_to_owned();
        let (null, stderr) = match (null, stderr) {
            (Ok(null), Ok(stderr)) => (null, stderr),
            (Err(error), _) | (_, Err(error)) => {
                say::line(&format!("hooks.pre_run cannot be started: {error}"));
                return Outcome::Event(Event::NotStarted(exit::SETUP));
            }
        };
        let argv = vec!["sh".into(), "-c".into(), script];
        self.start_main(argv, &self.plan.workspace, vec![(null, 0), (stderr, 1)], "hooks.pre_run: ")
    }

    fn start_agent(&mut self) -> Outcome {
        self.start_main(self.plan.command.clone(), &self.plan.directory, Vec::new(), "")
    }

    fn start_main(
        &mut self,
        argv: Vec<String>,
        directory: &Path,
        descriptors: Vec<(std::os::fd::OwnedFd, i32)>,
        what: &str,
    ) -> Outcome {
        let started = spawn::start(&Program {
            argv,
            image: None,
            env: environ::of_agent(self.plan).into_iter().collect(),
            user: self.plan.user.ids,
            directory,
            session: if self.plan.terminal { Session::Foreground } else { Session::Group },
            descriptors,
        });
        match started {
            Ok(pid) => {
                self.main = Some(pid);
                Outcome::Done
            }
            Err(error) => {
                say::line(&format!("{what}{error}"));
                Outcome::Event(Event::NotStarted(error.exit_code()))
            }
        }
    }

    /// Everything that has happened; waits when nothing has.
    fn next_events(&mut self) -> io::Result<Vec<Event>> {
        let mut events = self.reap()?;
        if events.is_empty() {
            self.poll(&mut events)?;
        }
        let now = Instant::now();
        let due: Vec<Timer> =
            self.timers.iter().filter(|(_, at)| **at <= now).map(|(timer, _)| *timer).collect();
        for timer in due {
            self.timers.remove(&timer);
            events.push(Event::Timer(timer));
        }
        Ok(events)
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let (ready, stderr, asked) = {
            let optional = [self.relay.ready_fd(), self.relay.stderr_fd()];
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            fds.extend(optional.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)));
            let own = fds.len();
            let door = self.door.as_ref().map(Door::descriptors).unwrap_or_default();
            fds.extend(door.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)));
            match poll(&mut fds, self.patience()) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let asked = fds.iter().skip(own).any(|fd| fd.any().unwrap_or(false));
            let mut woken = fds.iter().skip(1).map(|fd| fd.any().unwrap_or(false));
            let [ready, stderr] = optional.map(|fd| fd.is_some() && woken.next().unwrap_or(false));
            (ready, stderr, asked)
        };
        if asked {
            self.answer_the_door()?;
        }
        if stderr {
            self.relay.read_stderr(self.supervisor.agent_has_the_terminal());
        }
        if ready {
            events.extend(self.relay.read_ready());
        }
        while let Some(signal) = self.signals.read_signal()? {
            events.push(Event::Signal(i32::try_from(signal.ssi_signo).unwrap_or_default()));
        }
        Ok(())
    }

    /// Further commands, beside the agent and as the agent.
    fn answer_the_door(&mut self) -> io::Result<()> {
        let Some(door) = &mut self.door else { return Ok(()) };
        let news = door.look();
        for group in news.abandoned {
            for signal in [libc::SIGHUP, libc::SIGCONT] {
                sys::kill(Pid::from_raw(-group.as_raw()), signal)?;
            }
        }
        for asked in news.asked {
            if !self.supervisor.agent_has_the_terminal() || self.supervisor.is_sweeping() {
                asked.refuse("the run's program is not running");
            } else if door.is_full() {
                asked.refuse("too many commands run beside the agent already");
            } else {
                let (wish, from, descriptors) = asked.into_parts();
                let started = spawn::start(&Program {
                    argv: wish.argv,
                    image: None,
                    env: environ::of_agent(self.plan).into_iter().collect(),
                    user: self.plan.user.ids,
                    directory: &self.plan.directory,
                    session: if wish.terminal { Session::Terminal } else { Session::Group },
                    descriptors,
                });
                match started {
                    Ok(pid) => door.started(from, pid),
                    Err(error) => {
                        let told = Told::Refused { code: error.exit_code(), text: error.to_string() };
                        exec::tell(&from, &told);
                    }
                }
            }
        }
        Ok(())
    }

    /// Until the next timer.
    fn patience(&self) -> PollTimeout {
        let Some(next) = self.timers.values().min() else { return PollTimeout::NONE };
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    /// The one reaper: all children, ours and those that were left to us.
    fn reap(&mut self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        loop {
            match sys::wait(None, false)? {
                Waited::Nothing => break,
                Waited::NoChild => {
                    // Only news once everybody was killed.
                    if self.supervisor.is_sweeping() {
                        events.push(Event::Alone);
                    }
                    break;
                }
                Waited::Stopped(pid, signal) if Some(pid) == self.main => events.push(Event::Stopped(signal)),
                Waited::Stopped(..) => {}
                Waited::Ended(pid, ended) => {
                    if let Some(door) = &mut self.door {
                        door.ended(pid, ended.exit_code());
                    }
                    events.push(Event::Ended(self.bury(pid), ended));
                }
            }
        }
        Ok(events)
    }

    fn bury(&mut self, pid: Pid) -> Who {
        if self.relay.pid() == Some(pid) {
            self.relay.ended(self.supervisor.agent_has_the_terminal());
            return Who::Relay;
        }
        if self.main == Some(pid) {
            self.main = None;
            return Who::Main;
        }
        Who::Orphan
    }
}

/// SIGKILL to the whole sandbox; outside of one (tests, a runtime without its own namespace) to our children, whose
/// children become ours in turn.
fn kill_all() -> io::Result<()> {
    if is_pid_1() {
        return sys::kill(Pid::from_raw(-1), libc::SIGKILL);
    }
    let own = unistd::getpid();
    let children = std::fs::read_to_string(format!("/proc/self/task/{own}/children"))?;
    for child in children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
        sys::kill(Pid::from_raw(child), libc::SIGKILL)?;
    }
    Ok(())
}
