//! What only a real guest behind the stand-in for Apple's `container` can show: that it is one, what is in its memory, what
//! comes of one that does not start. What both kinds of machine have in common are rows of other tests (`APPLE_GUEST`).

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::Path,
    process::Stdio,
};

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    guest::QEMU,
    needles,
    parts::Part,
    rig::{PATIENCE, Ran, Rig},
    trouble::ensure,
};
use serde_json::json;

use crate::{
    Test,
    stage::{Stage, VAULT_HEADER, VAULT_STUB},
};

const MACHINE: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("it_is_a_guest_and_does_all_of_it", MACHINE, it_is_a_guest),
    Test::new("its_memory_holds_no_credential", MACHINE, its_memory_holds_no_credential),
    Test::new("stdin_output_and_exit_codes", MACHINE, exit_codes),
    Test::new("one_that_does_not_start_says_why", MACHINE, one_that_does_not_start),
];

fn it_is_a_guest() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    for modern in [false, true] {
        let call = [("echo", json!({"text": "x"}))];
        let visit = inside.visit("vault", modern, &[(VAULT_HEADER, VAULT_STUB)], &call)?;
        ensure(visit["results"].to_string().contains("vault: x"), || visit.to_string())?;
    }
    let says = |words: &[&str]| inside.exec(words, &[])?.expect_code(0);
    // Another kernel than this machine's, and the sidecar is the first process in it.
    let kernel = says(&["uname", "-r"])?.out;
    let ours = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure(kernel != ours && !kernel.is_empty(), || format!("the kernel inside is {kernel:?}"))?;
    let first = says(&["cat", "/proc/1/comm"])?.out;
    ensure(first.trim() == "moat-sidecar", || format!("the first process is {first:?}"))?;
    let devices = says(&["cat", "/proc/net/dev"])?.out;
    let devices: Vec<&str> =
        devices.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    ensure(devices == ["lo"], || format!("network devices: {devices:?}"))?;
    // What the host shares is shared, both ways.
    fs::write(stage.rig.workspace().join("from-host"), "of the host's\n")?;
    says(&["sh", "-c", "cat from-host >from-guest"])?;
    let back = fs::read_to_string(stage.rig.workspace().join("from-guest"))?;
    ensure(back == "of the host's\n", || back.clone())?;
    let refused = inside.exec(&["sh", "-c", "echo x >/.moat/bin/moat-sidecar"], &[])?;
    ensure(refused.code != 0, || "the sidecar can be written to".to_owned())?;

    let run = stage.rig.runs().pop().ok_or_else(|| Trouble::new("no run"))?;
    let run = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let exec = stage.rig.moat(&["exec", &run, "--", "sh", "-c", "cat; echo more >&2; exit 3"])?;
    let exec = fed(exec, "typed\n")?.expect_code(3)?;
    ensure(exec.out == "typed\n" && exec.err.contains("more"), || format!("{exec:?}"))?;
    ensure(inside.end()? == 0, || "exit code".to_owned())
}

/// Runs it with this on its stdin, and then that one's end.
fn fed(mut command: std::process::Command, text: &str) -> Outcome<Ran> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes())?;
    }
    let ended = eventually("it ends with its input", PATIENCE, || child.try_wait().ok().flatten());
    if ended.is_err() {
        child.kill()?;
    }
    let ran = Ran::from(child.wait_with_output()?);
    ended.map(|_| ran)
}

/// All of it: the guest's kernel, its caches, every process, what has ended and what is free.
fn its_memory_holds_no_credential() -> Outcome {
    let stage = Stage::new()?;
    for tunnel in ["published", "unix"] {
        let inside = stage.rig.console_with(&["--tunnel", tunnel])?;
        let call = [("echo", json!({"text": "x"}))];
        inside.visit("vault", false, &[(VAULT_HEADER, VAULT_STUB)], &call)?;
        ensure(
            stage.vault.seen.requests().iter().any(|request| request.mentions(&stage.secret) == 1),
            || "the server did not get the credential, so the search proves nothing".to_owned(),
        )?;
        let memory = memory(&stage.rig)?;
        let holds = |text: &str| memchr::memmem::find(&memory, text.as_bytes()).is_some();
        for wanted in [VAULT_STUB, "moat-sidecar", "Linux version"] {
            ensure(holds(wanted), || format!("{tunnel}: not even {wanted:?} is found"))?;
        }
        for secret in [&stage.secret, &stage.faults_secret] {
            let found = needles::found(&needles::of(secret), &memory);
            ensure(found.is_empty(), || format!("{tunnel}: the guest's memory holds {found:?}"))?;
        }
        ensure(inside.end()? == 0, || format!("{tunnel}: exit code"))?;
    }
    Ok(())
}

/// The guest's memory: a file without a name, of the machine's process.
fn memory(rig: &Rig) -> Outcome<Vec<u8>> {
    let is_machine =
        |pid: &i32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program.ends_with(QEMU));
    let pid = rig.processes().into_iter().map(nix::unistd::Pid::as_raw).find(is_machine);
    let pid = pid.ok_or_else(|| Trouble::new("no machine runs"))?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let is_memory = |path: &Path| {
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:memory-backend"))
    };
    let file = descriptors.map(|entry| entry.path()).find(|path| is_memory(path));
    let mut memory = Vec::new();
    File::open(file.ok_or_else(|| Trouble::new("the machine's memory is no file"))?)?
        .read_to_end(&mut memory)?;
    Ok(memory)
}

fn exit_codes() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let script = "cat; echo err >&2; exit 7";
    let ran = fed(rig.moat(&["run", &workspace, "--", "sh", "-c", script])?, "in\n")?.expect_code(7)?;
    ensure(ran.out == "in\n" && ran.err.contains("err\n"), || format!("{ran:?}"))?;
    rig.sandboxed(&["sh", "-c", "kill -9 $$"])?.expect_code(137)?;
    // More than every buffer on the way.
    let ran = rig.sandboxed(&["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"])?.expect_code(0)?;
    ensure(ran.out.len() == 3_000_000, || format!("{} bytes of 3000000 came", ran.out.len()))
}

/// What its console said last reaches the user, and nothing is left.
fn one_that_does_not_start() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    let files = rig.home().with_extension("files");
    fs::write(&files, "no archive")?;
    rig.apple()?.set(|settings| settings.guest = Some(files))?;
    let ran = rig.sandboxed(&["true"])?;
    ensure(ran.code == 1 && ran.err.contains("Kernel panic"), || format!("{ran:?}"))?;
    ensure(rig.containers().is_empty(), || "a container is left".to_owned())
}
