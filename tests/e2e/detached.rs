//! `-d`: the command returns and the run goes on, on every runtime.

use std::time::Duration;

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    parts::Part,
    rig::{PATIENCE, Ran, Rig},
    trouble::ensure,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    Test,
    stage::{Stage, VAULT_HEADER, VAULT_STUB},
};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("returns_and_goes_on_to_its_end", SANDBOX, returns_and_goes_on_to_its_end),
    Test::new("outlives_a_bridge_and_is_stopped", SANDBOX, outlives_a_bridge_and_is_stopped),
    Test::new("a_killed_holder_takes_it_along", SANDBOX, a_killed_holder_takes_it_along),
    Test::new("what_cannot_start_says_so_at_once", SANDBOX, what_cannot_start_says_so_at_once),
];

/// Starts it; its id.
fn detach(rig: &Rig, command: &[&str]) -> Outcome<String> {
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let mark = format!("RIG={}", rig.mark());
    let ran = rig.run(&[&["run", "-d", &workspace, "-e", &mark, "--"], command].concat())?.expect_code(0)?;
    let id = ran.out.trim().to_owned();
    ensure(id.starts_with("run_") && ran.err.contains(&id) && ran.err.contains("Started"), || {
        format!("{ran:?}")
    })?;
    Ok(id)
}

/// The run as `moat list --json` has it.
fn listed(rig: &Rig, id: &str) -> Outcome<Value> {
    let listed: Value = serde_json::from_str(&rig.run(&["list", "--json"])?.expect_code(0)?.out)?;
    let run = listed.as_array().into_iter().flatten().find(|run| run["run_id"] == id).cloned();
    run.ok_or_else(|| Trouble::new(format!("{id} is not listed: {listed}")))
}

fn until_state(rig: &Rig, id: &str, state: &str) -> Outcome<Value> {
    eventually(&format!("{id} is {state}"), PATIENCE, || {
        listed(rig, id).ok().filter(|run| run["state"] == state)
    })
}

/// Nothing of the run is left but its records.
fn nothing_is_left(rig: &Rig) -> Outcome {
    let bridge = rig.bridge();
    eventually("containers and processes are gone", PATIENCE, || {
        let processes = rig.processes().into_iter().filter(|pid| Some(*pid) != bridge).count();
        (processes == 0 && rig.containers().is_empty()).then_some(())
    })?;
    // The bridge looks at its runs' holders when a hold ends, and every second.
    eventually("no run is registered", PATIENCE, || {
        let told = rig.run(&["status", "--json"]).ok()?.expect_code(0).ok()?.out;
        let status: Value = serde_json::from_str(&told).ok()?;
        (status["bridge"]["runs"].as_array()?.is_empty()).then_some(())
    })
}

fn returns_and_goes_on_to_its_end() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    // It reads nothing, prints, and ends when it is told to, long after the command has returned.
    let script =
        "cat; echo first; echo second >&2; while [ ! -e go ]; do sleep 0.05; done; echo last; exit 7";
    let id = detach(&rig, &["sh", "-c", script])?;
    let run = until_state(&rig, &id, "running")?;
    ensure(run["exit_code"].is_null() && run["interactive"] == false, || run.to_string())?;
    let refused = rig.run(&["destroy", &id])?;
    ensure(refused.code != 0, || format!("a running run was destroyed: {refused:?}"))?;
    let follow = rig.moat(&["logs", "-f", &id])?.stdout(std::process::Stdio::piped()).spawn()?;
    eventually("its output is in the log", PATIENCE, || {
        rig.run(&["logs", &id]).ok().filter(|ran| ran.out.contains("first") && ran.out.contains("second"))
    })?;
    std::fs::write(rig.workspace().join("go"), "")?;
    let followed = Ran::from(follow.wait_with_output()?).expect_code(0)?;
    ensure(followed.out.contains("first") && followed.out.trim_end().ends_with("last"), || {
        format!("{followed:?}")
    })?;
    let one = rig.run(&["logs", "-n", "1", &id])?.expect_code(0)?;
    ensure(one.out.lines().count() == 1 && one.out.contains("last"), || format!("{one:?}"))?;
    let run = until_state(&rig, &id, "stopped")?;
    ensure(run["exit_code"] == 7, || run.to_string())?;
    nothing_is_left(&rig)?;
    rig.run(&["destroy", "-f", &id])?.expect_code(0)?;
    ensure(listed(&rig, &id).is_err(), || "it is still listed".to_owned())
}

fn outlives_a_bridge_and_is_stopped() -> Outcome {
    let stage = Stage::new()?;
    let rig = &stage.rig;
    let script = format!(
        "trap 'echo bye; exit 4' TERM; i=0; while :; do i=$((i+1)); echo round $i; sleep 0.1; done # {VAULT_HEADER} {VAULT_STUB}"
    );
    let id = detach(rig, &["sh", "-c", &script])?;
    until_state(rig, &id, "running")?;
    let before = rig.kill_bridge()?;
    let after = eventually("another bridge serves it", PATIENCE, || {
        let bridge = rig.bridge().filter(|pid| *pid != before)?;
        let status: Value = serde_json::from_str(&rig.run(&["status", "--json"]).ok()?.out).ok()?;
        let run = status["bridge"]["runs"].as_array()?.iter().find(|run| run["run"] == id.as_str())?;
        (!run["tunnel"].is_null()).then_some(bridge)
    })?;
    ensure(after != before, || "the same bridge".to_owned())?;
    let run = listed(rig, &id)?;
    ensure(run["state"] == "running", || run.to_string())?;
    let count =
        || rig.run(&["logs", "-n", "100000", &id]).map(|ran| ran.out.lines().count()).unwrap_or_default();
    let so_far = count();
    eventually("it goes on printing", PATIENCE, || (count() > so_far).then_some(()))?;
    let stopped = rig.run(&["stop", &id])?.expect_code(0)?;
    ensure(format!("{}{}", stopped.out, stopped.err).contains(&format!("Run {id} stopped")), || {
        format!("{stopped:?}")
    })?;
    let run = listed(rig, &id)?;
    ensure(run["state"] == "stopped" && run["exit_code"] == 4, || run.to_string())?;
    let last = rig.run(&["logs", "-n", "2", &id])?;
    ensure(last.out.contains("bye"), || format!("{last:?}"))?;
    nothing_is_left(rig)
}

fn a_killed_holder_takes_it_along() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let id = detach(&rig, &["sh", "-c", "echo up; sleep 600"])?;
    until_state(&rig, &id, "running")?;
    let metadata = std::fs::read_to_string(rig.home().join("runs").join(&id).join("metadata.json"))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let holder = metadata["holder"]["pid"].as_i64().ok_or_else(|| Trouble::new("nobody holds it"))?;
    kill(Pid::from_raw(i32::try_from(holder)?), Signal::SIGKILL)?;
    until_state(&rig, &id, "failed")?;
    nothing_is_left(&rig)
}

fn what_cannot_start_says_so_at_once() -> Outcome {
    let rig = Rig::new()?;
    rig.config("mcp:\n  - name: vault\n    url: https://localhost:1/mcp\n    auth: {grant: mcp-vault, header: X-Key}\n")?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let ran = rig.run(&["run", "-d", &workspace, "--", "true"])?.expect_code(1)?;
    ensure(ran.out.is_empty() && ran.err.contains("moat grant mcp vault"), || format!("{ran:?}"))?;
    // What only the holder can find out: there is no such place for its records.
    rig.config("env: {A: b}\n")?;
    std::fs::create_dir_all(rig.home())?;
    std::fs::write(rig.home().join("runs"), "in the way")?;
    let ran = rig.run(&["run", "-d", &workspace, "--", "true"])?.expect_code(1)?;
    ensure(ran.out.is_empty() && ran.err.contains("Error: "), || format!("{ran:?}"))?;
    std::fs::remove_file(rig.home().join("runs"))?;
    eventually("nothing was left", Duration::from_secs(30), || rig.containers().is_empty().then_some(()))?;
    // An agent that nobody can talk to.
    let idle = rig.run(&["claude", "-d", &workspace])?.expect_code(1)?;
    ensure(idle.err.contains("-d -p PROMPT"), || format!("{idle:?}"))
}
