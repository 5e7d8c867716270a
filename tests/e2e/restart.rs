//! The bridge may be killed at any moment: every acknowledged run works again by itself.

use std::{fs, time::Duration};

use moat_tests::{
    Outcome, Trouble,
    clock::{eventually, millis, now},
    inside::Inside,
    parts::Part,
    place::Place,
    trouble::ensure,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Test,
    stage::{SOON, Stage, VAULT_HEADER, VAULT_STUB, discover, expect_error, fault},
    streaming::relay,
};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("a_run_is_durable_before_its_agent_starts", SANDBOX, a_run_is_durable_before_its_agent_starts),
    Test::new(
        "nothing_is_acknowledged_before_it_is_on_the_disk",
        &[Part::Sandbox, Part::Strace],
        nothing_is_acknowledged_before_it_is_on_the_disk,
    ),
    Test::new("killed_and_back", SANDBOX, killed_and_back),
    Test::new(
        "no_descriptor_of_a_broken_tunnel_is_left",
        &[Part::Sandbox, Part::Root],
        no_descriptor_of_a_broken_tunnel_is_left,
    ),
    Test::new("killed_right_after_registration", SANDBOX, killed_right_after_registration),
    Test::new("killed_in_a_call", SANDBOX, killed_in_a_call),
    Test::new("an_unknown_server", SANDBOX, an_unknown_server),
    Test::new("the_next_command_starts_it_again", &[], the_next_command_starts_it_again),
];

fn a_run_is_durable_before_its_agent_starts() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let run = inside.environ()?["MOAT_RUN_ID"].as_str().unwrap_or_default().to_owned();
    let file = stage.rig.home().join("proxy/runs.json");
    let on_disk: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    let of_run =
        on_disk["runs"].as_array().into_iter().flatten().find(|entry| entry["run_id"] == run.as_str());
    let servers = of_run.map_or(0, |entry| entry["mcp_servers"].as_array().map_or(0, Vec::len));
    ensure(servers == 4, || format!("{servers} servers of {run} in {on_disk}"))?;
    inside.end()?;
    let dropped = || fs::read_to_string(&file).ok().filter(|text| !text.contains(&run)).map(|_| ());
    eventually("the run is dropped from runs.json", SOON * 3, dropped)
}

/// A crash of the machine loses what was not synchronised, which no killed process shows: so the bridge's own system
/// calls are looked at. The new file's bytes, its name, and only then the answer.
fn nothing_is_acknowledged_before_it_is_on_the_disk() -> Outcome {
    let mut stage = Stage::new()?;
    let log = stage.rig.user_home().join("calls");
    let calls = "trace=fsync,fdatasync,rename,renameat,renameat2,write,writev,sendto,sendmsg";
    let log_path = log.to_string_lossy().into_owned();
    let strace = ["strace", "-f", "-qq", "-y", "-s", "64", "-e", calls, "-e", "signal=none", "-o", &log_path];
    stage.rig.prefix = strace.map(str::to_owned).into();
    // It stays for as long as what it looks at.
    let mut watched = stage.rig.moat(&["proxy", "start"])?.spawn()?;
    stage.rig.prefix.clear();
    eventually("the bridge is there", SOON * 20, || stage.rig.bridge())?;
    let ran = stage.rig.sandboxed(&["true"]).and_then(|ran| ran.expect_code(0));
    stage.rig.run(&["proxy", "stop"])?;
    eventually("strace ends with the bridge", SOON * 20, || watched.try_wait().ok().flatten())?;
    ran?;

    let text = fs::read_to_string(&log)?;
    let lines: Vec<&str> = text.lines().collect();
    let first = |what: &str, from: usize, is_it: &dyn Fn(&str) -> bool| {
        let found = lines.iter().skip(from).position(|line| is_it(line)).map(|index| from + index);
        found.ok_or_else(|| {
            let shown: Vec<&str> = lines.iter().filter(|line| line.contains("runs.json")).copied().collect();
            Trouble::new(format!("no {what} after line {from} of the trace:\n{}", shown.join("\n")))
        })
    };
    let file = first("fsync of the new file", 0, &|l| l.contains("sync(") && l.contains("/runs.json.new>"))?;
    let name = first("rename", file, &|l| l.contains("rename") && l.contains("/runs.json\""))?;
    let directory = first("fsync of the directory", name, &|l| l.contains("sync(") && l.contains("/proxy>"))?;
    let answer = first("acknowledgement", 0, &|l| l.contains("HTTP/1.1 201"))?;
    ensure(directory < answer, || format!("acknowledged in line {answer}, on disk in line {directory}"))
}

/// Asks until the credential's server answers; how long that took.
fn answers_again(inside: &Inside) -> Outcome<f64> {
    let start = now();
    let mut last = None;
    let works = || {
        let answer = inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB));
        last = Some(answer);
        last.as_ref()?.as_ref().ok().filter(|answer| answer.status == 200).map(|_| ())
    };
    eventually("the run works again", Duration::from_secs(30), works)
        .map_err(|trouble| Trouble::new(format!("{trouble}\nlast: {last:?}\nprinted: {}", inside.noise())))?;
    Ok(millis(now() - start))
}

/// From a kill to the next bridge, whoever notices first, in milliseconds.
const RESTARTED: f64 = 2000.0;
/// From the restart to a run that works, in milliseconds.
const BACK: f64 = 2000.0;
/// A guest's device may drop the host's end without a word, which pings find out (10 s), and let a dial that nobody takes
/// time out, which the kernel does after 2 s. In milliseconds.
const UNTOLD: f64 = 12_000.0;

/// Kills the bridge; when it died, when the next one was there, and when the run worked again.
fn kill_and_wait(stage: &Stage, inside: &Inside) -> Outcome<[u64; 3]> {
    let killed = stage.rig.bridge().ok_or_else(|| Trouble::new("no bridge to kill"))?;
    let rig = &stage.rig;
    std::thread::scope(|scope| {
        let next = scope.spawn(|| {
            let next = || rig.bridge().filter(|pid| *pid != killed).map(|_| now());
            eventually("the next bridge", Duration::from_secs(15), next)
        });
        let at = now();
        rig.kill_bridge()?;
        answers_again(inside)?;
        let answered = now();
        let restarted = next.join().map_err(|_| Trouble::new("the watcher died"))??;
        Ok([at, restarted, answered])
    })
}

fn killed_and_back() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let within = if Place::here() == Place::Guest { BACK + UNTOLD } else { BACK };
    for _ in 0..5 {
        answers_again(&inside)?;
        let [killed, restarted, answered] = kill_and_wait(&stage, &inside)?;
        let (restart, back) = (millis(restarted - killed), millis(answered.saturating_sub(restarted)));
        ensure(restart < RESTARTED, || format!("{restart:.0} ms until the bridge was started again"))?;
        ensure(back < within, || format!("{back:.0} ms from the restart until the run worked again"))?;
    }
    let visit = inside.visit("vault", false, &[(VAULT_HEADER, VAULT_STUB)], &[])?;
    ensure(visit["tools"].as_array().is_some_and(|tools| tools.len() > 3), || visit.to_string())?;
    ensure(inside.end()? == 0, || "the run's exit code".to_owned())
}

/// What a tunnel had that broke is given back, by whichever end is left.
fn no_descriptor_of_a_broken_tunnel_is_left() -> Outcome {
    const TIMES: usize = 5;
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    answers_again(&inside)?;
    let open = |pid: Pid| fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count);
    let settles = |who: &str, pid: Pid, before: usize| {
        // Some are opened once, as each thread's own connection to an upstream.
        let as_before = || open(pid).ok().filter(|now| *now < before + TIMES).map(|_| ());
        eventually("the descriptors are given back", Duration::from_secs(10), as_before).map_err(|trouble| {
            Trouble::new(format!("{trouble}: the {who} had {before}, now {:?}", open(pid)))
        })
    };
    let left = relay(&stage.rig, &inside)?;
    let before = open(left)?;
    for _ in 0..TIMES {
        kill_and_wait(&stage, &inside)?;
    }
    settles("relay", left, before)?;
    let left = stage.rig.bridge().ok_or_else(|| Trouble::new("no bridge"))?;
    let before = open(left)?;
    for _ in 0..TIMES {
        kill(relay(&stage.rig, &inside)?, Signal::SIGKILL)?;
        answers_again(&inside)?;
    }
    settles("bridge", left, before)?;
    ensure(inside.end()? == 0, || "the run's exit code".to_owned())
}

fn killed_right_after_registration() -> Outcome {
    let stage = Stage::new()?;
    let file = stage.rig.home().join("proxy/runs.json");
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let registered =
                || fs::read_to_string(&file).ok().filter(|text| text.contains("run_")).map(|_| ());
            eventually("a run is on disk", Duration::from_secs(20), registered)?;
            stage.rig.kill_bridge()
        });
        // Killed before the acknowledgement the start fails loudly; after it, the run works.
        let inside = stage.rig.console();
        killer.join().map_err(|_| Trouble::new("the killer died"))??;
        match inside {
            Ok(inside) => answers_again(&inside).map(|_| ()),
            Err(trouble) => {
                let said = trouble.to_string();
                ensure(said.contains("Error:"), || format!("a start that failed silently: {said}"))
            }
        }
    })
}

fn killed_in_a_call() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let call = inside.call(&fault("hang-stream"))?;
    call.text("progress")?;
    let unanswered = inside.call(&fault("hang?unanswered"))?;
    stage.faults.seen.arrived("unanswered", SOON * 3)?;
    let killed = now();
    stage.rig.kill_bridge()?;
    let answer = call.answer()?;
    ensure(answer.kind() == "tunnel_lost" && answer.json()["id"] == 7, || format!("{answer:?}"))?;
    let took = millis(answer.end_at - killed);
    ensure(took < 1000.0, || format!("the agent heard of it after {took:.0} ms"))?;
    expect_error("before the head", &unanswered.answer()?, 502, "tunnel_lost")?;
    answers_again(&inside)?;
    ensure(stage.faults.seen.requests().len() == 2, || "a call was sent twice".to_owned())
}

fn an_unknown_server() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let answer = inside.answer(&discover("nowhere"))?;
    expect_error("an unknown server", &answer, 404, "not_configured")?;
    let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    let said = "MCP server 'nowhere' not configured. Available servers: ";
    ensure(message.contains(said), || message.clone())?;
    for name in ["vault", "local", "faults", "open"] {
        ensure(message.contains(name), || message.clone())?;
    }
    ensure(!message.contains("run_") && !message.contains("localhost"), || message.clone())
}

fn the_next_command_starts_it_again() -> Outcome {
    let stage = Stage::new()?;
    stage.rig.run(&["proxy", "start"])?.expect_code(0)?;
    stage.rig.kill_bridge()?;
    stage.rig.run(&["proxy", "start"])?.expect_code(0)?;
    ensure(stage.rig.bridge().is_some(), || "no bridge".to_owned())
}
