//! The real Claude Code, Codex and Gemini CLI, as they come and without login, started by their own verbs against a fake
//! model inside the sandbox: each finds its servers in the files that the sidecar wrote, and calls a remote one with a
//! credential, one of this machine's, and one that it starts itself.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use moat_tests::{
    Outcome, Trouble,
    clock::millis,
    matrix::server::Broken,
    parts::{self, Part},
    rig::{Ran, Rig},
    trouble::ensure,
    upstream::{Demand, Upstream},
};
use serde_json::Value;

use crate::{Test, hangs, stage::VAULT_HEADER};

const AGENTS: &[Part] = &[Part::Sandbox, Part::Agents];

pub(crate) const TESTS: &[Test] = &[
    Test::new("claude_calls_its_servers", AGENTS, || calls_its_servers("claude")),
    Test::new("codex_calls_its_servers", AGENTS, || calls_its_servers("codex")),
    Test::new("gemini_calls_its_servers", AGENTS, || calls_its_servers("gemini")),
    Test::new("claude_with_a_policy", AGENTS, || with_a_policy("claude")),
    Test::new("codex_with_a_policy", AGENTS, || with_a_policy("codex")),
    Test::new("gemini_with_a_policy", AGENTS, || with_a_policy("gemini")),
    Test::new("claude_and_gemini_list_them_connected", AGENTS, claude_and_gemini_list_them_connected),
];

/// Each ends a fault within this, in milliseconds, its own work and the model's turn included.
const AT_ONCE: f64 = 2000.0;
/// What an agent meets in turn.
const MORE_FAULTS: &[(&str, &str)] =
    &[("half-head", "call"), ("not-http", "call"), ("redirect-away", "call"), ("gzip-broken", "call")];

/// Where the fake model listens, in the sandbox.
const MODEL: &str = "http://127.0.0.1:9000";
/// What the agents are told of the model, and not to look for anything else.
pub(crate) const ENVIRONMENT: [(&str, &str); 9] = [
    ("ANTHROPIC_BASE_URL", MODEL),
    ("ANTHROPIC_API_KEY", "k"),
    ("ENABLE_TOOL_SEARCH", "false"),
    ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
    ("DISABLE_AUTOUPDATER", "1"),
    ("FAKE_KEY", "k"),
    ("GEMINI_API_KEY", "k"),
    ("GOOGLE_GEMINI_BASE_URL", MODEL),
    ("GEMINI_TELEMETRY_ENABLED", "false"),
];
/// What the model does, in the words of a prompt.
pub(crate) const PROMPT: &str = "please CALL vault,local,inner and tell what they said";

/// An installation with two servers, whose sandboxes have a model, and a server that each agent starts itself.
pub(crate) struct Scene {
    pub(crate) rig: Rig,
    /// Demands its credential.
    pub(crate) vault: Upstream,
    /// On this machine, open.
    local: Upstream,
    pub(crate) secret: String,
}

impl Scene {
    pub(crate) fn new() -> Outcome<Self> {
        Self::with("", "")
    }

    /// The same, with more lines of moat.yaml for each of the two servers.
    fn with(of_vault: &str, of_local: &str) -> Outcome<Self> {
        let rig = Rig::new()?;
        let secret = format!("vault-{}/+=", rig.mark());
        let vault =
            Upstream::unprimed("vault", Some(&rig.authority), Some(Demand::new(VAULT_HEADER, &secret)))?;
        let local = Upstream::unprimed("local", None, None)?;
        let inner = "{command: /workspace/.fixtures/moat-fixture-model, args: [stdio, inner]}";
        let of_agents: String = ["claude", "codex", "gemini"]
            .iter()
            .map(|agent| format!("{agent}: {{mcp: {{inner: {inner}}}}}\n"))
            .collect();
        // How Gemini logs in, which it asks for where nobody has said: into the settings that the sidecar wrote. The hook
        // ends when the model answers; the model itself stays.
        let hook = "f=\"$HOME/.gemini/settings.json\"; [ ! -f \"$f\" ] || sed -i \
                    's/\"folderTrust\"/\"auth\": {\"selectedType\": \"gemini-api-key\"}, &/' \"$f\"; \
                    (./.fixtures/moat-fixture-model 9000 model.jsonl >model.out 2>&1 </dev/null &); \
                    for i in $(seq 100); do grep -q ready model.out && exit 0; sleep 0.1; done; cat model.out; exit 1";
        rig.config(&format!(
            "mcp:\n  - name: vault\n    url: {}\n    auth: {{grant: mcp-vault, header: {VAULT_HEADER}}}\n{of_vault}  - name: local\n    \
             url: {}\n{of_local}{of_agents}hooks:\n  pre_run: {hook:?}\n",
            vault.url(),
            local.url()
        ))?;
        rig.grant("vault", &secret, &vault.url())?;
        rig.place("moat-fixture-model")?;
        // In a container the agent is another user.
        fs::set_permissions(rig.workspace(), fs::Permissions::from_mode(0o777))?;
        Ok(Self { rig, vault, local, secret })
    }

    /// What a container needs to have this machine's programs run in it, as a user that is not root.
    fn container_flags(&self) -> Outcome<Vec<String>> {
        let Ok(engine) = self.rig.engine() else { return Ok(Vec::new()) };
        engine.build("localhost/moat-test:dev", "USER dev\n")?;
        Ok(["--image", "localhost/moat-test:dev", "-m", "/usr/lib:/usr/lib:ro"].map(str::to_owned).to_vec())
    }
}

/// Runs an agent's verb, or a command of it.
fn agent(scene: &Scene, before: &[&str], more_env: &[(&str, &str)], after: &[&str]) -> Outcome<Ran> {
    let agents = parts::agents().ok_or_else(|| Trouble::new("no agents"))?;
    let node = parts::node22().ok_or_else(|| Trouble::new("no node"))?;
    let beside = |path: &Path| path.parent().unwrap_or(path).to_string_lossy().into_owned();
    let (modules, node) = (agents.to_string_lossy().into_owned(), beside(&node));
    let path = format!("{modules}/.bin:{node}:/usr/local/bin:/usr/bin:/bin");
    let mut arguments: Vec<String> = before.iter().map(|word| (*word).to_owned()).collect();
    for place in [&modules, &node].into_iter().filter(|place| !place.is_empty()) {
        arguments.extend(["-m".to_owned(), format!("{place}:{place}:ro")]);
    }
    for (name, value) in ENVIRONMENT.iter().chain(more_env).chain(&[("PATH", path.as_str())]) {
        arguments.extend(["-e".to_owned(), format!("{name}={value}")]);
    }
    arguments.extend(scene.container_flags()?);
    arguments.push(scene.rig.workspace().to_string_lossy().into_owned());
    if !after.is_empty() {
        arguments.push("--".to_owned());
        arguments.extend(after.iter().map(|word| (*word).to_owned()));
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    scene.rig.run(&arguments)
}

/// What an agent needs to be told on its command line.
pub(crate) fn own_arguments(agent: &str) -> Vec<&'static str> {
    match agent {
        "codex" => vec![
            "-c",
            "model=\"fake-model\"",
            "-c",
            "model_provider=\"fake\"",
            "-c",
            "model_providers.fake={name=\"fake\",base_url=\"http://127.0.0.1:9000/v1\",wire_api=\"responses\",env_key=\"FAKE_KEY\"}",
            "-c",
            "check_for_update_on_startup=false",
        ],
        "gemini" => vec!["-m", "gemini-2.5-flash"],
        _ => vec![],
    }
}

fn calls_its_servers(name: &str) -> Outcome {
    // Without a proxy, with a dead one that NO_PROXY keeps the relay away from.
    let dead = [("HTTP_PROXY", "http://127.0.0.1:9"), ("HTTPS_PROXY", "http://127.0.0.1:9")];
    for (what, env) in [("no proxy", &[][..]), ("a dead proxy", &dead[..])] {
        let scene = Scene::new()?;
        let ran = agent(&scene, &[name, "-p", PROMPT], env, &own_arguments(name))?;
        let told = |text: &str| Trouble::new(format!("{what}: {text}\n{}\n{}", ran.out, ran.err));
        ensure(ran.code == 0, || told("exit code").to_string())?;
        for wanted in ["vault: hello vault", "local: hello local", "inner: hello inner"] {
            ensure(ran.out.contains(wanted), || told(&format!("no {wanted:?}")).to_string())?;
        }
        let credential = scene.vault.seen.requests();
        let each = credential.iter().all(|request| request.values(VAULT_HEADER) == [scene.secret.as_str()]);
        ensure(!credential.is_empty() && each, || told("the credential did not arrive").to_string())?;
        let open = scene.local.seen.requests();
        ensure(!open.is_empty(), || told("the server of this machine was not asked").to_string())?;
        let oauth = credential.iter().chain(&open).find(|request| {
            let path = &request.target;
            path.contains("well-known") || path.contains("register") || path.contains("authorize")
        });
        ensure(oauth.is_none(), || told(&format!("an OAuth attempt: {oauth:?}")).to_string())?;
        ensure(!format!("{}{}", ran.out, ran.err).contains(&scene.secret), || {
            told("the credential").to_string()
        })?;
        nothing_unknown(&scene)?;
    }
    Ok(())
}

/// A tool that is always denied is not offered to the model. Called all the same, and called with what a rule refuses, a
/// tool ends in words that say so, and the agent goes on to what it may.
fn with_a_policy(name: &str) -> Outcome {
    let scene = Scene::with("    policy: .keep/vault.yaml\n", "    policy: {deny: [add]}\n")?;
    let rules = scene.rig.workspace().join(".keep");
    fs::create_dir(&rules)?;
    let rule = "- {name: no-greeting, action: deny, message: The vault is not greeted., match: {operation: echo, when: \"params.text.contains('vault')\"}}";
    fs::write(rules.join("vault.yaml"), format!("scope: vault\nmode: enforce\nrules:\n{rule}\n"))?;
    let prompt = "please CALL local.add,vault,local,inner and tell what they said";
    let ran = agent(&scene, &[name, "-p", prompt], &[], &own_arguments(name))?;
    let told = |text: &str| format!("{text}\n{}\n{}", ran.out, ran.err);
    ensure(ran.code == 0, || told("exit code"))?;
    let refused = "Moat: MCP tool call blocked by policy. The vault is not greeted.";
    for wanted in [refused, "local: hello local", "inner: hello inner"] {
        ensure(ran.out.contains(wanted), || told(&format!("no {wanted:?}")))?;
    }
    // What the agent itself says of a tool that it does not know, in its own words.
    let said = ran.out.split("The tools said: ").nth(1).unwrap_or_default();
    let first = said.split(" | ").next().unwrap_or_default();
    ensure(first.len() > 5 && first.contains("add"), || {
        told("nothing readable about the tool that is not there")
    })?;
    let notes = notes(&scene)?;
    let offered = |tool: &str| {
        let is_it =
            |name: &Value| name.as_str().is_some_and(|name| name.contains("local") && name.ends_with(tool));
        notes.iter().any(|note| note["tools"].as_array().is_some_and(|tools| tools.iter().any(is_it)))
    };
    ensure(offered("echo") && !offered("add"), || told(&format!("offered: {notes:?}")))?;
    for (server, tool) in [(&scene.vault, "echo"), (&scene.local, "add")] {
        let calls = server.seen.requests();
        let reached = calls.iter().find(|request| {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            body.contains("tools/call") && body.contains(&format!("\"{tool}\""))
        });
        ensure(reached.is_none(), || told(&format!("{tool} was called: {reached:?}")))?;
    }
    let denial = |line: &Value| {
        line["type"] == "request.denied" && line["operation"] == "echo" && line["rule"] == "no-greeting"
    };
    scene.rig.line("audit.jsonl", "the denial", denial)?;
    nothing_unknown(&scene)
}

/// What the model noted.
/// A server that fails in one way after the other: each of them ends in words, and the agent goes on at once.
pub(crate) fn ends_each_fault(name: &str) -> Outcome {
    let broken = Broken::plain()?;
    let faults = || hangs::FAULTS.iter().chain(MORE_FAULTS).enumerate();
    let servers: String = faults()
        .map(|(number, (fault, _))| format!("  - name: f{number}\n    url: {}/{fault}\n", broken.url()))
        .collect();
    let scene = Scene::with("", &servers)?;
    let calls: Vec<String> = faults().map(|(number, (_, tool))| format!("f{number}.{tool}")).collect();
    let prompt = format!("please CALL {} and tell what they said", calls.join(","));
    let ran = agent(&scene, &[name, "-p", &prompt], &[], &own_arguments(name))?;
    let told = |text: &str| format!("{text}\n{}\n{}", ran.out, ran.err);
    ensure(ran.code == 0, || told("exit code"))?;
    let said = ran.out.split("The tools said: ").nth(1).unwrap_or_default();
    let said: Vec<&str> = said.split(" | ").collect();
    ensure(said.len() == calls.len(), || told(&format!("{} of {} ended", said.len(), calls.len())))?;
    for ((_, fault), said) in faults().zip(&said) {
        ensure(said.contains("MOAT: "), || told(&format!("{fault:?} ended in {said:?}")))?;
    }
    // From one question to the model to the next: the agent's part of it is a call.
    let asked: Vec<u64> = notes(&scene)?
        .iter()
        .filter(|note| note["tools"].as_array().is_some_and(|tools| !tools.is_empty()))
        .filter_map(|note| note["at"].as_u64())
        .collect();
    let gaps: Vec<f64> = asked.windows(2).map(|pair| millis(pair[1] - pair[0])).collect();
    ensure(gaps.len() >= calls.len() && gaps.iter().all(|gap| *gap < AT_ONCE), || {
        told(&format!("milliseconds from turn to turn: {gaps:?}"))
    })?;
    nothing_unknown(&scene)
}

fn notes(scene: &Scene) -> Outcome<Vec<Value>> {
    let notes = fs::read_to_string(scene.rig.workspace().join("model.jsonl"))?;
    Ok(notes.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// A new release of an agent that asks its model for something else is to be noticed.
pub(crate) fn nothing_unknown(scene: &Scene) -> Outcome {
    let notes = notes(scene)?;
    ensure(!notes.is_empty(), || "the model was not asked".to_owned())?;
    let unknown: Vec<String> =
        notes.iter().filter(|note| note["known"] != true).map(ToString::to_string).collect();
    ensure(unknown.is_empty(), || format!("the model was asked for what it does not know: {unknown:?}"))
}

fn claude_and_gemini_list_them_connected() -> Outcome {
    let scene = Scene::new()?;
    let claude = agent(&scene, &["run"], &[], &["claude", "mcp", "list"])?.expect_code(0)?;
    for server in ["vault", "local", "inner"] {
        let line = claude.out.lines().find(|line| line.starts_with(server)).unwrap_or_default();
        ensure(line.contains("Connected") && !line.contains("Failed"), || claude.out.clone())?;
    }
    let gemini = agent(&scene, &["run"], &[], &["gemini", "mcp", "list"])?;
    let text = format!("{}{}", gemini.out, gemini.err);
    for server in ["vault", "local", "inner"] {
        let line = text.lines().find(|line| line.contains(&format!(" {server}: "))).unwrap_or_default();
        ensure(line.ends_with("Connected") && !line.contains("Disconnected"), || text.clone())?;
    }
    Ok(())
}
