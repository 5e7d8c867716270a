//! `network.mode: open` on the process runtime: out, and not back.
//!
//! moat runs on a host of the test's own, whose way out leads to another one.

use std::{fs, process::Stdio};

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    parts::Part,
    rig::{PATIENCE, Rig},
    trouble::ensure,
    world::{BEYOND, HOST, World},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::Test;

const WORLD: &[Part] = &[Part::Sandbox, Part::Pasta, Part::Curl];

pub(crate) const TESTS: &[Test] = &[
    Test::new("open_leads_out_and_not_back", WORLD, open_leads_out_and_not_back),
    Test::new("nothing_of_it_is_left", WORLD, nothing_of_it_is_left),
    Test::new("no_way_out_is_no_start", WORLD, no_way_out_is_no_start),
    Test::new("open_without_pasta", &[Part::Sandbox], open_without_pasta),
    Test::new("an_agent_without_a_network_is_told", &[Part::Sandbox], an_agent_without_a_network_is_told),
];

/// An installation on the host of a world.
fn on_a_host() -> Outcome<(Rig, World)> {
    let mut rig = Rig::new()?;
    let world = World::new(rig.mark())?;
    rig.prefix = world.prefix();
    rig.config("network: {mode: open}\n")?;
    Ok((rig, world))
}

fn open_leads_out_and_not_back() -> Outcome {
    let (rig, mut world) = on_a_host()?;
    let (there, here) = (world.greet_beyond()?, world.greet_on_host()?);
    world.answer_names()?;
    let reached =
        |from: &str, url: &str| format!("curl -s -m 10 {from} -o /dev/null -w '%{{http_code}} ' {url}; ");
    // The host's own addresses, the gateway's, and the one where names are asked.
    let back = ["127.0.0.1", HOST, "169.254.1.53"].map(|address| format!("http://{address}:{here}/"));
    let mut script = reached("", &format!("http://{BEYOND}:{there}/"));
    script += &reached("", &format!("http://anything.moat.test:{there}/"));
    for url in &back {
        script += &reached("", url);
    }
    let ran = rig.sandboxed(&["sh", "-c", &script])?;
    ensure(ran.out.trim() == "200 200 000 000 000", || format!("{}\n{}", ran.out, ran.err))?;

    // What the host itself reaches, so that the zeros above mean something.
    let on_host = reached("", &back[0]);
    let [program, arguments @ ..] = &world.prefix()[..] else { return Err(Trouble::new("no prefix")) };
    let said = std::process::Command::new(program).args(arguments).args(["sh", "-c", &on_host]).output()?;
    ensure(said.stdout == b"200 ", || String::from_utf8_lossy(&said.stdout).into_owned())?;

    let resolver = rig.sandboxed(&["cat", "/etc/resolv.conf"])?.expect_code(0)?.out;
    ensure(resolver == "nameserver 169.254.1.53\nsearch moat.test\n", || resolver.clone())?;
    // It is no more of a user for that.
    let status = rig.sandboxed(&["grep", "-E", "^Cap(Eff|Bnd)", "/proc/self/status"])?.expect_code(0)?.out;
    ensure(!status.contains(|c: char| ('1'..='9').contains(&c)), || status.clone())
}

/// The programs of this name that run on the world's host.
fn running(world: &World, name: &str) -> Outcome<Vec<Pid>> {
    use std::os::unix::fs::MetadataExt;
    let host = world.namespace()?;
    let is_it = |pid: i32| {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split('\0').next() == Some(name))
            && fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| meta.ino() == host)
    };
    let entries = fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter(|&pid| is_it(pid)).map(Pid::from_raw).collect())
}

/// By itself, stopped, and when the command, or what built the sandbox, is killed.
fn nothing_of_it_is_left() -> Outcome {
    let (rig, world) = on_a_host()?;
    rig.sandboxed(&["true"])?.expect_code(0)?;
    let left = running(&world, "pasta")?;
    ensure(left.is_empty(), || format!("after the end: {left:?}"))?;

    for (victim, signal) in
        [("moat", Signal::SIGTERM), ("moat", Signal::SIGKILL), ("builder", Signal::SIGKILL)]
    {
        let workspace = rig.workspace().to_string_lossy();
        let mut moat = rig
            .moat(&["run", &workspace, "--", "sleep", "600"])?
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        eventually("pasta runs", PATIENCE, || (running(&world, "pasta").ok()?.len() == 1).then_some(()))?;
        // `ip netns exec` has become moat.
        let mut pid = i32::try_from(moat.id())?;
        if victim == "builder" {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
            pid = children.split_whitespace().next().ok_or_else(|| Trouble::new("no builder"))?.parse()?;
        }
        kill(Pid::from_raw(pid), signal)?;
        moat.wait()?;
        let gone = || running(&world, "pasta").ok()?.is_empty().then_some(());
        eventually(&format!("pasta is gone after {signal} to {victim}"), PATIENCE, gone)?;
    }
    Ok(())
}

fn no_way_out_is_no_start() -> Outcome {
    let (mut rig, _world) = on_a_host()?;
    // A host with nothing but its loopback.
    rig.prefix = ["unshare", "--net"].map(str::to_owned).to_vec();
    let ran = rig.sandboxed(&["touch", "started"])?.expect_code(1)?;
    ensure(ran.err.contains("pasta cannot connect the sandbox to the network"), || ran.err.clone())?;
    ensure(ran.err.contains("network.mode"), || format!("no remedy: {}", ran.err))?;
    ensure(!rig.workspace().join("started").exists(), || "it ran".to_owned())
}

fn open_without_pasta() -> Outcome {
    let mut rig = Rig::new()?;
    rig.config("network: {mode: open}\n")?;
    rig.env.insert("PATH".to_owned(), "/nowhere".to_owned());
    let ran = rig.sandboxed(&["true"])?.expect_code(1)?;
    let told =
        ran.err.contains("needs pasta") && ran.err.contains("passt") && ran.err.contains("network.mode");
    ensure(told, || ran.err.clone())?;
    ensure(rig.runs().is_empty(), || "a run was made".to_owned())
}

fn an_agent_without_a_network_is_told() -> Outcome {
    let rig = Rig::new()?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let told = |yaml: &str| {
        rig.config(yaml)?;
        let ran = rig.run(&["--dry-run", "claude", &workspace])?.expect_code(0)?;
        Outcome::Ok(ran.err.contains("cannot reach its model"))
    };
    ensure(told("env: {A: b}\n")?, || "no warning".to_owned())?;
    ensure(!told("network: {mode: none}\n")?, || "told though it was chosen".to_owned())
}
