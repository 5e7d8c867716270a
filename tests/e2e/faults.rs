//! Each fault gives the agent a JSON-RPC error with its request's id, at once, and a line in trace and log.

use moat_tests::{
    Outcome,
    clock::{millis, now},
    faults::Faults,
    inside::Request,
    listen::Listening,
    parts::Part,
    rig::Rig,
    trouble::ensure,
};
use serde_json::json;

use crate::{
    Test,
    stage::{FAULTS_HEADER, FAULTS_STUB, Stage, expect_error, fault},
};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("a_stream_that_breaks", SANDBOX, a_stream_that_breaks),
    Test::new("an_upstream_that_cannot_be_reached", SANDBOX, an_upstream_that_cannot_be_reached),
    Test::new("a_name_that_does_not_resolve", SANDBOX, a_name_that_does_not_resolve),
    Test::new("a_rejected_credential", SANDBOX, a_rejected_credential),
    Test::new("statuses_pass", SANDBOX, statuses_pass),
    Test::new("an_answer_that_never_begins", SANDBOX, an_answer_that_never_begins),
    Test::new("ids_come_back_as_they_are", SANDBOX, ids_come_back_as_they_are),
];

fn a_stream_that_breaks() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    for server in ["faults", "open"] {
        for path in ["cut", "cut-inside", "eof"] {
            let what = format!("{server}/{path}");
            let call = inside.call(&Request::rpc(&format!("/mcp/{what}"), 7, "tools/call"))?;
            let first = call.text("progress")?;
            let answer = call.answer()?;
            expect_error(&what, &answer, 200, "upstream_lost")?;
            let took = millis(answer.end_at - first);
            ensure(took < 1000.0, || format!("{what}: told after {took:.0} ms"))?;
            // The half of an event that came is not glued to the error.
            let events = answer.body.split("\n\n").filter(|event| !event.trim().is_empty());
            let broken =
                events.filter(|event| event.contains("\"error\"") && event.contains("progress")).count();
            ensure(broken == 0, || format!("{what}: {:?}", answer.body))?;
        }
    }
    let lost = |line: &serde_json::Value| line["error"] == "lost" && line["rpc_method"] == "tools/call";
    stage.rig.line("network.jsonl", "lost", lost)?;
    ensure(stage.rig.log().to_lowercase().contains("lost"), || {
        format!("nothing in the log:\n{}", stage.rig.log())
    })
}

fn an_upstream_that_cannot_be_reached() -> Outcome {
    let stage = Stage::new()?;
    let wrong_name = Faults::tls(&stage.rig.authority, &["elsewhere.example"])?;
    let stranger = Faults::tls(&moat_tests::pki::Authority::new()?, &["localhost"])?;
    let closed = { Listening::tcp(|stream| async move { drop(stream) })?.port() };
    let hangs_up = Listening::tcp(|stream| async move { drop(stream) })?;
    let cases = [
        ("refused", format!("http://127.0.0.1:{closed}/mcp"), "upstream_unreachable", "refused"),
        ("tls-name", format!("{}/ok", wrong_name.url()), "upstream_unreachable", "tls"),
        ("tls-trust", format!("{}/ok", stranger.url()), "upstream_unreachable", "tls"),
        ("hangs-up", format!("http://127.0.0.1:{}/mcp", hangs_up.port()), "upstream_lost", "lost"),
    ];
    let servers: Vec<String> =
        cases.iter().map(|(name, url, _, _)| format!("  - name: {name}\n    url: {url}\n")).collect();
    stage.rig.config(&format!("mcp:\n{}", servers.concat()))?;
    let inside = stage.rig.console()?;
    for (name, _, kind, reason) in &cases {
        let asked = now();
        let answer = inside.answer(&Request::rpc(&format!("/mcp/{name}"), 7, "ping"))?;
        expect_error(name, &answer, 502, kind)?;
        let message = answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        ensure(message.contains(name) && !message.contains("127.0.0.1:"), || format!("{name}: {message}"))?;
        let took = millis(answer.end_at - asked);
        ensure(took < 1000.0, || format!("{name}: told after {took:.0} ms"))?;
        let traced = |line: &serde_json::Value| line["server"] == *name && line["error"] == *reason;
        stage.rig.line("network.jsonl", reason, traced)?;
        ensure(stage.rig.log().contains(name), || format!("{name}: nothing in the log"))?;
    }
    Ok(())
}

/// In a network namespace of its own the bridge has no resolver to ask, and the test sends nothing anywhere.
fn a_name_that_does_not_resolve() -> Outcome {
    let mut rig = Rig::new()?;
    let flags = if Part::Root.here() { "--net" } else { "--map-root-user --net" };
    rig.prefix = std::iter::once("unshare").chain(flags.split(' ')).map(ToOwned::to_owned).collect();
    rig.config("mcp:\n  - name: dns\n    url: https://no-such-host.invalid/mcp\n")?;
    let inside = rig.console()?;
    let asked = now();
    let answer = inside.answer(&Request::rpc("/mcp/dns", 7, "ping"))?;
    expect_error("dns", &answer, 502, "upstream_unreachable")?;
    let took = millis(answer.end_at - asked);
    ensure(took < 1000.0, || format!("told after {took:.0} ms"))?;
    rig.line("network.jsonl", "dns", |line| line["error"] == "dns").map(|_| ())
}

fn a_rejected_credential() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    for path in ["status/401", "status/403", "status/401/empty"] {
        let answer = inside.answer(&fault(path))?;
        expect_error(path, &answer, 502, "upstream_rejected_credential")?;
        ensure(answer.body.contains("moat grant mcp faults"), || format!("no remedy: {}", answer.body))?;
        ensure(answer.value("www-authenticate").is_none(), || "the challenge came through".to_owned())?;
    }
    stage.rig.line("audit.jsonl", "credential.rejected", |line| line["type"] == "credential.rejected")?;
    let answer = inside.answer(&Request::rpc("/mcp/open/status/401", 7, "ping"))?;
    ensure(answer.status == 401 && answer.value("www-authenticate").is_none(), || format!("{answer:?}"))
}

fn statuses_pass() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    for status in [400, 404, 405, 406, 409, 415, 429, 500, 503] {
        for tail in ["", "/empty"] {
            let answer = inside.answer(&fault(&format!("status/{status}{tail}")))?;
            ensure(answer.status == status && answer.clean, || format!("{status}{tail}: {answer:?}"))?;
            let body = tail.is_empty() == answer.body.contains("upstream says no");
            ensure(body, || format!("{status}{tail}: {:?}", answer.body))?;
        }
        let traced = |line: &serde_json::Value| line["status"] == status && line["server"] == "faults";
        stage.rig.line("network.jsonl", &status.to_string(), traced)?;
    }
    Ok(())
}

fn an_answer_that_never_begins() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let hung = inside.call(&fault("hang?here"))?;
    stage.faults.seen.arrived("?here", crate::stage::SOON * 5)?;
    // It disturbs nobody else, and its end is recorded.
    let answer = inside.answer(&fault("ok"))?;
    ensure(answer.status == 200, || format!("{answer:?}"))?;
    hung.abandon()?;
    stage.rig.line("network.jsonl", "cancelled", |line| line["error"] == "cancelled").map(|_| ())
}

fn ids_come_back_as_they_are() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    for id in [
        json!("seven"),
        json!(0),
        json!(-3),
        json!("listen:0"),
        json!(9_007_199_254_740_992_u64),
        json!("ü\""),
    ] {
        let message = json!({"params": {"id": "inner"}, "method": "tools/call", "id": id, "jsonrpc": "2.0"});
        for path in ["status/401", "cut"] {
            let request =
                Request::post(&format!("/mcp/faults/{path}"), &message).header(FAULTS_HEADER, FAULTS_STUB);
            let answer = inside.answer(&request)?.json();
            ensure(answer["id"] == id && answer["error"].is_object(), || format!("{path} {id}: {answer}"))?;
        }
    }
    Ok(())
}
