//! `runtime: apple`, driven against a stand-in for Apple's `container` command (see `moat-standin-container`): what is shown
//! here is the driver, and nothing about Apple's tool. What every runtime has in common runs on it too, as `apple::…`.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    process::Stdio,
    time::Duration,
};

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    engine::IMAGE,
    inside::{Answer, Inside},
    parts::Part,
    rig::{PATIENCE, Rig},
    trouble::ensure,
};

use crate::{
    Test,
    sandbox::typed,
    stage::{Stage, VAULT_HEADER, VAULT_STUB, discover},
};

const APPLE: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("the_json_of_each_version", APPLE, the_json_of_each_version),
    Test::new("versions_that_are_too_old", APPLE, versions_that_are_too_old),
    Test::new("refusals_name_the_remedy", APPLE, refusals_name_the_remedy),
    Test::new("what_cannot_be_enforced_is_refused", APPLE, what_cannot_be_enforced),
    Test::new("a_state_that_is_not_known_is_not_stopped", APPLE, a_state_that_is_not_known),
    Test::new("the_tool_sees_little_of_our_environment", APPLE, the_tool_sees_little),
    Test::new("exit_codes", APPLE, exit_codes),
    Test::new("a_terminal", APPLE, a_terminal),
    Test::new("stopped_by_the_tool", APPLE, stopped_by_the_tool),
    Test::new("both_carriers", APPLE, both_carriers),
    Test::new("one_connection_at_a_time", APPLE, one_connection_at_a_time),
    Test::new("a_bridge_that_comes_back", APPLE, a_bridge_that_comes_back),
    Test::new("a_relay_that_dies_of_one_refusal", APPLE, a_relay_that_dies_of_one_refusal),
    Test::new("a_relay_that_stops_delivering", APPLE, a_relay_that_stops_delivering).ahead(),
    Test::new("the_command_is_killed", APPLE, the_command_is_killed),
    Test::new("nothing_is_kept", APPLE, nothing_is_kept),
    Test::new("the_doctor_tells", APPLE, the_doctor_tells),
];

fn asks(inside: &Inside) -> Outcome<Answer> {
    inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB))
}

fn works(inside: &Inside) -> Outcome {
    let answer = asks(inside)?;
    ensure(answer.status == 200, || format!("{answer:?}"))
}

/// A call that was sent before anybody noticed gets an error; later ones wait for the tunnel.
fn comes_back(inside: &Inside, patience: Duration) -> Outcome {
    eventually("the tunnel comes back", patience, || works(inside).ok())
}

fn status(rig: &Rig) -> Outcome<String> {
    Ok(rig.run(&["status"])?.expect_code(0)?.out)
}

fn the_json_of_each_version() -> Outcome {
    for version in ["1.1.0", "1.2.1", "1.3.1", "1.4.1"] {
        let stage = Stage::new()?;
        stage.rig.apple()?.set(|settings| settings.version = version.to_owned())?;
        let inside = stage.rig.console()?;
        works(&inside).map_err(|trouble| Trouble::new(format!("{version}: {trouble}")))?;
        let run =
            stage.rig.runs().last().and_then(|run| Some(run.file_name()?.to_string_lossy().into_owned()));
        let run = run.unwrap_or_default();
        let more = stage.rig.run(&["exec", &run, "--", "sh", "-c", "echo more; exit 3"])?.expect_code(3)?;
        ensure(more.out == "more\n", || format!("{version}: {more:?}"))?;
        ensure(inside.end()? == 0, || format!("{version}: exit code"))?;
    }
    Ok(())
}

fn versions_that_are_too_old() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    for version in ["0.12.3", "1.0.0"] {
        rig.apple()?.set(|settings| settings.version = version.to_owned())?;
        let ran = rig.sandboxed(&["true"])?.expect_code(1)?;
        let wanted = format!("container {version} is too old");
        ensure(ran.err.contains(&wanted) && ran.err.contains("releases"), || ran.err.clone())?;
    }
    ensure(rig.runs().is_empty() && rig.bridge().is_none(), || "something was started".to_owned())?;
    rig.apple()?.set(|settings| settings.version = "1.1.0".to_owned())?;
    let ran = rig.sandboxed(&["true"])?.expect_code(0)?;
    ensure(ran.err.contains("Warning: container 1.1.0 is older than 1.2.1"), || ran.err.clone())
}

fn refusals_name_the_remedy() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    rig.apple()?.set(|settings| settings.service = false)?;
    let ran = rig.sandboxed(&["true"])?.expect_code(1)?;
    ensure(ran.err.contains("container system start"), || ran.err.clone())?;
    rig.apple()?.set(|settings| (settings.service, settings.kernel) = (true, false))?;
    let ran = rig.sandboxed(&["true"])?.expect_code(1)?;
    ensure(ran.err.contains("container system kernel set --recommended"), || ran.err.clone())?;
    rig.apple()?.set(|settings| {
        settings.kernel = true;
        let image = settings.images.get_mut(IMAGE).map(|image| &mut image.architecture);
        image.map(|architecture| *architecture = "s390x".to_owned()).unwrap_or_default();
    })?;
    let ran = rig.sandboxed(&["true"])?.expect_code(1)?;
    ensure(ran.err.contains("is for s390x"), || ran.err.clone())?;
    // One that moat knows, and carries no sidecar for.
    let other = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
    rig.apple()?.set(|settings| {
        let image = settings.images.get_mut(IMAGE).map(|image| &mut image.architecture);
        image.map(|architecture| *architecture = other.to_owned()).unwrap_or_default();
    })?;
    if !rig.run(&["version"])?.out.contains(other) {
        let ran = rig.sandboxed(&["true"])?.expect_code(1)?;
        let wanted = format!("no sidecar for {other}");
        ensure(ran.err.contains(&wanted) && ran.err.contains("MOAT_SIDECAR_ALSO"), || ran.err.clone())?;
    }
    fs::write(rig.workspace().join("moat.yaml"), "image: localhost/moat-test:none\n")?;
    let ran = rig.sandboxed(&["true"])?.expect_code(1)?;
    ensure(ran.err.contains("there is no image localhost/moat-test:none"), || ran.err.clone())?;
    ensure(rig.containers().is_empty() && staged(&rig) == 0, || "something is left".to_owned())
}

fn what_cannot_be_enforced() -> Outcome {
    let rig = Rig::new()?;
    for (yaml, says) in [
        ("container: {read_only: true}\n", "container.read_only is not possible"),
        ("network: {mode: host}\n", "network mode 'host'"),
        ("mounts: ['./moat.yaml:/x:ro']\n", "is not a directory"),
    ] {
        rig.config(yaml)?;
        let ran = rig.sandboxed(&["true"])?.expect_code(1)?;
        ensure(ran.err.contains(says), || format!("{yaml}: {}", ran.err))?;
    }
    rig.config("")?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let ran = rig.run(&["run", "--tunnel", "gateway", &workspace, "--", "true"])?.expect_code(1)?;
    ensure(ran.err.contains("has no tunnel 'gateway'"), || ran.err.clone())?;
    ensure(rig.containers().is_empty() && rig.runs().is_empty(), || "something was started".to_owned())
}

/// A container whose state the tool does not know, or has a new word for, may well run: only "stopped" keeps a command out.
fn a_state_that_is_not_known() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let run = stage.rig.runs().pop().ok_or_else(|| Trouble::new("no run"))?;
    let run = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for (word, code) in [("unknown", 3), ("paused", 3), ("stopping", 3), ("stopped", 1)] {
        stage.rig.apple()?.set(|settings| settings.running = word.to_owned())?;
        let ran = stage.rig.run(&["exec", &run, "--", "sh", "-c", "echo more; exit 3"])?;
        ensure(ran.code == code && (ran.out == "more\n") == (code == 3), || format!("{word}: {ran:?}"))?;
        works(&inside)?;
        ensure(stage.rig.containers().len() == 1, || format!("{word}: the container is gone"))?;
    }
    ensure(inside.end()? == 0, || "exit code".to_owned())
}

/// Neither that of `moat run`, nor the bridge's, nor moat's own settings.
fn the_tool_sees_little() -> Outcome {
    let mut stage = Stage::new()?;
    for (name, value) in [("HOST_ONLY_TOKEN", "t"), ("CONTAINER_OF_ITS_OWN", "1"), ("LANG", "C")] {
        stage.rig.env.insert(name.to_owned(), value.to_owned());
    }
    let inside = stage.rig.console()?;
    works(&inside)?;
    ensure(inside.end()? == 0, || "exit code".to_owned())?;
    let seen: Vec<String> = stage.rig.apple()?.environment()?.into_iter().collect();
    ensure(seen == ["CONTAINER_OF_ITS_OWN", "HOME", "LANG", "PATH"], || format!("it sees {seen:?}"))
}

fn exit_codes() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -9 $$", 137)] {
        rig.sandboxed(&["sh", "-c", script])?.expect_code(code)?;
    }
    rig.sandboxed(&["/nonexistent"])?.expect_code(127)?;
    let ran = rig.sandboxed(&["sh", "-c", "cat; echo out; echo err >&2"])?.expect_code(0)?;
    ensure(ran.out == "out\n" && ran.err.contains("err\n"), || format!("{ran:?}"))
}

fn a_terminal() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let inner = "stty size; echo ready; read line; echo \"got <$line>\"; exit 5";
    let ran = typed(&rig, &["run", &workspace, "--", "bash", "-c", inner], &[(b"typed\r", "ready")])?;
    ensure(ran.code == 5, || format!("{ran:?}"))?;
    for wanted in ["33 99", "got <typed>"] {
        ensure(ran.out.contains(wanted), || format!("no {wanted:?} in {:?}", ran.out))?;
    }
    for secret in ["PRIVATE KEY", "identity", "moat:startup"] {
        ensure(!ran.out.contains(secret), || format!("the terminal shows {secret}: {:?}", ran.out))?;
    }
    Ok(())
}

/// The tool gives five seconds; PID 1 has ended everything before, and taken out what it had put in.
fn stopped_by_the_tool() -> Outcome {
    let stage = Stage::new()?;
    for (script, code) in [("trap 'exit 5' TERM", 5), ("trap '' TERM", 137)] {
        let script = format!("{script}; echo up-{code}; while :; do sleep 0.1; done");
        let workspace = stage.rig.workspace().to_string_lossy().into_owned();
        let mut child = stage
            .rig
            .moat(&["run", &workspace, "--", "sh", "-c", &script])?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let checked = stopped(&stage.rig, &mut child, code);
        let _ended_already = (child.kill(), child.wait());
        checked.map_err(|trouble| Trouble::new(format!("{script}: {trouble}")))?;
    }
    Ok(())
}

fn stopped(rig: &Rig, child: &mut std::process::Child, code: i32) -> Outcome {
    let up = format!("up-{code}");
    eventually("the program is up", PATIENCE, || {
        rig.run(&["logs"]).ok().filter(|ran| ran.out.contains(&up)).map(|_| ())
    })?;
    let put_in = rig.workspace().join(".mcp.json");
    ensure(put_in.exists(), || "nothing was put in".to_owned())?;
    let id = rig.containers().pop().ok_or_else(|| Trouble::new("no container"))?;
    let tool = rig.apple()?.tool();
    let stopped = std::process::Command::new(tool).args(["stop", &id]).output()?;
    ensure(stopped.status.success(), || format!("{stopped:?}"))?;
    let ended = eventually("the run ends", PATIENCE, || child.try_wait().ok().flatten())?;
    ensure(ended.code() == Some(code), || format!("{ended:?}, not {code}"))?;
    ensure(!put_in.exists(), || "PID 1 did not come to take out what it had put in".to_owned())
}

fn both_carriers() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    works(&inside)?;
    let says = status(&stage.rig)?;
    ensure(says.contains("open (unix, dialled"), || says)?;
    // Nobody but root comes to the socket in the machine.
    let listed = inside.exec(&["ls", "-ldn", "/.moat/tunnel"], &[])?;
    ensure(listed.out.starts_with("drwx------") && listed.out.contains(" 0 "), || format!("{listed:?}"))?;
    ensure(inside.end()? == 0, || "exit code".to_owned())?;

    let inside = stage.rig.console_with(&["--tunnel", "unix"])?;
    works(&inside)?;
    let says = status(&stage.rig)?;
    ensure(says.contains("open (unix, sidecar"), || says)?;
    let host = staged_socket(&stage.rig, "i")?;
    ensure(fs::metadata(&host)?.permissions().mode() & 0o777 == 0o666, || "the socket's mode".to_owned())?;
    ensure(inside.end()? == 0, || "exit code".to_owned())?;

    // Where PID 1 is not root, nobody could listen in the machine: the other carrier.
    let yaml = fs::read_to_string(stage.rig.workspace().join("moat.yaml"))?;
    fs::write(stage.rig.workspace().join("moat.yaml"), format!("{yaml}container: {{cap_drop: [ALL]}}\n"))?;
    let inside = stage.rig.console_with(&["--image", "localhost/moat-test:dev"])?;
    works(&inside)?;
    let who = inside.exec(&["id", "-u"], &[])?;
    ensure(who.out.trim() == "1234", || format!("{who:?}"))?;
    ensure(inside.end()? == 0, || "exit code".to_owned())
}

/// Where a staged socket is.
fn staged_socket(rig: &Rig, name: &str) -> Outcome<std::path::PathBuf> {
    let stages = fs::read_dir(rig.home().join("proxy/apple"))?.flatten();
    let found = stages
        .map(|stage| stage.path().join(name))
        .find(|path| fs::metadata(path).is_ok_and(|about| about.file_type().is_socket()));
    found.ok_or_else(|| Trouble::new(format!("no socket {name}")))
}

/// What lies on the host for containers.
fn staged(rig: &Rig) -> usize {
    fs::read_dir(rig.home().join("proxy/apple")).into_iter().flatten().count()
}

/// Many calls, one connection: the relay hangs at several.
fn one_connection_at_a_time() -> Outcome {
    let stage = Stage::new()?;
    for tunnel in ["published", "unix"] {
        stage.rig.apple()?.set(|settings| settings.defects.hangs_at = 2)?;
        let inside = stage.rig.console_with(&["--tunnel", tunnel])?;
        let calls = (0..16)
            .map(|_| inside.call(&discover("vault").header(VAULT_HEADER, VAULT_STUB)))
            .collect::<Outcome<Vec<_>>>()?;
        for call in calls {
            let answer = call.answer()?;
            ensure(answer.status == 200, || format!("{tunnel}: {answer:?}"))?;
        }
        let peak = fs::read_to_string(stage.rig.apple()?.container()?.join("peak"))?;
        ensure(peak == "1", || format!("{tunnel}: {peak} connections at a time"))?;
        ensure(inside.end()? == 0, || "exit code".to_owned())?;
    }
    Ok(())
}

/// A bridge is killed and comes back, while the relay forgives no refusal.
fn a_bridge_that_comes_back() -> Outcome {
    let stage = Stage::new()?;
    for tunnel in ["published", "unix"] {
        let inside = stage.rig.console_with(&["--tunnel", tunnel])?;
        works(&inside)?;
        for _ in 0..3 {
            stage.rig.kill_bridge()?;
            comes_back(&inside, PATIENCE).map_err(|trouble| Trouble::new(format!("{tunnel}: {trouble}")))?;
        }
        let container = stage.rig.apple()?.container()?;
        for fault in ["dead", "hung"] {
            ensure(!container.join(fault).exists(), || format!("{tunnel}: the relay is {fault}"))?;
        }
        ensure(inside.end()? == 0, || format!("{tunnel}: exit code"))?;
    }
    Ok(())
}

/// The stand-in's relay has the defect: a socket that is absent for a moment ends it. moat's is never absent, so that
/// nothing ends here but what the test takes away itself.
fn a_relay_that_dies_of_one_refusal() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console_with(&["--tunnel", "unix"])?;
    works(&inside)?;
    let container = stage.rig.apple()?.container()?;
    // Without a bridge, and without anybody who would start the next: every attempt of the sidecar's is in vain, and none
    // is refused.
    let holder = nix::unistd::Pid::from_raw(i32::try_from(inside.pid())?);
    nix::sys::signal::kill(holder, nix::sys::signal::Signal::SIGSTOP)?;
    let killed = stage.rig.kill_bridge();
    std::thread::sleep(Duration::from_secs(3));
    nix::sys::signal::kill(holder, nix::sys::signal::Signal::SIGCONT)?;
    killed?;
    comes_back(&inside, PATIENCE)?;
    ensure(!container.join("dead").exists(), || "the relay was refused once".to_owned())?;
    // That the stand-in would have died: the socket goes, the sidecar dials again, and it never delivers again.
    let host = staged_socket(&stage.rig, "i")?;
    fs::rename(&host, host.with_extension("away"))?;
    stage.rig.kill_bridge()?;
    eventually("the stand-in's relay dies of it", PATIENCE, || {
        container.join("dead").exists().then_some(())
    })?;
    ensure(inside.end()? == 0, || "exit code".to_owned())
}

/// The connection stays open and carries nothing any more: pings tell, and the next one works.
fn a_relay_that_stops_delivering() -> Outcome {
    let stage = Stage::new()?;
    for tunnel in ["published", "unix"] {
        let inside = stage.rig.console_with(&["--tunnel", tunnel])?;
        works(&inside)?;
        let container = stage.rig.apple()?.container()?;
        fs::write(container.join("stall"), "")?;
        comes_back(&inside, Duration::from_secs(90))
            .map_err(|trouble| Trouble::new(format!("{tunnel}: {trouble}")))?;
        ensure(inside.end()? == 0, || format!("{tunnel}: exit code"))?;
    }
    Ok(())
}

fn the_command_is_killed() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let mut child = rig
        .moat(&["run", &workspace, "--", "sh", "-c", "echo up; sleep 600"])?
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    eventually("the program is up", PATIENCE, || {
        rig.run(&["logs"]).ok().filter(|ran| ran.out.contains("up")).map(|_| ())
    })?;
    child.kill()?;
    child.wait()?;
    eventually("the bridge removes the container", PATIENCE, || rig.containers().is_empty().then_some(()))?;
    eventually("and what lay on the host for it", PATIENCE, || (staged(&rig) == 0).then_some(()))
}

/// Neither by the tool, nor on the host, nor in what the container wrote.
fn nothing_is_kept() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    works(&inside)?;
    let container = stage.rig.apple()?.container()?;
    let id = stage.rig.containers().pop().unwrap_or_default();
    let tool = stage.rig.apple()?.tool();
    for arguments in [&["inspect", &id][..], &["list", "--all", "--format", "json"]] {
        let said = std::process::Command::new(&tool).args(arguments).output()?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        ensure(text.contains(&id), || format!("{arguments:?}: {text}"))?;
        stage.nothing_in(&arguments.join(" "), &text)?;
        ensure(!text.contains("PRIVATE KEY") && !text.contains("BEGIN CERT"), || text.clone())?;
    }
    let mut places = vec![container.clone(), stage.rig.home().join("proxy/apple")];
    let mut stubs = 0;
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(place)?.flatten() {
            let (kind, path) = (entry.file_type()?, entry.path());
            if kind.is_dir() {
                places.push(path);
            } else if kind.is_file() && entry.metadata()?.len() < 8 << 20 {
                let bytes = fs::read(&path)?;
                let holds = |text: &str| memchr::memmem::find(&bytes, text.as_bytes()).is_some();
                stubs += usize::from(holds(VAULT_STUB));
                for secret in ["-----BEGIN PRIVATE KEY-----\nM", &stage.secret, &stage.faults_secret] {
                    ensure(!holds(secret), || format!("{} holds {secret}", path.display()))?;
                }
            }
        }
    }
    ensure(stubs > 0, || "not even the stub is found".to_owned())?;
    ensure(inside.end()? == 0, || "exit code".to_owned())?;
    ensure(stage.rig.containers().is_empty() && staged(&stage.rig) == 0, || "something is left".to_owned())
}

fn the_doctor_tells() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    let told = rig.run(&["doctor", "-v"])?.out;
    for wanted in [
        "apple: container 1.2.1 is ",
        "only --runtime apple starts it",
        "its service is running",
        "carries sidecars for",
    ] {
        ensure(told.contains(wanted), || format!("no {wanted:?} in\n{told}"))?;
    }
    rig.apple()?.set(|settings| settings.service = false)?;
    let told = rig.run(&["doctor"])?.out;
    ensure(told.contains("container system start"), || told)
}
