//! moat's own images, really built: on a Debian that was made for the tests and has the name that the Dockerfile asks for, with each of
//! the real agents, which is then what its verb starts by itself.

use std::{fs, process::Command};

use moat_tests::{
    Outcome, Trouble,
    parts::{self, Part},
    place::Place,
    rig::Ran,
    trouble::ensure,
};
use serde_json::Value;

use crate::{
    Test,
    agents::{ENVIRONMENT, PROMPT, Scene, nothing_unknown, own_arguments},
    stage::VAULT_HEADER,
};

const PARTS: &[Part] = &[Part::Sandbox, Part::Agents, Part::Debian];

pub(crate) const TESTS: &[Test] =
    &[Test::new("of_moats_own_are_built_and_run_the_real_agents", PARTS, built_and_run)];

/// What the base is made on.
const FROM: &str = "node:22-bookworm-slim";
/// The agent whose image is looked at more closely, and those that come after it.
const AGENT: &str = "gemini";
const OTHERS: [&str; 2] = ["claude", "codex"];

fn built_and_run() -> Outcome {
    let scene = Scene::new()?;
    let rig = &scene.rig;
    let engine = rig.engine()?;
    // Offline: what is missing has a name, and a way to get it.
    let missing =
        rig.run(&["image", "build", "base", "--from", "localhost/moat-test:none"])?.expect_code(1)?;
    for wanted in ["localhost/moat-test:none", "docker import", "--from IMAGE"] {
        ensure(missing.err.contains(wanted), || format!("no {wanted:?}: {}", missing.err))?;
    }
    make_from(&scene)?;
    let modules_of = |agent| modules(&scene, agent);
    let modules = modules_of(AGENT)?;
    let wrong = rig.run(&["image", "build", "codex", "--modules", &modules])?.expect_code(1)?;
    ensure(wrong.err.contains("@openai/codex"), || wrong.err.clone())?;
    let image = build(&scene, AGENT, &modules)?;
    let inside = |command: &[&str]| -> Outcome<Ran> {
        let run = ["run", "--rm", "--network", "none", "--entrypoint", command[0], &image];
        engine.client(&[&run[..], &command[1..]].concat())
    };
    let who = inside(&["id"])?.expect_code(0)?;
    ensure(who.out.contains("uid=1000(agent)"), || who.out.clone())?;
    let baked = inside(&["/.moat/moat-sidecar", "version"])?.expect_code(0)?;
    ensure(baked.out.contains("moat-sidecar"), || baked.out.clone())?;
    is_the_default(&scene, &image)?;
    runs_its_agent(&scene, AGENT)?;
    for agent in OTHERS {
        build(&scene, agent, &modules_of(agent)?)?;
        runs_its_agent(&scene, agent)?;
    }
    Ok(())
}

/// Without a network: everything is there. The image.
fn build(scene: &Scene, agent: &str, modules: &str) -> Outcome<String> {
    let built = scene
        .rig
        .run(&["image", "build", agent, "--network", "none", "--modules", modules, "--json"])?
        .expect_code(0)?;
    let answer: Value = serde_json::from_str(built.out.trim())?;
    let image = answer["image"].as_str().unwrap_or_default().to_owned();
    let named = image.starts_with(&format!("localhost/moat/{agent}:"));
    ensure(named && answer["runtime"] == Place::here().name(), || answer.to_string())?;
    Ok(image)
}

/// Debian with Node, under the name that moat's own Dockerfile asks for.
fn make_from(scene: &Scene) -> Outcome {
    let engine = scene.rig.engine()?;
    let debian = parts::debian().ok_or_else(|| Trouble::new("no Debian"))?;
    engine.client(&["import", &debian.to_string_lossy(), "localhost/moat-test:debian"])?.expect_code(0)?;
    let context = scene.rig.user_home().join("from");
    fs::create_dir(&context)?;
    let node = parts::node22().ok_or_else(|| Trouble::new("no node"))?;
    let node = Command::new(node).args(["-p", "process.execPath"]).output()?.stdout;
    fs::copy(String::from_utf8(node)?.trim(), context.join("node"))?;
    fs::write(
        context.join("Dockerfile"),
        "FROM localhost/moat-test:debian\nCOPY node /usr/local/bin/node\n",
    )?;
    engine.client(&["build", "-q", "-t", FROM, &context.to_string_lossy()])?.expect_code(0).map(|_| ())
}

/// The agent's modules without those of the other agents, which are large.
fn modules(scene: &Scene, agent: &str) -> Outcome<String> {
    let all = parts::agents().ok_or_else(|| Trouble::new("no agents"))?;
    let own = scene.rig.workspace().join(format!(".modules-{agent}"));
    fs::create_dir(&own)?;
    for entry in fs::read_dir(&all)? {
        let entry = entry?;
        let whose = match entry.file_name().to_string_lossy().as_ref() {
            "@anthropic-ai" => "claude",
            "@openai" => "codex",
            ".bin" => agent,
            _ => AGENT,
        };
        if whose == agent {
            let copied = Command::new("cp").arg("-al").arg(entry.path()).arg(&own).status()?;
            ensure(copied.success(), || format!("{} cannot be linked", entry.path().display()))?;
        }
    }
    Ok(own.to_string_lossy().into_owned())
}

/// Where nothing is said, Docker and this image are what its verb gets; another agent's verb, whose image is not there, gets namespaces.
fn is_the_default(scene: &Scene, image: &str) -> Outcome {
    let yaml = scene.rig.workspace().join("moat.yaml");
    let text = fs::read_to_string(&yaml)?;
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("image:")).collect();
    fs::write(&yaml, without.join("\n") + "\n")?;
    if Place::here() != Place::Docker {
        return Ok(());
    }
    let workspace = scene.rig.workspace().to_string_lossy().into_owned();
    let of = |verb: &str| -> Outcome<Value> {
        let mut asked = scene.rig.moat(&[verb, "--dry-run", "--json", &workspace])?;
        let ran = Ran::from(asked.env_remove("MOAT_RUNTIME").output()?).expect_code(0)?;
        Ok(serde_json::from_str(&ran.out)?)
    };
    let (own, other) = (of(AGENT)?, of("claude")?);
    ensure(own["runtime"] == "docker" && own["image"] == image, || own.to_string())?;
    ensure(other["runtime"] == "process" && other["image"].is_null(), || other.to_string())?;
    let mut doctor = scene.rig.moat(&["doctor", &workspace])?;
    let doctor = Ran::from(doctor.env_remove("MOAT_RUNTIME").output()?);
    ensure(doctor.out.contains(&format!("moat gemini gets docker with {image}")), || doctor.out.clone())?;
    ensure(doctor.out.contains("moat image build claude"), || doctor.out.clone())
}

fn runs_its_agent(scene: &Scene, agent: &str) -> Outcome {
    let rig = &scene.rig;
    let mut arguments: Vec<String> = vec![agent.into(), "-p".into(), PROMPT.into()];
    for (name, value) in ENVIRONMENT {
        arguments.extend(["-e".to_owned(), format!("{name}={value}")]);
    }
    arguments.extend([rig.workspace().to_string_lossy().into_owned(), "--".to_owned()]);
    arguments.extend(own_arguments(agent).into_iter().map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let before = scene.vault.seen.requests().len();
    let ran = rig.run(&arguments)?.expect_code(0)?;
    for wanted in ["vault: hello vault", "local: hello local", "inner: hello inner"] {
        ensure(ran.out.contains(wanted), || format!("no {wanted:?}\n{}\n{}", ran.out, ran.err))?;
    }
    let asked = scene.vault.seen.requests();
    let asked = &asked[before..];
    let each = asked.iter().all(|request| request.values(VAULT_HEADER) == [scene.secret.as_str()]);
    ensure(!asked.is_empty() && each, || "the credential did not arrive".to_owned())?;
    nothing_unknown(scene)
}
