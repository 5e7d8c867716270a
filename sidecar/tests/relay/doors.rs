//! Who gets in, and where to: request forms, Host and Origin, own answers, limits, slow heads.

use std::time::{Duration, Instant};

use moat_sidecar::relay::Timing;
use test_case::test_case;
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    agent::{RUN, Rig, Started, quick},
    bridge::{Authority, Bridge, soon},
};

const PORT: &str = "{port}";

/// How the same request is written.
#[derive(Clone, Copy)]
enum Form {
    Origin,
    Absolute,
    Connect,
}

#[test_case(Form::Origin; "origin form")]
#[test_case(Form::Absolute; "absolute form")]
#[test_case(Form::Connect; "inside connect")]
#[tokio::test]
async fn all_forms_reach_the_server(form: Form) {
    let mut rig = Rig::open().await;
    let mut agent = rig.agent().await;
    let port = rig.relay.port;
    if matches!(form, Form::Connect) {
        agent.write(format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n")).await;
        assert_eq!(agent.head().await.status, 200);
    }
    for round in 0..2 {
        let base =
            if matches!(form, Form::Absolute) { format!("http://127.0.0.1:{port}") } else { String::new() };
        agent.ask("POST", &format!("{base}/mcp/notion/a?x=%20{round}"), "{}").await;
        let call = rig.bridge.call().await;
        assert_eq!(call.head.uri.path_and_query().unwrap().as_str(), format!("/mcp/notion/a?x=%20{round}"));
        call.reply(200, &[("content-type", "application/json")], "{}");
        assert_eq!(agent.answer().await, (200, serde_json::json!({})));
    }
}

#[tokio::test]
async fn a_connect_inside_another_is_no_door() {
    let rig = Rig::open().await;
    let mut agent = rig.agent().await;
    let port = rig.relay.port;
    let connect = format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    agent.write(&connect).await;
    assert_eq!(agent.head().await.status, 200);
    agent.write(&connect).await;
    assert_eq!(agent.answer().await.0, 405);
}

#[test_case("POST /mcp/notion", "evil.example:{port}", "", 403; "foreign host")]
#[test_case("POST http://evil.example/mcp/notion", "127.0.0.1:{port}", "", 403; "foreign target")]
#[test_case("POST /mcp/notion", "127.0.0.1:{port}", "Origin: http://evil.example\r\n", 403; "foreign origin")]
#[test_case("GET /healthz", "evil.example", "", 403; "foreign host for health")]
#[test_case("GET /.well-known/oauth-authorization-server", "evil.example", "", 403; "foreign host for a probe")]
#[test_case("CONNECT example.com:443", "example.com:443", "", 403; "connect elsewhere")]
#[test_case("CONNECT 127.0.0.1:1", "127.0.0.1:1", "", 403; "connect to another port")]
#[test_case("POST /mcp/notion/..%2fx", "127.0.0.1:{port}", "", 404; "path trick")]
#[test_case("POST http://127.0.0.1:{port}/mcp/notion/../x", "127.0.0.1:{port}", "", 404; "path trick in absolute form")]
#[test_case("GET /", "127.0.0.1:{port}", "", 404; "nowhere")]
#[test_case("OPTIONS /mcp/notion", "127.0.0.1:{port}", "", 405; "preflight")]
#[test_case("PUT /mcp/notion", "127.0.0.1:{port}", "", 405; "put")]
#[test_case("PATCH /mcp/notion", "127.0.0.1:{port}", "", 405; "patch")]
#[test_case("BREW /mcp/notion", "127.0.0.1:{port}", "", 405; "unknown method")]
#[tokio::test]
async fn refused(line: &str, host: &str, headers: &str, status: u16) {
    let mut rig = Rig::open().await;
    let mut agent = rig.agent().await;
    let fill = |text: &str| text.replace(PORT, &rig.relay.port.to_string());
    let body = r#"{"jsonrpc":"2.0","id":41,"method":"x"}"#;
    let request = format!(
        "{} HTTP/1.1\r\nHost: {}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        fill(line),
        fill(host),
        body.len()
    );
    agent.write(request).await;
    let (seen, error) = agent.answer().await;
    assert_eq!(seen, status);
    let (kind, id) = match status {
        403 => ("host_refused", serde_json::Value::Null),
        404 => ("not_configured", 41.into()),
        _ => ("method_not_allowed", 41.into()),
    };
    assert_eq!(error["error"]["data"]["kind"], kind);
    assert_eq!(error["id"], id);
    assert!(!error.to_string().contains("evil"), "a refused value is not echoed");
    assert!(rig.bridge.is_untouched());
}

#[test_case("GET", "/.well-known/oauth-protected-resource/mcp/notion")]
#[test_case("GET", "/mcp/notion/.well-known/oauth-protected-resource")]
#[test_case("POST", "/register")]
#[tokio::test]
async fn oauth_probes_end_here(method: &str, path: &str) {
    let mut rig = Rig::open().await;
    let mut agent = rig.ask(method, path, "").await;
    assert_eq!(agent.answer().await, (404, serde_json::json!({"error": "not_found"})));
    assert!(rig.bridge.is_untouched());
}

#[tokio::test]
async fn health_tells_the_state() {
    let mut rig = Rig::open().await;
    let (status, state) = rig.ask("GET", "/healthz", "").await.answer().await;
    assert_eq!((status, &state["tunnel"], &state["run"]), (200, &"open".into(), &RUN.into()));
    assert_eq!(state["bridge"]["protocol"], 1);
    assert_eq!(state["sidecar"]["build"], moat_shared::hello::BUILD);
    assert!(rig.bridge.is_untouched());
}

#[tokio::test]
async fn large_heads_are_refused_in_json() {
    let mut rig = Rig::open().await;
    let mut agent = rig.agent().await;
    let (port, long) = (rig.relay.port, "x".repeat(70_000));
    let body = r#"{"id":1}"#;
    agent
        .write(format!("POST /mcp/notion HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nMcp-Param-A: {long}\r\nContent-Length: 8\r\n\r\n{body}"))
        .await;
    let (status, error) = agent.answer().await;
    assert_eq!(
        (status, &error["id"], &error["error"]["data"]["kind"]),
        (431, &1.into(), &"too_large".into())
    );
    assert!(rig.bridge.is_untouched());

    // Far too large: a bare refusal; and never a crash.
    let mut agent = rig.agent().await;
    agent.write(format!("POST /mcp/notion HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX: {long}{long}")).await;
    assert_eq!(agent.head().await.status, 431);
}

#[tokio::test]
async fn a_protocol_without_ends_is_refused() {
    let mut rig = Rig::open().await;
    let mut agent = rig.agent().await;
    agent.write(format!("GET /mcp/notion HTTP/1.0\r\nHost: 127.0.0.1:{}\r\n\r\n", rig.relay.port)).await;
    assert_eq!(agent.head().await.status, 400);
    assert!(rig.bridge.is_untouched());
}

#[tokio::test]
async fn headers_near_the_limit_pass() {
    let mut rig = Rig::open().await;
    let mut agent = rig.agent().await;
    let (port, long) = (rig.relay.port, "x".repeat(60_000));
    agent
        .write(format!("GET /mcp/notion HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nMcp-Param-A: {long}\r\n\r\n"))
        .await;
    let call = rig.bridge.call().await;
    assert_eq!(call.head.headers["mcp-param-a"].len(), long.len());
}

#[test_case(""; "says nothing")]
#[test_case("PRI * HTT"; "half a preface")]
#[test_case("POST /mcp/notion HTTP/1.1\r\nHost: 127"; "half a head")]
#[tokio::test]
async fn slow_heads_are_cut(start: &str) {
    let rig = Rig::open().await;
    let mut agent = rig.agent().await;
    agent.write(start).await;
    let mut byte = [0];
    let ended = soon(agent.stream.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn idle_connections_outlive_the_patience_for_heads() {
    let mut rig = Rig::open().await;
    let mut agent = rig.agent().await;
    let patience = quick().request_head;
    for _ in 0..2 {
        agent.ask("POST", "/mcp/notion", "{}").await;
        let call = rig.bridge.call().await;
        let mut byte = [0];
        let early = timeout(patience * 2, agent.stream.read(&mut byte)).await;
        assert!(early.is_err(), "cut while the answer was awaited: {early:?}");
        call.reply(202, &[], "");
        assert_eq!(agent.head().await.status, 202);
        let cut = timeout(patience * 2, agent.stream.read(&mut byte)).await;
        assert!(cut.is_err(), "cut while idle: {cut:?}");
    }
    // The next head is hurried all the same.
    let begun = Instant::now();
    agent.write("POST /mcp/no").await;
    let mut byte = [0];
    let ended = soon(agent.stream.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert!(begun.elapsed() >= patience);
    assert!(rig.bridge.is_untouched());
}

#[tokio::test]
async fn idle_connections_are_closed_in_the_end() {
    let authority = Authority::new();
    let mut bridge = Bridge::new(&authority);
    bridge.start();
    let timing = Timing { idle: Duration::from_millis(300), ..Timing::default() };
    let relay = Started::new(&bridge, &authority.run(), timing).await;
    let mut agent = relay.agent().await;
    agent.ask("POST", "/mcp/notion", "{}").await;
    bridge.call().await.reply(202, &[], "");
    assert_eq!(agent.head().await.status, 202);
    let idle = Instant::now();
    let mut byte = [0];
    let ended = soon(agent.stream.read(&mut byte)).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    assert!(idle.elapsed() < Duration::from_secs(3), "{:?}", idle.elapsed());
}

#[tokio::test]
async fn http2_without_tls_is_spoken_too() {
    use http_body_util::{BodyExt, Full};
    let mut rig = Rig::open().await;
    let stream = rig.agent().await.stream;
    let tasks = moat_shared::rt::exec::Owned::default();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(tasks.clone(), hyper_util::rt::TokioIo::new(stream))
            .await
            .unwrap();
    tasks.spawn(async { drop(connection.await) });
    let request = |host: &str| {
        let uri = format!("http://{host}/mcp/notion");
        http::Request::post(uri).body(Full::new(bytes::Bytes::from_static(b"{\"id\":5}"))).unwrap()
    };
    let ours = format!("127.0.0.1:{}", rig.relay.port);
    let (response, ()) = tokio::join!(sender.send_request(request(&ours)), async {
        rig.bridge.call().await.reply(202, &[], "");
    });
    assert_eq!(response.unwrap().status(), 202);
    let refused = sender.send_request(request("evil.example")).await.unwrap();
    assert_eq!(refused.status(), 403);
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("host_refused"));
    tasks.abort_all();
}
