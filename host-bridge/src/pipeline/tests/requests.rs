//! What reaches the upstream, and what never does.

use http::{Request, Response};
use http_body_util::Full;
use test_case::test_case;

use crate::{
    pipeline::testing::{self, *},
    record::{AuditEvent, Failure},
};

async fn ok_server() -> Upstream {
    Upstream::answering(|_| {
        Response::builder().header("content-type", "application/json").body(whole("{}")).unwrap()
    })
    .await
}

#[tokio::test]
async fn r1_path_query_method_and_body_arrive() {
    let (rig, mut upstream) = (Rig::new(), ok_server().await);
    let url = format!("{}?key=k", upstream.url());
    let mut request = post(CALL);
    *request.uri_mut() = "/mcp/x/below?a=b".parse().unwrap();
    assert_eq!(rig.send(&url, request).await.status(), 200);
    let got = upstream.next().await;
    assert_eq!(got.head.uri, "/mcp/below?key=k&a=b");
    assert_eq!(got.body, CALL, "the very bytes");
    let address = upstream.address.to_string();
    assert_eq!(got.head.headers["host"].to_str().unwrap(), address, "R3");
    assert_eq!(got.head.headers["accept-encoding"], "identity");
    assert_eq!(got.head.headers["accept"], "application/json, text/event-stream", "R5");
}

#[test_case(None; "absent")]
#[test_case(Some(STUB); "the stub")]
#[tokio::test]
async fn r7_the_credential_arrives_once_for_each_request(given: Option<&str>) {
    let (mut rig, mut upstream) = (Rig::new(), ok_server().await);
    for _ in 0..2 {
        let mut request = post(CALL);
        if let Some(given) = given {
            request.headers_mut().insert("x-api-key", given.parse().unwrap());
        }
        request.headers_mut().insert("authorization", "Bearer of-another".parse().unwrap());
        request.headers_mut().insert("x-other", "moat-stub-oauth:notion".parse().unwrap());
        assert_eq!(rig.send(&upstream.url(), request).await.status(), 200);
        let got = upstream.next().await;
        let values: Vec<_> = got.head.headers.get_all("x-api-key").iter().collect();
        assert_eq!(values, [TOKEN]);
        assert!(!got.head.headers.contains_key("authorization") && !got.head.headers.contains_key("x-other"));
    }
    let (exchanges, audit) = rig.recorded();
    let injected = audit.iter().filter(|event| matches!(event, AuditEvent::CredentialInjected { .. }));
    assert_eq!(injected.count(), 2, "one line per request that got one");
    let dropped = audit.iter().filter(|event| matches!(event, AuditEvent::HeaderDropped { .. }));
    assert_eq!(dropped.count(), 4);
    assert_eq!(exchanges.len(), 2, "one line per exchange");
    assert_eq!(&exchanges[0].headers["X-Api-Key"], "[REDACTED]");
    assert_eq!(exchanges[0].rpc_method.as_deref(), Some("tools/call"));
    assert_eq!((exchanges[0].status, exchanges[0].error), (Some(200), None));
    assert!(exchanges[0].duration_ms.is_some());
}

#[tokio::test]
async fn r7_anything_else_in_its_header_is_refused_and_audited() {
    let (mut rig, mut upstream) = (Rig::new(), ok_server().await);
    let mut request = post(CALL);
    request.headers_mut().insert("x-api-key", "sk-somebody-elses".parse().unwrap());
    let response = rig.send(&upstream.url(), request).await;
    assert_eq!(response.status(), 400);
    let (id, _, kind, message) = error_in(response).await;
    assert_eq!((id.as_str(), kind.as_str()), (Some("c-1"), "foreign_credential"));
    assert!(message.contains("X-Api-Key") && message.contains("'x'") && !message.contains("sk-"));
    assert!(upstream.got.try_recv().is_err(), "the upstream never heard of it");
    let (exchanges, audit) = rig.recorded();
    assert_eq!(exchanges[0].error, Some(Failure::ForeignCredential));
    let text = serde_json::to_string(&audit).unwrap();
    assert!(text.contains("request.denied") && !text.contains("sk-somebody"), "{text}");
}

#[tokio::test]
async fn a_grant_for_another_host_stays() {
    let mut rig = Rig::new();
    let run = testing::run(&[("x", "https://evil.example/mcp", Some(("mcp-x", "X-Api-Key")))]);
    let response = rig.pipeline.handle(&run, post(CALL)).await;
    assert_eq!(response.status(), 502);
    let (_, _, kind, message) = error_in(response).await;
    assert_eq!(kind, "no_credential");
    assert!(message.contains("was not granted for host 'evil.example'"), "{message}");
    assert!(matches!(rig.recorded().1[..], [AuditEvent::CredentialRefused { .. }]));
}

#[tokio::test]
async fn no_credential_names_the_command() {
    let mut rig = Rig::new();
    let run = testing::run(&[("ctx", "http://127.0.0.1:1/mcp", Some(("mcp-ctx", "X-Api-Key")))]);
    let mut request = post(CALL);
    *request.uri_mut() = "/mcp/ctx".parse().unwrap();
    let (id, _, kind, message) = error_in(rig.pipeline.handle(&run, request).await).await;
    assert_eq!(
        (id.as_str(), kind.as_str(), message.as_str()),
        (
            Some("c-1"),
            "no_credential",
            "MOAT: Failed to load credential for 'ctx'. Grant: mcp-ctx. Run: moat grant mcp ctx"
        )
    );
    assert!(rig.notice().unwrap().contains("moat grant mcp ctx"));
}

#[tokio::test]
async fn an_unknown_server_is_named_with_those_there_are() {
    let rig = Rig::new();
    let mut request = post(CALL);
    *request.uri_mut() = "/mcp/liner".parse().unwrap();
    let response = rig.send("http://127.0.0.1:1/", request).await;
    assert_eq!(response.status(), 404);
    let (id, _, kind, message) = error_in(response).await;
    assert_eq!((id.as_str(), kind.as_str()), (Some("c-1"), "not_configured"));
    assert_eq!(
        message,
        "MOAT: MCP server 'liner' not configured. Available servers: 1. Check moat.yaml. Configured: x."
    );
}

#[test_case(r#"{"method":"tools/call","METHOD":"ping"}"#, -32600; "known failure 9")]
#[test_case(r#"{"method":"a"} {}"#, -32700; "two values")]
#[test_case("{", -32700; "cut")]
#[test_case(r#"{"a":1e999}"#, -32600; "odd number")]
#[tokio::test]
async fn r8_what_two_decoders_read_differently_goes_nowhere(body: &'static str, code: i64) {
    let (rig, mut upstream) = (Rig::new(), ok_server().await);
    let response = rig.send(&upstream.url(), post(body)).await;
    assert_eq!(response.status(), 400);
    assert_eq!(error_in(response).await.1, code);
    assert!(upstream.got.try_recv().is_err());
}

#[tokio::test]
async fn r9_headers_that_disagree_with_the_body() {
    let (rig, mut upstream) = (Rig::new(), ok_server().await);
    let mut request = post(CALL);
    request.headers_mut().insert("mcp-method", "ping".parse().unwrap());
    let response = rig.send(&upstream.url(), request).await;
    assert_eq!(response.status(), 400);
    let (id, code, ..) = error_in(response).await;
    assert_eq!((id.as_str(), code), (Some("c-1"), -32020));
    assert!(upstream.got.try_recv().is_err());
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused() {
    let (rig, mut upstream) = (Rig::new(), ok_server().await);
    let mut request = post(CALL);
    request.headers_mut().insert("content-type", "text/plain".parse().unwrap());
    assert_eq!(rig.send(&upstream.url(), request).await.status(), 400);
    let empty = Request::post("/mcp/x").body(Full::default()).unwrap();
    assert_eq!(rig.send(&upstream.url(), empty).await.status(), 400, "an empty one is none");
    assert!(upstream.got.try_recv().is_err());
}

/// A message of this many bytes.
fn big(length: usize, tail: &str) -> String {
    let head = r#"{"jsonrpc":"2.0","method":"x","params":{"data":""#;
    format!("{head}{}\"}},\"id\":9{tail}", "a".repeat(length))
}

#[tokio::test]
async fn a_large_body_passes_while_it_is_read() {
    let (rig, mut upstream) = (Rig::new(), ok_server().await);
    let body = big(3 << 20, "}");
    assert_eq!(rig.send(&upstream.url(), post(body.clone())).await.status(), 200);
    assert!(upstream.next().await.body == body.as_bytes());
}

#[test_case(",\"method\":\"y\"}" => -32600; "a key twice, at the end")]
#[test_case("" => -32700; "never closed")]
#[test_case("}x" => -32700; "trailing")]
#[tokio::test]
async fn a_large_body_that_turns_bad_aborts_the_upstream(tail: &'static str) -> i64 {
    let (mut rig, mut upstream) = (Rig::new(), ok_server().await);
    let response = rig.send(&upstream.url(), post(big(3 << 20, tail))).await;
    assert_eq!(response.status(), 400);
    let (id, code, ..) = error_in(response).await;
    assert_eq!(id, 9);
    assert!(upstream.got.try_recv().is_err(), "the upstream never got a whole request");
    assert_eq!(rig.recorded().0[0].error, Some(Failure::BadRequest));
    code
}

#[tokio::test]
async fn r15_a_session_belongs_to_its_run_and_server() {
    let upstream = Upstream::answering(|_| {
        Response::builder().header("mcp-session-id", "abc").status(202).body(whole("")).unwrap()
    });
    let (rig, mut upstream) = (Rig::new(), upstream.await);
    let response = rig.send(&upstream.url(), post(NOTE)).await;
    let session = response.headers()["mcp-session-id"].clone();
    assert_ne!(session, "abc");
    assert!(!upstream.next().await.head.headers.contains_key("mcp-session-id"));
    let with_session = || {
        let mut request = post(NOTE);
        request.headers_mut().insert("mcp-session-id", session.clone());
        request
    };
    assert_eq!(rig.send(&upstream.url(), with_session()).await.status(), 202);
    assert_eq!(upstream.next().await.head.headers["mcp-session-id"], "abc");
    // Another bridge, with the same key: as after a restart.
    assert_eq!(Rig::new().send(&upstream.url(), with_session()).await.status(), 202);
    assert_eq!(upstream.next().await.head.headers["mcp-session-id"], "abc");
    let url = upstream.url();
    let other = testing::run_named("run_000000000002", &[("x", &url, None)]);
    let response = rig.pipeline.handle(&other, with_session()).await;
    assert_eq!(response.status(), 404);
    let (id, _, kind, _) = error_in(response).await;
    assert_eq!((id, kind.as_str()), (serde_json::Value::Null, "session_unknown"));
    assert!(upstream.got.try_recv().is_err());
}

#[tokio::test]
async fn get_and_delete_carry_no_body() {
    let (rig, mut upstream) = (Rig::new(), ok_server().await);
    for method in ["GET", "DELETE"] {
        let request = Request::builder().method(method).uri("/mcp/x").header("last-event-id", "7");
        let response = rig.send(&upstream.url(), request.body(Full::default()).unwrap()).await;
        assert_eq!(response.status(), 200);
        let got = upstream.next().await;
        assert_eq!(
            (got.head.method.as_str(), &got.head.headers["last-event-id"]),
            (method, &"7".parse().unwrap())
        );
    }
}
