//! R18: answers that end before their time, as the agent sees them.

use http::Response;
use test_case::test_case;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{pipeline::testing::*, record::Failure};

/// What an upstream sends, and how it ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Clean,
    Cut,
}

async fn stream(kind: &'static str, parts: &'static [&'static str], end: End) -> Upstream {
    Upstream::raw(move |mut tcp| {
        Box::pin(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"}") && !request.ends_with(b"\r\n\r\n") {
                tcp.read_buf(&mut request).await.unwrap();
            }
            let mut answer =
                format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n");
            for part in parts {
                answer.push_str(&format!("{:x}\r\n{part}\r\n", part.len()));
            }
            if let End::Clean = end {
                answer.push_str("0\r\n\r\n");
            }
            tcp.write_all(answer.as_bytes()).await.unwrap();
        })
    })
    .await
}

const SSE: &str = "text/event-stream";
const PROGRESS: &str = "data: {\"method\":\"notifications/progress\"}\n\n";
const RESPONSE: &str = "data: {\"id\":\"c-1\",\"result\":{}}\n\n";

#[test_case(&[], End::Clean; "clean end without an event")]
#[test_case(&[PROGRESS], End::Clean; "clean end after an event")]
#[test_case(&[PROGRESS], End::Cut; "cut between events")]
#[test_case(&[PROGRESS, "data: {\"id\":\"c-1\",\"res"], End::Cut; "cut inside an event")]
#[test_case(&[PROGRESS, "data: {\"id\":\"c-1\",\"result\":{}}\n"], End::Clean; "clean end inside an event")]
#[tokio::test]
async fn r18_b_the_agent_gets_an_error_event_for_its_id(parts: &'static [&'static str], end: End) {
    let upstream = stream(SSE, parts, end).await;
    let mut rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(response.status(), 200);
    let text = text(response).await.expect("a proper end");
    let (before, last) = text.trim_end().rsplit_once("event: message\ndata: ").unwrap();
    assert!(before.is_empty() || before == PROGRESS, "{before}");
    let error: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!((&error["id"], &error["error"]["data"]["kind"]), (&"c-1".into(), &"upstream_lost".into()));
    rig.next_exchange().await;
    assert_eq!(rig.next_exchange().await.error, Some(Failure::Lost));
}

#[tokio::test]
async fn r18_a_a_stream_with_event_ids_is_reset_so_that_the_client_resumes() {
    let upstream = stream(SSE, &["id: 1\ndata:\n\n", PROGRESS], End::Cut).await;
    let rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    text(response).await.expect_err("no proper end");
}

#[tokio::test]
async fn r16_a_server_that_wants_to_be_polled_ends_its_stream() {
    let priming = "id: 1\nretry: 500\ndata:\n\n";
    let upstream = stream(SSE, &["id: 1\nretry: 500\ndata:\n\n"], End::Clean).await;
    let mut rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(text(response).await.expect("a proper end, as the upstream's"), priming);
    rig.next_exchange().await;
    assert_eq!(rig.next_exchange().await.error, None, "nothing is lost");
}

#[tokio::test]
async fn an_answered_stream_may_end_as_it_likes() {
    let upstream = stream(SSE, &[PROGRESS, RESPONSE], End::Clean).await;
    let rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(text(response).await.unwrap(), format!("{PROGRESS}{RESPONSE}"));
}

#[test_case("get", End::Cut => None; "t3 get, cut")]
#[test_case("get", End::Clean => Some(PROGRESS.to_owned()); "get, clean")]
#[test_case("listen", End::Cut => None; "r24 listen, cut")]
#[test_case("listen", End::Clean => Some(PROGRESS.to_owned()); "r24 listen, clean")]
#[tokio::test]
async fn r24_t3_a_stream_that_nobody_waits_for(kind: &str, end: End) -> Option<String> {
    let upstream = stream(SSE, &[PROGRESS], end).await;
    let request = match kind {
        "get" => get(),
        _ => post(r#"{"jsonrpc":"2.0","id":"listen:0","method":"subscriptions/listen"}"#),
    };
    let rig = Rig::new();
    let response = rig.send(&upstream.url(), request).await;
    text(response).await.ok()
}

#[tokio::test]
async fn a_notification_waits_for_nothing() {
    let upstream = stream(SSE, &[PROGRESS], End::Clean).await;
    let rig = Rig::new();
    let response = rig.send(&upstream.url(), post(r#"{"jsonrpc":"2.0","method":"n"}"#)).await;
    assert_eq!(text(response).await.unwrap(), PROGRESS);
}

#[tokio::test]
async fn json_that_is_cut_becomes_an_error() {
    let upstream =
        stream("application/json", &["{\"jsonrpc\":\"2.0\",\"id\":\"c-1\",\"resu"], End::Cut).await;
    let mut rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(response.status(), 502);
    let (id, _, kind, _) = error_in(response).await;
    assert_eq!((id.as_str(), kind.as_str()), (Some("c-1"), "upstream_lost"));
    assert_eq!(rig.next_exchange().await.error, Some(Failure::Lost));
    assert!(rig.recorded().0.is_empty(), "one end");
}

#[tokio::test]
async fn slow_json_is_not_waited_for() {
    let (feed, body) = fed();
    let body = std::sync::Mutex::new(Some(body));
    let upstream = Upstream::answering(move |_| {
        let body = body.lock().unwrap().take().unwrap();
        Response::builder().header("content-type", "application/json").body(body).unwrap()
    })
    .await;
    let rig = Rig::new();
    let response = within(rig.send(&upstream.url(), post(CALL))).await;
    assert_eq!(response.status(), 200, "the head is here, the body is not");
    feed.send(Ok("{}".into())).await.unwrap();
    drop(feed);
    assert_eq!(text(response).await.unwrap(), "{}");
}
