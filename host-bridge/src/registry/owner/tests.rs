//! The owner through its handle, on a real directory.

use std::time::Duration;

use super::*;
use crate::{
    control::api::{Process, TunnelStatus},
    home::private_dir,
    pipeline::News,
};

struct Rig {
    home: Home,
    registry: Registry,
    notices: mpsc::Sender<Notice>,
    count: watch::Receiver<usize>,
    asked: crate::tunnel::Asked,
    _task: JoinSet<()>,
}

fn start(home: &Home) -> Rig {
    private_dir(&home.proxy()).unwrap();
    let (recorder, _records) = Recorder::new(1000);
    let (asks, asked) = crate::tunnel::asks();
    let (registry, notices, owner) =
        Owner::restore(home, recorder, mpsc::unbounded_channel().0, asks).unwrap();
    let count = owner.count();
    let mut task = JoinSet::new();
    task.spawn(owner.run());
    Rig { home: home.clone(), registry, notices, count, asked, _task: task }
}

fn wish(holder: Process) -> Register {
    let run = durable::tests::run(0);
    Register {
        name: run.name,
        runtime: run.runtime,
        engine: run.engine,
        workspace: run.workspace,
        servers: run.servers,
        profile: run.profile,
        agent: run.agent,
        user: run.user,
        listen: None,
        holder,
    }
}

fn on_disk(home: &Home) -> Vec<RunId> {
    durable::load(&home.runs_file()).unwrap().runs.into_iter().map(|run| run.id).collect()
}

fn tunnel() -> TunnelStatus {
    TunnelStatus { since: Timestamp::now(), sidecar: "test".to_owned(), transport: "unix".to_owned() }
}

fn gone() -> Process {
    Process { pid: i32::MAX, started: 1 }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(5), future).await.expect("in time")
}

#[tokio::test]
async fn a_run_is_on_disk_before_it_is_acknowledged_and_off_it_before_its_end_is() {
    let dir = tempfile::tempdir().unwrap();
    let rig = start(&Home::at(dir.path()));
    let mut runs = Vec::new();
    for _ in 0..20 {
        let run = rig.registry.register(wish(Process::current()), None).await.unwrap();
        assert!(on_disk(&rig.home).contains(&run.id));
        runs.push(run.id.clone());
    }
    for run in runs {
        rig.registry.unregister(run.clone(), "test".to_owned()).await.unwrap();
        assert!(!on_disk(&rig.home).contains(&run));
    }
    assert!(on_disk(&rig.home).is_empty());
}

#[tokio::test]
async fn many_at_once_are_all_there_and_all_different() {
    let dir = tempfile::tempdir().unwrap();
    let rig = start(&Home::at(dir.path()));
    let mut tasks = JoinSet::new();
    for _ in 0..100 {
        let registry = rig.registry.clone();
        tasks.spawn(
            async move { registry.register(wish(Process::current()), None).await.unwrap().id.clone() },
        );
    }
    let mut ids = tasks.join_all().await;
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 100);
    let mut written = on_disk(&rig.home);
    written.sort();
    assert_eq!(written, ids);
    assert_eq!(*rig.count.borrow(), 100);
}

#[tokio::test]
async fn a_restart_serves_the_same_runs() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path());
    let run = {
        let rig = start(&home);
        rig.registry.register(wish(Process::current()), None).await.unwrap()
    };
    let rig = start(&home);
    let ticket = rig.registry.admit(run.id.clone()).await.unwrap();
    assert_eq!(ticket.run, run);
    let unknown = RunId::from_random([9; 6]);
    assert!(matches!(rig.registry.admit(unknown).await, Err(RegistryError::Unknown(_))));
}

#[tokio::test]
async fn the_end_of_a_run_revokes_its_tickets_and_its_tunnel() {
    let dir = tempfile::tempdir().unwrap();
    let rig = start(&Home::at(dir.path()));
    let run = rig.registry.register(wish(Process::current()), None).await.unwrap();
    let mut ticket = rig.registry.admit(run.id.clone()).await.unwrap();
    let _first = rig.registry.attach(&ticket, tunnel()).await.unwrap();
    assert!(rig.registry.runs().await.unwrap()[0].tunnel.is_some());
    assert!(ticket.is_valid());
    rig.registry.unregister(run.id.clone(), "test".to_owned()).await.unwrap();
    assert!(!ticket.is_valid());
    soon(ticket.revoked()).await;
    assert!(rig.registry.attach(&ticket, tunnel()).await.is_err(), "a run that is over has no tunnels");
}

#[tokio::test]
async fn where_a_sandbox_is_dialled_is_on_disk_and_known_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path());
    let endpoint: Endpoint = "tcp:127.0.0.1:5000".parse().unwrap();
    let run = {
        let mut rig = start(&home);
        let run = rig.registry.register(wish(Process::current()), None).await.unwrap().id.clone();
        rig.registry.dial(run.clone(), endpoint.clone()).await.unwrap();
        assert_eq!(durable::load(&home.runs_file()).unwrap().runs[0].dial, Some(endpoint.clone()));
        assert_eq!(
            soon(rig.asked.next_dial()).await,
            Some(Dial { run: run.clone(), endpoint: endpoint.clone() })
        );
        run
    };
    let mut rig = start(&home);
    assert_eq!(soon(rig.asked.next_dial()).await, Some(Dial { run, endpoint: endpoint.clone() }));
    let unknown = RunId::from_random([9; 6]);
    assert!(matches!(rig.registry.dial(unknown, endpoint).await, Err(RegistryError::Unknown(_))));
}

#[tokio::test(start_paused = true)]
async fn a_run_has_one_tunnel() {
    let dir = tempfile::tempdir().unwrap();
    let rig = start(&Home::at(dir.path()));
    let run = rig.registry.register(wish(Process::current()), None).await.unwrap();
    let ticket = rig.registry.admit(run.id.clone()).await.unwrap();
    let first = rig.registry.attach(&ticket, tunnel()).await.unwrap();
    let second = rig.registry.attach(&ticket, tunnel()).await;
    assert!(matches!(second, Err(RegistryError::Taken(_))), "{second:?}");
    // One that ends soon is waited for.
    let (next, ()) = tokio::join!(rig.registry.attach(&ticket, tunnel()), async { drop(first) });
    assert!(next.is_ok());
    assert!(rig.registry.runs().await.unwrap()[0].tunnel.is_some());
}

#[tokio::test]
async fn a_tunnel_that_is_gone_does_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let rig = start(&Home::at(dir.path()));
    let run = rig.registry.register(wish(Process::current()), None).await.unwrap();
    let ticket = rig.registry.admit(run.id.clone()).await.unwrap();
    drop(rig.registry.attach(&ticket, tunnel()).await.unwrap());
    assert!(rig.registry.runs().await.unwrap()[0].tunnel.is_none());
}

#[tokio::test]
async fn a_run_without_holder_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = start(&Home::at(dir.path()));
    rig.registry.register(wish(gone()), None).await.unwrap();
    soon(rig.count.wait_for(|count| *count == 0)).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !on_disk(&rig.home).is_empty() {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_hold_keeps_a_run_whose_process_is_gone_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = start(&Home::at(dir.path()));
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let holder = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
    let run = rig.registry.register(wish(holder), None).await.unwrap();
    let mut hold = rig.registry.hold(run.id.clone()).await.unwrap();
    assert!(matches!(hold.next().await, Some(HoldEvent::Held)));
    child.kill().unwrap();
    child.wait().unwrap();
    // Longer than the owner's look round.
    tokio::time::timeout(CHECK_HOLDERS * 3 / 2, rig.count.wait_for(|count| *count == 0)).await.unwrap_err();
    let ended = Instant::now();
    drop(hold);
    soon(rig.count.wait_for(|count| *count == 0)).await.unwrap();
    assert!(ended.elapsed() < Duration::from_millis(500), "at once, not at the next look");
}

#[tokio::test]
async fn the_holder_hears_of_stop_warnings_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let rig = start(&Home::at(dir.path()));
    let run = rig.registry.register(wish(Process::current()), None).await.unwrap();
    let server = run.servers[0].name.clone();
    rig.registry.stop(run.id.clone()).await.unwrap();
    let mut hold = rig.registry.hold(run.id.clone()).await.unwrap();
    assert!(matches!(hold.next().await, Some(HoldEvent::Held)));
    assert!(matches!(hold.next().await, Some(HoldEvent::Stop)), "asked before anybody held it");
    let tell = async |news| {
        let notice = Notice { run: run.id.clone(), server: server.clone(), news };
        rig.notices.send(notice).await.unwrap();
    };
    for text in ["cannot connect\nhint", "cannot connect\nhint", "another"] {
        tell(News::Trouble(text.to_owned())).await;
    }
    let warning = |event| match event {
        Some(HoldEvent::Warning { text }) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(warning(soon(hold.next()).await), "cannot connect\nhint");
    assert_eq!(warning(soon(hold.next()).await), "another", "the same one is not repeated");
    let status = rig.registry.runs().await.unwrap();
    assert_eq!(status[0].servers[0].last_error.as_deref(), Some("another"));
    tell(News::Mended).await;
    while rig.registry.runs().await.unwrap()[0].servers[0].last_error.is_some() {
        tokio::task::yield_now().await;
    }
    // A server that comes and goes is not told of at each turn.
    for text in ["another", "a third"] {
        tell(News::Trouble(text.to_owned())).await;
    }
    assert_eq!(warning(soon(hold.next()).await), "a third");
    rig.registry.unregister(run.id.clone(), "test".to_owned()).await.unwrap();
    assert!(matches!(soon(hold.next()).await, Some(HoldEvent::Ended { .. })));
    assert!(soon(hold.next()).await.is_none());
}

#[tokio::test]
async fn a_run_that_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = start(&Home::at(dir.path()));
    // A directory that is not empty cannot be renamed over.
    std::fs::create_dir_all(rig.home.runs_file().join("x")).unwrap();
    let refused = rig.registry.register(wish(Process::current()), None).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Write { .. }));
    assert!(rig.registry.runs().await.unwrap().is_empty());
    std::fs::remove_dir_all(rig.home.runs_file()).unwrap();
    rig.registry.register(wish(Process::current()), None).await.unwrap();
}

#[tokio::test]
async fn a_name_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let rig = start(&Home::at(dir.path()));
    let mut twice = wish(Process::current());
    twice.servers.push(twice.servers[0].clone());
    assert!(matches!(rig.registry.register(twice, None).await, Err(RegistryError::Duplicate(_))));
}

#[tokio::test]
async fn leaving_is_refused_while_there_are_runs_and_final_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let rig = start(&Home::at(dir.path()));
    let run = rig.registry.register(wish(Process::current()), None).await.unwrap();
    assert!(!rig.registry.leave_if_idle().await);
    rig.registry.unregister(run.id.clone(), "test".to_owned()).await.unwrap();
    assert!(rig.registry.leave_if_idle().await);
    assert!(matches!(
        rig.registry.register(wish(Process::current()), None).await,
        Err(RegistryError::Leaving)
    ));
}

#[tokio::test]
async fn the_holder_hears_of_the_first_tunnel_before_the_sandbox_does() {
    let dir = tempfile::tempdir().unwrap();
    let rig = start(&Home::at(dir.path()));
    let run = rig.registry.register(wish(Process::current()), None).await.unwrap();
    let had = async || rig.registry.runs().await.unwrap()[0].had_tunnel;
    let mut early = rig.registry.hold(run.id.clone()).await.unwrap();
    assert!(matches!(early.next().await, Some(HoldEvent::Held)));
    assert_eq!(had().await, Some(false));
    let ticket = rig.registry.admit(run.id.clone()).await.unwrap();
    // The answer is what the sidecar waits for.
    drop(rig.registry.attach(&ticket, tunnel()).await.unwrap());
    assert!(matches!(early.events.try_recv(), Ok(HoldEvent::Tunnel)));
    drop(rig.registry.attach(&ticket, tunnel()).await.unwrap());
    assert!(early.events.try_recv().is_err(), "once");
    assert_eq!(had().await, Some(true), "though it is gone");
    let mut late = rig.registry.hold(run.id.clone()).await.unwrap();
    assert!(matches!(late.next().await, Some(HoldEvent::Held)));
    assert!(matches!(late.next().await, Some(HoldEvent::Tunnel)));
}
