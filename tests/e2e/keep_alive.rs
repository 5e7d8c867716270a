//! No client's idle limit cuts a long call: the relay fills the silence with comments (R20).
//!
//! The limits of real clients are minutes long. One test scales a limit down; the long ones run only where
//! `MOAT_TESTS_LONG` is set, which `.ci/long` does.

use std::{fs, process::Command, time::Duration};

use moat_tests::{
    Outcome, Trouble,
    inside::Inside,
    parts::{self, Part},
    rig::Ran,
    trouble::ensure,
};
use serde_json::{Value, json};

use crate::{Test, stage::Stage};

pub(crate) const TESTS: &[Test] = &[
    Test::new("r19_r20_undici_with_a_limit_of_20_seconds", &[Part::Sandbox, Part::TypeScript], scaled)
        .ahead(),
    Test::new(
        "r19_r20_typescript_330_seconds",
        &[Part::Sandbox, Part::TypeScript, Part::Schedule],
        typescript,
    )
    .ahead(),
    Test::new("r19_r20_python_330_seconds", &[Part::Sandbox, Part::Python, Part::Schedule], python).ahead(),
    Test::new("r19_r20_rmcp_330_seconds", &[Part::Sandbox, Part::Schedule], || rmcp(true)).ahead(),
    Test::new("r19_r20_rmcp_in_a_session_330_seconds", &[Part::Sandbox, Part::Schedule], || rmcp(false))
        .ahead(),
];

/// Longer than any limit that was seen: undici's and Claude Code's are 300 s.
const LONG: u64 = 330;

/// The client's command, but for the URL and what follows it.
fn script(stage: &Stage, name: &str) -> Outcome<String> {
    let own = format!("{}/clients/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::copy(own, stage.rig.workspace().join(name))?;
    Ok(format!("./{name}"))
}

/// Runs a program inside for longer than a task usually may take.
fn run(inside: &Inside, argv: &[&str], seconds: u64) -> Outcome<Ran> {
    inside.exec_within(argv, &[], Duration::from_secs(seconds * 2 + 30))
}

fn modules() -> Outcome<String> {
    let modules = parts::typescript().ok_or_else(|| Trouble::new("no modules"))?;
    Ok(modules.to_string_lossy().into_owned())
}

/// A silence of 40 s, and a client that gives a stream up after 20 s of it.
fn scaled() -> Outcome {
    let modules = modules()?;
    let stage = Stage::new()?;
    let script = script(&stage, "typescript_patience.mjs")?;
    let inside = stage.rig.console_with(&["-m", &format!("{modules}:{modules}:ro")])?;
    // Without moat the very same client is interrupted: there is a limit to be kept away from.
    let mut direct = Command::new("node");
    direct.args([&script, &stage.local.url(), &modules, "40", "20"]).current_dir(stage.rig.workspace());
    let direct = std::thread::spawn(move || direct.output());
    let url = format!("{}/mcp/local", inside.relay_url);
    let through = run(&inside, &["node", &script, &url, &modules, "40", "20"], 40)?.expect_code(0)?;
    let direct = direct.join().map_err(|_| Trouble::new("the client panicked"))??;
    let direct = Ran::from(direct).expect_code(0)?;
    uninterrupted(&through)?;
    let control: Value = serde_json::from_str(direct.out.trim())?;
    ensure(control["interrupted"].as_u64() > Some(0), || format!("no limit without moat: {}", direct.out))
}

fn uninterrupted(ran: &Ran) -> Outcome {
    let said: Value = serde_json::from_str(ran.out.trim())?;
    let whole = said["text"] == "2 steps" && said["interrupted"].as_u64().unwrap_or_default() == 0;
    ensure(whole, || format!("{}\n{}", ran.out, ran.err))
}

fn typescript() -> Outcome {
    let modules = modules()?;
    let stage = Stage::new()?;
    let script = script(&stage, "typescript_patience.mjs")?;
    let inside = stage.rig.console_with(&["-m", &format!("{modules}:{modules}:ro")])?;
    let url = format!("{}/mcp/local", inside.relay_url);
    uninterrupted(&run(&inside, &["node", &script, &url, &modules, &LONG.to_string()], LONG)?.expect_code(0)?)
}

fn python() -> Outcome {
    let python = parts::python().ok_or_else(|| Trouble::new("no python"))?;
    let clients = python.ancestors().nth(2).unwrap_or(&python).to_string_lossy().into_owned();
    let stage = Stage::new()?;
    let script = script(&stage, "python_patience.py")?;
    let inside = stage.rig.console_with(&["-m", &format!("{clients}:{clients}:ro")])?;
    let url = format!("{}/mcp/local", inside.relay_url);
    let argv = [&python.to_string_lossy(), &*script, &url, &LONG.to_string()];
    uninterrupted(&run(&inside, &argv, LONG)?.expect_code(0)?)
}

fn rmcp(modern: bool) -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let visit = json!({
        "url": format!("{}/mcp/local", inside.relay_url), "modern": modern, "headers": {},
        "calls": [["steps", {"count": 2, "every_ms": LONG * 1000}]],
    });
    let argv = ["./.fixtures/moat-fixture-client", "mcp", &visit.to_string()];
    let ran = run(&inside, &argv, LONG)?.expect_code(0)?;
    ensure(ran.out.contains("2 steps"), || ran.out.clone())
}
