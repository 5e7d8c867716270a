//! Event streams as they flow, and what ends them from the agent's side.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use crate::{
    pipeline::{Body, testing::*},
    record::Failure,
    upstream::Patience,
};

fn event_stream(body: Answer) -> Response<Answer> {
    Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
}

/// An upstream whose one answer is fed by the test.
async fn fed_stream() -> (mpsc::Sender<Result<Bytes, std::io::Error>>, Upstream) {
    let (sender, body) = fed();
    let body = std::sync::Mutex::new(Some(body));
    let upstream = Upstream::answering(move |_| event_stream(body.lock().unwrap().take().unwrap())).await;
    (sender, upstream)
}

async fn frame(response: &mut Response<Body>) -> Bytes {
    within(response.body_mut().frame()).await.unwrap().unwrap().into_data().unwrap()
}

#[tokio::test]
async fn r14_the_head_comes_at_once_and_then_every_event() {
    let (feed, upstream) = fed_stream().await;
    let mut rig = Rig::new();
    let mut response = within(rig.send(&upstream.url(), post(CALL))).await;
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    let started = rig.next_exchange().await;
    assert_eq!((started.status, started.duration_ms), (Some(200), None), "a stream is in the trace at once");
    for event in ["id: 1\nretry: 300\ndata:\n\n", ": comment\n\n", "event: message\ndata: {\"a\":1}\n\n"] {
        feed.send(Ok(event.into())).await.unwrap();
        assert_eq!(frame(&mut response).await, event, "R16: untouched");
    }
    // Half an event waits for its other half.
    feed.send(Ok("data: {\"jsonrpc\":\"2.0\",".into())).await.unwrap();
    feed.send(Ok("\"id\":\"c-1\",\"result\":{}}\n\n".into())).await.unwrap();
    assert_eq!(frame(&mut response).await, "data: {\"jsonrpc\":\"2.0\",\"id\":\"c-1\",\"result\":{}}\n\n");
    drop(feed);
    assert_eq!(text(response).await.unwrap(), "");
    let ended = rig.next_exchange().await;
    assert!(ended.duration_ms.is_some() && ended.error.is_none());
}

#[tokio::test]
async fn r19_silence_ends_nothing() {
    let (feed, upstream) = fed_stream().await;
    let rig = Rig::new();
    let mut response = rig.send(&upstream.url(), get()).await;
    tokio::time::pause();
    let silent = tokio::time::timeout(Duration::from_secs(3 * 3600), response.body_mut().frame()).await;
    assert!(silent.is_err(), "nothing came for three hours, not even an end");
    tokio::time::resume();
    feed.send(Ok("data: x\n\n".into())).await.unwrap();
    assert_eq!(frame(&mut response).await, "data: x\n\n");
}

/// An upstream that says when its client is gone, after it wrote this.
async fn watching(answer: &'static [u8]) -> (Upstream, mpsc::Receiver<&'static str>) {
    let (sender, receiver) = mpsc::channel(8);
    let upstream = Upstream::raw(move |mut tcp| {
        let sender = sender.clone();
        Box::pin(async move {
            let mut buffer = vec![0; 65536];
            while !buffer_has_request(&mut tcp, &mut buffer).await {}
            tcp.write_all(answer).await.unwrap();
            sender.send("request").await.unwrap();
            while tcp.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
            sender.send("gone").await.unwrap();
        })
    })
    .await;
    (upstream, receiver)
}

async fn buffer_has_request(tcp: &mut tokio::net::TcpStream, buffer: &mut [u8]) -> bool {
    let length = tcp.read(buffer).await.unwrap();
    buffer[..length].windows(4).any(|window| window == b"\r\n\r\n")
}

#[tokio::test]
async fn r17_an_agent_that_leaves_before_the_head_aborts_the_upstream() {
    let (upstream, mut said) = watching(b"").await;
    let mut rig = Rig::new();
    {
        let url = upstream.url();
        let sending = rig.send(&url, post(CALL));
        tokio::select! {
            _ = sending => panic!("nobody answered"),
            request = said.recv() => assert_eq!(request, Some("request")),
        }
    }
    let gone = tokio::time::timeout(Duration::from_millis(100), said.recv()).await;
    assert_eq!(gone, Ok(Some("gone")));
    assert_eq!(rig.next_exchange().await.error, Some(Failure::Cancelled));
}

#[tokio::test]
async fn r17_an_agent_that_leaves_a_silent_stream_aborts_the_upstream() {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
                 9\r\ndata: x\n\n\r\n";
    let (upstream, mut said) = watching(head).await;
    let mut rig = Rig::new();
    let mut response = rig.send(&upstream.url(), get()).await;
    assert_eq!(frame(&mut response).await, "data: x\n\n");
    assert_eq!(within(said.recv()).await, Some("request"));
    drop(response);
    let gone = tokio::time::timeout(Duration::from_millis(100), said.recv()).await;
    assert_eq!(gone, Ok(Some("gone")));
    assert_eq!(rig.next_exchange().await.duration_ms, None, "the start");
    assert_eq!(rig.next_exchange().await.error, Some(Failure::Cancelled));
    assert!(rig.recorded().0.is_empty(), "one end");
}

#[tokio::test]
async fn r23_many_streams_at_once() {
    let upstream = Upstream::answering(|got| {
        let (feed, body) = fed();
        feed.try_send(Ok(format!("data: {}\n\n", got.head.uri).into())).unwrap();
        // It never ends.
        std::mem::forget(feed);
        event_stream(body)
    })
    .await;
    let rig = Rig::new();
    let url = upstream.url();
    let all = (0..60).map(|n| {
        let mut request = get();
        *request.uri_mut() = format!("/mcp/x?n={n}").parse().unwrap();
        rig.send(&url, request)
    });
    let mut open = within(futures_util::future::join_all(all)).await;
    for (n, response) in open.iter_mut().enumerate() {
        assert_eq!(frame(response).await, format!("data: /mcp?n={n}\n\n"));
    }
}

#[tokio::test]
async fn a_stalled_reader_stalls_its_upstream_and_nothing_grows() {
    let (feed, upstream) = fed_stream().await;
    let rig = Rig::new();
    let response = rig.send(&upstream.url(), get()).await;
    let event = Bytes::from(format!("data: {}\n\n", "x".repeat(64 * 1024)));
    let mut sent = 0_usize;
    // Nobody reads: kernel buffers and one read buffer fill, then the upstream has to wait.
    while tokio::time::timeout(Duration::from_millis(300), feed.send(Ok(event.clone()))).await.is_ok() {
        sent += event.len();
        assert!(sent < 64 << 20, "the upstream never had to wait");
    }
    drop(response);
}

#[tokio::test]
async fn a_large_answer_passes() {
    let mut body = String::from("{\"jsonrpc\":\"2.0\",\"id\":\"c-1\",\"result\":\"");
    body.push_str(&"y".repeat(64 << 20));
    body.push_str("\"}");
    let body = Bytes::from(body);
    let expected = body.len();
    let upstream = Upstream::answering(move |_| {
        Response::builder().header("content-type", "application/json").body(whole(body.clone())).unwrap()
    })
    .await;
    let rig = Rig::new();
    let mut response = rig.send(&upstream.url(), post(CALL)).await;
    let mut length = 0;
    while let Some(frame) = response.body_mut().frame().await {
        let data = frame.unwrap().into_data().unwrap();
        assert!(data.len() < 1 << 20, "in parts");
        length += data.len();
    }
    assert_eq!(length, expected);
}

#[tokio::test]
async fn r22_a_legacy_server_works_through_its_handle() {
    let upstream = Upstream::answering(|got| {
        if got.head.method == "GET" {
            let (feed, body) = fed();
            feed.try_send(Ok("event: endpoint\ndata: /message?sessionId=7\n\n".into())).unwrap();
            std::mem::forget(feed);
            return event_stream(body);
        }
        Response::builder().status(202).body(whole("Accepted")).unwrap()
    });
    let (rig, mut upstream) = (Rig::new(), upstream.await);
    let mut stream = rig.send(&upstream.url(), get()).await;
    let event = frame(&mut stream).await;
    let path = std::str::from_utf8(&event)
        .unwrap()
        .trim()
        .strip_prefix("event: endpoint\ndata: ")
        .unwrap()
        .to_owned();
    upstream.next().await;
    let message =
        || Request::post(path.as_str()).header("content-type", "application/json").body(Full::from(CALL));
    assert_eq!(rig.send(&upstream.url(), message().unwrap()).await.status(), 202);
    let got = upstream.next().await;
    assert_eq!(got.head.uri, "/message?sessionId=7");
    assert_eq!(got.head.headers["x-api-key"], TOKEN);
    drop(stream);
    assert_eq!(rig.send(&upstream.url(), message().unwrap()).await.status(), 404, "gone with its stream");
}

/// An HTTP/2 upstream whose answers are fed by the test, in the order in which they are asked for.
async fn fed_h2(count: usize) -> (Vec<mpsc::Sender<Result<Bytes, std::io::Error>>>, Upstream, Rig) {
    let (roots, config) = tls("127.0.0.1", &[b"h2"]);
    let (feeds, bodies): (Vec<_>, Vec<_>) = (0..count).map(|_| fed()).unzip();
    let bodies = std::sync::Mutex::new(bodies);
    let upstream = Upstream::secure(config, move |got| {
        assert_eq!(got.head.version, http::Version::HTTP_2);
        event_stream(bodies.lock().unwrap().remove(0))
    })
    .await;
    (feeds, upstream, Rig::with(roots, crate::upstream::Patience::default()))
}

#[tokio::test]
async fn r17_an_http2_upstream_hears_of_it_too() {
    let (mut feeds, upstream, rig) = fed_h2(1).await;
    let mut response = rig.send(&upstream.url(), get()).await;
    let feed = feeds.remove(0);
    feed.send(Ok("data: x\n\n".into())).await.unwrap();
    assert_eq!(frame(&mut response).await, "data: x\n\n");
    drop(response);
    // The server drops the body when the stream is reset.
    tokio::time::timeout(Duration::from_millis(100), feed.closed()).await.expect("reset at once");
}

#[tokio::test]
async fn t2_a_stalled_reader_of_an_http2_upstream_stalls_no_sibling() {
    let (feeds, upstream, rig) = fed_h2(2).await;
    let stalled = rig.send(&upstream.url(), get()).await;
    let mut sibling = rig.send(&upstream.url(), get()).await;
    let event = Bytes::from(format!("data: {}\n\n", "x".repeat(64 * 1024)));
    let feed = |n: usize| tokio::time::timeout(Duration::from_millis(300), feeds[n].send(Ok(event.clone())));
    while feed(0).await.is_ok() {}
    for _ in 0..64 {
        feed(1).await.unwrap().unwrap();
        let mut length = 0;
        while length < event.len() {
            length += frame(&mut sibling).await.len();
        }
    }
    drop(stalled);
}

#[tokio::test]
async fn nothing_is_sent_twice() {
    let (sender, mut requests) = mpsc::channel(8);
    let upstream = Upstream::raw(move |mut tcp| {
        let sender = sender.clone();
        Box::pin(async move {
            // The first request of a connection is answered, the second is read and never answered.
            for answer in [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".as_slice(), b""] {
                let mut request = Vec::new();
                while !request.ends_with(CALL.as_bytes()) {
                    if tcp.read_buf(&mut request).await.unwrap_or_default() == 0 {
                        return;
                    }
                }
                sender.send(()).await.unwrap();
                tcp.write_all(answer).await.unwrap();
            }
        })
    })
    .await;
    let rig = Rig::new();
    let first = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(text(first).await.unwrap(), "{}");
    let second = rig.send(&upstream.url(), post(CALL)).await;
    assert_eq!(error_in(second).await.2, "upstream_lost");
    let mut seen = 0;
    while requests.try_recv().is_ok() {
        seen += 1;
    }
    assert_eq!(seen, 2);
}

/// An upstream that allows few streams on one connection, and streams that stay open: the next call does not wait.
#[tokio::test]
async fn r23_streams_that_are_used_up_get_another_connection() {
    const AT_ONCE: u32 = 3;
    const OPEN: usize = 20;
    let (roots, config) = tls("127.0.0.1", &[b"h2"]);
    let (feed, open) = (std::sync::Mutex::new(Vec::new()), "data: 1\n\n");
    let upstream = Upstream::narrow(config, AT_ONCE, move |got| {
        if got.head.method == http::Method::POST {
            return Response::new(whole("{}"));
        }
        let (sender, body) = fed();
        sender.try_send(Ok(open.into())).unwrap();
        feed.lock().unwrap().push(sender);
        Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
    })
    .await;
    let rig = Rig::with(roots, Patience::default());
    let run = without_credential(&upstream.url());
    // At once, before anything is known of the upstream.
    let asked = (0..OPEN).map(|_| rig.pipeline.handle(&run, get()));
    let mut streams = within(futures_util::future::join_all(asked)).await;
    for stream in &mut streams {
        assert_eq!(stream.status(), 200);
        assert_eq!(within(stream.body_mut().frame()).await.unwrap().unwrap().into_data().unwrap(), open);
    }
    let response = within(rig.pipeline.handle(&run, post(CALL))).await;
    assert_eq!(text(response).await.unwrap(), "{}");
    // Not without end: what is too many waits for one that ends.
    let rest = 16 * AT_ONCE as usize / 2 - OPEN;
    for _ in 0..rest {
        streams.push(within(rig.pipeline.handle(&run, get())).await);
    }
    // Half of them is for other runs. The connection that this one gets has room for more.
    let other = run_named("run_00000000000b", &[("x", &upstream.url(), None)]);
    assert_eq!(within(rig.pipeline.handle(&other, post(CALL))).await.status(), 200);
    let mut one_more = std::pin::pin!(rig.pipeline.handle(&run, post(CALL)));
    let soon = tokio::time::timeout(Duration::from_millis(300), &mut one_more).await;
    assert!(soon.is_err(), "it found a place where there is none for it");
    streams.pop();
    assert_eq!(within(one_more).await.status(), 200);
}
