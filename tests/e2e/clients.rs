//! Real clients inside the sandbox get the same answer whatever the proxy variables say.

use std::fs;

use moat_tests::{
    Outcome, Trouble,
    inside::Inside,
    parts::{self, Part},
    rig::Ran,
    trouble::ensure,
};
use serde_json::{Value, json};

use crate::{
    Test,
    stage::{Stage, VAULT_HEADER, VAULT_STUB},
};

pub(crate) const TESTS: &[Test] = &[
    Test::new("curl", &[Part::Sandbox, Part::Curl], curl),
    Test::new("rmcp", &[Part::Sandbox], rmcp),
    Test::new("python_sdk", &[Part::Sandbox, Part::Python], python_sdk),
    Test::new("typescript_sdk", &[Part::Sandbox, Part::TypeScript], typescript_sdk),
];

/// Runs a client three times: no proxy, the relay as proxy, a dead proxy with moat's NO_PROXY.
fn in_all_environments(inside: &Inside, argv: &[&str], check: impl Fn(&Ran) -> Outcome) -> Outcome {
    let relay = inside.relay_url.clone();
    let dead = "http://127.0.0.1:9";
    let none = [("HTTP_PROXY", None), ("http_proxy", None)];
    let is_relay = [
        ("HTTP_PROXY", Some(relay.as_str())),
        ("http_proxy", Some(relay.as_str())),
        ("NO_PROXY", None),
        ("no_proxy", None),
    ];
    let is_dead = [("HTTP_PROXY", Some(dead)), ("http_proxy", Some(dead)), ("ALL_PROXY", Some(dead))];
    for (what, env) in
        [("no proxy", &none[..]), ("the relay as proxy", &is_relay), ("a dead proxy", &is_dead)]
    {
        let ran = inside.exec(argv, env)?;
        let judged =
            if ran.code == 0 { check(&ran) } else { Err(Trouble::new(format!("exit code {}", ran.code))) };
        judged.map_err(|trouble| Trouble::new(format!("{what}: {trouble}\n{}\n{}", ran.out, ran.err)))?;
    }
    Ok(())
}

/// The credential arrived with every request, by whichever way.
fn credential_arrived(stage: &Stage) -> Outcome {
    let seen = stage.vault.seen.requests();
    let each = seen.iter().all(|request| request.values(VAULT_HEADER) == [stage.secret.as_str()]);
    ensure(seen.len() >= 3 && each, || format!("{seen:?}"))
}

fn curl() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "curl", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let params = json!({"name": "add", "arguments": {"a": 40, "b": 2}, "_meta": meta});
    let message = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}).to_string();
    let url = format!("{}/mcp/vault", inside.relay_url);
    let key = format!("{VAULT_HEADER}: {VAULT_STUB}");
    let headers = [
        "Content-Type: application/json",
        "Accept: application/json, text/event-stream",
        "MCP-Protocol-Version: 2026-07-28",
        "Mcp-Method: tools/call",
        "Mcp-Name: add",
        &key,
    ];
    let mut argv = vec!["curl", "-sS", "-m", "20", "--fail-with-body", "-d", &message, &url];
    argv.extend(headers.iter().flat_map(|header| ["-H", header]));
    in_all_environments(&inside, &argv, |ran| ensure(ran.out.contains("\"42\""), || "no sum".to_owned()))?;
    // h2c, as an agent might speak it.
    argv.push("--http2-prior-knowledge");
    let ran = inside.exec(&argv, &[("HTTP_PROXY", None), ("http_proxy", None)])?.expect_code(0)?;
    ensure(ran.out.contains("\"42\""), || ran.out.clone())?;
    credential_arrived(&stage)
}

fn rmcp() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    for modern in [true, false] {
        let visit = json!({
            "url": format!("{}/mcp/vault", inside.relay_url), "modern": modern,
            "headers": {VAULT_HEADER: VAULT_STUB}, "calls": [["echo", {"text": "hello"}]],
        });
        let argv = ["./.fixtures/moat-fixture-client", "mcp", &visit.to_string()];
        in_all_environments(&inside, &argv, |ran| {
            ensure(ran.out.contains("vault: hello"), || "no echo".to_owned())
        })?;
    }
    credential_arrived(&stage)
}

/// Runs an SDK's client; `program` gets the URL and the headers as its last arguments.
fn sdk(stage: &Stage, clients: &str, program: &[&str], more: &[&str]) -> Outcome {
    let inside = stage.rig.console_with(&["-m", &format!("{clients}:{clients}:ro")])?;
    let url = format!("{}/mcp/vault", inside.relay_url);
    let headers = json!({VAULT_HEADER: VAULT_STUB}).to_string();
    let argv = [program, &[&url, &headers], more].concat();
    in_all_environments(&inside, &argv, |ran| {
        let answer: Value = serde_json::from_str(ran.out.trim())?;
        let tools = answer["tools"].as_array().map_or(0, Vec::len);
        ensure(answer["text"] == "vault: hello" && tools > 3, || "another answer".to_owned())
    })?;
    credential_arrived(stage)
}

/// Puts a client's script into the workspace.
fn script(stage: &Stage, name: &str) -> Outcome<String> {
    let own = format!("{}/clients/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::copy(own, stage.rig.workspace().join(name))?;
    Ok(format!("./{name}"))
}

fn python_sdk() -> Outcome {
    let python = parts::python().ok_or_else(|| Trouble::new("no python"))?;
    let clients = python.ancestors().nth(2).unwrap_or(&python).to_string_lossy().into_owned();
    let stage = Stage::new()?;
    let script = script(&stage, "python_client.py")?;
    sdk(&stage, &clients, &[&python.to_string_lossy(), &script], &[])
}

fn typescript_sdk() -> Outcome {
    let modules =
        parts::typescript().ok_or_else(|| Trouble::new("no modules"))?.to_string_lossy().into_owned();
    let stage = Stage::new()?;
    let script = script(&stage, "typescript_client.mjs")?;
    sdk(&stage, &modules, &["node", &script], &[&modules])
}
