//! The process runtime: what the sandbox keeps in and out, terminals, exit codes, and that nothing is left.

use std::{fs, process::Stdio};

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    parts::Part,
    rig::{PATIENCE, Ran, Rig},
    trouble::ensure,
};

use crate::Test;

const SANDBOX: &[Part] = &[Part::Sandbox];
const TERMINAL: &[Part] = &[Part::Sandbox, Part::Script];

pub(crate) const TESTS: &[Test] = &[
    Test::new("exit_codes_come_through", SANDBOX, exit_codes_come_through),
    Test::new("only_loopback", SANDBOX, only_loopback),
    Test::new("no_privileges", SANDBOX, no_privileges),
    Test::new("the_host_is_read_only", SANDBOX, the_host_is_read_only),
    Test::new("a_real_terminal", TERMINAL, a_real_terminal),
    Test::new("ctrl_c_reaches_the_agent", TERMINAL, ctrl_c_reaches_the_agent),
    Test::new("every_key_is_the_programs", TERMINAL, every_key_is_the_programs),
    Test::new("orphans_are_reaped_and_nothing_is_left", SANDBOX, orphans_are_reaped_and_nothing_is_left),
    Test::new("stop_from_outside", SANDBOX, stop_from_outside),
    Test::new("pre_run_and_its_failure", SANDBOX, pre_run_and_its_failure),
    Test::new("stdin_and_output_pass", SANDBOX, stdin_and_output_pass),
];

fn exit_codes_come_through() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let cases: [(&[&str], i32); 6] = [
        (&["true"], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "exit 255"], 255),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["no-such-program-at-all"], 127),
        (&["/etc/passwd"], 126),
    ];
    for (command, code) in cases {
        rig.sandboxed(command)?.expect_code(code)?;
    }
    Ok(())
}

fn only_loopback() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let ran = rig.sandboxed(&["cat", "/proc/net/dev"])?.expect_code(0)?;
    let devices: Vec<&str> =
        ran.out.lines().skip(2).filter_map(|l| l.split(':').next()).map(str::trim).collect();
    ensure(devices == ["lo"], || format!("{devices:?}"))?;
    let routes = rig.sandboxed(&["cat", "/proc/net/route"])?.expect_code(0)?;
    ensure(routes.out.lines().count() == 1, || routes.out)
}

fn no_privileges() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let status = rig.sandboxed(&["cat", "/proc/self/status"])?.expect_code(0)?.out;
    let field =
        |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap_or_default();
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        ensure(field(set).chars().all(|c| c == '0'), || format!("{set} {}", field(set)))?;
    }
    ensure(field("NoNewPrivs:") == "1", || status.clone())?;
    ensure(field("Seccomp:") == "2", || status.clone())?;
    ensure(!field("Uid:").starts_with('0'), || format!("the agent is root inside: {}", field("Uid:")))?;
    // 40 is AF_VSOCK: a build machine may itself be a guest. The socket is never connected.
    let vsock = "import socket, sys\ntry: socket.socket(40, 1)\nexcept OSError: sys.exit(0)\nsys.exit(9)";
    if rig.sandboxed(&["python3", "-c", "0"])?.code == 0 {
        rig.sandboxed(&["python3", "-c", vsock])?.expect_code(0)?;
    }
    let unshare = rig.sandboxed(&["unshare", "-Ur", "true"])?;
    ensure(unshare.code != 0, || "the agent can make user namespaces of its own".to_owned())
}

fn the_host_is_read_only() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let witness = format!("/var/tmp/{}", rig.mark());
    for path in ["/usr/moat-was-here", "/etc/moat-was-here", &witness] {
        let ran = rig.sandboxed(&["sh", "-c", &format!("echo x > {path}")])?;
        let written = fs::exists(path)?;
        ensure(!written, || format!("{path} was written on the host ({})", ran.code))?;
    }
    let script =
        "echo from-inside > made-inside && echo x > /tmp/made-inside && echo x > \"$HOME/made-inside\"";
    rig.sandboxed(&["sh", "-c", script])?.expect_code(0)?;
    let made = fs::read_to_string(rig.workspace().join("made-inside"))?;
    ensure(made == "from-inside\n", || made.clone())?;
    for path in ["/tmp/made-inside".into(), rig.user_home().join("made-inside")] {
        ensure(!path.exists(), || format!("{} came out", path.display()))?;
    }
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    ensure(!mounts.contains(rig.mark()), || "a mount is left on the host".to_owned())
}

/// Runs `moat run` under a real terminal, made by script(1), and types `input`.
fn on_a_terminal(rig: &Rig, inner: &str, input: &[u8], when: &str) -> Outcome<Ran> {
    let workspace = rig.workspace().to_string_lossy();
    typed(rig, &["run", &workspace, "--", "bash", "-c", inner], &[(input, when)])
}

/// Runs `moat` under a real terminal, made by script(1), and types each input when its text is shown.
pub(crate) fn typed(rig: &Rig, arguments: &[&str], inputs: &[(&[u8], &str)]) -> Outcome<Ran> {
    let moat = rig.moat(arguments)?;
    let words = std::iter::once(moat.get_program()).chain(moat.get_args());
    let quoted: Vec<String> =
        words.map(|w| format!("'{}'", w.to_string_lossy().replace('\'', "'\\''"))).collect();
    let mut script = std::process::Command::new("script");
    script
        .args(["-q", "-e", "-c", &format!("stty rows 33 cols 99; exec {}", quoted.join(" ")), "/dev/null"])
        .env_clear();
    for (name, value) in moat.get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    let output = rig.workspace().join("typescript");
    let mut child = script
        .env("TERM", "xterm")
        .current_dir(rig.workspace())
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&output)?)
        .stderr(Stdio::inherit())
        .spawn()?;
    let printed =
        || fs::read(&output).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let mut stdin = child.stdin.take().ok_or_else(|| Trouble::new("no stdin"))?;
    for (input, when) in inputs {
        let shown = eventually(&format!("the terminal shows {when}"), PATIENCE, || {
            printed().contains(when).then_some(())
        });
        if let Err(trouble) = shown {
            child.kill()?;
            child.wait()?;
            return Err(Trouble::new(format!("{trouble}\n{}", printed())));
        }
        std::io::Write::write_all(&mut stdin, input)?;
    }
    let ended = eventually("the terminal's program ends", PATIENCE, || child.try_wait().ok().flatten());
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    drop(stdin);
    let ended = ended.map_err(|trouble| Trouble::new(format!("{trouble}\n{}", printed())))?;
    Ok(Ran { code: ended.code().unwrap_or(-1), out: printed(), err: String::new() })
}

fn a_real_terminal() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let inner = "set -e; test -t 0; test -t 1; stty size; exec 3<>/dev/tty; echo has-tty; set -m; sleep 0 & fg; \
                 echo job-control; read -r line; echo \"typed:$line\"; exit 5";
    let ran = on_a_terminal(&rig, inner, b"hello\n", "job-control")?.expect_code(5)?;
    for wanted in ["33 99", "has-tty", "typed:hello"] {
        ensure(ran.out.contains(wanted), || format!("{wanted} is missing: {}", ran.out))?;
    }
    ensure(!ran.out.contains("no job control"), || ran.out.clone())
}

fn ctrl_c_reaches_the_agent() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let inner = "trap 'echo caught; exit 3' INT; echo ready; while :; do read -r -t 1 _; done";
    let ran = on_a_terminal(&rig, inner, b"\x03", "ready")?.expect_code(3)?;
    ensure(ran.out.contains("caught"), || ran.out.clone())
}

/// Ctrl-P Ctrl-Q too, with which engines let go of a container where nobody tells them not to.
fn every_key_is_the_programs() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let inner = "stty raw -echo; echo ready; head -c 3 | od -An -tx1; stty sane; exit 6";
    let ran = on_a_terminal(&rig, inner, b"\x10\x11\x10", "ready")?.expect_code(6)?;
    let shown: Vec<&str> = ran.out.split_whitespace().collect();
    ensure(shown.windows(3).any(|keys| keys == ["10", "11", "10"]), || ran.out.clone())
}

fn orphans_are_reaped_and_nothing_is_left() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let inside = rig.console()?;
    inside.exec(&["sh", "-c", "(setsid sleep 300 >/dev/null 2>&1 &) ; (true &)"], &[])?.expect_code(0)?;
    let zombies = "for s in /proc/[0-9]*/stat; do read -r _ _ state _ < $s && [ \"$state\" = Z ] && echo zombie; done; true";
    let reaped =
        || inside.exec(&["sh", "-c", zombies], &[]).ok().filter(|ran| ran.out.is_empty()).map(|_| ());
    eventually("orphans are reaped", PATIENCE, reaped)?;
    ensure(inside.end()? == 0, || "exit code".to_owned())?;
    let bridge = rig.bridge();
    let left: Vec<_> = rig.processes().into_iter().filter(|pid| Some(*pid) != bridge).collect();
    ensure(left.is_empty(), || format!("left when moat run had ended: {left:?}"))
}

fn stop_from_outside() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let inside = rig.console()?;
    let run = inside.environ()?["MOAT_RUN_ID"].as_str().unwrap_or_default().to_owned();
    let listed = rig.run(&["list"])?.expect_code(0)?;
    ensure(listed.out.contains(&run) && listed.out.contains("running"), || listed.out.clone())?;
    let stopped = rig.run(&["stop", &run])?.expect_code(0)?;
    ensure(format!("{}{}", stopped.out, stopped.err).contains(&format!("Run {run} stopped")), || {
        format!("{stopped:?}")
    })?;
    drop(inside);
    let listed = rig.run(&["list"])?.expect_code(0)?;
    ensure(listed.out.contains("stopped") && !listed.out.contains("running"), || listed.out.clone())
}

fn pre_run_and_its_failure() -> Outcome {
    let rig = Rig::new()?;
    rig.config("hooks:\n  pre_run: echo hooked > hooked; exit ${HOOK_CODE:-0}\n")?;
    let ran = rig.sandboxed(&["cat", "hooked"])?.expect_code(0)?;
    ensure(ran.out == "hooked\n", || format!("{ran:?}"))?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let ran = rig.run(&["run", &workspace, "-e", "HOOK_CODE=9", "--", "touch", "started"])?.expect_code(9)?;
    ensure(!rig.workspace().join("started").exists(), || format!("the agent started all the same: {ran:?}"))
}

fn stdin_and_output_pass() -> Outcome {
    let rig = Rig::new()?;
    rig.config("env: {A: b}\n")?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let mut child = rig
        .moat(&["run", &workspace, "--", "sh", "-c", "cat; echo on-stderr >&2"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        std::io::Write::write_all(&mut stdin, b"through\n")?;
    }
    let ran = Ran::from(child.wait_with_output()?).expect_code(0)?;
    ensure(ran.out == "through\n" && ran.err.contains("on-stderr"), || format!("{ran:?}"))?;
    let logs = rig.run(&["logs"])?.expect_code(0)?;
    ensure(logs.out.contains("through") && logs.out.contains("on-stderr"), || format!("{logs:?}"))
}
