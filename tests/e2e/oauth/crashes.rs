//! The bridge dies, for real, right before each thing that it writes while it spends a refresh token: `strace` hands it a
//! SIGKILL at the system call, so that nothing of the call happens. What a power cut undoes besides is the model's matter.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use moat_tests::{Outcome, clock::eventually, trouble::ensure};

use super::{OAuth, call, fine, traces, works};
use crate::stage::expect_error;

/// What follows from a death at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The token never left, or its successor is in the record: everything works, every token was sent once.
    Works,
    /// The server took it and its answer died with the bridge: once more, and then a person is asked.
    NeedsGrant,
}

struct Step {
    name: &'static str,
    /// Below the directory of the credentials.
    file: &'static str,
    call: &'static str,
    /// The same file was written before the token left as well: only what comes after counts.
    after_the_request: bool,
    then: Then,
}

const STEPS: [Step; 7] = [
    step("K2: before the journal is durable", "oauth:mine.refresh.new", "fsync", false, Then::Works),
    step("K2: before the journal has its name", "oauth:mine.refresh.new", "/^rename", false, Then::Works),
    step("K3: before the token leaves", "", "fsync", false, Then::Works),
    step("K4: before the record is durable", "oauth:mine.enc.new", "fsync", false, Then::NeedsGrant),
    step("K5: before the record has its name", "oauth:mine.enc.new", "/^rename", false, Then::NeedsGrant),
    step("K6: before the name is durable", "", "fsync", true, Then::Works),
    step("K7: before the journal is forgotten", "oauth:mine.refresh", "/^unlink", false, Then::Works),
];

const fn step(
    name: &'static str,
    file: &'static str,
    call: &'static str,
    after_the_request: bool,
    then: Then,
) -> Step {
    Step { name, file, call, after_the_request, then }
}

/// `strace`, until the process that it watches is gone.
struct Watching(Child);

impl Watching {
    fn begin(stage: &OAuth, step: &Step) -> Outcome<Self> {
        let bridge = stage.rig.bridge().ok_or_else(|| moat_tests::Trouble::new("no bridge"))?;
        let said: PathBuf = stage.rig.user_home().join("strace");
        let mut path = stage.rig.home().join("credentials");
        if !step.file.is_empty() {
            path.push(step.file);
        }
        let child = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-P"])
            .arg(path)
            .args(["-e", &format!("trace={}", step.call), "-e", &format!("inject={}:signal=KILL", step.call)])
            .args(["-p", &bridge.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&said)?)
            .spawn()?;
        let watching = Self(child);
        eventually("strace is attached", Duration::from_secs(10), || {
            fs::read_to_string(&said).ok().filter(|text| text.contains("attached")).map(drop)
        })?;
        Ok(watching)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

pub(super) fn a5_killed_before_each_write() -> Outcome {
    for step in &STEPS {
        dies_at(step).map_err(|trouble| moat_tests::Trouble::new(format!("{}: {trouble}", step.name)))?;
    }
    Ok(())
}

fn dies_at(step: &Step) -> Outcome {
    let stage = OAuth::granted()?;
    let inside = stage.rig.console()?;
    works(&inside)?;
    let bridge = stage.rig.bridge();
    stage.authority.kill(&stage.token()?)?;
    let (watching, pending);
    if step.after_the_request {
        // The server has taken the token and takes its time to say so.
        stage.authority.set("fault=slow&wait=5000&times=1")?;
        pending = inside.call(&call())?;
        eventually("the token is taken", Duration::from_secs(10), || {
            stage.authority.refreshes().ok().filter(|all| !all.is_empty()).map(drop)
        })?;
        watching = Watching::begin(&stage, step)?;
    } else {
        watching = Watching::begin(&stage, step)?;
        pending = inside.call(&call())?;
    }
    eventually("the bridge is dead", Duration::from_secs(20), || {
        (stage.rig.bridge() != bridge).then_some(())
    })?;
    drop(watching);
    pending.abandon()?;
    let left = traces(&stage);
    ensure(!left.is_empty(), || "it died before it began, or after it was done".to_owned())?;
    let answer = eventually("an answer that says how it is", Duration::from_secs(30), || {
        let answer = inside.answer(&call()).ok()?;
        (answer.status == 200 || answer.kind() == "needs_grant").then_some(answer)
    })?;
    match step.then {
        Then::Works => {
            fine(&answer)?;
            let before = stage.spent_once()?;
            // What the dead left behind is in nobody's way, and gone with the next renewal.
            stage.authority.kill(&stage.token()?)?;
            works(&inside)?;
            let after = stage.spent_once()?;
            ensure(after == before + 1, || format!("{after} refreshes after {before}"))?;
        }
        Then::NeedsGrant => {
            expect_error(step.name, &answer, 502, "needs_grant")?;
            ensure(answer.body.contains("On the host run: moat grant oauth mine"), || answer.body.clone())?;
            let before = stage.authority.refreshes()?;
            let mut times = BTreeMap::<&str, usize>::new();
            for line in &before {
                *times.entry(line["spent"].as_str().unwrap_or_default()).or_default() += 1;
            }
            ensure(times.values().all(|times| *times == 2), || {
                format!("O6: once, and once more: {before:?}")
            })?;
            for _ in 0..3 {
                expect_error("still", &inside.answer(&call())?, 502, "needs_grant")?;
            }
            ensure(stage.authority.refreshes()?.len() == before.len(), || "O6: a silent loop".to_owned())?;
            stage.grant(&[])?.expect_code(0)?;
            works(&inside)?;
        }
    }
    let settled = || traces(&stage).iter().all(|name| !name.ends_with(".refresh")).then_some(());
    eventually("the journal is gone", Duration::from_secs(5), settled)?;
    inside.end().map(drop)
}
