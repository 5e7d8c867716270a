//! Policy at the one door: no way around it for a call, a list or a result, and nothing passes where nothing can be known.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};
use test_case::test_case;

use crate::{
    pipeline::testing::{self, *},
    policy::{
        bound::{Bound, Source},
        form,
    },
    record::AuditEvent,
    registry::Run,
};

mod announced;
mod doors;
mod unasked;

const DENY: &str = "mode: enforce\nrules:\n- {name: no-wipe, action: deny, match: {operation: 'wipe_*'}, message: Boards stay.}\n";

/// A pipeline with a run whose server has a policy; counts what reaches the server.
struct Case {
    rig: Rig,
    run: Arc<Run>,
    reached: Arc<AtomicUsize>,
    upstream: Upstream,
}

impl Case {
    async fn new(bound: Bound) -> Self {
        Self::answering(bound, "application/json", "{}").await
    }

    async fn answering(bound: Bound, media: &'static str, body: impl Into<Bytes>) -> Self {
        let (reached, body) = (Arc::new(AtomicUsize::new(0)), body.into());
        let counter = Arc::clone(&reached);
        let upstream = Upstream::answering(move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            Response::builder().header("content-type", media).body(whole(body.clone())).unwrap()
        })
        .await;
        let run = with_policy(&upstream.url(), &bound);
        Self { rig: Rig::new(), run, reached, upstream }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> (u16, String) {
        let response = self.rig.pipeline.handle(&self.run, request).await;
        let status = response.status().as_u16();
        (status, text(response).await.unwrap())
    }

    fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }

    /// Sends what must not get through: the server never gets it, the agent is told, and the audit log has the tool's name
    /// or the reason.
    async fn refused<B>(&mut self, what: &str, request: Request<B>)
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
    {
        let before = self.reached();
        let response = self.rig.pipeline.handle(&self.run, request).await;
        let status = response.status().as_u16();
        let answer = text(response).await.unwrap();
        assert_eq!(self.reached(), before, "{what}: {status} {answer}");
        assert!(status >= 400 || status == 200 && answer.contains("moat"), "{what}: {status} {answer}");
        let audit = self.audit();
        let names = |line: &Value| match line["operation"].as_str() {
            Some(tool) => tool.eq_ignore_ascii_case("wipe_board") && line["rule"].is_string(),
            None => line["reason"].as_str().is_some_and(|reason| !reason.is_empty()),
        };
        let told = audit.iter().any(|line| line["type"] == "request.denied" && names(line));
        assert!(told, "{what}: {status} {answer}: {audit:?}");
    }

    fn audit(&mut self) -> Vec<Value> {
        self.rig.recorded().1.iter().map(|event| serde_json::to_value(event).unwrap()).collect()
    }
}

fn call(tool: &str, args: Value) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": args}})
        .to_string()
}

#[tokio::test]
async fn e1_a_denied_call_is_a_tool_result_and_a_record() {
    let mut case = Case::new(rules(DENY)).await;
    let (status, body) = case.send(post(call("wipe_board", json!({"why": "ghp_x"})))).await;
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &answer["id"], &answer["result"]["isError"]), (200, &json!(1), &json!(true)));
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("Moat: MCP tool call blocked by policy. Boards stay.\n"), "{text}");
    assert!(text.contains("wipe_board") && text.contains("no-wipe") && text.contains("lists show"), "{text}");
    assert_eq!(answer["result"]["_meta"]["moat/denied"], json!({"rule": "no-wipe", "server": "x"}));
    assert_eq!(case.reached(), 0);
    let audit = case.audit();
    assert_eq!(audit.len(), 1, "{audit:?}");
    assert_eq!(audit[0]["type"], "request.denied");
    assert_eq!(
        (&audit[0]["operation"], &audit[0]["rule"], &audit[0]["enforced"]),
        (&json!("wipe_board"), &json!("no-wipe"), &json!(true))
    );
    assert!(audit[0]["policy"].as_str().unwrap().starts_with("sha256:") && audit[0]["scope"] == "x");
    assert_eq!(case.send(post(call("list_boards", json!({})))).await.0, 200);
    assert_eq!((case.reached(), case.audit().len()), (1, 0), "what passes is not written");
}

#[tokio::test]
async fn a_body_that_cannot_be_judged_whole_is_not_sent() {
    let case = Case::new(rules(DENY)).await;
    let long = call("list", json!({"a": "x".repeat(moat_shared::limits::JUDGED_BODY)}));
    assert_eq!(case.send(post(long)).await.0, 413);
    let nearly = call("wipe_board", json!({"a": "x".repeat(moat_shared::limits::JUDGED_BODY / 2)}));
    assert_eq!(case.send(post(nearly)).await.0, 200);
    assert_eq!(case.reached(), 0);
}

#[tokio::test]
async fn e20_every_id_of_a_batch_is_answered() {
    let case = Case::new(rules(DENY)).await;
    let batch = format!(
        "[{},{}]",
        call("list", json!({})).replace("\"id\":1", "\"id\":\"a\""),
        call("wipe_board", json!({}))
    );
    let (_, body) = case.send(post(batch)).await;
    let answers: Vec<Value> = serde_json::from_str(&body).unwrap();
    assert_eq!((answers[0]["id"].as_str(), answers[1]["id"].as_i64()), (Some("a"), Some(1)));
    assert!(answers[0]["error"].is_object() && answers[1]["result"]["isError"] == true);
}

#[tokio::test]
async fn p43_a_policy_that_cannot_be_had_closes_the_server() {
    let stored = serde_json::to_string(&rules(DENY)).unwrap().replace("no-wipe", "so-wipe");
    let mut case = Case::new(serde_json::from_str(&stored).unwrap()).await;
    for request in
        [post(call("list", json!({}))), post(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#), get()]
    {
        let (status, body) = case.send(request).await;
        assert!(status == 503 && body.contains("policy_unavailable"), "{status} {body}");
    }
    assert_eq!(case.reached(), 0);
    assert!(case.rig.notice().unwrap().contains("nothing passes"));
}

#[tokio::test]
async fn e16_an_audit_passes_and_is_recorded() {
    let given = form::Inline { deny: vec!["wipe_board".into()], audit: true, ..form::Inline::default() };
    let mut case = Case::new(form::inline(&given, "x")).await;
    case.send(post(call("wipe_board", json!({})))).await;
    assert_eq!(case.reached(), 1);
    let audit = case.audit();
    assert_eq!(
        (&audit[0]["type"], &audit[0]["rule"], &audit[0]["enforced"]),
        (&json!("policy.would_deny"), &json!("deny-wipe_board"), &json!(false))
    );
}

#[tokio::test]
async fn an_evaluation_error_denies_with_the_rule_s_name_alone() {
    let mut case = Case::new(rules("mode: enforce\nrules:\n- {name: r, action: deny, match: {when: \"params.size.startsWith('secretword')\"}}\n")).await;
    let (status, body) = case.send(post(call("t", json!({"size": 3})))).await;
    assert_eq!((status, case.reached()), (200, 0));
    assert!(body.contains("policy evaluation error") && body.contains("\"rule\":\"r\""), "{body}");
    assert!(
        !body.contains("startsWith") && !body.contains("secretword") && !body.contains("overload"),
        "P38: {body}"
    );
    assert!(case.audit()[0]["message"].as_str().unwrap().contains("no such overload"));
}

#[tokio::test]
async fn a_record_holds_no_secret() {
    let token = ["ghp_", "a8Kx0QmZ3vT7nB2cR5yW9eL1uS4dF6gH0jPq"].concat();
    let mut case = Case::new(rules(DENY)).await;
    let (_, body) =
        case.send(post(call("wipe_board", json!({"pad": "x".repeat(200), "token": token})))).await;
    let audit = serde_json::to_string(&case.audit()).unwrap();
    assert!(
        audit.contains("params_summary") && !audit.contains(&token[..12]) && !body.contains(&token[..12]),
        "{audit}"
    );
}

const REDACT: &str = "mode: enforce\nrules:\n- name: r\n  action: redact\n  redact:\n    target: params.note\n    patterns: [{match: 'T-\\d+', replace: 'T-*'}]\n";

#[tokio::test]
async fn p31_the_judged_bytes_are_sent_but_for_what_is_redacted() {
    let mut case = Case::new(rules(REDACT)).await;
    let sent = r#"{"jsonrpc":"2.0", "id":1,"method":"tools/call","params":{"name":"t","arguments":{"note":"T-12","n":1.50}}}"#;
    case.send(post(sent)).await;
    let got = case.upstream.next().await;
    assert_eq!(got.body, sent.replace("T-12", "T-*"));
    assert_eq!(got.head.headers["content-length"], got.body.len().to_string().as_str());
    let audit = case.audit();
    assert!(audit[0]["type"] == "policy.redacted" && audit[0]["message"] == "params.note", "{audit:?}");
    let mut request = post(sent);
    request.headers_mut().insert("mcp-protocol-version", "2026-07-28".parse().unwrap());
    let (_, body) = case.send(request).await;
    assert!(body.contains("would have to be redacted") && body.contains("resultType"), "{body}");
    assert_eq!(case.reached(), 1);
}

fn tools(names: &[&str]) -> String {
    let tools: Vec<Value> =
        names.iter().map(|name| json!({"name": name, "inputSchema": {"type": "object"}})).collect();
    json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools, "nextCursor": "c"}}).to_string()
}

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

#[test_case("application/json", |list: &str| list.to_owned(); "json")]
#[test_case("text/event-stream", |list: &str| format!(": hi\n\nid: 7\nevent: message\ndata: {list}\n\n"); "events")]
#[test_case("text/event-stream", |list: &str| format!("\u{feff}data: {list}\r\n\r\n"); "events after a mark")]
#[test_case("text/event-stream", |list: &str| format!("data: {}\ndata:  {}\n\n", &list[..list.find(',').unwrap() + 1], &list[list.find(',').unwrap() + 1..]); "events of two lines")]
#[tokio::test]
async fn p36_a_list_shows_what_may_be_called(media: &'static str, wrap: fn(&str) -> String) {
    let list = tools(&["wipe_board", "list_boards", "wipe_all", "get"]);
    let mut case = Case::answering(rules(DENY), media, wrap(&list)).await;
    let (_, body) = case.send(post(LIST)).await;
    assert!(!body.contains("wipe") && body.contains("list_boards") && body.contains("\"get\""), "{body}");
    assert!(body.contains("\"nextCursor\":\"c\""), "{body}");
    if media == "application/json" {
        assert_eq!(
            serde_json::from_str::<Value>(&body).unwrap(),
            serde_json::from_str::<Value>(&tools(&["list_boards", "get"])).unwrap()
        );
    }
    let audit = case.audit();
    assert!(audit[0]["type"] == "policy.hidden" && audit[0]["count"] == 2, "{audit:?}");
}

#[tokio::test]
async fn p36_an_event_without_its_end_shows_nothing() {
    let stream = format!("data: {}", tools(&["wipe_board"]));
    let case = Case::answering(rules(DENY), "text/event-stream", stream).await;
    assert!(!case.send(post(LIST)).await.1.contains("wipe"));
}

#[tokio::test]
async fn p36_also_on_a_stream_that_nobody_knows_the_request_of() {
    let stream = format!("id: 1\ndata: {}\n\n", tools(&["wipe_board", "get"]));
    let case = Case::answering(rules(DENY), "text/event-stream", stream).await;
    let (_, body) = case.send(get()).await;
    assert!(!body.contains("wipe") && body.contains("\"get\""), "{body}");
}

#[tokio::test]
async fn p35_prompts_and_resources_are_hidden_too() {
    let rules = rules(
        "mode: enforce\nrules:\n- {name: p, action: deny, match: {operation: 'prompts/get:bad'}}\n- {name: r, action: deny, match: {operation: 'resources/read:file:*'}}\n",
    );
    let prompts =
        json!({"jsonrpc": "2.0", "id": 1, "result": {"prompts": [{"name": "bad"}, {"name": "good"}]}})
            .to_string();
    let case = Case::answering(rules.clone(), "application/json", prompts).await;
    let (_, body) = case.send(post(LIST.replace("tools", "prompts"))).await;
    assert!(!body.contains("bad") && body.contains("good"));
    let get = r#"{"jsonrpc":"2.0","id":1,"method":"prompts/get","params":{"name":"bad"}}"#;
    assert!(case.send(post(get)).await.1.contains("MCP request blocked by policy"));
    let resources = json!({"jsonrpc": "2.0", "id": 1, "result": {"resources": [{"uri": "file:///a"}, {"uri": "note://b"}]}}).to_string();
    let case = Case::answering(rules, "application/json", resources).await;
    let (_, body) = case.send(post(LIST.replace("tools", "resources"))).await;
    assert!(!body.contains("file:") && body.contains("note:"));
    let read = r#"{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"file:///a"}}"#;
    assert!(case.send(post(read)).await.1.contains("\"kind\":\"denied\""));
    assert_eq!(case.reached(), 1);
}

#[tokio::test]
async fn the_readonly_pack_goes_by_what_the_server_says_of_its_tools() {
    let list = json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": [
        {"name": "reads", "annotations": {"readOnlyHint": true}},
        {"name": "writes", "annotations": {"readOnlyHint": false}},
        {"name": "silent"}
    ]}})
    .to_string();
    let case = Case::answering(form::pack("readonly", "x").unwrap(), "application/json", list).await;
    assert!(case.send(post(call("reads", json!({})))).await.1.contains("blocked"), "nothing is known yet");
    assert_eq!(case.reached(), 0);
    let (_, body) = case.send(post(LIST)).await;
    assert!(body.contains("reads") && !body.contains("writes") && !body.contains("silent"), "{body}");
    for (tool, passes) in [("reads", true), ("writes", false), ("silent", false), ("unknown", false)] {
        let before = case.reached();
        case.send(post(call(tool, json!({})))).await;
        assert_eq!(case.reached() > before, passes, "{tool}");
    }
}

const RESULTS: &str = "mode: enforce\nrules:\n- {name: no-bad, action: deny, match: {when: \"context.direction == 'response' && params.content.contains('evil')\"}, message: Not that.}\n- name: r\n  action: redact\n  match: {when: \"context.direction == 'response'\"}\n  redact: {target: params.content, patterns: [{match: 'T-\\d+', replace: 'T-*'}]}\n";

fn result(texts: &[&str]) -> String {
    let content: Vec<Value> = texts.iter().map(|text| json!({"type": "text", "text": text})).collect();
    json!({"jsonrpc": "2.0", "id": 1, "result": {"content": content, "structuredContent": {"a": ["T-9"]}}})
        .to_string()
}

#[test_case("application/json", |text: &str| text.to_owned(); "json")]
#[test_case("text/event-stream", |text: &str| format!("data: {text}\n\n"); "events")]
#[tokio::test]
async fn e17_results_are_redacted_in_place_or_withheld(media: &'static str, wrap: fn(&str) -> String) {
    let mut case = Case::answering(rules(RESULTS), media, wrap(&result(&["see T-1", "and T-22"]))).await;
    let (_, body) = case.send(post(call("t", json!({"note": "T-5"})))).await;
    assert_eq!(body, wrap(&result(&["see T-*", "and T-*"]).replace("T-9", "T-*")));
    assert!(
        std::str::from_utf8(&case.upstream.next().await.body).unwrap().contains("T-5"),
        "arguments are not"
    );
    let mut case = Case::answering(rules(RESULTS), media, wrap(&result(&["so Evil"]))).await;
    let (_, body) = case.send(post(call("t", json!({})))).await;
    assert!(body.contains("withheld by policy. Not that. The call itself was carried out."), "{body}");
    assert!(!body.contains("Evil"));
    let audit = case.audit();
    assert!(audit[0]["direction"] == "response" && audit[0]["operation"] == "t", "{audit:?}");
}

/// What cannot be judged does not pass where there are rules for results.
#[test_case("application/json", "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{},\"result\":{\"content\":[{\"type\":\"text\",\"text\":\"evil\"}]}}"; "a key twice")]
#[test_case("application/json", "evil"; "no json")]
#[test_case("text/plain", "evil"; "another type")]
#[test_case("text/event-stream", "data: evil\n\n"; "an event of no json")]
#[tokio::test]
async fn p34_an_unreadable_result_is_withheld(media: &'static str, body: &'static str) {
    let case = Case::answering(rules(RESULTS), media, body).await;
    let (_, answer) = case.send(post(call("t", json!({})))).await;
    assert!(!answer.contains("evil") && answer.contains("\"id\":1"), "{answer}");
}

/// A server that answers one call where another was asked for escapes no rule.
#[test_case("application/json", |text: &str| text.to_owned(); "json")]
#[test_case("text/event-stream", |text: &str| format!("data: {text}\n\n"); "events")]
#[tokio::test]
async fn p34_an_answer_to_nobody_s_id_is_judged_by_every_rule(media: &'static str, wrap: fn(&str) -> String) {
    const OF_ANOTHER: &str = "mode: enforce\nrules:\n- {name: no-bad, action: deny, match: {operation: other, when: \"context.direction == 'response' && params.content.contains('evil')\"}}\n";
    let own = result(&["evil"]);
    let case = Case::answering(rules(OF_ANOTHER), media, wrap(&own)).await;
    let (_, answer) = case.send(post(call("t", json!({})))).await;
    assert!(answer.contains("evil"), "the rule is not this call's: {answer}");
    let foreign = own.replace("\"id\":1", "\"id\":2");
    let case = Case::answering(rules(OF_ANOTHER), media, wrap(&foreign)).await;
    let (_, answer) = case.send(post(call("t", json!({})))).await;
    assert!(!answer.contains("evil"), "{answer}");
}

#[tokio::test]
async fn p34_an_event_too_long_to_be_judged_is_withheld() {
    let long = format!("data: {}\n\ndata: {}\n\n", "evil".repeat(5 << 20), result(&["fine T-1"]));
    let case = Case::answering(rules(RESULTS), "text/event-stream", long).await;
    let (_, answer) = case.send(post(call("t", json!({})))).await;
    assert!(!answer.contains("evil") && answer.contains("fine T-*"), "{}", &answer[..answer.len().min(200)]);
}

#[tokio::test]
async fn p41_a_changed_file_can_only_be_stricter() {
    let bound = rules(DENY);
    let case = Case::new(bound.clone()).await;
    let looser = rules("mode: enforce\nrules:\n- {name: other, action: deny, match: {operation: get}}\n");
    let looser = looser.state().accepted.clone().unwrap();
    bound.suggest(Some(looser), None);
    for (tool, passes) in [("wipe_board", false), ("get", false), ("list", true)] {
        let before = case.reached();
        case.send(post(call(tool, json!({})))).await;
        assert_eq!(case.reached() > before, passes, "{tool}");
    }
    let accepted = bound.with(&bound.state().pending.clone().unwrap());
    accepted.take_effect();
    let before = case.reached();
    case.send(post(call("wipe_board", json!({})))).await;
    assert_eq!(case.reached(), before + 1, "accepted on the host");
}

#[tokio::test]
async fn without_a_policy_nothing_is_judged() {
    let (rig, mut upstream) = (Rig::new(), Upstream::answering(|_| Response::new(whole("x"))).await);
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wipe_board","arguments":{"n":1.50,"s":"\u0041"}}}"#;
    rig.pipeline.handle(&testing::without_credential(&upstream.url()), post(body)).await;
    assert_eq!(upstream.next().await.body, body);
}

#[tokio::test]
async fn a_denial_over_the_old_transport_is_a_status() {
    let mut case =
        Case::answering(rules(DENY), "text/event-stream", "event: endpoint\ndata: /message?s=1\n\n").await;
    let response = case.rig.pipeline.handle(&case.run, get()).await;
    // The stream is kept open until its end is read.
    let mut body = response.into_body();
    let first = http_body_util::BodyExt::frame(&mut body).await.unwrap().unwrap().into_data().unwrap();
    let text = String::from_utf8(first.to_vec()).unwrap();
    let path = text.split("data: ").nth(1).unwrap().trim().to_owned();
    let mut request = post(call("wipe_board", json!({})));
    *request.uri_mut() = path.parse().unwrap();
    assert_eq!(case.send(request).await.0, 403);
    assert_eq!(case.reached(), 1, "the stream alone");
    assert!(matches!(case.rig.recorded().1.as_slice(), [AuditEvent::RequestDenied { judged: Some(_), .. }]));
}
