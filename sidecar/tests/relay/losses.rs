//! The tunnel is down, breaks, refuses, comes back.

use std::time::{Duration, Instant};

use moat_shared::hello::Hello;
use moat_sidecar::uplink::FirstOutcome;
use test_case::test_case;

use crate::{
    agent::{Agent, Rig, Started, quick},
    bridge::{Authority, Bridge, soon},
};

const CALL: &str = r#"{"jsonrpc":"2.0","method":"tools/call","id":"x-1"}"#;

async fn error_of(agent: &mut Agent, status: u16, kind: &str) -> serde_json::Value {
    let (seen, error) = agent.answer().await;
    assert_eq!((seen, &error["error"]["data"]["kind"]), (status, &kind.into()), "{error}");
    assert!(error["error"]["message"].as_str().unwrap().starts_with("moat: "), "{error}");
    error
}

#[tokio::test]
async fn a_request_waits_for_the_tunnel_and_then_gets_an_error() {
    let rig = Rig::down().await;
    let asked = Instant::now();
    let mut agent = rig.ask("POST", "/mcp/notion", CALL).await;
    let error = error_of(&mut agent, 503, "tunnel_down").await;
    assert_eq!((&error["id"], &error["error"]["data"]["server"]), (&"x-1".into(), &"notion".into()));
    assert!(error["error"]["message"].as_str().unwrap().contains("moat proxy status"), "{error}");
    assert!(asked.elapsed() >= quick().tunnel_wait);
}

#[tokio::test]
async fn a_request_that_waited_is_sent_once_the_tunnel_stands() {
    let mut rig = Rig::down().await;
    let mut agent = rig.ask("POST", "/mcp/notion", CALL).await;
    rig.bridge.start();
    let mut call = rig.bridge.call().await;
    assert_eq!(call.read().await, CALL);
    call.reply(202, &[], "");
    assert_eq!(agent.head().await.status, 202);
}

#[tokio::test]
async fn an_agent_that_gives_up_waiting_is_not_served() {
    let mut rig = Rig::down().await;
    let agent = rig.ask("POST", "/mcp/notion", CALL).await;
    let mut other = rig.ask("POST", "/mcp/notion", CALL).await;
    drop(agent);
    rig.bridge.start();
    rig.bridge.call().await.reply(202, &[], "");
    assert_eq!(other.head().await.status, 202);
    assert!(rig.bridge.is_untouched(), "a request whose agent is gone was sent");
}

#[tokio::test]
async fn a_request_in_flight_is_answered_and_never_sent_twice() {
    let mut rig = Rig::open().await;
    let mut agent = rig.ask("POST", "/mcp/notion", CALL).await;
    let _held = rig.bridge.call().await;
    let broken = Instant::now();
    rig.bridge.kill().await;
    let error = error_of(&mut agent, 502, "tunnel_lost").await;
    assert_eq!(error["id"], "x-1");
    assert!(broken.elapsed() < Duration::from_secs(1));

    rig.bridge.start();
    let back = Instant::now();
    let mut agent = rig.ask("GET", "/mcp/notion/again", "").await;
    while error_or_call(&mut rig, &mut agent).await {
        agent = rig.ask("GET", "/mcp/notion/again", "").await;
    }
    assert!(back.elapsed() < Duration::from_millis(1500), "{:?}", back.elapsed());
    assert!(rig.bridge.is_untouched(), "something was sent twice");
}

#[tokio::test]
async fn a_tunnel_that_takes_no_more_finishes_what_it_has_and_the_next_takes_the_rest() {
    let mut rig = Rig::open().await;
    let mut stream = rig.ask("GET", "/mcp/notion", "").await;
    let feed = rig.bridge.call().await.stream("text/event-stream");
    feed.send("data: a\n\n").await;
    assert_eq!(stream.head().await.status, 200);
    assert_eq!(stream.chunk().await, "data: a\n\n");
    rig.bridge.say_goodbye();
    while *rig.bridge.greeted.lock().unwrap() < 2 {
        let mut agent = rig.ask("POST", "/mcp/notion", CALL).await;
        rig.bridge.call().await.reply(202, &[], "");
        assert_eq!(agent.head().await.status, 202);
    }
    feed.send("data: b\n\n").await;
    assert_eq!(stream.chunk().await, "data: b\n\n");
    assert!(rig.bridge.is_untouched(), "something was sent twice");
}

#[test_case("Content-Length: 52\r\nTransfer-Encoding: chunked", CALL => "null"; "length and chunks")]
#[test_case("Transfer-Encoding: chunked", "5\r\n{\"id\"\r\n2\r\n:7\r\n1\r\n,\r\nmoat\r\n" => "7"; "a bad size after good chunks")]
#[test_case("Transfer-Encoding: chunked", "-1\r\n\r\n" => "null"; "a negative size")]
#[test_case("Content-Length: 99", CALL => "\"x-1\""; "an early end")]
#[tokio::test]
async fn a_body_that_breaks_is_the_agents_own_fault(framing: &str, body: &str) -> String {
    use tokio::io::AsyncWriteExt;
    let mut rig = Rig::open().await;
    let mut agent = rig.agent().await;
    let port = rig.relay.port;
    agent
        .write(format!("POST /mcp/notion HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{framing}\r\n\r\n{body}"))
        .await;
    agent.stream.shutdown().await.unwrap();
    let error = error_of(&mut agent, 400, "bad_request").await;
    // Nobody else suffers.
    let mut other = rig.ask("POST", "/mcp/linear", CALL).await;
    loop {
        let call = rig.bridge.call().await;
        if call.head.uri.path() == "/mcp/linear" {
            call.reply(202, &[], "");
            break;
        }
    }
    assert_eq!(other.head().await.status, 202);
    assert_eq!(*rig.bridge.greeted.lock().unwrap(), 1);
    error["id"].to_string()
}

#[tokio::test]
async fn a_body_that_breaks_under_its_answer_is_told_as_what_it_is() {
    let mut rig = Rig::open().await;
    let mut agent = rig.agent().await;
    let port = rig.relay.port;
    agent
        .write(format!(
            "POST /mcp/notion HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{CALL}\r\n",
            CALL.len()
        ))
        .await;
    let feed = rig.bridge.call().await.stream("text/event-stream");
    agent.head().await;
    feed.send("data: a\n\n").await;
    assert_eq!(agent.chunk().await, "data: a\n\n");
    agent.write("no size\r\n").await;
    let rest = agent.until_end_of_response().await.unwrap();
    assert!(rest.contains("bad_request") && rest.contains("x-1") && !rest.contains("tunnel"), "{rest}");
    feed.reset().await;
}

/// Serves one call; true when the relay's short patience ended before the tunnel was back.
async fn error_or_call(rig: &mut Rig, agent: &mut Agent) -> bool {
    tokio::select! {
        call = rig.bridge.call() => {
            assert_eq!(call.head.uri.path(), "/mcp/notion/again");
            call.reply(200, &[], "");
            assert_eq!(agent.head().await.status, 200);
            false
        }
        head = agent.head() => { assert_eq!(head.status, 503); true }
    }
}

#[test_case("POST", CALL, "data: a\n\n" => Some("data: a\n\n".into()); "between events")]
#[test_case("POST", CALL, "data: a\n\ndata: b" => Some("data: a\n\ndata: b\n\n".into()); "inside an event")]
#[test_case("POST", CALL, "id: 1\ndata: a\n\n" => None; "resumable")]
#[test_case("GET", "", "data: a\n\n" => None; "get")]
#[tokio::test]
async fn the_tunnel_breaks_in_a_stream(method: &str, body: &str, sent: &'static str) -> Option<String> {
    let mut rig = Rig::open().await;
    let mut agent = rig.ask(method, "/mcp/notion", body).await;
    let feed = rig.bridge.call().await.stream("text/event-stream");
    agent.head().await;
    feed.send(sent).await;
    assert_eq!(agent.chunk().await, sent);
    rig.bridge.kill().await;
    last_words(&mut agent, sent).await
}

#[test_case("text/event-stream" => Some("data: a\n\n".into()); "events")]
#[test_case("application/json" => None; "json")]
#[tokio::test]
async fn one_stream_is_reset(content_type: &str) -> Option<String> {
    let mut rig = Rig::open().await;
    let mut agent = rig.ask("POST", "/mcp/notion", CALL).await;
    let feed = rig.bridge.call().await.stream(content_type);
    agent.head().await;
    feed.send("data: a\n\n").await;
    agent.chunk().await;
    feed.lose().await;
    let words = last_words(&mut agent, "data: a\n\n").await;
    assert_eq!(*rig.bridge.greeted.lock().unwrap(), 1, "the tunnel stands");
    words
}

/// What came before the error event, or `None` when the response was cut.
async fn last_words(agent: &mut Agent, sent: &str) -> Option<String> {
    let mut rest = agent.until_end_of_response().await?;
    let at = rest.find("event: message\ndata: ").unwrap();
    let event = rest.split_off(at);
    let error: serde_json::Value =
        serde_json::from_str(event.strip_prefix("event: message\ndata: ").unwrap().trim_end()).unwrap();
    assert_eq!((&error["id"], &error["error"]["data"]["kind"]), (&"x-1".into(), &"tunnel_lost".into()));
    Some(format!("{sent}{rest}"))
}

#[tokio::test]
async fn a_version_that_does_not_fit_is_one_clear_text() {
    let authority = Authority::new();
    let bridge = Bridge::new(&authority);
    *bridge.hello.lock().unwrap() = Hello { protocol: 9, oldest: 9, build: "9.9.9".into() };
    bridge.start();
    let relay = Started::new(&bridge, &authority.run(), quick()).await;
    let FirstOutcome::Refused(text) = soon(relay.tunnel.first_outcome()).await else { panic!("not refused") };
    assert!(text.contains("9.9.9") && text.contains("rebuild the image"), "{text}");

    let asked = Instant::now();
    let mut agent = relay.agent().await;
    agent.ask("POST", "/mcp/notion", CALL).await;
    let error = error_of(&mut agent, 503, "version_mismatch").await;
    assert_eq!((&error["id"], &error["error"]["message"]), (&"x-1".into(), &text.as_str().into()));
    assert!(asked.elapsed() < quick().tunnel_wait, "waiting does not mend it");

    agent.ask("GET", "/healthz", "").await;
    let (_, state) = agent.answer().await;
    assert_eq!((&state["tunnel"], &state["why"]), (&"refused".into(), &text.as_str().into()));

    // A bridge that was updated is found without a restart.
    *bridge.hello.lock().unwrap() = Hello::ours();
    let mut state = serde_json::Value::Null;
    let updated = Instant::now();
    while state["tunnel"] != "open" {
        assert!(updated.elapsed() < Duration::from_secs(2), "{state}");
        agent.ask("GET", "/healthz", "").await;
        state = agent.answer().await.1;
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_run_of_another_installation_is_refused() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let bridge = Bridge::new(&theirs);
    bridge.start();
    let relay = Started::new(&bridge, &ours.run_that_trusts(&theirs), quick()).await;
    let FirstOutcome::Refused(text) = soon(relay.tunnel.first_outcome()).await else { panic!("not refused") };
    assert!(text.contains("refused this run's certificate"), "{text}");
}

#[tokio::test]
async fn a_false_bridge_is_not_spoken_to() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let bridge = Bridge::new(&theirs);
    bridge.start();
    let relay = Started::new(&bridge, &ours.run(), quick()).await;
    let FirstOutcome::Refused(text) = soon(relay.tunnel.first_outcome()).await else { panic!("not refused") };
    assert!(text.contains("is not the bridge"), "{text}");
    assert_eq!(*bridge.greeted.lock().unwrap(), 0);
}

#[tokio::test]
async fn a_drain_lets_what_is_in_flight_finish() {
    let mut rig = Rig::open().await;
    let mut agent = rig.ask("POST", "/mcp/notion", CALL).await;
    let call = rig.bridge.call().await;
    let stop = rig.relay.stop_relay.take().unwrap();
    let finish = async {
        call.reply(202, &[], "");
        assert_eq!(agent.head().await.status, 202);
    };
    let (drained, ()) = tokio::join!(stop.drain(Duration::from_secs(5)), finish);
    assert_eq!(drained, moat_shared::rt::drain::Drained::Finished);
}
