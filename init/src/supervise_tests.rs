use super::*;
use test_case::test_case;

fn supervisor(hook: bool, terminal: bool) -> Supervisor {
    Supervisor {
        phase: Phase::Tunnel,
        escalation: Escalation::new(terminal),
        terminal,
        has_hook: hook,
        grace: Duration::from_secs(3),
        patience: Duration::from_secs(20),
        relay_ends: 0,
        killing: false,
        agent_started: false,
    }
}

/// Plays the events and shows what the last one led to.
fn last(mut supervisor: Supervisor, events: &[Event]) -> Vec<Action> {
    events.iter().map(|event| supervisor.on(event.clone())).last().unwrap()
}

fn ended(code: u8) -> Event {
    Event::Ended(Who::Main, Ended::Code(code))
}
fn relay_ended() -> Event {
    Event::Ended(Who::Relay, Ended::Signal(11))
}
fn swept() -> Vec<Action> {
    vec![Action::KillAll, Action::Arm(Timer::Sweep, SWEEP)]
}
fn said(text: &str) -> Vec<Action> {
    let mut actions = vec![Action::Say(text.to_owned())];
    actions.extend(swept());
    actions
}

#[test]
fn the_relay_is_first() {
    assert_eq!(
        supervisor(true, false).begin(),
        [Action::StartRelay, Action::Arm(Timer::Tunnel, Duration::from_secs(20)), Action::PutFiles]
    );
}

#[test_case(&[Event::Ready] => vec![Action::StartAgent]; "agent at once")]
#[test_case(&[Event::Ready, ended(0)] => swept(); "the agent's end ends everything")]
#[test_case(&[Event::Ready, ended(7), Event::Alone] => vec![Action::Leave(7)]; "its code is ours")]
#[test_case(&[Event::Ready, Event::Ended(Who::Main, Ended::Signal(11)), Event::Alone] => vec![Action::Leave(139)]; "its signal is ours")]
#[test_case(&[Event::Ready, ended(7), Event::Timer(Timer::Sweep)] => vec![Action::Leave(7)]; "what will not die does not hold us")]
#[test_case(&[Event::Ready, ended(7), Event::Ended(Who::Orphan, Ended::Code(0))] => vec![Action::KillAll]; "orphans of the killed are killed")]
#[test_case(&[Event::Ready, ended(7), Event::Signal(libc::SIGTERM)] => Vec::<Action>::new(); "too late for signals")]
#[test_case(&[Event::Ready, Event::NotStarted(127)] => swept(); "not found")]
#[test_case(&[Event::Ready, Event::Ended(Who::Orphan, Ended::Code(3))] => Vec::<Action>::new(); "orphans are only reaped")]
#[test_case(&[Event::Ready, Event::Timer(Timer::Tunnel)] => Vec::<Action>::new(); "a timer of the past")]
fn the_agent(events: &[Event]) -> Vec<Action> {
    last(supervisor(false, false), events)
}

#[test_case(&[Event::NotReady("version 9 is needed".into())] => said("cannot reach the bridge: version 9 is needed; nothing was started"); "failed")]
#[test_case(&[Event::Timer(Timer::Tunnel)] => said("cannot reach the bridge: no answer within 20 seconds; nothing was started"); "silence")]
#[test_case(&[Event::NotStarted(exit::SETUP), Event::Alone] => vec![Action::Leave(exit::SETUP)]; "files cannot be written")]
#[test_case(&[Event::NotStarted(exit::SETUP), Event::Ready] => Vec::<Action>::new(); "ready after that")]
#[test_case(&[relay_ended()] => said("cannot reach the bridge: the relay ended (killed by signal 11); nothing was started"); "relay ended")]
#[test_case(&[Event::Timer(Timer::Tunnel), Event::Alone] => vec![Action::Leave(exit::NO_TUNNEL)]; "own code")]
#[test_case(&[Event::NotReady(String::new()), Event::Ready] => Vec::<Action>::new(); "ready is too late then")]
#[test_case(&[Event::Signal(libc::SIGTERM)] => swept(); "stopped")]
#[test_case(&[Event::Signal(libc::SIGTERM), Event::Alone] => vec![Action::Leave(143)]; "stopped, code")]
#[test_case(&[Event::Signal(libc::SIGWINCH)] => Vec::<Action>::new(); "nobody to resize")]
fn without_a_tunnel_nothing_starts(events: &[Event]) -> Vec<Action> {
    last(supervisor(true, false), events)
}

#[test_case(&[Event::Ready] => vec![Action::StartHook]; "hook first")]
#[test_case(&[Event::Ready, ended(0)] => vec![Action::StartAgent]; "then the agent")]
#[test_case(&[Event::Ready, ended(3)] => said("hooks.pre_run failed (exit code 3); the agent was not started"); "failed")]
#[test_case(&[Event::Ready, ended(3), Event::Alone] => vec![Action::Leave(3)]; "its code is ours")]
#[test_case(&[Event::Ready, Event::Signal(libc::SIGTERM), ended(0)] => swept(); "stopped meanwhile")]
#[test_case(&[Event::Ready, Event::Signal(libc::SIGTERM), ended(0), Event::Alone] => vec![Action::Leave(143)]; "stopped meanwhile, code")]
fn the_hook(events: &[Event]) -> Vec<Action> {
    last(supervisor(true, false), events)
}

#[test_case(false, &[Event::Signal(libc::SIGUSR1)] => vec![Action::Forward(libc::SIGUSR1)]; "forwarded")]
#[test_case(false, &[Event::Signal(libc::SIGTERM)] => vec![Action::Forward(libc::SIGTERM), Action::Forward(libc::SIGCONT), Action::Arm(Timer::Grace, Duration::from_secs(3))]; "term")]
#[test_case(false, &[Event::Signal(libc::SIGTERM), Event::Signal(libc::SIGTERM)] => vec![Action::KillAll]; "twice")]
#[test_case(false, &[Event::Signal(libc::SIGTERM), Event::Timer(Timer::Grace)] => vec![Action::KillAll]; "no grace left")]
#[test_case(false, &[Event::Signal(libc::SIGTERM), Event::Timer(Timer::Grace), relay_ended()] => Vec::<Action>::new(); "a killed relay stays dead")]
#[test_case(false, &[Event::Stopped(libc::SIGTSTP)] => vec![Action::Forward(libc::SIGCONT)]; "suspended")]
#[test_case(false, &[Event::Stopped(libc::SIGSTOP)] => Vec::<Action>::new(); "stopped on purpose")]
#[test_case(true, &[Event::Stopped(libc::SIGSTOP)] => vec![Action::Forward(libc::SIGCONT)]; "stopped on a terminal")]
#[test_case(true, &[Event::Stopped(libc::SIGTTIN)] => vec![Action::Foreground, Action::Forward(libc::SIGCONT)]; "lost the terminal")]
#[test_case(true, &[Event::Signal(libc::SIGINT), Event::Signal(libc::SIGINT)] => vec![Action::Forward(libc::SIGINT)]; "a key")]
fn while_the_agent_runs(terminal: bool, events: &[Event]) -> Vec<Action> {
    let mut supervisor = supervisor(false, terminal);
    supervisor.on(Event::Ready);
    last(supervisor, events)
}

#[test]
fn the_relay_comes_back_ever_more_slowly_and_at_once_again_after_it_was_ready() {
    let mut supervisor = supervisor(false, false);
    supervisor.on(Event::Ready);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        match supervisor.on(relay_ended()).as_slice() {
            [Action::Arm(Timer::Restart, after)] => pauses.push(after.as_millis()),
            other => panic!("{other:?}"),
        }
        assert_eq!(supervisor.on(Event::Timer(Timer::Restart)), [Action::StartRelay]);
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    supervisor.on(Event::Ready);
    assert_eq!(supervisor.on(relay_ended()), [Action::Arm(Timer::Restart, RESTART_FIRST)]);
}

#[test]
fn once_the_agent_was_started_stderr_is_its_own_to_the_end() {
    let mut supervisor = supervisor(true, false);
    assert!(!supervisor.agent_has_the_terminal());
    supervisor.on(Event::Ready);
    assert!(!supervisor.agent_has_the_terminal(), "the hook's run is still the start");
    supervisor.on(ended(0));
    assert!(supervisor.agent_has_the_terminal());
    supervisor.on(ended(0));
    assert!(supervisor.agent_has_the_terminal(), "what the relay says last is not for the agent's stderr");
}
