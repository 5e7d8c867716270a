//! A run whose first carrier does not come up takes the next by itself, with another container; nothing is left of the one
//! before but its record. One that the user chose is the only one.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    parts::Part,
    place::Place,
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
    stage::{Stage, VAULT_HEADER, VAULT_STUB, discover},
};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("the_next_is_taken", SANDBOX, the_next_is_taken).ahead(),
    Test::new("all_in_vain", SANDBOX, all_in_vain).ahead(),
    Test::new("one_that_was_chosen_is_the_only_one", SANDBOX, one_that_was_chosen).ahead(),
    Test::new("interrupted_while_it_waits", SANDBOX, interrupted_while_it_waits),
    Test::new("an_exit_code_is_nobody_s_word", SANDBOX, an_exit_code_is_nobody_s_word),
];

/// It says how often something was started in a sandbox.
const HOOK: &str = "hooks: {pre_run: echo started >>started}\n";

/// With either kind of machine.
fn is_apple() -> bool {
    Place::here().runtime() == "apple"
}

/// What is taken first here, and what next.
fn order() -> [&'static str; 2] {
    if is_apple() { ["published", "unix"] } else { ["unix", "published"] }
}

/// From now on the first does not carry: Apple's socket accepts and delivers nothing, the bridge's own is not there.
fn break_the_first(rig: &Rig) -> Outcome {
    if is_apple() {
        return rig.apple()?.set(|settings| settings.defects.published_hangs = true);
    }
    rig.run(&["proxy", "start"])?.expect_code(0)?;
    Ok(fs::remove_file(rig.home().join("proxy/tunnel/bridge.sock"))?)
}

/// As the tests of their engine have it, with a network, over which a port can be published.
fn with_a_network(yaml: &str) -> String {
    format!("{yaml}network: {{mode: open}}\n")
}

fn started(rig: &Rig) -> usize {
    fs::read_to_string(rig.workspace().join("started")).map_or(0, |text| text.lines().count())
}

fn listed(rig: &Rig) -> Outcome<Vec<Value>> {
    Ok(serde_json::from_str(&rig.run(&["list", "--json"])?.expect_code(0)?.out)?)
}

/// No container, socket, port or registration.
fn nothing_is_left(rig: &Rig) -> Outcome {
    // An engine removes what has ended a moment later.
    eventually("no container is left", PATIENCE, || rig.containers().is_empty().then_some(()))?;
    let stages = fs::read_dir(rig.home().join("proxy/apple")).into_iter().flatten().count();
    ensure(stages == 0, || format!("{stages} directories of containers"))?;
    let status: Value = serde_json::from_str(&rig.run(&["status", "--json"])?.out)?;
    ensure(status["bridge"]["runs"] == Value::Array(vec![]), || format!("{status:#}"))?;
    ensure(rig.bridge().is_some(), || "the bridge ended".to_owned())
}

fn the_next_is_taken() -> Outcome {
    let stage = Stage::with(&with_a_network(HOOK))?;
    let rig = &stage.rig;
    let [first, next] = order();
    break_the_first(rig)?;
    // What is typed before there is a tunnel is the program's that is started, not that of the container before.
    let inside = rig.console()?;
    let noise = inside.noise();
    let told: Vec<_> = noise.lines().filter(|line| line.contains("did not come up")).collect();
    let wanted =
        (format!("the tunnel '{first}' did not come up ("), format!("); trying '{next}' (--tunnel {next}"));
    ensure(
        matches!(told.as_slice(), [line] if line.contains(&wanted.0) && line.contains(&wanted.1)),
        || noise.clone(),
    )?;
    ensure(!noise.contains("nothing was started"), || noise.clone())?;
    let answer = inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB))?;
    ensure(answer.status == 200, || format!("{answer:?}"))?;
    ensure(started(rig) == 1, || format!("{} programs were started", started(rig)))?;
    eventually("the first container is gone", PATIENCE, || (rig.containers().len() == 1).then_some(()))?;
    let status: Value = serde_json::from_str(&rig.run(&["status", "--json"])?.out)?;
    let runs = status["bridge"]["runs"].as_array().map_or(0, Vec::len);
    ensure(runs == 1, || format!("{runs} runs are registered: {status:#}"))?;
    ensure(inside.end()? == 0, || "exit code".to_owned())?;

    let runs = listed(rig)?;
    let said: Vec<_> = runs.iter().map(|run| (run["tunnel"].as_str(), run["state"].as_str())).collect();
    ensure(said == [(Some(next), Some("stopped")), (Some(first), Some("failed"))], || format!("{runs:#?}"))?;
    // Of the two, the name means the one that came of it.
    rig.run(&["logs", runs[0]["name"].as_str().unwrap_or_default()])?.expect_code(0)?;
    let why = runs[1]["error"].as_str().unwrap_or_default();
    ensure(why.starts_with("the tunnel did not come up, and nothing was started: "), || why.to_owned())?;
    nothing_is_left(rig)
}

/// Every carrier of the runtime is broken; with Docker and podman that takes a sandbox without a network.
fn all_in_vain() -> Outcome {
    let rig = Rig::new()?;
    rig.config(HOOK)?;
    if is_apple() {
        rig.apple()?.set(|settings| settings.defects.hangs_at = 1)?;
    } else {
        break_the_first(&rig)?;
    }
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let ran = rig.run(&["run", "-d", &workspace, "--", "true"])?.expect_code(121)?;
    ensure(ran.out.is_empty(), || format!("an id of nothing: {ran:?}"))?;
    let names = if is_apple() {
        &["nothing was started: no tunnel came up\n  published: ", "\n  unix: "][..]
    } else {
        &["nothing was started: the tunnel 'unix' did not come up: no connection to the bridge at unix:"][..]
    };
    for wanted in names {
        ensure(ran.err.contains(wanted), || ran.err.clone())?;
    }
    let errors = ran.err.matches("nothing was started").count();
    ensure(errors == 1, || format!("{errors} errors:\n{}", ran.err))?;
    ensure(started(&rig) == 0, || "something was started".to_owned())?;
    nothing_is_left(&rig)
}

fn one_that_was_chosen() -> Outcome {
    let rig = Rig::new()?;
    rig.config(&with_a_network(HOOK))?;
    let [first, other] = order();
    break_the_first(&rig)?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let ran = rig.run(&["run", "--tunnel", first, &workspace, "--", "true"])?.expect_code(121)?;
    let wanted = format!("nothing was started: the tunnel '{first}' did not come up: ");
    ensure(ran.err.contains(&wanted) && !ran.err.contains("trying"), || ran.err.clone())?;
    ensure(ran.err.contains(&format!("another carrier may do: --tunnel {other}")), || ran.err.clone())?;
    ensure(listed(&rig)?.len() == 1, || "there was another attempt".to_owned())?;
    ensure(started(&rig) == 0, || "something was started".to_owned())?;
    nothing_is_left(&rig)
}

/// Nobody who has enough of waiting gets another container.
fn interrupted_while_it_waits() -> Outcome {
    let rig = Rig::new()?;
    rig.config(&with_a_network(HOOK))?;
    break_the_first(&rig)?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let mut run = rig.moat(&["run", &workspace, "--", "true"])?.stderr(Stdio::piped()).spawn()?;
    let mut said = run.stderr.take().map(BufReader::new).ok_or_else(|| Trouble::new("no stderr"))?.lines();
    let waits = said.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("Waiting for the tunnel")));
    ensure(waits.is_some(), || "it does not say that it waits".to_owned())?;
    kill(Pid::from_raw(i32::try_from(run.id())?), Signal::SIGINT)?;
    let rest = said.collect::<Result<Vec<_>, _>>()?;
    let ended = run.wait()?;
    ensure(ended.code() == Some(130), || format!("{ended:?}: {rest:?}"))?;
    ensure(listed(&rig)?.len() == 1 && started(&rig) == 0, || format!("it went on: {rest:?}"))?;
    nothing_is_left(&rig)
}

/// A program, or the hook before it, ends with the code that says that nothing was started. That is not the carrier's.
fn an_exit_code_is_nobody_s_word() -> Outcome {
    let rig = Rig::new()?;
    rig.config(&with_a_network(HOOK))?;
    let check = |ran: Ran, code: i32, starts: usize| {
        let ran = ran.expect_code(code)?;
        ensure(!ran.err.contains("did not come up"), || ran.err.clone())?;
        ensure(started(&rig) == starts, || format!("{} programs were started: {}", started(&rig), ran.err))
    };
    check(rig.sandboxed(&["sh", "-c", "exit 121"])?, 121, 1)?;
    check(rig.sandboxed(&["/nonexistent"])?, 127, 2)?;
    rig.config(&with_a_network("hooks: {pre_run: echo started >>started; exit 121}\n"))?;
    check(rig.sandboxed(&["true"])?, 121, 3)?;
    let (runs, first) = (listed(&rig)?, Some(order()[0]));
    ensure(runs.len() == 3, || format!("there was another attempt: {runs:#?}"))?;
    ensure(runs.iter().all(|run| run["tunnel"].as_str() == first), || format!("{runs:#?}"))
}
