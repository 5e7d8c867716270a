//! Where a real client waits for ever when it talks to a server that fails, it hears of it at once behind moat.

use std::{fs, process::Command};

use moat_tests::{
    Outcome, Trouble,
    clock::{millis, now},
    inside::Inside,
    matrix::server::Broken,
    parts::{self, Part},
    rig::{Ran, Rig},
    trouble::ensure,
};
use serde_json::{Value, json};

use crate::{
    Test, agents,
    matrix::{Server, configure},
};

pub(crate) const TESTS: &[Test] = &[
    Test::new("typescript_sdk", &[Part::Sandbox, Part::TypeScript], typescript_sdk),
    Test::new("python_sdk", &[Part::Sandbox, Part::Python], python_sdk),
    Test::new("rmcp", &[Part::Sandbox], rmcp),
    Test::new("claude", &[Part::Sandbox, Part::Agents], || agents::ends_each_fault("claude")),
    Test::new("codex", &[Part::Sandbox, Part::Agents], || agents::ends_each_fault("codex")),
    Test::new("gemini", &[Part::Sandbox, Part::Agents], || agents::ends_each_fault("gemini")),
];

/// A server's fault, and the tool: its name says whether JSON or a stream answers.
pub(crate) const FAULTS: &[(&str, &str)] = &[
    ("reset", "call"),
    ("cut", "call"),
    ("cut", "stream"),
    ("cut-reset", "stream"),
    ("cut-inside", "stream"),
    ("half-chunk", "stream"),
    ("no-response", "call"),
    ("no-response", "stream"),
    ("accepted", "call"),
    ("no-content", "call"),
    ("gzip-cut", "stream"),
];
/// Seconds after which a call counts as hung.
const PATIENCE: &str = "4";
/// Milliseconds in which a call behind moat must have ended.
const AT_ONCE: u64 = 2000;

struct Scene {
    rig: Rig,
    broken: Broken,
}

impl Scene {
    fn new() -> Outcome<Self> {
        let (rig, broken) = (Rig::new()?, Broken::plain()?);
        let mut names: Vec<&str> = FAULTS.iter().map(|(fault, _)| *fault).collect();
        names.dedup();
        let server = |name: &&'static str| Server::open(name, format!("{}/{name}", broken.url()));
        configure(&rig, &names.iter().map(server).collect::<Vec<_>>())?;
        Ok(Self { rig, broken })
    }

    /// The calls, to the servers below this URL.
    fn calls(root: &str) -> String {
        FAULTS
            .iter()
            .map(|(fault, tool)| json!([format!("{root}/{fault}"), tool]))
            .collect::<Value>()
            .to_string()
    }

    /// Runs a client without moat, as a control: which calls hang.
    fn direct(&self, program: &[&str], more: &[&str]) -> Outcome<Vec<Value>> {
        let calls = Self::calls(&self.broken.url());
        let arguments = [&program[1..], &[&calls, "{}", PATIENCE], more].concat();
        let ran: Ran =
            Command::new(program[0]).args(arguments).current_dir(self.rig.workspace()).output()?.into();
        read(&ran)
    }

    /// Runs it in the sandbox and compares.
    fn behind_moat(&self, inside: &Inside, program: &[&str], more: &[&str]) -> Outcome {
        let calls = Self::calls(&format!("{}/mcp", inside.relay_url));
        let ran = inside.exec(&[program, &[&calls, "{}", PATIENCE], more].concat(), &[])?;
        let wrong: Vec<String> = FAULTS
            .iter()
            .zip(read(&ran)?)
            .filter(|(_, end)| {
                let told = end["text"].as_str().is_some_and(|text| text.contains("MOAT: "));
                !(told && end["ms"].as_u64().is_some_and(|ms| ms < AT_ONCE))
            })
            .map(|(fault, end)| format!("{fault:?}: {end}"))
            .collect();
        ensure(wrong.is_empty(), || wrong.join("\n"))
    }
}

fn read(ran: &Ran) -> Outcome<Vec<Value>> {
    serde_json::from_str(ran.out.trim())
        .map_err(|error| Trouble::new(format!("{error}\n{}\n{}", ran.out, ran.err)))
}

/// Puts a client's script into the workspace.
fn script(scene: &Scene, name: &str) -> Outcome<String> {
    fs::copy(format!("{}/clients/{name}", env!("CARGO_MANIFEST_DIR")), scene.rig.workspace().join(name))?;
    Ok(format!("./{name}"))
}

fn typescript_sdk() -> Outcome {
    let modules =
        parts::typescript().ok_or_else(|| Trouble::new("no modules"))?.to_string_lossy().into_owned();
    let scene = Scene::new()?;
    let script = script(&scene, "typescript_faults.mjs")?;
    let direct = scene.direct(&["node", &script], &[&modules])?;
    let hung = direct.iter().filter(|end| end["text"] == "hangs").count();
    ensure(hung >= 3, || {
        format!("without moat only {hung} calls hang: is the server's fault one? {direct:?}")
    })?;
    let inside = scene.rig.console_with(&["-m", &format!("{modules}:{modules}:ro")])?;
    scene.behind_moat(&inside, &["node", &script], &[&modules])
}

fn python_sdk() -> Outcome {
    let python = parts::python().ok_or_else(|| Trouble::new("no python"))?;
    let clients = python.ancestors().nth(2).unwrap_or(&python).to_string_lossy().into_owned();
    let python = python.to_string_lossy().into_owned();
    let scene = Scene::new()?;
    let script = script(&scene, "python_faults.py")?;
    let direct = scene.direct(&[&python, &script], &[])?;
    ensure(direct.len() == FAULTS.len(), || format!("{direct:?}"))?;
    let inside = scene.rig.console_with(&["-m", &format!("{clients}:{clients}:ro")])?;
    scene.behind_moat(&inside, &[&python, &script], &[])
}

fn rmcp() -> Outcome {
    let scene = Scene::new()?;
    let inside = scene.rig.console()?;
    for (fault, tool) in FAULTS {
        let asked = now();
        let visit = inside.visit(fault, false, &[], &[(tool, json!({}))])?;
        let took = millis(now() - asked);
        let told = visit["results"][0]["error"].as_str().is_some_and(|text| text.contains("MOAT: "));
        #[expect(clippy::cast_precision_loss, reason = "two seconds")]
        let at_once = took < AT_ONCE as f64;
        ensure(told && at_once, || format!("{fault} {tool}: {took:.0} ms, {visit}"))?;
    }
    Ok(())
}
