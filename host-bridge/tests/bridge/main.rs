//! The bridge as users have it: the real binary, its files, its sockets.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the right end of a surprise")]

mod attack;
mod raw;
mod support;
mod upstream;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use support::{Daemon, House, eventually, hello, register};
use tokio::task::JoinSet;

/// The heart of the matter: acknowledged is durable, at whatever moment the bridge dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_run_is_served_after_kill_9() {
    let house = House::new();
    let mut acknowledged = Vec::new();
    for round in 0..25_u64 {
        let mut daemon = Daemon::start(&house).await;
        let mut tasks = JoinSet::new();
        let answers = Arc::new(AtomicU64::new(0));
        for _ in 0..4 {
            let (house, answers) = (house.clone(), Arc::clone(&answers));
            tasks.spawn(async move {
                let mut runs = Vec::new();
                while let Ok(run) = register(&house).await {
                    answers.fetch_add(1, Ordering::SeqCst);
                    runs.push(run);
                }
                runs
            });
        }
        // From "before the first answer" to "some time after the eighth".
        eventually("it answers", || answers.load(Ordering::SeqCst) >= round % 9).await;
        tokio::time::sleep(Duration::from_micros(round * 97)).await;
        daemon.kill();
        acknowledged.extend(tasks.join_all().await.into_iter().flatten());
    }
    assert!(acknowledged.len() > 90, "only {} were acknowledged: the test shows nothing", acknowledged.len());

    let daemon = Daemon::start(&house).await;
    let status = support::status(&house).await.unwrap();
    let served: Vec<&str> =
        status["runs"].as_array().unwrap().iter().map(|run| run["run"].as_str().unwrap()).collect();
    for run in &acknowledged {
        assert!(served.contains(&run.id.as_str()), "{} was acknowledged and is lost", run.id);
    }
    // With the same servers, and over the tunnel with the key that was handed out then.
    let last = acknowledged.last().unwrap();
    let known = status["runs"].as_array().unwrap().iter().find(|run| run["run"] == last.id.as_str()).unwrap();
    assert_eq!(known["servers"][0]["name"], "context7");
    for run in acknowledged.iter().step_by(acknowledged.len() / 10 + 1).chain([last]) {
        assert_eq!(hello(&house, run).await.unwrap(), 200, "{}", run.id);
    }
    drop(daemon);
}

#[tokio::test]
async fn a_damaged_file_stops_the_bridge_and_says_what_to_do() {
    let house = House::new();
    let daemon = Daemon::start(&house).await;
    register(&house).await.unwrap();
    drop(daemon);
    let file = house.proxy().join("runs.json");
    let mut text = fs::read_to_string(&file).unwrap();
    text.truncate(text.len() - 10);
    fs::write(&file, &text).unwrap();
    let output = house.moat(&["proxy", "start"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["runs.json:", "mv ", "started anew", "daemon.log"] {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), text, "the file is as it was");
    assert!(support::status(&house).await.is_err(), "nothing is served");
}

#[tokio::test]
async fn eight_commands_at_once_start_one_bridge() {
    let house = House::new();
    let children: Vec<_> = (0..8)
        .map(|_| {
            house.moat(&["proxy", "start", "--json"]).stdout(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut pids: Vec<i64> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            serde_json::from_slice::<Value>(&output.stdout).unwrap()["pid"].as_i64().unwrap()
        })
        .collect();
    pids.dedup();
    assert_eq!(pids.len(), 1);
    assert_eq!(house.log().matches("ready").count(), 1, "{}", house.log());
    let lock: Value = serde_json::from_slice(&fs::read(house.proxy().join("daemon.lock")).unwrap()).unwrap();
    assert_eq!(lock["pid"].as_i64(), Some(pids[0]));

    // A second daemon by hand leaves quietly.
    assert!(house.moat(&["__bridge"]).status().unwrap().success());
    stop(&house).await;
}

#[tokio::test]
async fn a_restart_keeps_the_runs() {
    let house = House::new();
    assert!(house.moat(&["proxy", "start"]).output().unwrap().status.success());
    let run = register(&house).await.unwrap();
    assert_eq!(hello(&house, &run).await.unwrap(), 200);
    let before = support::status(&house).await.unwrap()["pid"].clone();
    let output = house.moat(&["proxy", "restart"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("Active runs: 1") && said.contains(&run.id), "{said}");
    assert_ne!(support::status(&house).await.unwrap()["pid"], before);
    assert_eq!(hello(&house, &run).await.unwrap(), 200);
    let shown = house.moat(&["status"]).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("Server context7: ok"));
    stop(&house).await;
}

#[tokio::test]
async fn files_and_sockets_are_private() {
    let house = House::new();
    let daemon = Daemon::start(&house).await;
    register(&house).await.unwrap();
    for (path, mode) in [
        ("", 0o700),
        ("ca", 0o700),
        ("ca/ca.key", 0o600),
        ("daemon.sock", 0o600),
        ("daemon.lock", 0o600),
        ("daemon.log", 0o600),
        ("runs.json", 0o600),
        ("tunnel/bridge.sock", 0o666),
    ] {
        let found = fs::metadata(house.proxy().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "proxy/{path}: {found:o}");
    }
    let runs = fs::read_to_string(house.proxy().join("runs.json")).unwrap();
    assert!(!runs.contains("PRIVATE KEY") && !house.log().contains("PRIVATE KEY"));
    drop(daemon);
}

#[tokio::test]
async fn it_leaves_when_idle_and_when_told() {
    let house = House::new();
    let mut daemon = Daemon::start_with(&house, &["--idle-seconds", "0"]).await;
    assert!(daemon.wait().await.success());
    assert!(house.log().contains("reason=Idle"), "{}", house.log());

    // A run keeps it: a patience of nothing passes many times while it is registered.
    let mut daemon = Daemon::start(&house).await;
    register(&house).await.unwrap();
    nix::sys::signal::kill(daemon.pid(), nix::sys::signal::SIGTERM).unwrap();
    assert!(daemon.wait().await.success());
    assert!(house.log().contains("reason=Signal"), "{}", house.log());
    assert!(!house.proxy().join("daemon.sock").exists());
    assert!(!house.proxy().join("tunnel/bridge.sock").exists());
    let runs = fs::read_to_string(house.proxy().join("runs.json")).unwrap();
    assert!(runs.contains("context7"), "runs outlive the bridge");
}

#[tokio::test]
async fn a_path_that_is_too_long_says_so() {
    let house = House::below(&"d".repeat(90));
    let output = house.moat(&["__bridge"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("shorter path") && said.contains("107"), "{said}");
}

/// With sudo, most of the time. Only root can make such a directory; for anybody else `/` is one.
#[test]
fn a_home_of_somebody_else_is_refused() {
    let house = House::new();
    let root = if nix::unistd::geteuid().is_root() {
        nix::unistd::chown(&house.root(), Some(nix::unistd::Uid::from_raw(12_345)), None).unwrap();
        house.root()
    } else {
        "/".into()
    };
    for verb in [&["status"][..], &["proxy", "start"], &["grant", "list"], &["list"]] {
        let output = house.moat(verb).env("MOAT_HOME", &root).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("belongs to uid") && said.contains("MOAT_HOME"), "{said}");
    }
    assert_eq!(fs::read_dir(house.root()).unwrap().count(), 0, "nothing was written");
    assert!(house.moat(&["version"]).env("MOAT_HOME", &root).output().unwrap().status.success());
}

#[tokio::test]
async fn what_happened_to_a_run_is_in_its_audit_log() {
    let house = House::new();
    let daemon = Daemon::start(&house).await;
    let run = register(&house).await.unwrap();
    support::unregister(&house, &run.id).await;
    let audit = house.root().join("runs").join(&run.id).join("audit.jsonl");
    let lines = || fs::read_to_string(&audit).unwrap_or_default();
    eventually("both lines are there", || lines().lines().count() == 2).await;
    assert!(lines().contains(r#""type":"run.registered","servers":["context7"]"#), "{}", lines());
    assert!(lines().contains("run.unregistered"));
    assert_eq!(fs::metadata(&audit).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(hello(&house, &run).await.unwrap(), 503, "it is no longer served");
    drop(daemon);
}

async fn stop(house: &House) {
    assert!(house.moat(&["proxy", "stop"]).output().unwrap().status.success());
    let lock = fs::File::open(house.proxy().join("daemon.lock")).unwrap();
    eventually("the bridge leaves", || lock.try_lock().is_ok()).await;
}
