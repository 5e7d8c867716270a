//! An event stream over HTTP/1.1 is written without hyper once it pauses: the agent sees nothing of that.

use std::time::{Duration, Instant};

use moat_shared::rt::drain::Drained;
use moat_sidecar::relay::Timing;
use test_case::test_case;
use tokio::io::AsyncWriteExt;

use crate::{
    agent::{Agent, Rig, Started, quick},
    bridge::{Authority, Bridge, Feed, soon},
};

const EVENTS: &str = "text/event-stream";
const CALL: &str = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call"}"#;

/// No comments of the relay's own in what is compared.
fn silent() -> Timing {
    Timing { keep_alive: Duration::from_secs(60), ..quick() }
}

/// A stream that pauses: an agent that has its head, and the other end.
async fn paused(rig: &mut Rig) -> (Agent, Feed) {
    let mut agent = rig.ask("GET", "/mcp/notion", "").await;
    let feed = rig.bridge.call().await.stream(EVENTS);
    agent.head().await;
    (agent, feed)
}

async fn silent_rig() -> Rig {
    let authority = Authority::new();
    let bridge = Bridge::new(&authority);
    bridge.start();
    let relay = Started::new(&bridge, &authority.run(), silent()).await;
    Rig { bridge, relay }
}

#[tokio::test]
async fn every_byte_is_where_it_belongs() {
    let mut rig = silent_rig().await;
    let mut agent = rig.ask("POST", "/mcp/notion", CALL).await;
    let feed = rig.bridge.call().await.stream_with(&[
        ("content-type", EVENTS),
        ("mcp-session-id", "AbC"),
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ]);
    assert_eq!(
        agent.head().await.text,
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nmcp-session-id: AbC\r\n\
         date: Sun, 06 Nov 1994 08:49:37 GMT\r\nx-accel-buffering: no\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    feed.send("data: a\n\n").await;
    assert_eq!(agent.exactly(14).await, "9\r\ndata: a\n\n\r\n");
    let long = format!("data: {}\n\n", "x".repeat(4000));
    feed.send(long.clone()).await;
    assert_eq!(agent.exactly(4008 + 7).await, format!("fa8\r\n{long}\r\n"));
    drop(feed);
    assert_eq!(agent.until("\r\n\r\n").await, "0\r\n\r\n");
    agent.ask("DELETE", "/mcp/notion", "").await;
    rig.bridge.call().await.reply(202, &[], "");
    assert!(agent.head().await.text.starts_with("HTTP/1.1 202 Accepted\r\n"), "nothing between two answers");
}

/// How the next request comes.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    Afterwards,
    Early,
    /// Together with the one before.
    AtOnce,
    /// More of it than is kept.
    EarlyAndLarge,
    /// A part of its head comes early.
    InParts,
}

#[test_case(Next::Afterwards, false; "afterwards")]
#[test_case(Next::Early, false; "early")]
#[test_case(Next::AtOnce, false; "at once")]
#[test_case(Next::EarlyAndLarge, false; "early and large")]
#[test_case(Next::InParts, false; "in parts")]
#[test_case(Next::Early, true; "early inside connect")]
#[tokio::test]
async fn the_next_request_is_served(next: Next, inside: bool) {
    let mut rig = silent_rig().await;
    let mut agent = rig.agent().await;
    let port = rig.relay.port;
    if inside {
        agent.write(format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n")).await;
        assert_eq!(agent.head().await.status, 200);
    }
    let body = pattern(if next == Next::EarlyAndLarge { 64 * 1024 } else { 100 });
    let request = format!(
        "POST /mcp/linear HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let get = format!("GET /mcp/notion HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    let (early, late) = request.split_at(match next {
        Next::Afterwards => 0,
        Next::InParts => 30,
        Next::Early | Next::AtOnce | Next::EarlyAndLarge => request.len(),
    });
    // More than once: the connection goes back and forth.
    for _ in 0..3 {
        let at_once = next == Next::AtOnce;
        agent.write(if at_once { format!("{get}{early}") } else { get.clone() }).await;
        let feed = rig.bridge.call().await.stream(EVENTS);
        agent.head().await;
        agent.write(if at_once { "" } else { early }).await;
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            feed.send(event).await;
            assert_eq!(agent.chunk().await, event);
        }
        assert!(rig.bridge.is_untouched(), "one after the other");
        drop(feed);
        assert_eq!(agent.chunk().await, "");
        agent.write(late).await;
        let mut call = rig.bridge.call().await;
        assert_eq!(call.read().await, body);
        call.reply(202, &[], "");
        assert_eq!(agent.head().await.status, 202);
    }
}

/// The kernel's buffers fill, and ours do not grow.
#[tokio::test]
async fn an_agent_that_sends_ahead_without_end_is_held_back() {
    const MOST: usize = 2 << 20;
    let mut rig = silent_rig().await;
    let mut agent = rig.relay.agent_with_window(16 * 1024).await;
    agent.ask("GET", "/mcp/notion", "").await;
    let feed = rig.bridge.call().await.stream(EVENTS);
    agent.head().await;
    let (piece, mut sent) = (pattern(64 * 1024), 0);
    while sent < MOST
        && let Ok(more) =
            tokio::time::timeout(Duration::from_millis(200), agent.stream.write(piece.as_bytes())).await
    {
        sent += more.unwrap();
    }
    assert!(sent < MOST, "{sent} bytes");
    feed.send("data: 1\n\n").await;
    assert_eq!(agent.chunk().await, "data: 1\n\n");
}

/// Text that shows where a piece of it is missing, or twice.
fn pattern(length: usize) -> String {
    (0..length).map(|at| char::from(b'a' + u8::try_from((at / 7 + at / 4096) % 26).unwrap())).collect()
}

#[derive(Clone, Copy)]
enum Leaving {
    Closes,
    /// Says that nothing more comes, as an agent that is gone does.
    EndsItsHalf,
    Resets,
    /// With bytes of a next request before that.
    ClosesAfterMore,
}

#[test_case(Leaving::Closes, false; "closes")]
#[test_case(Leaving::EndsItsHalf, false; "ends its half")]
#[test_case(Leaving::Resets, false; "resets")]
#[test_case(Leaving::ClosesAfterMore, false; "closes after more")]
#[test_case(Leaving::Closes, true; "closes, and never read")]
#[test_case(Leaving::EndsItsHalf, true; "ends its half, and never read")]
#[test_case(Leaving::Resets, true; "resets, and never read")]
#[tokio::test]
async fn an_agent_that_leaves_is_noticed_at_once(leaving: Leaving, waits: bool) {
    let mut rig = silent_rig().await;
    let (mut agent, feed) = paused(&mut rig).await;
    feed.send("data: 1\n\n").await;
    agent.chunk().await;
    // More than all on the way take, so that a write waits.
    let piece = pattern(16 * 1024);
    while waits && tokio::time::timeout(Duration::from_millis(200), feed.send(piece.clone())).await.is_ok() {}
    let gone = Instant::now();
    match leaving {
        Leaving::Closes => {}
        Leaving::EndsItsHalf => agent.stream.shutdown().await.unwrap(),
        Leaving::Resets => agent.stream.set_zero_linger().unwrap(),
        Leaving::ClosesAfterMore => agent.write("GET /mcp/linear HTTP/1.1\r\n").await,
    }
    if !matches!(leaving, Leaving::EndsItsHalf) {
        drop(agent);
    }
    feed.reset().await;
    assert!(gone.elapsed() < Duration::from_millis(200), "{:?}", gone.elapsed());
    assert!(rig.bridge.is_untouched());
}

/// Chunks of all sizes, through a window that is smaller than most.
#[tokio::test]
async fn nothing_is_lost_or_twice_when_the_agent_reads_slowly() {
    const TOTAL: usize = 12 << 20;
    let mut rig = silent_rig().await;
    let mut agent = rig.relay.agent_with_window(4096).await;
    agent.ask("GET", "/mcp/notion", "").await;
    let feed = rig.bridge.call().await.stream(EVENTS);
    agent.head().await;
    let whole = pattern(TOTAL);
    let send = async {
        let (mut rest, mut size) = (&whole[..], 1);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(size.min(rest.len()));
            feed.send(piece.to_owned()).await;
            (rest, size) = (after, (size * 31 + 7) % 70_001);
        }
        drop(feed);
    };
    let read = async {
        let (mut at, mut chunks) = (0, 0);
        loop {
            let chunk = agent.chunk().await;
            assert!(whole[at..].starts_with(&chunk), "wrong after {at} bytes in {chunks} chunks");
            if chunk.is_empty() {
                return at;
            }
            (at, chunks) = (at + chunk.len(), chunks + 1);
        }
    };
    let ((), read) = tokio::join!(send, read);
    assert_eq!(read, TOTAL);
    agent.ask("DELETE", "/mcp/notion", "").await;
    rig.bridge.call().await.reply(202, &[], "");
    assert_eq!(agent.head().await.status, 202);
}

#[tokio::test]
async fn a_cut_shows_what_came_before_it_and_no_end() {
    let mut rig = silent_rig().await;
    let (mut agent, feed) = paused(&mut rig).await;
    feed.send("id: 1\ndata: a\n\n").await;
    assert_eq!(agent.chunk().await, "id: 1\ndata: a\n\n");
    let piece = pattern(5000);
    feed.send(piece.clone()).await;
    feed.lose().await;
    assert_eq!(agent.rest().await, format!("1388\r\n{piece}\r\n"));
}

#[test_case("Connection: close\r\n" => true; "close")]
#[test_case("Connection: x-hop, Close\r\n" => true; "among others")]
#[test_case("Connection: keep-alive\r\nConnection: close\r\n" => true; "in its second line")]
#[test_case("Connection: keep-alive\r\n" => false; "keep alive")]
#[test_case("" => false; "nothing said")]
#[tokio::test]
async fn the_last_request_ends_its_connection(header: &str) -> bool {
    let mut rig = silent_rig().await;
    let mut agent = rig.agent().await;
    agent
        .write(format!("GET /mcp/notion HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n{header}\r\n", rig.relay.port))
        .await;
    let feed = rig.bridge.call().await.stream(EVENTS);
    let told = agent.head().await.header("connection") == Some("close");
    feed.send("data: a\n\n").await;
    assert_eq!(agent.chunk().await, "data: a\n\n");
    drop(feed);
    assert_eq!(agent.chunk().await, "");
    if told {
        assert_eq!(agent.rest().await, "");
    } else {
        agent.ask("DELETE", "/mcp/notion", "").await;
        rig.bridge.call().await.reply(202, &[], "");
        assert_eq!(agent.head().await.status, 202);
    }
    told
}

/// The stream goes on to its own end, and that is the end of its connection.
#[tokio::test]
async fn a_drain_lets_a_stream_finish() {
    let mut rig = silent_rig().await;
    let (mut agent, feed) = paused(&mut rig).await;
    let mut idle = rig.agent().await;
    idle.ask("GET", "/healthz", "").await;
    idle.answer().await;
    let stop = rig.relay.stop_relay.take().unwrap();
    let finish = async {
        assert_eq!(idle.rest().await, "", "the drain has begun");
        feed.send("data: a\n\n").await;
        assert_eq!(agent.chunk().await, "data: a\n\n");
        drop(feed);
        assert_eq!(agent.rest().await, "0\r\n\r\n");
    };
    let (drained, ()) = tokio::join!(stop.drain(Duration::from_secs(5)), finish);
    assert_eq!(drained, Drained::Finished);
}

#[test_case("Content-Length: 8\r\n\r\n{\"a\"", ":1 }"; "with a length")]
#[test_case("Transfer-Encoding: chunked\r\n\r\n4\r\n{\"a\"\r\n", "4\r\n:1 }\r\n0\r\n\r\n"; "in chunks")]
#[test_case("Expect: 100-continue\r\nContent-Length: 8\r\n\r\n", "{\"a\":1 }"; "that is waited for")]
#[tokio::test]
async fn an_upload_goes_on_under_its_answer(first: &str, second: &str) {
    let mut rig = silent_rig().await;
    let mut agent = rig.agent().await;
    let port = rig.relay.port;
    agent.write(format!("POST /mcp/notion HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{first}")).await;
    let mut call = rig.bridge.call().await;
    let body = call.body.take().unwrap();
    let feed = call.stream(EVENTS);
    let mut head = agent.head().await;
    if head.status == 100 {
        head = agent.head().await;
    }
    assert_eq!(head.status, 200);
    feed.send("data: 1\n\n").await;
    assert_eq!(agent.chunk().await, "data: 1\n\n");
    agent.write(second).await;
    let body = soon(http_body_util::BodyExt::collect(body)).await.unwrap().to_bytes();
    assert_eq!(body, "{\"a\":1 }");
    for event in ["data: 2\n\n", "data: 3\n\n"] {
        feed.send(event).await;
        assert_eq!(agent.chunk().await, event);
    }
    drop(feed);
    assert_eq!(agent.chunk().await, "");
    agent.ask("DELETE", "/mcp/notion", "").await;
    rig.bridge.call().await.reply(202, &[], "");
    assert_eq!(agent.head().await.status, 202);
}

#[tokio::test]
async fn a_stream_with_a_length_has_no_chunks() {
    let mut rig = silent_rig().await;
    let mut agent = rig.ask("POST", "/mcp/notion", CALL).await;
    let feed = rig.bridge.call().await.stream_with(&[("content-type", EVENTS), ("content-length", "18")]);
    let head = agent.head().await;
    assert_eq!((head.header("content-length"), head.header("transfer-encoding")), (Some("18"), None));
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        feed.send(event).await;
        assert_eq!(agent.exactly(9).await, event);
    }
}

/// The patience for a head begins when the stream is over, and not before.
#[tokio::test]
async fn half_a_head_that_was_early_is_hurried_after_the_stream() {
    let mut rig = silent_rig().await;
    let (mut agent, feed) = paused(&mut rig).await;
    agent.write("GET /mcp/linear HTTP/1.1\r\nHost:").await;
    tokio::time::sleep(silent().request_head * 2).await;
    feed.send("data: 1\n\n").await;
    assert_eq!(agent.chunk().await, "data: 1\n\n");
    drop(feed);
    assert_eq!(agent.chunk().await, "");
    let over = Instant::now();
    assert_eq!(agent.rest().await, "");
    let patience = over.elapsed();
    assert!((silent().request_head / 2..silent().request_head * 5).contains(&patience), "{patience:?}");
}
