//! Policy through the whole stack: what is denied is not listed, ends in a readable refusal, and stays denied whatever
//! becomes of the bridge and of the rule file.

use std::{fs, time::Duration};

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    console::http::Body,
    faults::Faults,
    inside::{Inside, Request},
    parts::Part,
    rig::Rig,
    trouble::ensure,
    upstream::Upstream,
};
use serde_json::{Value, json};

use crate::Test;

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("what_is_denied_stays_denied", SANDBOX, what_is_denied_stays_denied),
    Test::new("no_way_around", SANDBOX, no_way_around),
    Test::new("the_commands", &[], the_commands),
];

pub(crate) const RULES: &str = "scope: local\nmode: enforce\nrules:\n- {name: no-sums, action: deny, match: {operation: add}, message: No sums here.}\n";
/// How long a changed file may take to be noticed.
pub(crate) const NOTICED: Duration = Duration::from_secs(10);

/// A rig whose server `local` has the rules of a file in the workspace.
pub(crate) fn with_rules() -> Outcome<(Rig, Upstream)> {
    let rig = Rig::new()?;
    let local = Upstream::plain("local", None)?;
    fs::create_dir_all(rig.workspace().join(".keep"))?;
    fs::write(rig.workspace().join(".keep/local.yaml"), RULES)?;
    rig.config(&format!("mcp:\n  - name: local\n    url: {}\n    policy: .keep/local.yaml\n", local.url()))?;
    Ok((rig, local))
}

/// The names of the tools that are listed, and what came of two calls.
pub(crate) fn visit(inside: &Inside, modern: bool) -> Outcome<(Vec<String>, Value, Value)> {
    let calls = [("add", json!({"a": 1, "b": 2})), ("echo", json!({"text": "hi"}))];
    let seen = inside.visit("local", modern, &[], &calls)?;
    let tools = seen["tools"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok((tools.map(str::to_owned).collect(), seen["results"][0].clone(), seen["results"][1].clone()))
}

pub(crate) fn is_denied(result: &Value) -> bool {
    let text = result["result"]["content"][0]["text"].as_str().unwrap_or_default();
    result["result"]["isError"] == true && text.starts_with("Moat: MCP tool call blocked by policy.")
}

/// Fails unless `add` is neither listed nor carried out, and `echo` is both.
fn expect_no_sums(what: &str, inside: &Inside, modern: bool) -> Outcome {
    let (tools, add, echo) = visit(inside, modern)?;
    let listed = |name: &str| tools.iter().any(|tool| tool == name);
    ensure(!listed("add") && listed("echo"), || format!("{what}: {tools:?}"))?;
    ensure(is_denied(&add), || format!("{what}: {add}"))?;
    ensure(add.to_string().contains("No sums here."), || format!("{what}: {add}"))?;
    ensure(echo["result"]["content"][0]["text"] == "local: hi", || format!("{what}: {echo}"))
}

fn what_is_denied_stays_denied() -> Outcome {
    let (rig, _local) = with_rules()?;
    let inside = rig.console()?;
    let file = rig.workspace().join(".keep/local.yaml");
    for modern in [false, true] {
        expect_no_sums("at first", &inside, modern)?;
    }
    rig.line("audit.jsonl", "the denial", |line| {
        line["type"] == "request.denied" && line["operation"] == "add" && line["rule"] == "no-sums"
    })?;
    // The agent looses the rules: nothing changes until somebody on the host says so.
    fs::write(&file, RULES.replace("operation: add", "operation: big"))?;
    rig.line("audit.jsonl", "the changed file", |line| line["type"] == "policy.reload_pending")?;
    let (tools, add, _) = visit(&inside, false)?;
    ensure(is_denied(&add) && !tools.iter().any(|tool| tool == "big"), || {
        format!("looser in nothing, stricter at once: {tools:?} {add}")
    })?;
    // Killed and back, with the file gone.
    fs::remove_file(&file)?;
    rig.kill_bridge()?;
    let back = || visit(&inside, false).ok();
    let (_, add, echo) = eventually("the run works again", NOTICED, back)?;
    ensure(is_denied(&add) && echo["result"]["isError"] != true, || {
        format!("after a restart: {add} {echo}")
    })?;
    // Another rule is in force by itself.
    fs::write(&file, RULES.replace("operation: add", "operation: echo"))?;
    eventually("the stricter rule is in force", NOTICED, || {
        visit(&inside, false).ok().filter(|(_, add, echo)| is_denied(add) && is_denied(echo)).map(|_| ())
    })?;
    let reloaded = rig.run(&["policy", "reload", "--yes"])?.expect_code(0)?;
    ensure(reloaded.out.contains("rule no-sums: operation: \"add\" -> \"echo\""), || reloaded.out.clone())?;
    let (_, add, echo) = visit(&inside, false)?;
    ensure(add["result"]["content"][0]["text"] == "3" && is_denied(&echo), || {
        format!("accepted: {add} {echo}")
    })?;
    ensure(inside.end()? == 0, || "the run's exit code".to_owned())
}

/// The same call through every door that there is.
fn no_way_around() -> Outcome {
    let rig = Rig::new()?;
    let open = Faults::plain()?;
    rig.config(&format!(
        "mcp:\n  - name: open\n    url: {}/ok\n    policy: {{deny: ['wipe_*']}}\n  - name: twin\n    url: {0}/ok\n    policy: {{allow: [get]}}\n",
        open.url()
    ))?;
    let inside = rig.console()?;
    let bodies = [
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"wipe_board"}}"#,
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"WIPE_board"}}"#,
        r#"{"jsonrpc":"2.0","id":7,"method":"tools\/call","params":{"n\u0061me":"w\u0069pe_board"}}"#,
        r#"{"jsonrpc":"2.0","id":7,"method":"ping","METHOD":"tools/call","params":{"name":"wipe_board"}}"#,
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"get","name":"wipe_board"}}"#,
        r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"wipe_board","Name":"get"}}"#,
        r#"[{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"get"}},{"jsonrpc":"2.0","id":8,"method":"tools/call","params":{"name":"wipe_board"}}]"#,
        "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"tools/call\",\"params\":{\"name\":\"w\u{456}pe_board\"}}",
        r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"wipe_board"}}"#,
    ];
    let mut sent = 0;
    for body in bodies {
        for target in ["/mcp/open", "/mcp/open/", "/mcp/open?x=1", "/mcp/open/x", "/mcp/twin"] {
            for header in [None, Some(("Mcp-Method", "ping")), Some(("MCP-Protocol-Version", "2026-07-28"))] {
                let mut request = Request::rpc(target, 7, "x").body(Body::Text(body.to_owned()));
                if let Some((name, value)) = header {
                    request = request.header(name, value);
                }
                sent += 1;
                let answer = inside.answer(&request)?;
                let told =
                    answer.status == 400 || answer.body.contains("Moat") || answer.body.contains("MOAT");
                ensure(told, || format!("{target} {header:?} {body}: {answer:?}"))?;
            }
        }
    }
    for method in ["GET", "DELETE", "PUT", "PATCH"] {
        let request = Request::new(method, "/mcp/open").header("Content-Type", "application/json");
        let answer = inside.answer(&request.body(Body::Text(bodies[0].to_owned())))?;
        // Other verbs go no further than the relay, which records nothing.
        sent += usize::from(matches!(method, "GET" | "DELETE"));
        ensure(answer.status >= 400, || format!("{method}: {answer:?}"))?;
    }
    // Each of them is a line with the tool's name, or with what was refused.
    let told = |line: &Value| {
        let tool = line["operation"].as_str().is_none_or(|tool| tool.to_lowercase() == "wipe_board");
        line["type"] == "request.denied" && line["reason"].as_str().is_some_and(|why| !why.is_empty()) && tool
    };
    let all = || (rig.lines("audit.jsonl").iter().filter(|line| told(line)).count() == sent).then_some(());
    eventually("a line in audit.jsonl for each", NOTICED, all).map_err(|trouble| {
        let lines = rig.lines("audit.jsonl");
        let others: Vec<String> = lines.iter().filter(|line| !told(line)).map(ToString::to_string).collect();
        Trouble::new(format!("{trouble}: {sent} sent, {} lines\n{}", lines.len(), others.join("\n")))
    })?;
    let seen = open.seen.requests();
    ensure(seen.is_empty(), || format!("reached the server: {seen:?}"))?;
    let passes = Request::rpc("/mcp/twin", 7, "tools/call");
    let call = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "get"}});
    let answer = inside.answer(&passes.body(Body::Text(call.to_string())))?;
    ensure(answer.status == 200 && open.seen.requests().len() == 1, || format!("{answer:?}"))?;
    ensure(inside.end()? == 0, || "the run's exit code".to_owned())
}

fn the_commands() -> Outcome {
    let (rig, _local) = with_rules()?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let file = rig.workspace().join(".keep/local.yaml").to_string_lossy().into_owned();
    let checked = rig.run(&["policy", "check", &workspace])?.expect_code(0)?;
    ensure(checked.out.contains("local: .keep/local.yaml (enforce, 1 rules)"), || checked.out.clone())?;
    let explained = rig
        .run(&["policy", "explain", "local", "add", "--workspace", &workspace, "--json"])?
        .expect_code(0)?;
    let explained: Value = serde_json::from_str(&explained.out)?;
    ensure(
        explained["decision"] == "deny" && explained["rule"] == "no-sums" && explained["listed"] == false,
        || explained.to_string(),
    )?;
    let fixtures = rig.workspace().join("fixtures.yaml");
    let test = |decision: &str| {
        format!(
            "scope: local\ntests:\n- name: sums\n  call: {{operation: add, params: {{a: 1}}}}\n  expect: {{decision: {decision}}}\n"
        )
    };
    for (decision, code) in [("deny", 0), ("allow", 1)] {
        fs::write(&fixtures, test(decision))?;
        rig.run(&["policy", "test", &file, &fixtures.to_string_lossy()])?.expect_code(code)?;
    }
    let differs = rig.run(&["policy", "diff", "linear-readonly", &file])?.expect_code(0)?;
    ensure(differs.out.contains("- rule deny-non-read") && differs.out.contains("+ rule no-sums"), || {
        differs.out.clone()
    })?;
    fs::write(&file, "scope: local\nrules:\n- {name: a, action: allow}\n- {action: deny}\n")?;
    let broken = rig.run(&["policy", "check", &workspace])?.expect_code(1)?;
    ensure(broken.err.contains(".keep/local.yaml:3") && broken.err.contains("name is required"), || {
        broken.err.clone()
    })
}
