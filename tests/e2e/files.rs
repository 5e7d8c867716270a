//! Agents' files are written inside; the user's own `.mcp.json` is as it was when the run is over.

use std::fs;

use moat_tests::{
    Outcome, Trouble,
    inside::Inside,
    parts::Part,
    rig::{PATIENCE, Ran},
    trouble::ensure,
};
use serde_json::Value;

use crate::{
    Test,
    stage::{Stage, VAULT_HEADER, VAULT_STUB},
};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("each_agent_finds_the_servers", SANDBOX, each_agent_finds_the_servers),
    Test::new("mcp_json_comes_and_goes", SANDBOX, mcp_json_comes_and_goes),
    Test::new("the_users_mcp_json_survives", SANDBOX, the_users_mcp_json_survives),
    Test::new(
        "a_tracked_mcp_json_is_left_alone",
        &[Part::Sandbox, Part::Git],
        a_tracked_mcp_json_is_left_alone,
    ),
    Test::new("a_crash_is_cleaned_up_by_the_next_run", SANDBOX, a_crash_is_cleaned_up_by_the_next_run),
];

fn read(inside: &Inside, path: &str) -> Outcome<String> {
    Ok(inside.exec(&["sh", "-c", &format!("cat {path}")], &[])?.expect_code(0)?.out)
}

fn each_agent_finds_the_servers() -> Outcome {
    let stage = Stage::with("claude:\n  mcp:\n    inner:\n      command: cat\n")?;
    let inside = stage.rig.console()?;
    let url = format!("{}/mcp/vault", inside.relay_url);
    let claude: Value = serde_json::from_str(&read(&inside, "\"$HOME/.claude.json\"")?)?;
    let vault = &claude["mcpServers"]["vault"];
    let as_expected = vault["type"] == "http" && vault["url"] == url.as_str();
    ensure(as_expected && vault["headers"][VAULT_HEADER] == VAULT_STUB, || vault.to_string())?;
    ensure(claude["mcpServers"]["inner"]["command"] == "cat", || claude.to_string())?;
    let gemini: Value = serde_json::from_str(&read(&inside, "\"$HOME/.gemini/settings.json\"")?)?;
    ensure(gemini["mcpServers"]["vault"]["headers"][VAULT_HEADER] == VAULT_STUB, || gemini.to_string())?;
    let codex = read(&inside, "\"$HOME/.codex/config.toml\"")?;
    ensure(
        codex.contains("[mcp_servers.vault") && codex.contains(&url) && codex.contains(VAULT_STUB),
        || codex.clone(),
    )?;
    for (agent, text) in [("claude", claude.to_string()), ("gemini", gemini.to_string()), ("codex", codex)] {
        stage.nothing_in(agent, &text)?;
        ensure(text.contains("local"), || format!("{agent} does not know the open server: {text}"))?;
    }
    Ok(())
}

fn mcp_json_comes_and_goes() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let document: Value = serde_json::from_str(&read(&inside, ".mcp.json")?)?;
    ensure(document["mcpServers"]["vault"]["url"].is_string(), || document.to_string())?;
    ensure(inside.end()? == 0, || "exit code".to_owned())?;
    ensure(!stage.rig.workspace().join(".mcp.json").exists(), || "our .mcp.json outlives the run".to_owned())
}

/// What a user wrote, in a user's own hand.
const THEIRS: &str = "{\n\t\"mcpServers\" : {\n\t\t\"mine\": { \"command\":\"my-server\",   \"args\": [ ] }\n\t},\n\t\"z\": 1.50, \"a\": 1e3\n}\n\n";

fn the_users_mcp_json_survives() -> Outcome {
    let stage = Stage::new()?;
    let file = stage.rig.workspace().join(".mcp.json");
    for theirs in [THEIRS, "{}", "", "// not JSON at all\n"] {
        fs::write(&file, theirs)?;
        let inside = stage.rig.console()?;
        if theirs == THEIRS {
            let merged = read(&inside, ".mcp.json")?;
            ensure(merged.contains("my-server"), || {
                format!("their server is missing during the run: {merged}")
            })?;
        }
        inside.end()?;
        let after = fs::read_to_string(&file)?;
        ensure(after == theirs, || format!("changed\n{theirs:?}\nto\n{after:?}"))?;
    }
    Ok(())
}

fn a_tracked_mcp_json_is_left_alone() -> Outcome {
    let stage = Stage::new()?;
    fs::write(stage.rig.workspace().join(".mcp.json"), THEIRS)?;
    let git = |arguments: &[&str]| {
        let mut command = std::process::Command::new("git");
        command.args(arguments).current_dir(stage.rig.workspace()).env("HOME", stage.rig.user_home());
        Ran::from(command.output()?).expect_code(0)
    };
    git(&["init", "-q"])?;
    git(&["add", ".mcp.json"])?;
    let inside = stage.rig.console()?;
    let during = fs::read_to_string(stage.rig.workspace().join(".mcp.json"))?;
    ensure(during == THEIRS, || format!("changed during the run: {during}"))?;
    let merged: Value = serde_json::from_str(&read(&inside, "\"$HOME/.mcp.json\"")?)?;
    let both = merged["mcpServers"]["mine"].is_object() && merged["mcpServers"]["vault"].is_object();
    ensure(both, || merged.to_string())?;
    inside.end()?;
    ensure(fs::read_to_string(stage.rig.workspace().join(".mcp.json"))? == THEIRS, || "changed".to_owned())
}

fn a_crash_is_cleaned_up_by_the_next_run() -> Outcome {
    let stage = Stage::new()?;
    let file = stage.rig.workspace().join(".mcp.json");
    let theirs = "{\n  \"mcpServers\": {\n    \"mine\": {\n      \"command\": \"my-server\"\n    }\n  }\n}\n";
    fs::write(&file, theirs)?;
    let inside = stage.rig.console()?;
    ensure(fs::read_to_string(&file)?.contains("vault"), || {
        "not merged, so the test proves nothing".to_owned()
    })?;
    let pid = i32::try_from(inside.pid()).map_err(|_| Trouble::new("no pid"))?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    drop(inside);
    moat_tests::clock::eventually("the crashed run's processes are gone", PATIENCE, || {
        let bridge = stage.rig.bridge();
        stage.rig.processes().iter().all(|pid| Some(*pid) == bridge).then_some(())
    })?;
    stage.rig.sandboxed(&["true"])?.expect_code(0)?;
    let after = fs::read_to_string(&file)?;
    ensure(after == theirs, || format!("after the next run: {after}"))
}
