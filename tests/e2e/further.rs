//! `moat exec`: a further command, as the agent, on every runtime.

use std::{
    io::{Read, Write},
    process::Stdio,
};

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    inside::Inside,
    parts::Part,
    place::Place,
    rig::{PATIENCE, Ran, Rig},
    trouble::ensure,
};

use crate::{
    Test,
    sandbox::typed,
    stage::{Stage, VAULT_HEADER, VAULT_STUB, discover},
};

const SANDBOX: &[Part] = &[Part::Sandbox];
const TERMINAL: &[Part] = &[Part::Sandbox, Part::Script];

pub(crate) const TESTS: &[Test] = &[
    Test::new("is_the_agents_equal", SANDBOX, is_the_agents_equal),
    Test::new("codes_and_streams", SANDBOX, codes_and_streams),
    Test::new("has_a_terminal", TERMINAL, has_a_terminal),
    Test::new("ends_with_whoever_asked", SANDBOX, ends_with_whoever_asked),
    Test::new("only_runs_that_run", SANDBOX, only_runs_that_run),
];

fn id_of(inside: &Inside) -> Outcome<String> {
    Ok(inside.environ()?["MOAT_RUN_ID"].as_str().unwrap_or_default().to_owned())
}

/// The fields of /proc/self/status that say what a process may do.
fn rights(status: &str) -> Vec<&str> {
    const FIELDS: [&str; 10] = [
        "Uid:",
        "Gid:",
        "Groups:",
        "CapInh:",
        "CapPrm:",
        "CapEff:",
        "CapBnd:",
        "CapAmb:",
        "NoNewPrivs:",
        "Seccomp_filters:",
    ];
    status.lines().filter(|line| FIELDS.iter().any(|field| line.starts_with(field))).collect()
}

fn is_the_agents_equal() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let run = id_of(&inside)?;
    // Same user, same rights: what the agent's own child has.
    let wanted = inside.exec(&["cat", "/proc/self/status"], &[])?.expect_code(0)?.out;
    let got = stage.rig.run(&["exec", &run, "--", "cat", "/proc/self/status"])?.expect_code(0)?.out;
    ensure(rights(&wanted) == rights(&got) && rights(&got).len() >= 9, || format!("{wanted}\n---\n{got}"))?;
    // Same environment, same place.
    let script = "env | grep -v -e '^_=' -e '^SHLVL=' -e '^OLDPWD=' | sort; pwd";
    let wanted = inside.exec(&["sh", "-c", script], &[])?.expect_code(0)?.out;
    let got = stage.rig.run(&["exec", &run, "--", "sh", "-c", script])?.expect_code(0)?.out;
    ensure(wanted == got && got.contains("MOAT_RELAY_URL"), || format!("{wanted}\n---\n{got}"))?;
    stage.nothing_in("the environment of exec", &got)?;
    // The relay serves it, and the key is as far away as it is from the agent.
    let answer = inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB))?;
    ensure(answer.status == 200, || format!("{answer:?}"))?;
    let memory = stage.rig.run(&["exec", &run, "--", "cat", "/proc/1/environ"])?;
    ensure(memory.code != 0, || format!("PID 1 is open: {memory:?}"))?;
    ensure(inside.end()? == 0, || "the run's own exit code".to_owned())
}

fn codes_and_streams() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let inside = rig.console()?;
    let run = id_of(&inside)?;
    let cases: [(&[&str], i32); 5] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["no-such-program-at-all"], 127),
        (&["/etc/passwd"], 126),
    ];
    for (command, code) in cases {
        let ran = rig.run(&[&["exec", &run, "--"], command].concat())?.expect_code(code)?;
        ensure(!(126..=127).contains(&code) || ran.err.contains(command[0]), || {
            format!("says nothing: {ran:?}")
        })?;
    }
    let mut child = rig
        .moat(&["exec", &run, "--", "sh", "-c", "cat; echo on-stderr >&2; echo $A"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(&vec![b'x'; 300_000])?;
    }
    let ran = Ran::from(child.wait_with_output()?).expect_code(0)?;
    ensure(ran.out.len() == 300_002 && ran.out.ends_with("xb\n"), || format!("{} bytes", ran.out.len()))?;
    ensure(ran.err == "on-stderr\n", || ran.err.clone())?;
    // It is not the run: what it printed is not in the run's log, and its end ends nothing.
    let logs = rig.run(&["logs", &run])?;
    ensure(!logs.out.contains("on-stderr"), || logs.out)?;
    ensure(inside.end()? == 0, || "the run's own exit code".to_owned())
}

fn has_a_terminal() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let inside = rig.console()?;
    let run = id_of(&inside)?;
    let script = "set -e; test -t 0; test -t 1; stty size; exec 3<>/dev/tty; echo has-tty; set -m; sleep 0 & fg; \
                  echo job-control; read -r line; echo \"typed:$line\"; trap 'echo caught; exit 5' INT; echo ready; \
                  while :; do read -r -t 1 _; done";
    let arguments = ["exec", &run, "--", "bash", "-c", script];
    let ran = typed(&rig, &arguments, &[(b"hello\n", "job-control"), (b"\x03", "ready")])?.expect_code(5)?;
    for wanted in ["33 99", "has-tty", "typed:hello", "caught"] {
        ensure(ran.out.contains(wanted), || format!("{wanted} is missing: {}", ran.out))?;
    }
    ensure(!ran.out.contains("no job control"), || ran.out.clone())?;
    ensure(inside.end()? == 0, || "the run's own exit code".to_owned())
}

/// In namespaces the command's asker goes with `moat exec`, and PID 1 hangs up on the command.
fn ends_with_whoever_asked() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let inside = rig.console()?;
    let run = id_of(&inside)?;
    let mut child = rig
        .moat(&[
            "exec",
            &run,
            "--",
            "sh",
            "-c",
            "exec 2>/dev/null; trap 'touch hung-up; exit' HUP; echo up; while :; do sleep 0.1; done",
        ])?
        .stdout(Stdio::piped())
        .spawn()?;
    let mut up = [0; 3];
    child.stdout.as_mut().ok_or_else(|| Trouble::new("no stdout"))?.read_exact(&mut up)?;
    child.kill()?;
    child.wait()?;
    if Place::here() == Place::Process {
        let hung_up = rig.workspace().join("hung-up");
        eventually("the command was hung up", PATIENCE, || hung_up.exists().then_some(()))?;
    }
    ensure(inside.end()? == 0, || "the run's own exit code".to_owned())
}

fn only_runs_that_run() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    rig.sandboxed(&["true"])?.expect_code(0)?;
    let run = rig.runs().pop().and_then(|run| Some(run.file_name()?.to_string_lossy().into_owned()));
    let run = run.ok_or_else(|| Trouble::new("no run"))?;
    let refused = rig.run(&["exec", &run, "--", "true"])?.expect_code(1)?;
    ensure(refused.err.contains("is not running") && refused.err.contains("moat list"), || {
        format!("{refused:?}")
    })?;
    let unknown = rig.run(&["exec", "run_ffffffffffff", "--", "true"])?.expect_code(1)?;
    ensure(unknown.err.contains("no run found"), || format!("{unknown:?}"))
}
