//! What a container is and what namespaces are not: any image, an engine that keeps what it is told, and that lives on
//! when `moat` does not.

use std::{fs, process::Stdio, time::Duration};

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    engine::IMAGE,
    parts::Part,
    place::Place,
    rig::{PATIENCE, Rig},
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

const ENGINE: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("what_an_image_says_is_done", ENGINE, what_an_image_says_is_done),
    Test::new("every_kind_of_container_works", ENGINE, every_kind_of_container_works),
    Test::new("the_sidecar_is_put_into_an_engine_once", ENGINE, the_sidecar_is_put_there_once),
    Test::new("no_privileges", ENGINE, no_privileges),
    Test::new("what_namespaces_forbid_containers_forbid", ENGINE, what_namespaces_forbid),
    Test::new("the_engine_keeps_no_secret", ENGINE, the_engine_keeps_no_secret),
    Test::new("an_image_that_is_not_there", ENGINE, an_image_that_is_not_there),
    Test::new("one_that_does_not_start_is_removed", ENGINE, one_that_does_not_start_is_removed),
    Test::new("removed_by_hand", ENGINE, removed_by_hand),
    Test::new("the_command_is_killed", ENGINE, the_command_is_killed),
    Test::new(
        "what_is_made_of_a_committed_container_is_not_ours",
        ENGINE,
        what_is_made_of_a_committed_container,
    ),
    Test::new("the_engine_goes_away_for_a_moment", ENGINE, the_engine_goes_away_for_a_moment),
];

/// Runs an image, with what follows `--`.
fn of_image(rig: &Rig, image: &str, command: &[&str]) -> Outcome<moat_tests::rig::Ran> {
    let workspace = rig.workspace().to_string_lossy();
    let separator: &[&str] = if command.is_empty() { &[] } else { &["--"] };
    rig.run(&[&["run", "--image", image, &workspace], separator, command].concat())
}

fn what_an_image_says_is_done() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    rig.engine()?.build(
        "localhost/moat-test:says",
        "USER dev\nENV FOO=bar\nWORKDIR /home/dev\nSTOPSIGNAL SIGUSR1\n\
         ENTRYPOINT [\"/bin/sh\", \"-c\", \"echo entry $FOO; exec \\\"$@\\\"\", \"--\"]\n\
         CMD [\"sh\", \"-c\", \"pwd; id -u; echo $HOME $USER\"]\n",
    )?;
    let own = of_image(&rig, "localhost/moat-test:says", &[])?.expect_code(0)?;
    ensure(own.out == "entry bar\n/home/dev\n1234\n/home/dev dev\n", || format!("{own:?}"))?;
    let given =
        of_image(&rig, "localhost/moat-test:says", &["sh", "-c", "echo given; exit 9"])?.expect_code(9)?;
    ensure(given.out == "entry bar\ngiven\n", || format!("{given:?}"))?;
    // A user's own command, in an image without an entrypoint, works in the workspace.
    rig.engine()?.build("localhost/moat-test:place", "WORKDIR /home/dev\n")?;
    let place = of_image(&rig, "localhost/moat-test:place", &["pwd"])?.expect_code(0)?;
    ensure(place.out == "/workspace\n", || format!("{place:?}"))?;
    stops_as_the_image_says(&rig)
}

/// The image's STOPSIGNAL is the engine's to send and reaches the program.
fn stops_as_the_image_says(rig: &Rig) -> Outcome {
    let script = "trap 'echo asked; exit 5' USR1; echo up; while :; do sleep 0.1; done";
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let mut child = rig
        .moat(&["run", "--image", "localhost/moat-test:says", &workspace, "--", "sh", "-c", script])?
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    eventually("the program is up", PATIENCE, || {
        rig.run(&["logs"]).ok().filter(|ran| ran.out.contains("up")).map(|_| ())
    })?;
    let id = rig.containers().pop().ok_or_else(|| Trouble::new("no container"))?;
    rig.engine()?.client(&["stop", "-t", "20", &id])?;
    let ended = eventually("the run ends", PATIENCE, || child.try_wait().ok().flatten())?;
    ensure(ended.code() == Some(5), || format!("{ended:?}"))
}

/// In a volume that no sandbox can write to and no image has a say in.
fn the_sidecar_is_put_there_once() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    let engine = rig.engine()?;
    let volumes = || -> Outcome<Vec<String>> {
        let labelled = ["volume", "ls", "-q", "--filter", "label=dev.moat.sidecar"];
        Ok(engine.client(&labelled)?.expect_code(0)?.out.lines().map(str::to_owned).collect())
    };
    let write = "ls /.moat/bin; touch /.moat/bin/x || echo no";
    let ran = rig.sandboxed(&["sh", "-c", write])?.expect_code(0)?;
    ensure(ran.out == "moat-sidecar\nno\n" && ran.err.contains("Read-only"), || format!("{ran:?}"))?;
    // "moat-sidecar.<digest>" names one of the others.
    let first = volumes()?;
    let name = first.iter().find(|name| name.matches('.').count() == 1);
    let name = name.ok_or_else(|| Trouble::new(format!("no volume is named: {first:?}")))?;
    let whole = || -> Outcome<String> {
        let label = "{{index .Labels \"dev.moat.volume\"}}";
        Ok(engine.client(&["volume", "inspect", "-f", label, name])?.expect_code(0)?.out)
    };
    let before = whole()?;
    rig.sandboxed(&["true"])?.expect_code(0)?;
    ensure(whole()? == before && first.contains(&before.trim().to_owned()), || before.clone())?;

    // Somebody tidies up, and the next one who starts something has an image that would like to be everybody's sidecar.
    let hostile = "RUN mkdir -p /.moat /x/more && printf '#!/bin/sh\\necho hostile\\n' >/x/moat-sidecar && \
                   chmod 755 /x/moat-sidecar && ln -s /x /.moat/bin\n";
    engine.build("localhost/moat-test:hostile", hostile)?;
    engine.client(&["volume", "rm", name])?.expect_code(0)?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let run = ["run", "--image", "localhost/moat-test:hostile", &workspace, "--", "echo", "own"];
    let own = rig.run(&run)?.expect_code(0)?;
    ensure(own.out == "own\n", || format!("{own:?}"))?;
    ensure(whole()? != before, || "not put there again".to_owned())?;
    let after = rig.sandboxed(&["sh", "-c", write])?.expect_code(0)?;
    ensure(after.out == ran.out, || format!("{after:?}"))?;
    eventually("nothing else is left of it", PATIENCE, || {
        let left = engine.client(&["images", "-q", "localhost/moat/empty"]).ok()?;
        left.out.is_empty().then_some(())
    })
}

fn every_kind_of_container_works() -> Outcome {
    let stage = Stage::new()?;
    let engine = stage.rig.engine()?;
    engine.build("localhost/moat-test:dev", "USER dev\n")?;
    engine.build("localhost/moat-test:number", "USER 4711\n")?;
    let yaml = fs::read_to_string(stage.rig.workspace().join("moat.yaml"))?;
    for image in [IMAGE, "localhost/moat-test:dev", "localhost/moat-test:number"] {
        for container in [
            "",
            "container: {read_only: true}\n",
            "container: {cap_drop: [ALL]}\n",
            "container: {read_only: true, cap_drop: [ALL]}\n",
        ] {
            fs::write(stage.rig.workspace().join("moat.yaml"), format!("{yaml}{container}"))?;
            let failed =
                |what: &dyn std::fmt::Display| Trouble::new(format!("{image} {container:?}: {what}"));
            let inside = stage.rig.console_with(&["--image", image]).map_err(|trouble| failed(&trouble))?;
            let answer = inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB))?;
            ensure(answer.status == 200, || failed(&format!("{answer:?}")).to_string())?;
            let wrote = inside.exec(
                &["sh", "-c", "echo x > \"$HOME/x\" && echo x > /tmp/x && cat \"$HOME/.claude.json\""],
                &[],
            )?;
            ensure(wrote.code == 0 && wrote.out.contains("vault"), || {
                failed(&format!("{wrote:?}")).to_string()
            })?;
            let root = inside.exec(&["sh", "-c", "echo x > /bin/x"], &[])?;
            ensure((root.code != 0) || (image == IMAGE && !container.contains("read_only")), || {
                failed(&"the root file system can be written").to_string()
            })?;
            ensure(inside.end()? == 0, || failed(&"exit code").to_string())?;
        }
    }
    Ok(())
}

fn no_privileges() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    rig.engine()?.build("localhost/moat-test:dev", "USER dev\n")?;
    for (image, uid) in [(IMAGE, "0"), ("localhost/moat-test:dev", "1234")] {
        let status = of_image(&rig, image, &["cat", "/proc/self/status"])?.expect_code(0)?.out;
        let field =
            |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap_or_default();
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            ensure(!field(set).is_empty() && field(set).chars().all(|c| c == '0'), || status.clone())?;
        }
        ensure(field("NoNewPrivs:") == "1" && field("Seccomp:") == "2", || status.clone())?;
        ensure(field("Uid:").split('\t').all(|held| held == uid), || status.clone())?;
    }
    let devices = rig.sandboxed(&["cat", "/proc/net/dev"])?.expect_code(0)?.out;
    let devices: Vec<&str> =
        devices.lines().skip(2).filter_map(|l| l.split(':').next()).map(str::trim).collect();
    ensure(devices == ["lo"], || format!("{devices:?}"))
}

fn the_engine_keeps_no_secret() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let answer = inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB))?;
    ensure(answer.status == 200, || format!("{answer:?}"))?;
    let id = stage.rig.containers().pop().ok_or_else(|| Trouble::new("no container"))?;
    let engine = stage.rig.engine()?;
    for arguments in [&["inspect", &id][..], &["logs", &id], &["diff", &id], &["history", IMAGE]] {
        let said = engine.client(arguments)?;
        let text = format!("{}{}", said.out, said.err);
        stage.nothing_in(&arguments.join(" "), &text)?;
        for secret in ["PRIVATE KEY", "BEGIN CERTIFICATE", "key_pem"] {
            ensure(!text.contains(secret), || format!("{arguments:?} shows {secret}:\n{text}"))?;
        }
    }
    // The whole of what the container wrote.
    let copied = stage.rig.user_home().join("container.tar");
    engine.client(&["export", "-o", &copied.to_string_lossy(), &id])?.expect_code(0)?;
    let bytes = fs::read(&copied)?;
    ensure(memchr::memmem::find(&bytes, VAULT_STUB.as_bytes()).is_some(), || {
        "not even the stub is found".to_owned()
    })?;
    for secret in ["-----BEGIN PRIVATE KEY", "-----BEGIN CERTIFICATE", &stage.secret, &stage.faults_secret] {
        let found = memchr::memmem::find(&bytes, secret.as_bytes()).is_some();
        ensure(!found, || format!("the container's file system holds {secret}"))?;
    }
    ensure(inside.end()? == 0, || "exit code".to_owned())
}

fn an_image_that_is_not_there() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    let ran = of_image(&rig, "localhost/moat-test:none", &["true"])?.expect_code(1)?;
    ensure(ran.err.contains("there is no image localhost/moat-test:none"), || ran.err.clone())?;
    // Nor is one made up.
    fs::write(rig.workspace().join("moat.yaml"), "env: {A: b}\n")?;
    let unnamed = rig.sandboxed(&["true"])?.expect_code(1)?;
    ensure(unnamed.err.contains("no image is named") && unnamed.err.contains("--image"), || {
        unnamed.err.clone()
    })?;
    ensure(rig.bridge().is_none() && rig.runs().is_empty(), || "something was started".to_owned())
}

/// The filters of the process runtime, besides the engine's own: also where the image's user is root.
fn what_namespaces_forbid() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    let counted = "/^Seccomp_filters/ {print $2}";
    let ask = format!(
        "touch f; for mode in u+s g+s; do chmod $mode f && exit 9; done; mkdir -m 2755 d && exit 9; chmod 700 f; \
         awk '{counted}' /proc/self/status"
    );
    let filters = |of: &str| of.trim().parse::<u32>().map_err(|_| Trouble::new(of.to_owned()));
    let ran = rig.sandboxed(&["sh", "-c", &ask])?.expect_code(0)?;
    let read = format!("awk '{counted}' /proc/self/status");
    let bare = rig.engine()?.client(&["run", "--rm", IMAGE, "sh", "-c", &read])?.expect_code(0)?;
    ensure(filters(&ran.out)? == filters(&bare.out)? + 3, || {
        format!("{} filters, and {} without moat", ran.out.trim(), bare.out.trim())
    })
}

/// By the command itself, not by a bridge that looks for what dead commands left.
fn one_that_does_not_start_is_removed() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    // No engine mounts a file over a directory.
    let mount = format!("{}/moat.yaml:/bin:ro", rig.workspace().display());
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let ran = rig.run(&["run", "--mount", &mount, &workspace, "--", "true"])?;
    let left = rig.containers();
    ensure(ran.code == 1 && ran.err.contains("not a directory"), || ran.err.clone())?;
    ensure(!ran.err.contains("panicked") && !ran.err.contains("not removed"), || ran.err.clone())?;
    ensure(left.is_empty(), || format!("{left:?} is left"))
}

/// A run whose program sleeps, and its container.
fn sleeping(rig: &Rig) -> Outcome<(std::process::Child, String)> {
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let child = rig
        .moat(&["run", &workspace, "--", "sh", "-c", "echo up; sleep 600"])?
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    eventually("the program is up", PATIENCE, || {
        rig.run(&["logs"]).ok().filter(|ran| ran.out.contains("up")).map(|_| ())
    })?;
    let id = rig.containers().pop().ok_or_else(|| Trouble::new("no container"))?;
    Ok((child, id))
}

fn status(rig: &Rig) -> Outcome<Value> {
    Ok(serde_json::from_str(&rig.run(&["status", "--json"])?.expect_code(0)?.out)?)
}

fn runs_of(status: &Value) -> usize {
    status["bridge"]["runs"].as_array().map_or(0, Vec::len)
}

fn removed_by_hand() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    let (mut child, id) = sleeping(&rig)?;
    rig.engine()?.client(&["rm", "-f", &id])?.expect_code(0)?;
    let ended = eventually("the run ends", PATIENCE, || child.try_wait().ok().flatten())?;
    ensure(ended.code() == Some(137), || format!("{ended:?}"))?;
    ensure(runs_of(&status(&rig)?) == 0, || "the run is still registered".to_owned())?;
    let listed = rig.run(&["list"])?.expect_code(0)?;
    ensure(listed.out.contains("stopped"), || listed.out)
}

fn the_command_is_killed() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    let (mut child, id) = sleeping(&rig)?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    kill(pid, Signal::SIGKILL)?;
    child.wait()?;
    eventually("the bridge removes the container", PATIENCE, || {
        rig.containers().iter().all(|left| *left != id).then_some(())
    })?;
    eventually("the run is unregistered", PATIENCE, || status(&rig).ok().filter(|s| runs_of(s) == 0))?;
    let listed = rig.run(&["list"])?.expect_code(0)?;
    ensure(listed.out.contains("failed"), || listed.out)
}

/// An image that was committed from a container of ours has its labels.
fn what_is_made_of_a_committed_container() -> Outcome {
    let rig = Rig::new()?;
    rig.config("")?;
    let (mut child, id) = sleeping(&rig)?;
    let engine = rig.engine()?;
    let committed = if Place::here() == Place::Docker {
        engine
            .client(&["commit", "--pause=false", &id, "localhost/moat-test:committed"])?
            .expect_code(0)
            .map(|_| ())
    } else {
        // Docker's client and podman's socket do not agree on how to commit. The labels are what it is about.
        let labels = engine.client(&[
            "inspect",
            "-f",
            "{{range $k, $v := .Config.Labels}}LABEL {{$k}}={{$v}}\n{{end}}",
            &id,
        ])?;
        engine.build("localhost/moat-test:committed", &labels.out.replace("\\n", "\n"))
    };
    let user_s = ["run", "-d", "--name", "a-users-own", "--network", "none", "--entrypoint", "/bin/sleep"];
    let made = engine.client(&[&user_s[..], &["localhost/moat-test:committed", "600"]].concat())?;
    let checked = (|| {
        committed?;
        let theirs = made.expect_code(0)?.out.trim().to_owned();
        let labels = engine.client(&["inspect", "-f", "{{json .Config.Labels}}", &theirs])?.out;
        ensure(labels.contains("dev.moat.holder"), || format!("the labels were not kept: {labels}"))?;
        child.kill()?;
        child.wait()?;
        eventually("the bridge removes its own", PATIENCE, || {
            (!engine.client(&["ps", "-aq", "--no-trunc"]).ok()?.out.contains(&id)).then_some(())
        })?;
        let running = engine.client(&["inspect", "-f", "{{.State.Running}}", &theirs])?.expect_code(0)?;
        ensure(running.out.trim() == "true", || "the user's own container was ended".to_owned())
    })();
    let _ended_already = (child.kill(), child.wait());
    engine.client(&["rm", "-f", "a-users-own"])?;
    eventually("the bridge has removed its own", PATIENCE, || rig.containers().is_empty().then_some(()))?;
    checked
}

/// The engine stops answering, and answers again: the run is where it was.
fn the_engine_goes_away_for_a_moment() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let asks = || inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB));
    ensure(asks()?.status == 200, || "it never worked".to_owned())?;
    let frozen = stage.rig.engine()?.freeze()?;
    std::thread::sleep(Duration::from_secs(3));
    drop(frozen);
    ensure(asks()?.status == 200, || "the run did not survive".to_owned())?;
    ensure(runs_of(&status(&stage.rig)?) == 1, || "the run was unregistered".to_owned())?;
    ensure(inside.end()? == 0, || "exit code".to_owned())
}
