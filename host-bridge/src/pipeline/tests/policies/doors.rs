//! No way around: one denied call through every door there is. Each row is refused, the server never gets it, and the audit
//! log says what was refused. What needs real processes (a killed bridge, a file that is gone, a full disk) is in the
//! end-to-end tests.

use test_case::test_case;

use super::*;

/// A body that some reader could take for the denied call never leaves, whatever it is answered with.
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wipe_board"}}"#; "as it is")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list","name":"wipe_board"}}"#; "name twice")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wipe_board","name":"list"}}"#; "name twice, the other way")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call","params":{"name":"wipe_board"}}"#; "method twice")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"ping","METHOD":"tools/call","params":{"name":"wipe_board"}}"#; "method in capitals")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"Method":"tools/call","params":{"name":"wipe_board"}}"#; "only a method in capitals")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list","Name":"wipe_board"}}"#; "name in capitals")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list"},"Params":{"name":"wipe_board"}}"#; "params in capitals")]
#[test_case("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"list\"},\"param\u{17f}\":{\"name\":\"wipe_board\"}}"; "long s")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"na\u006de":"wipe_board"}}"#; "escaped key")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools\/call","params":{"name":"wip\u0065_board"}}"#; "escaped name and method")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"WIPE_BOARD"}}"#; "capitals")]
#[test_case("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"w\u{456}pe_board\"}}"; "cyrillic i")]
#[test_case("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"\u{ff57}ipe_board\"}}"; "full width")]
#[test_case("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"wipe\u{200d}_board\"}}"; "joiner")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wipe_board "}}"#; "blank at the end")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wipe_board\u0000"}}"#; "nul at the end")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"\ud800wipe_board"}}"#; "lone surrogate")]
#[test_case(r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"wipe_board"}}"#; "without an id")]
#[test_case(r#"{"jsonrpc":"2.0","id":null,"method":"tools/call","params":{"name":"wipe_board"}}"#; "null id")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["wipe_board"]}"#; "positional")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":""}}"#; "D11 no name")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list","arguments":"x"}}"#; "no arguments")]
#[test_case(r#"[{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wipe_board"}}]"#; "batch of one")]
#[test_case(r#"[{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"list"}},{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wipe_board"}}]"#; "E20 batch")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list"}}{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"wipe_board"}}"#; "two bodies")]
#[test_case("\u{feff}{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"wipe_board\"}}"; "byte order mark")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list","arguments":{"n":9007199254740993}}}"#; "an integer that not every reader holds")]
#[test_case(r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"list","arguments":{"a":1,"A":2}}}"#; "keys apart by case")]
#[tokio::test]
async fn no_way_around_by_the_body(body: &str) {
    Case::new(rules(DENY)).await.refused(body, post(body.to_owned())).await;
}

#[test_case("mcp-method", "ping"; "another method")]
#[test_case("mcp-name", "list_boards"; "another name")]
#[test_case("content-encoding", "gzip"; "compressed")]
#[test_case("content-type", "text/plain"; "another type")]
#[test_case("mcp-protocol-version", "2026-07-28"; "another era")]
#[test_case("mcp-param-x", "y"; "a parameter that is not there")]
#[test_case("x-http-method-override", "GET"; "another verb")]
#[test_case("mcp-method", "tools/list"; "a method that is not judged")]
#[test_case("mcp-method", "=?base64?cGluZw==?="; "another method in base64")]
#[test_case("mcp-name", "=?base64?bGlzdF9ib2FyZHM=?="; "another name in base64")]
#[test_case("MCP-NAME", "list_boards"; "a header in capitals")]
#[test_case("mcp-protocol-version", "1999-01-01"; "no era at all")]
#[test_case("mcp-protocol-version", "2024-11-05"; "the oldest era")]
#[test_case("content-encoding", "br, gzip"; "compressed twice")]
#[test_case("content-type", "application/json; charset=utf-16"; "another charset")]
#[test_case("transfer-encoding", "gzip"; "compressed on the way")]
#[tokio::test]
async fn no_way_around_by_a_header(name: &'static str, value: &'static str) {
    let mut request = post(call("wipe_board", json!({})));
    request.headers_mut().append(name, value.parse().unwrap());
    Case::new(rules(DENY)).await.refused(name, request).await;
}

#[test_case("/mcp/x/"; "slash")]
#[test_case("/mcp/x//"; "two slashes")]
#[test_case("//mcp/x"; "two slashes first")]
#[test_case("/mcp/X"; "capital name")]
#[test_case("/MCP/x"; "capital prefix")]
#[test_case("/mcp/%78"; "escaped name")]
#[test_case("/mcp/y/../x"; "up and down")]
#[test_case("/mcp/x/%2e%2e/x"; "up by an escape")]
#[test_case("/mcp/x?"; "empty query")]
#[test_case("/mcp/x/.message/0123"; "a message of the old transport")]
#[test_case("/mcp/x/below?x=1"; "below")]
#[test_case("http://127.0.0.1:1/mcp/x"; "absolute")]
#[tokio::test]
async fn no_way_around_by_the_path(path: &str) {
    let mut request = post(call("wipe_board", json!({})));
    *request.uri_mut() = path.parse().unwrap();
    Case::new(rules(DENY)).await.refused(path, request).await;
}

fn with_verb(verb: &str) -> Request<Full<Bytes>> {
    let with = Request::builder().method(verb).uri("/mcp/x").header("content-type", "application/json");
    with.body(Full::new(call("wipe_board", json!({})).into())).unwrap()
}

#[test_case("PUT")]
#[test_case("PATCH")]
#[test_case("OPTIONS")]
#[test_case("HEAD")]
#[test_case("QUERY")]
#[test_case("post"; "post in small letters")]
#[tokio::test]
async fn no_way_around_by_another_verb(verb: &str) {
    Case::new(rules(DENY)).await.refused(verb, with_verb(verb)).await;
}

#[test_case("GET")]
#[test_case("DELETE")]
#[tokio::test]
async fn no_way_around_by_the_verb_and_d6_without_a_body_they_pass(verb: &str) {
    let mut case = Case::new(rules(DENY)).await;
    case.refused(verb, with_verb(verb)).await;
    case.send(Request::builder().method(verb).uri("/mcp/x").body(Full::default()).unwrap()).await;
    assert_eq!(case.reached(), 1);
}

/// Wherever a body is cut on its way, it is one body.
#[tokio::test]
async fn no_way_around_by_where_the_body_is_cut() {
    let mut case = Case::new(rules(DENY)).await;
    let bodies = [
        call("wipe_board", json!({"a": "\u{e4}\u{1f600}"})),
        call("wipe_board", json!({})).replace("name", "n\\u0061me").replace("wipe", "w\\u0069pe"),
        format!("[{},{}]", call("list", json!({})), call("wipe_board", json!({})).replace(":1,", ":2,")),
    ];
    for body in bodies {
        for size in 1..body.len() {
            let (sender, chunks) = tokio::sync::mpsc::channel(body.len());
            for chunk in body.as_bytes().chunks(size) {
                sender.try_send(Ok(Bytes::copy_from_slice(chunk))).unwrap();
            }
            drop(sender);
            let request = post("").map(|_| fed_by(chunks));
            case.refused(&format!("{body} by {size}"), request).await;
        }
    }
}

/// A second entry for the same URL is judged by its own rules, under its own name, and opens nothing of the first.
#[tokio::test]
async fn no_way_around_by_a_second_entry_for_the_same_host() {
    let mut case = Case::new(rules(DENY)).await;
    let mut run = Run::clone(&run(&[("x", &case.upstream.url(), None), ("y", &case.upstream.url(), None)]));
    run.servers[0].policy = Some(rules(DENY));
    run.servers[1].policy = Some(rules("mode: enforce\nrules: [{name: nothing, action: deny}]\n"));
    case.run = Arc::new(run);
    for path in ["/mcp/x", "/mcp/y", "/mcp/y/../x", "/mcp/x/../y"] {
        let mut request = post(call("wipe_board", json!({})));
        *request.uri_mut() = path.parse().unwrap();
        case.refused(path, request).await;
    }
}

/// What a restarted bridge reads from its disk judges as before, and so it does with the rule file gone.
#[tokio::test]
async fn no_way_around_by_a_restart_without_the_file() {
    let mut case = Case::new(rules(DENY)).await;
    let mut run = Run::clone(&case.run);
    if let Some(bound) = &mut run.servers[0].policy {
        bound.source = Source::File { path: "/nowhere/x.yaml".into(), shown: "x.yaml".into() };
    }
    let stored = serde_json::to_string(&run).unwrap();
    case.rig = Rig::new();
    case.run = Arc::new(serde_json::from_str(&stored).unwrap());
    case.refused("after a restart", post(call("wipe_board", json!({})))).await;
    // Text that is not what it was closes the server whole.
    case.run = Arc::new(serde_json::from_str(&stored.replace("wipe_*", "nope_*")).unwrap());
    let (status, answer) = case.send(post(call("wipe_board", json!({})))).await;
    assert!(
        status == 503 && answer.contains("policy_unavailable") && case.reached() == 0,
        "{status} {answer}"
    );
}
