//! Every revision of MCP that is in the field, on the wire: what an agent of that revision sends, and what it must get.
//!
//! The names say which rules of docs/PROTOCOL.md a test holds.

use std::fs;

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    console::{Event, http::Body},
    faults::Faults,
    inside::{Inside, Request},
    parts::{self, Part},
    rig::{PATIENCE, Rig},
    suite::{run::Everything, server::SuiteServer},
    trouble::ensure,
};
use serde_json::{Value, json};

use crate::{Test, stage::SOON};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new(
        "rev_2024_11_05_r13_r16_r22_with_server_everything",
        &[Part::Sandbox, Part::Suite],
        rev_2024_11_05,
    ),
    Test::new(
        "rev_2024_11_05_r22_with_the_typescript_sdk",
        &[Part::Sandbox, Part::Suite, Part::TypeScript],
        rev_2024_11_05_sdk,
    ),
    Test::new("rev_2025_03_26_r6_r10_r11_r13_r15", SANDBOX, || sessions("2025-03-26", None)),
    Test::new("rev_2025_03_26_r8_r9_r18_batches", SANDBOX, batches),
    Test::new("rev_2025_06_18_r2_r10_r11_r13_r15", SANDBOX, || sessions("2025-06-18", Some("2025-06-18"))),
    Test::new("rev_2025_11_25_r2_r10_r11_r13_r15", SANDBOX, || sessions("2025-11-25", Some("2025-11-25"))),
    Test::new("rev_2025_11_25_r16_r18_a_stream_that_wants_to_be_polled", SANDBOX, polled),
    Test::new(
        "rev_2025_11_25_r17_r23_a_get_stream_that_was_left_makes_room",
        &[Part::Sandbox, Part::Suite],
        left,
    ),
    Test::new("rev_2026_07_28_r2_r9_r11_headers_of_requests", SANDBOX, modern_headers),
    Test::new("rev_2026_07_28_r10_r11_r12_no_get_and_no_delete", SANDBOX, modern_methods),
    Test::new("rev_2026_07_28_r14_r17_r24_subscriptions", SANDBOX, modern_subscriptions),
];

/// A server, and a rig whose only MCP server it is. Dropped in this order: the rig looks for what is left.
struct Scene<S> {
    server: S,
    rig: Rig,
}

impl<S> Scene<S> {
    fn new(start: impl FnOnce(&Rig) -> Outcome<S>, url: impl FnOnce(&S) -> String) -> Outcome<Self> {
        let rig = Rig::new()?;
        let server = start(&rig)?;
        rig.config(&format!("mcp:\n  - name: it\n    url: {}\n", url(&server)))?;
        Ok(Self { server, rig })
    }
}

fn suite_server() -> Outcome<Scene<SuiteServer>> {
    Scene::new(|_| SuiteServer::start(), SuiteServer::url)
}

fn message(id: u64, method: &str, params: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
}

fn hello(revision: &str) -> Value {
    let client = json!({"name": "probe", "version": "1"});
    message(7, "initialize", &json!({"protocolVersion": revision, "capabilities": {}, "clientInfo": client}))
}

const INITIALIZED: &str = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;

fn initialized() -> Value {
    serde_json::from_str(INITIALIZED).unwrap_or_default()
}

fn rev_2024_11_05() -> Outcome {
    let scene = Scene::new(|rig| Everything::start(rig, "sse"), |server| format!("{}/sse", server.url()))?;
    let inside = scene.rig.console()?;
    let stream = inside.call(&Request::get("/mcp/it"))?;
    stream.text("\n\n")?;
    let so_far = || -> String { body_of(&stream.events()) };
    let first = so_far();
    let place = first
        .lines()
        .find_map(|line| line.strip_prefix("data: "))
        .filter(|place| place.starts_with("/mcp/it/.message/"))
        .ok_or_else(|| Trouble::new(format!("R22: the endpoint leads elsewhere: {first}")))?
        .to_owned();
    ensure(first.starts_with("event: endpoint"), || first.clone())?;
    let post = |message: &Value| -> Outcome {
        let answer = inside.answer(&Request::post(&place, message))?;
        ensure(answer.status == 202, || format!("R13: {answer:?}"))
    };
    post(&hello("2024-11-05"))?;
    stream.text("\"serverInfo\"")?;
    post(&initialized())?;
    post(&message(8, "tools/call", &json!({"name": "echo", "arguments": {"message": "hello"}})))?;
    stream.text("Echo: hello")?;
    // A handle is for the stream that gave it, and for as long as that lives.
    let other = inside.answer(&Request::post("/mcp/it/.message/none", &initialized()))?;
    ensure(other.status == 404, || format!("{other:?}"))?;
    stream.abandon()?;
    eventually("the handle is forgotten with its stream", PATIENCE, || {
        let answer = inside.answer(&Request::post(&place, &initialized())).ok()?;
        (answer.status == 404).then_some(())
    })
}

fn body_of(events: &[Event]) -> String {
    let text = |event: &Event| match event {
        Event::Data { text, .. } => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(text).collect()
}

fn rev_2024_11_05_sdk() -> Outcome {
    let modules = parts::typescript().ok_or_else(|| Trouble::new("no modules"))?;
    let modules = modules.to_string_lossy();
    let scene = Scene::new(|rig| Everything::start(rig, "sse"), |server| format!("{}/sse", server.url()))?;
    let own = format!("{}/clients/typescript_sse.mjs", env!("CARGO_MANIFEST_DIR"));
    fs::copy(own, scene.rig.workspace().join("typescript_sse.mjs"))?;
    let inside = scene.rig.console_with(&["-m", &format!("{modules}:{modules}:ro")])?;
    let url = format!("{}/mcp/it", inside.relay_url);
    let ran = inside.exec(&["node", "./typescript_sse.mjs", &url, &modules], &[])?.expect_code(0)?;
    let answer: Value = serde_json::from_str(ran.out.trim())?;
    ensure(answer["text"] == "Echo: hello", || ran.out.clone())
}

/// The revisions with sessions. `header` is what the agent sends as `MCP-Protocol-Version` once it is initialised.
fn sessions(revision: &'static str, header: Option<&str>) -> Outcome {
    let scene = suite_server()?;
    let inside = scene.rig.console()?;
    let seen = &scene.server.seen;
    let begun = inside.answer(&Request::post("/mcp/it", &hello(revision)))?;
    let session = begun.value("mcp-session-id").unwrap_or_default().to_owned();
    let agreed = begun.json()["result"]["protocolVersion"].clone();
    ensure(begun.status == 200 && !session.is_empty() && agreed == revision, || format!("{begun:?}"))?;
    let in_session = |request: Request| {
        let request = request.header("Mcp-Session-Id", &session);
        header.into_iter().fold(request, |request, value| request.header("MCP-Protocol-Version", value))
    };
    let accepted = inside.answer(&in_session(Request::post("/mcp/it", &initialized())))?;
    let bare = accepted.bytes == 0 && accepted.value("content-type").is_none();
    ensure(accepted.status == 202 && bare, || format!("R13: {accepted:?}"))?;
    let call = message(8, "tools/call", &json!({"name": "test_simple_text", "arguments": {}}));
    let called = inside.answer(&in_session(Request::post("/mcp/it", &call)))?;
    ensure(called.body.contains("This is a simple text"), || format!("{called:?}"))?;
    let stream = inside.call(&in_session(Request::get("/mcp/it")))?;
    stream.until("R10: the GET stream opens", PATIENCE, |events| {
        events.iter().any(|event| matches!(event, Event::Head { status: 200, .. })).then_some(())
    })?;
    for request in seen.requests() {
        // R2, R6: what the agent said about the revision, no more and no less.
        let said = request.values("mcp-protocol-version");
        let initializes = request.body.windows(12).any(|bytes| bytes == b"\"initialize\"");
        let expected: Vec<&str> = if initializes { Vec::new() } else { header.into_iter().collect() };
        ensure(said == expected, || format!("R6: {} {said:?}, not {expected:?}", request.method))?;
    }
    // R11: the upstream's own verdict, with its own words, where it has one.
    let strange = Request::post("/mcp/it", &call).header("Mcp-Session-Id", &session);
    let strange = inside.answer(&strange.header("MCP-Protocol-Version", "1999-01-01"))?;
    ensure(strange.status == 400 && !strange.body.contains("moat"), || format!("R11: {strange:?}"))?;
    // R15: a session that moat never saw is unknown; so is one that has ended.
    let before = seen.requests().len();
    let foreign =
        inside.answer(&Request::post("/mcp/it", &call).header("Mcp-Session-Id", "of-somebody-else"))?;
    ensure(foreign.status == 404 && seen.requests().len() == before, || format!("R15: {foreign:?}"))?;
    let ended = inside.answer(&in_session(Request::new("DELETE", "/mcp/it")))?;
    ensure((200..300).contains(&ended.status), || format!("R10: {ended:?}"))?;
    ensure(seen.requests().iter().any(|request| request.method == "DELETE"), || "R10: no DELETE".to_owned())?;
    let after = inside.answer(&in_session(Request::post("/mcp/it", &call)))?;
    ensure(after.status == 404, || format!("an ended session: {after:?}"))
}

/// Only this revision, and the one before it, knows arrays of messages.
fn batches() -> Outcome {
    let scene = Scene::new(|_| Faults::plain(), |server| server.url())?;
    let inside = scene.rig.console()?;
    let batch = |path: &str, text: &str| {
        let post =
            Request::new("POST", &format!("/mcp/it/{path}")).header("Content-Type", "application/json");
        post.body(Body::Text(text.to_owned()))
    };
    let two = r#"[ {"jsonrpc":"2.0","id":"a","method":"ping"}, {"id":2,"jsonrpc":"2.0","method":"ping"} ]"#;
    let answer = inside.answer(&batch("ok", two))?;
    let arrived = scene.server.seen.requests().pop().map(|request| request.body);
    ensure(answer.status == 200 && arrived.as_deref() == Some(two.as_bytes()), || format!("R8: {answer:?}"))?;
    // R18: every request of it gets to know that its answer is lost.
    let lost = inside.answer(&batch("eof", two))?;
    let told = |id: &Value| {
        let data = lost.body.lines().filter_map(|line| line.strip_prefix("data: "));
        let messages = data.filter_map(|text| serde_json::from_str::<Value>(text).ok());
        messages
            .filter(|message| message["id"] == *id && message["error"]["data"]["kind"] == "upstream_lost")
            .count()
    };
    ensure(told(&json!("a")) == 1 && told(&json!(2)) == 1, || format!("R18: {lost:?}"))?;
    // R9: each element is judged, and one header cannot speak for all of them.
    let before = scene.server.seen.requests().len();
    let twice = r#"[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping","method":"tools/call"}]"#;
    for request in [batch("ok", twice), batch("ok", two).header("Mcp-Method", "ping"), batch("ok", "[]")] {
        let answer = inside.answer(&request)?;
        ensure(answer.status == 400 && answer.kind() == "bad_request", || format!("R9: {answer:?}"))?;
    }
    ensure(scene.server.seen.requests().len() == before, || "R9: it reached the upstream".to_owned())
}

/// An initialised session of 2025-11-25; its id as the agent has it.
fn session(inside: &Inside) -> Outcome<String> {
    let begun = inside.answer(&Request::post("/mcp/it", &hello("2025-11-25")))?;
    let id = begun.value("mcp-session-id").unwrap_or_default().to_owned();
    let said = Request::post("/mcp/it", &initialized()).header("Mcp-Session-Id", &id);
    ensure(inside.answer(&said)?.status == 202, || format!("not initialised: {begun:?}"))?;
    Ok(id)
}

fn polled() -> Outcome {
    let scene = suite_server()?;
    let inside = scene.rig.console()?;
    let id = session(&inside)?;
    let call = message(8, "tools/call", &json!({"name": "test_reconnection", "arguments": {}}));
    let first = inside.answer(&Request::post("/mcp/it", &call).header("Mcp-Session-Id", &id))?;
    // R18: the server ended it on purpose, so it ends. R16: with its ids and its pause, and nothing of ours.
    ensure(first.clean && !first.body.contains("error"), || format!("R18: {first:?}"))?;
    let line = |name: &str| first.body.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let event = line("id:").ok_or_else(|| Trouble::new(format!("R16: no id: {first:?}")))?;
    ensure(line("retry:") == Some("200"), || format!("R16: {first:?}"))?;
    let again = Request::get("/mcp/it").header("Mcp-Session-Id", &id).header("Last-Event-ID", event);
    let again = inside.call(&again)?;
    again.text("the stream was resumed")?;
    let asked = scene.server.seen.requests().into_iter().rev().find(|request| request.method == "GET");
    ensure(asked.is_some_and(|request| request.values("last-event-id") == [event]), || {
        "R16: no id".to_owned()
    })
}

/// The recipe of server-everything's transport: it allows one GET stream, and answers 409 to a second one.
fn left() -> Outcome {
    let scene =
        Scene::new(|rig| Everything::start(rig, "streamableHttp"), |server| format!("{}/mcp", server.url()))?;
    let inside = scene.rig.console()?;
    let id = session(&inside)?;
    let get = Request::get("/mcp/it").header("Mcp-Session-Id", &id);
    let opens = |request: &Request| {
        let stream = inside.call(request)?;
        let status = stream.until("the head of a GET", PATIENCE, |events| {
            events.iter().find_map(|event| match event {
                Event::Head { status, .. } => Some(*status),
                _ => None,
            })
        })?;
        Ok::<_, Trouble>((stream, status))
    };
    let (first, status) = opens(&get)?;
    ensure(status == 200, || format!("{status}"))?;
    let (_, second) = opens(&get)?;
    ensure(second == 409, || format!("R11: the upstream's own refusal, not {second}"))?;
    first.abandon()?;
    // R17: the upstream hears of it at once; otherwise it refuses until its own timeout.
    eventually("a GET after one that was left", SOON * 3, || {
        let (stream, status) = opens(&get).ok()?;
        stream.abandon().ok()?;
        (status == 200).then_some(())
    })
}

/// A request of 2026-07-28, as its client sends it.
fn modern(id: u64, method: &str, mut params: Value, name: Option<&str>) -> Request {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "probe", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let post = Request::post("/mcp/it", &message(id, method, &params));
    let post = post.header("MCP-Protocol-Version", "2026-07-28").header("Mcp-Method", method);
    name.into_iter().fold(post, |post, name| post.header("Mcp-Name", name))
}

fn modern_headers() -> Outcome {
    let scene = suite_server()?;
    let inside = scene.rig.console()?;
    let params = json!({"name": "test_parameter_headers", "arguments": {"region": "Zürich"}});
    let encoded = "=?base64?WsO8cmljaA==?=";
    let call = modern(8, "tools/call", params.clone(), Some("test_parameter_headers"));
    let answer = inside.answer(&call.header("Mcp-Param-Region", encoded))?;
    ensure(answer.status == 200 && answer.body.contains("Zürich"), || format!("R2: {answer:?}"))?;
    let seen = scene.server.seen.requests();
    let last = seen.last().ok_or_else(|| Trouble::new("nothing arrived"))?;
    for (name, value) in [
        ("mcp-param-region", encoded),
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "test_parameter_headers"),
    ] {
        ensure(last.values(name) == [value], || format!("R2: {name}: {:?}", last.values(name)))?;
    }
    // R11: the server's own refusal of a parameter that is missing in the headers, with its code.
    let refused = inside.answer(&modern(8, "tools/call", params.clone(), Some("test_parameter_headers")))?;
    let code = refused.json()["error"]["code"].clone();
    ensure(refused.status == 400 && code == -32020 && refused.kind().is_empty(), || {
        format!("R11: {refused:?}")
    })?;
    // R9: a header that disagrees with the body is refused before the upstream can judge it.
    let before = scene.server.seen.requests().len();
    for (method, name) in [("tools/list", "test_parameter_headers"), ("tools/call", "test_simple_text")] {
        let message = message(8, "tools/call", &params);
        let post = Request::post("/mcp/it", &message).header("MCP-Protocol-Version", "2026-07-28");
        let answer = inside.answer(&post.header("Mcp-Method", method).header("Mcp-Name", name))?;
        let code = answer.json()["error"]["code"].clone();
        ensure(answer.status == 400 && code == -32020 && answer.kind() == "bad_request", || {
            format!("R9: {method} {name}: {answer:?}")
        })?;
    }
    ensure(scene.server.seen.requests().len() == before, || "R9: it reached the upstream".to_owned())
}

fn modern_methods() -> Outcome {
    let scene = suite_server()?;
    let inside = scene.rig.console()?;
    for method in ["GET", "DELETE"] {
        let request = Request::new(method, "/mcp/it").header("MCP-Protocol-Version", "2026-07-28");
        let answer = inside.answer(&request.header("Accept", "text/event-stream"))?;
        let reached = scene.server.seen.requests().last().map(|request| request.method.clone());
        ensure(reached.as_deref() == Some(method), || format!("R10: {method} did not arrive: {reached:?}"))?;
        ensure((400..500).contains(&answer.status) && answer.kind().is_empty(), || {
            format!("R11: {answer:?}")
        })?;
    }
    // 404 means "no such method" here: it is the upstream's, with its body.
    let answer = inside.answer(&modern(9, "no/such-method", json!({}), None))?;
    let error = answer.json()["error"]["code"].clone();
    ensure(answer.status == 404 && error == -32601, || format!("R11: {answer:?}"))
}

fn modern_subscriptions() -> Outcome {
    let scene = suite_server()?;
    let inside = scene.rig.console()?;
    let wanted = json!({"notifications": {"toolsListChanged": true}});
    let stream = inside.call(&modern(1, "subscriptions/listen", wanted, None))?;
    stream.text("notifications/subscriptions/acknowledged")?;
    let told = || -> Outcome<Value> {
        let call = json!({"name": "test_trigger_tool_change", "arguments": {}});
        let answer = inside.answer(&modern(2, "tools/call", call, Some("test_trigger_tool_change")))?;
        Ok(answer.json()["result"]["content"][0]["text"].clone())
    };
    // R24: another request is answered while it stays open, and R14: what comes on it comes at once.
    ensure(told()? == "told 1", || "nobody listens".to_owned())?;
    stream.text("notifications/tools/list_changed")?;
    let ended = stream.events().iter().any(|event| matches!(event, Event::End { .. }));
    ensure(!ended, || "R24: the stream ended".to_owned())?;
    // R17: closing the stream is the cancel.
    stream.abandon()?;
    eventually("the upstream hears that nobody listens", SOON * 3, || {
        told().ok().filter(|text| text == "told 0").map(|_| ())
    })
}
