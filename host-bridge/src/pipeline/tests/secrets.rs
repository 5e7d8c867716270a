//! Whatever an upstream echoes, the real credential never travels to the agent.

use std::io::Write;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::Response;
use test_case::test_case;

use crate::{pipeline::testing::*, record::AuditEvent};

fn json_escaped() -> String {
    let quoted = serde_json::to_string(TOKEN).unwrap();
    quoted[1..quoted.len() - 1].to_owned()
}

fn percent() -> String {
    TOKEN
        .bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[test_case(TOKEN.to_owned(); "plain")]
#[test_case(json_escaped(); "json")]
#[test_case(percent(); "percent")]
#[tokio::test]
async fn an_echo_becomes_the_stub(echo: String) {
    let body = format!("{{\"got\":\"{echo}\"}}");
    let header = TOKEN.to_owned();
    let upstream = Upstream::answering(move |_| {
        Response::builder()
            .status(400)
            .header("content-type", "application/json")
            .header("x-debug", format!("key={header};"))
            .body(whole(body.clone()))
            .unwrap()
    })
    .await;
    let mut rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(response.headers()["x-debug"], format!("key={STUB};"));
    assert_eq!(text(response).await.unwrap(), format!("{{\"got\":\"{STUB}\"}}"));
    let reflected = |place: &str, audit: &[AuditEvent]| {
        audit
            .iter()
            .filter(|e| matches!(e, AuditEvent::SecretReflected { place: p, .. } if p == place))
            .count()
    };
    let (_, audit) = rig.recorded();
    assert_eq!((reflected("header", &audit), reflected("body", &audit)), (1, 1));
}

#[tokio::test]
async fn an_echo_in_base64_becomes_the_stub() {
    let upstream = Upstream::answering(|_| {
        let body = STANDARD.encode(format!("x-api-key: {TOKEN}\r\n"));
        Response::builder().header("content-type", "text/plain").body(whole(body)).unwrap()
    })
    .await;
    let rig = Rig::new();
    let body = text(rig.send(&upstream.url(), post(CALL)).await).await.unwrap();
    assert!(body.contains(STUB), "{body}");
    let left = body.replace(STUB, "");
    assert!(left.len() < 24, "{left}");
}

#[test_case(1)]
#[test_case(2)]
#[test_case(5)]
#[tokio::test]
async fn an_echo_split_over_chunks_and_events_becomes_the_stub(chunk: usize) {
    let stream = format!(
        "data: {{\"method\":\"n\",\"params\":\"{0}\"}}\n\ndata: {{\"id\":\"c-1\",\"result\":\"{0}{0}\"}}\n\n",
        json_escaped()
    );
    let expected = stream.replace(&json_escaped(), STUB);
    let upstream = Upstream::answering(move |_| {
        let parts: Vec<_> = stream.as_bytes().chunks(chunk).map(Bytes::copy_from_slice).collect();
        let frames = parts.into_iter().map(|part| Ok(hyper::body::Frame::data(part)));
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
        Response::builder()
            .header("content-type", "text/event-stream")
            .body(http_body_util::BodyExt::boxed_unsync(body))
            .unwrap()
    })
    .await;
    let rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(text(response).await.unwrap(), expected);
}

#[test_case("gzip")]
#[test_case("deflate")]
#[tokio::test]
async fn a_compressed_echo_becomes_the_stub(coding: &'static str) {
    let upstream = Upstream::answering(move |_| {
        let plain = format!("{{\"got\":\"{}\"}}", json_escaped());
        let level = flate2::Compression::default();
        let body = if coding == "gzip" {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(plain.as_bytes()).unwrap();
            encoder.finish().unwrap()
        } else {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(plain.as_bytes()).unwrap();
            encoder.finish().unwrap()
        };
        Response::builder()
            .header("content-type", "application/json")
            .header("content-encoding", coding)
            .body(whole(body))
            .unwrap()
    })
    .await;
    let rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert!(!response.headers().contains_key("content-encoding"));
    assert_eq!(text(response).await.unwrap(), format!("{{\"got\":\"{STUB}\"}}"));
}

#[tokio::test]
async fn what_cannot_be_read_does_not_pass() {
    let upstream = Upstream::answering(|_| {
        Response::builder().header("content-encoding", "br").body(whole("\x0b\x02")).unwrap()
    })
    .await;
    let rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(response.status(), 502);
    assert_eq!(error_in(response).await.2, "upstream_invalid");
}

/// A credential that can be a host's name and a header's.
const NAMEABLE: &str = "sk-live-0123456789abcdef";

#[tokio::test]
async fn an_echo_in_a_header_s_name_does_not_pass() {
    let upstream = Upstream::answering(|_| {
        Response::builder()
            .header(format!("x-{NAMEABLE}"), "1")
            .header("x-kept", "1")
            .body(whole(""))
            .unwrap()
    })
    .await;
    let mut rig = Rig::with_token(NAMEABLE);
    let response = rig.send(&upstream.url(), post(CALL)).await;
    let names: Vec<_> = response.headers().keys().map(http::HeaderName::as_str).collect();
    assert!(names.contains(&"x-kept") && !names.iter().any(|name| name.contains(NAMEABLE)), "{names:?}");
    let (_, audit) = rig.recorded();
    assert!(audit.iter().any(|event| matches!(event, AuditEvent::SecretReflected { .. })));
}

#[tokio::test]
async fn an_echo_in_a_redirect_s_host_does_not_pass() {
    let upstream = Upstream::answering(|_| {
        let place = format!("https://{}.example/", NAMEABLE.to_uppercase());
        Response::builder().status(302).header("location", place).body(whole("")).unwrap()
    })
    .await;
    let rig = Rig::with_token(NAMEABLE);
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(response.status(), 502);
    let body = text(response).await.unwrap();
    assert!(body.contains("another place") && !body.to_lowercase().contains(NAMEABLE), "{body}");
}
