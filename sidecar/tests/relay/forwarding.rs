//! What passes unchanged, in both directions.

use test_case::test_case;

use crate::agent::Rig;

#[tokio::test]
async fn a_request_arrives_as_it_was_sent() {
    let mut rig = Rig::open().await;
    let mut agent = rig.agent().await;
    let port = rig.relay.port;
    let body = "{\"id\":1,\"a\":1.0,\"a\":2}  \n";
    agent
        .write(format!(
            "POST /mcp/notion?key=a+b HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nMCP-Method: TOOLS/LIST\r\nAuthorization: moat-stub-oauth:notion\r\n\
             Cookie: a=b\r\nOrigin: http://localhost:1\r\nProxy-Authorization: x\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
             Content-Length: {}\r\nExpect: 100-continue\r\n\r\n",
            body.len()
        ))
        .await;
    let mut call = rig.bridge.call().await;
    assert_eq!(agent.head().await.status, 100);
    agent.write(body).await;
    assert_eq!(call.read().await, body);
    let headers = &call.head.headers;
    assert_eq!(headers["mcp-method"], "TOOLS/LIST");
    assert_eq!(headers["authorization"], "moat-stub-oauth:notion");
    assert_eq!(headers["content-length"], body.len().to_string());
    let names: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
    assert_eq!(headers["te"], "trailers", "of the tunnel's own hop");
    assert_eq!(names.len(), 4, "{names:?}");
    call.reply(200, &[("content-type", "application/json"), ("mcp-session-id", "AbC")], "{}");
    let head = agent.head().await;
    assert_eq!((head.status, head.header("mcp-session-id")), (200, Some("AbC")));
}

#[test_case(202, ""; "accepted")]
#[test_case(204, ""; "no content")]
#[test_case(400, "{\"error\":1}"; "bad request")]
#[test_case(404, "{}"; "session expired")]
#[test_case(405, ""; "no get stream")]
#[test_case(503, "busy"; "busy")]
#[tokio::test]
async fn a_status_is_not_changed(status: u16, body: &str) {
    let mut rig = Rig::open().await;
    let mut agent = rig.ask("POST", "/mcp/notion", "{}").await;
    rig.bridge.call().await.reply(status, &[], body);
    let head = agent.head().await;
    assert_eq!(head.status, status);
    assert_eq!(head.header("content-type"), None);
    let length: usize = head.header("content-length").unwrap_or("0").parse().unwrap();
    assert_eq!(agent.exactly(length).await, body);
    // The connection is still good.
    agent.ask("DELETE", "/mcp/notion", "").await;
    rig.bridge.call().await.reply(200, &[], "");
    assert_eq!(agent.head().await.status, 200);
}

/// More than 100 empty frames over its life end an HTTP/2 connection.
#[tokio::test]
async fn empty_chunks_do_not_cost_the_tunnel() {
    let mut rig = Rig::open().await;
    let mut agent = rig.ask("POST", "/mcp/notion", "{\"id\":1}").await;
    let call = rig.bridge.call().await;
    let feed = call.stream("text/event-stream");
    assert_eq!(agent.head().await.status, 200);
    for _ in 0..90 {
        feed.send("").await;
    }
    feed.send("data: 1\n\n").await;
    assert_eq!(agent.chunk().await, "data: 1\n\n");
    drop(feed);
    assert_eq!(agent.chunk().await, "");
    assert_eq!(*rig.bridge.greeted.lock().unwrap(), 1);
}

#[tokio::test]
async fn large_bodies_pass_to_a_slow_reader() {
    const CHUNK: usize = 64 * 1024;
    const CHUNKS: usize = 1024;
    let mut rig = Rig::open().await;
    let mut agent = rig.ask("POST", "/mcp/notion", "{\"id\":1}").await;
    let feed = rig.bridge.call().await.stream("application/json");
    assert_eq!(agent.head().await.status, 200);
    let send = async {
        for _ in 0..CHUNKS {
            feed.send(vec![b'x'; CHUNK]).await;
        }
        drop(feed);
    };
    let read = async {
        let mut total = 0;
        loop {
            let chunk = agent.chunk().await.len();
            tokio::task::yield_now().await;
            total += chunk;
            if chunk == 0 {
                return total;
            }
        }
    };
    let ((), total) = tokio::join!(send, read);
    assert_eq!(total, CHUNK * CHUNKS);
}

#[tokio::test]
async fn large_requests_pass() {
    const LENGTH: usize = 64 << 20;
    let mut rig = Rig::open().await;
    let mut agent = rig.agent().await;
    let port = rig.relay.port;
    agent
        .write(format!(
            "POST /mcp/notion HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {LENGTH}\r\n\r\n"
        ))
        .await;
    let mut call = rig.bridge.call().await;
    let write = async {
        for _ in 0..LENGTH / 65536 {
            agent.write(vec![b'y'; 65536]).await;
        }
    };
    let read = async {
        use http_body_util::BodyExt;
        let mut body = call.body.take().unwrap();
        let mut total = 0;
        while let Some(frame) = body.frame().await {
            total += frame.unwrap().into_data().unwrap().len();
        }
        total
    };
    let ((), total) = tokio::join!(write, read);
    assert_eq!(total, LENGTH);
    call.reply(202, &[], "");
    assert_eq!(agent.head().await.status, 202);
}
