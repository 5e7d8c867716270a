//! What an upstream's answer becomes.

use std::time::Duration;

use http::Response;
use test_case::test_case;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    pipeline::testing::*,
    record::{AuditEvent, Failure},
    upstream::Patience,
};

#[test_case(200)]
#[test_case(400)]
#[test_case(404)]
#[test_case(405)]
#[test_case(406)]
#[test_case(409)]
#[test_case(415)]
#[test_case(429)]
#[test_case(500)]
#[test_case(503)]
#[tokio::test]
async fn r11_status_and_body_as_received(status: u16) {
    let upstream = Upstream::answering(move |_| {
        Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .header("retry-after", "3")
            .header("set-cookie", "a=b")
            .header("www-authenticate", "Bearer")
            .header("alt-svc", "h3")
            .body(whole("{\"what\":\"they said\"}"))
            .unwrap()
    })
    .await;
    let rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()["retry-after"], "3");
    for gone in ["set-cookie", "www-authenticate", "alt-svc"] {
        assert!(!response.headers().contains_key(gone), "R21 {gone}");
    }
    assert_eq!(text(response).await.unwrap(), "{\"what\":\"they said\"}");
}

/// Whatever it calls itself: the agent gets an error with its id, not a stream that breaks.
#[test_case("text/plain", "gzip", b"no gzip at all"; "not what the header says")]
#[test_case("application/json", "gzip", b"no gzip at all"; "the same in json")]
#[test_case("text/event-stream", "gzip", b"no gzip at all"; "the same in events")]
#[test_case("text/plain", "deflate", b"\x78\x9cnot zlib"; "not zlib")]
#[tokio::test]
async fn what_cannot_be_decoded_is_invalid(media: &'static str, coding: &'static str, body: &'static [u8]) {
    let upstream = Upstream::answering(move |_| {
        let head = Response::builder().header("content-type", media).header("content-encoding", coding);
        head.body(whole(body)).unwrap()
    })
    .await;
    let mut rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    let error = if media == "text/event-stream" {
        let text = text(response).await.unwrap();
        serde_json::from_str(text.rsplit_once("data: ").unwrap().1.trim_end()).unwrap()
    } else {
        assert_eq!(response.status(), 502);
        serde_json::from_str::<serde_json::Value>(&text(response).await.unwrap()).unwrap()
    };
    assert_eq!((&error["id"], &error["error"]["data"]["kind"]), (&"c-1".into(), &"upstream_invalid".into()));
    assert_eq!(rig.recorded().0.last().unwrap().error, Some(Failure::Invalid));
}

/// An answer of no special type that is cut: small enough to know before its head travels.
#[tokio::test]
async fn a_plain_answer_that_is_cut_is_an_error_with_an_id() {
    let upstream = Upstream::answering(|_| {
        let (feed, body) = fed();
        feed.try_send(Ok("half of".into())).unwrap();
        feed.try_send(Err(std::io::Error::other("cut"))).unwrap();
        Response::builder().header("content-type", "text/plain").body(body).unwrap()
    })
    .await;
    let rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(error_in(response).await.2, "upstream_lost");
}

#[tokio::test]
async fn r13_202_has_no_body_and_no_type() {
    let upstream = Upstream::answering(|_| {
        Response::builder().status(202).header("content-type", "text/plain").body(whole("Accepted")).unwrap()
    })
    .await;
    let rig = Rig::new();
    let response = rig.send(&upstream.url(), post(NOTE)).await;
    assert_eq!(response.status(), 202);
    assert!(!response.headers().contains_key("content-type"));
    assert_eq!(text(response).await.unwrap(), "");
}

/// A client would wait for a response that cannot come any more.
#[test_case(202, "", "upstream_invalid", Failure::Invalid; "accepted")]
#[test_case(204, "", "upstream_invalid", Failure::Invalid; "no content")]
#[test_case(200, "", "upstream_lost", Failure::Lost; "an empty document")]
#[tokio::test]
async fn a_request_that_is_never_answered_is_told(
    status: u16,
    body: &'static str,
    kind: &str,
    failure: Failure,
) {
    let upstream = Upstream::answering(move |_| {
        let head = Response::builder().status(status).header("content-type", "application/json");
        head.body(whole(body)).unwrap()
    })
    .await;
    let mut rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(response.status(), 502);
    let (id, _, told, _) = error_in(response).await;
    assert_eq!((id.as_str(), told.as_str()), (Some("c-1"), kind));
    let ends: Vec<_> = rig.recorded().0.iter().map(|exchange| exchange.error).collect();
    assert_eq!(ends, [Some(failure)]);
}

#[test_case(401)]
#[test_case(403)]
#[tokio::test]
async fn a_rejected_credential_never_starts_oauth(status: u16) {
    let upstream = Upstream::answering(move |_| {
        let head =
            Response::builder().status(status).header("www-authenticate", "Bearer resource_metadata=x");
        head.body(whole("no")).unwrap()
    })
    .await;
    let mut rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(response.status(), 502);
    assert!(!response.headers().contains_key("www-authenticate"));
    let (id, _, kind, message) = error_in(response).await;
    assert_eq!((id.as_str(), kind.as_str()), (Some("c-1"), "upstream_rejected_credential"));
    assert!(message.contains("moat grant mcp x"), "{message}");
    let (exchanges, audit) = rig.recorded();
    assert_eq!((exchanges[0].status, exchanges[0].error), (Some(status), Some(Failure::RejectedCredential)));
    assert!(audit.iter().any(|event| matches!(event, AuditEvent::CredentialRejected { .. })));
    assert_eq!(
        rig.notice().unwrap(),
        "Warning: MCP authentication failed for 'x'\nThis usually means the credential is invalid or expired.\n\n\
         To update:\n  moat revoke mcp-x\n  moat grant mcp x"
    );
    // Without a grant the status passes, the header still does not.
    let response = rig.pipeline.handle(&without_credential(&upstream.url()), post(CALL)).await;
    assert_eq!(response.status(), status);
    assert_eq!(rig.notice().as_deref(), Some("mended"), "it answered");
    let response = rig.pipeline.handle(&without_credential(&upstream.url()), post(CALL)).await;
    assert_eq!((response.status().as_u16(), rig.notice()), (status, None), "nothing was wrong with it");
    assert!(!response.headers().contains_key("www-authenticate"));
}

#[test_case(301, "/elsewhere" => "the same"; "r21 same origin")]
#[test_case(307, "https://evil.example/x?token=1" => "https://evil.example"; "another host")]
#[test_case(308, "//evil.example" => "http://evil.example"; "another host, no scheme")]
#[tokio::test]
async fn no_redirect_is_followed(status: u16, location: &'static str) -> String {
    let mut upstream = Upstream::answering(move |_| {
        Response::builder().status(status).header("location", location).body(whole("")).unwrap()
    })
    .await;
    let mut rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(response.status(), 502);
    assert!(!response.headers().contains_key("location"));
    let (_, _, kind, message) = error_in(response).await;
    assert_eq!(kind, "redirect_refused");
    assert!(!message.contains("token"), "{message}");
    upstream.next().await;
    assert!(upstream.got.try_recv().is_err(), "asked once");
    assert_eq!(rig.recorded().0[0].error, Some(Failure::Redirect));
    let target = message.split(' ').nth(6).unwrap().trim_end_matches(';').to_owned();
    if target == format!("http://{}", upstream.address) { "the same".to_owned() } else { target }
}

#[tokio::test]
async fn a_redirect_never_carries_the_credential() {
    let mut thief = Upstream::answering(|_| Response::new(whole("thanks"))).await;
    let target = thief.url();
    let upstream = Upstream::answering(move |_| {
        Response::builder().status(307).header("location", target.as_str()).body(whole("")).unwrap()
    })
    .await;
    assert_eq!(Rig::new().send(&upstream.url(), post(CALL)).await.status(), 502);
    assert!(thief.got.try_recv().is_err(), "the second host is never contacted");
}

/// A port of loopback where nobody listens.
async fn closed_port() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}/mcp?key=s3cr3t", listener.local_addr().unwrap())
}

#[tokio::test]
async fn connection_refused() {
    let mut rig = Rig::new();
    let url = closed_port().await;
    let response = rig.send(&url, post(CALL)).await;
    assert_eq!(response.status(), 502);
    let (id, _, kind, message) = error_in(response).await;
    assert_eq!((id.as_str(), kind.as_str()), (Some("c-1"), "upstream_unreachable"));
    assert_eq!(message, "MOAT: Failed to connect to MCP server 'x' (connection refused)");
    let exchange = rig.next_exchange().await;
    assert_eq!(exchange.error, Some(Failure::Refused));
    assert!(!exchange.url.contains("s3cr3t"));
    let notice = rig.notice().unwrap();
    assert!(notice.starts_with("Error: Could not connect to MCP server 'x'") && !notice.contains("s3cr3t"));
}

#[tokio::test]
async fn a_name_that_does_not_exist() {
    let mut rig = Rig::new();
    let run = without_credential("https://does-not-exist.invalid/mcp");
    let response = rig.pipeline.handle(&run, post(CALL)).await;
    assert_eq!(response.status(), 502);
    assert!(error_in(response).await.3.contains("its name cannot be resolved"));
    assert_eq!(rig.next_exchange().await.error, Some(Failure::Dns));
}

#[tokio::test]
async fn r19_an_upstream_that_hangs() {
    let upstream = Upstream::raw(|mut tcp| {
        Box::pin(async move {
            let mut sink = Vec::new();
            // Ends when the bridge gives up.
            let _read = tcp.read_to_end(&mut sink).await.is_ok();
        })
    })
    .await;
    let patience = Patience { connect: Duration::from_secs(5), first_byte: Duration::from_millis(100) };
    let mut rig = Rig::with(rustls::RootCertStore::empty(), patience);
    let response = within(rig.send(&upstream.url(), post(CALL))).await;
    assert_eq!(response.status(), 504);
    let (id, _, kind, _) = error_in(response).await;
    assert_eq!((id.as_str(), kind.as_str()), (Some("c-1"), "upstream_timeout"));
    assert_eq!(rig.next_exchange().await.error, Some(Failure::Timeout));
}

#[test_case(b"" => ("upstream_lost".to_owned(), Failure::Lost); "closed without a word")]
#[test_case(b"hello\r\n\r\n" => ("upstream_invalid".to_owned(), Failure::Invalid); "not http")]
#[tokio::test]
async fn no_proper_head(answer: &'static [u8]) -> (String, Failure) {
    let upstream = Upstream::raw(move |mut tcp| {
        Box::pin(async move {
            let mut buffer = [0; 4096];
            if tcp.read(&mut buffer).await.is_ok() {
                tcp.write_all(answer).await.unwrap();
            }
        })
    })
    .await;
    let mut rig = Rig::new();
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(response.status(), 502);
    (error_in(response).await.2, rig.next_exchange().await.error.unwrap())
}

#[test_case(&[b"h2", b"http/1.1"] => http::Version::HTTP_2; "h2")]
#[test_case(&[b"http/1.1"] => http::Version::HTTP_11; "http 1")]
#[test_case(&[] => http::Version::HTTP_11; "no alpn")]
#[tokio::test]
async fn https_by_alpn(alpn: &[&[u8]]) -> http::Version {
    let (roots, config) = tls("127.0.0.1", alpn);
    let mut upstream = Upstream::secure(config, |_| Response::new(whole("hello"))).await;
    let rig = Rig::with(roots, Patience::default());
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(text(response).await.unwrap(), "hello");
    let got = upstream.next().await;
    assert_eq!(got.head.headers["x-api-key"], TOKEN);
    assert_eq!(got.body, CALL);
    let authority = got.head.uri.authority().map(ToString::to_string);
    let host = got.head.headers.get("host").map(|host| host.to_str().unwrap().to_owned());
    assert_eq!(authority.or(host), Some(upstream.address.to_string()), "R3");
    got.head.version
}

#[test_case("localhost", true => "the certificate is for another name"; "another name")]
#[test_case("127.0.0.1", false => "the certificate's issuer is not trusted on this machine"; "unknown issuer")]
#[tokio::test]
async fn tls_that_cannot_be_trusted(name: &str, trusted: bool) -> String {
    let (roots, config) = tls(name, &[]);
    let mut upstream = Upstream::secure(config, |_| Response::new(whole("hello"))).await;
    let roots = if trusted { roots } else { rustls::RootCertStore::empty() };
    let mut rig = Rig::with(roots, Patience::default());
    let response = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(response.status(), 502);
    let message = error_in(response).await.3;
    assert_eq!(rig.next_exchange().await.error, Some(Failure::Tls));
    assert!(upstream.got.try_recv().is_err());
    message.split("TLS failed: ").nth(1).unwrap().trim_end_matches(')').to_owned()
}
