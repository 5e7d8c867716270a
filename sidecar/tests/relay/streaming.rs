//! Event streams: at once, kept alive, ended when the agent goes.

use std::time::{Duration, Instant};

use moat_sidecar::relay::Timing;

use crate::{
    agent::{Rig, Started},
    bridge::{Authority, Bridge},
};

const CALL: &str = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call"}"#;

#[tokio::test]
async fn every_event_passes_at_once() {
    let mut rig = Rig::open().await;
    let mut agent = rig.ask("POST", "/mcp/notion", CALL).await;
    let feed = rig.bridge.call().await.stream("text/event-stream");
    let head = agent.head().await;
    assert_eq!((head.status, head.header("x-accel-buffering")), (200, Some("no")));
    for event in ["id: 1\ndata:\n\n", "data: half of", " one\n\n", "retry: 5\n\n"] {
        feed.send(event).await;
        assert_eq!(agent.chunk().await, event);
    }
    drop(feed);
    assert_eq!(agent.chunk().await, "");
}

#[tokio::test]
async fn silence_is_filled_between_events_only() {
    let mut rig = Rig::open().await;
    let mut agent = rig.ask("GET", "/mcp/notion", "").await;
    let feed = rig.bridge.call().await.stream("text/event-stream");
    agent.head().await;
    assert_eq!(agent.chunk().await, ":\n\n");
    assert_eq!(agent.chunk().await, ":\n\n");
    feed.send("data: half").await;
    assert_eq!(agent.chunk().await, "data: half");
    let quiet = tokio::time::timeout(crate::agent::quick().keep_alive * 3, agent.chunk()).await;
    assert!(quiet.is_err(), "a comment inside an event: {quiet:?}");
    feed.send("\n\n").await;
    assert_eq!(agent.chunk().await, "\n\n");
    assert_eq!(agent.chunk().await, ":\n\n");
}

/// The limits are for connections on which nothing happens, and a stream happens.
#[tokio::test]
async fn a_silent_stream_outlives_every_limit_of_its_connection() {
    const LIMIT: Duration = Duration::from_millis(100);
    let authority = Authority::new();
    let mut bridge = Bridge::new(&authority);
    bridge.start();
    let timing = Timing {
        request_head: LIMIT,
        idle: LIMIT,
        refused_body: LIMIT,
        stalled: LIMIT,
        keep_alive: LIMIT / 2,
        ..Timing::default()
    };
    let relay = Started::new(&bridge, &authority.run(), timing).await;
    let mut agent = relay.agent().await;
    agent.ask("GET", "/mcp/notion", "").await;
    let feed = bridge.call().await.stream("text/event-stream");
    agent.head().await;
    let asked = Instant::now();
    while asked.elapsed() < LIMIT * 15 {
        assert_eq!(agent.chunk().await, ":\n\n");
    }
    feed.send("data: a\n\n").await;
    let mut event = agent.chunk().await;
    while event == ":\n\n" {
        event = agent.chunk().await;
    }
    assert_eq!(event, "data: a\n\n");
}

#[tokio::test]
async fn an_agent_that_leaves_its_stream_resets_it() {
    let mut rig = Rig::open().await;
    let mut agent = rig.ask("GET", "/mcp/notion", "").await;
    let feed = rig.bridge.call().await.stream("text/event-stream");
    agent.head().await;
    let gone = Instant::now();
    drop(agent);
    feed.reset().await;
    assert!(gone.elapsed() < Duration::from_millis(100), "{:?}", gone.elapsed());
}

#[tokio::test]
async fn an_agent_that_leaves_before_the_response_resets_its_stream() {
    let mut rig = Rig::open().await;
    let agent = rig.ask("POST", "/mcp/notion", CALL).await;
    let call = rig.bridge.call().await;
    let gone = Instant::now();
    drop(agent);
    call.reset().await;
    assert!(gone.elapsed() < Duration::from_millis(100), "{:?}", gone.elapsed());
}

#[tokio::test]
async fn an_agent_that_leaves_in_its_body_resets_its_stream() {
    let mut rig = Rig::open().await;
    let mut agent = rig.agent().await;
    let port = rig.relay.port;
    agent
        .write(format!(
            "POST /mcp/notion HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 99\r\n\r\n{CALL}"
        ))
        .await;
    let mut call = rig.bridge.call().await;
    let gone = Instant::now();
    drop(agent);
    let body = http_body_util::BodyExt::collect(call.body.take().unwrap()).await;
    assert!(body.is_err(), "a cut request does not look complete");
    assert!(gone.elapsed() < Duration::from_millis(100), "{:?}", gone.elapsed());
}
