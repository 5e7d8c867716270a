//! What an agent may do without harm to anyone but itself.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use moat_shared::rt::exec::Owned;
use tokio::task::JoinSet;

use crate::agent::Rig;

#[tokio::test]
async fn a_stalled_reader_harms_only_itself() {
    const MOST: usize = 1_000_000;
    let mut rig = Rig::open().await;
    // A small window, so that it is the relay's queue that fills and not the kernel's.
    let mut stalled = rig.relay.agent_with_window(4096).await;
    stalled.ask("GET", "/mcp/notion", "").await;
    // 14 bytes each, until the sender is held back because the relay's queue is full.
    let taken = rig.bridge.call().await.flood("data: 1234567\n");
    stalled.head().await;
    let held_back = async {
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let now = taken.load(Ordering::Relaxed);
            if now == before || now > MOST {
                return now;
            }
            before = now;
        }
    };
    let sibling = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..200 {
            let asked = Instant::now();
            let mut agent = rig.ask("POST", "/mcp/linear", "{\"id\":1}").await;
            rig.bridge.call().await.reply(202, &[], "");
            assert_eq!(agent.head().await.status, 202);
            slowest = slowest.max(asked.elapsed());
        }
        slowest
    };
    let (sent, slowest) = tokio::join!(held_back, sibling);
    assert!((75_000..MOST).contains(&sent), "{sent} events were taken");
    assert!(slowest < Duration::from_millis(250), "a sibling waited {slowest:?}");
    assert_eq!(*rig.bridge.greeted.lock().unwrap(), 1, "the tunnel was lost");
    // The stalled one is not lost either, once it reads.
    assert!(stalled.chunk().await.starts_with("data: 1234567\n"));
}

#[tokio::test]
async fn ten_thousand_cancels_do_not_cost_the_tunnel() {
    const CANCELS: usize = 10_000;
    const BATCH: usize = 500;
    let mut rig = Rig::open().await;
    let stream = rig.agent().await.stream;
    let tasks = Owned::default();
    let (sender, connection) = http2::Builder::new(tasks.clone())
        .initial_max_send_streams(CANCELS)
        .max_local_error_reset_streams(CANCELS)
        .handshake::<_, Empty<bytes::Bytes>>(TokioIo::new(stream))
        .await
        .unwrap();
    tasks.spawn(async { drop(connection.await) });
    let mut requests = JoinSet::new();
    for batch in 0..CANCELS / BATCH {
        for _ in 0..BATCH {
            let mut sender = sender.clone();
            let uri = format!("http://127.0.0.1:{}/mcp/notion", rig.relay.port);
            let request = Request::get(uri).body(Empty::new()).unwrap();
            requests.spawn(async move { sender.send_request(request).await.is_ok() });
        }
        if batch % 2 == 0 {
            // All of them in flight; otherwise somewhere on the way.
            for _ in 0..BATCH {
                rig.bridge.call().await;
            }
        }
        tokio::task::yield_now().await;
        requests.abort_all();
        while requests.join_next().await.is_some() {}
    }
    tasks.abort_all();
    let mut agent = rig.ask("POST", "/mcp/after", "{}").await;
    loop {
        let call = rig.bridge.call().await;
        if call.head.uri.path() == "/mcp/after" {
            call.reply(202, &[], "");
            break;
        }
    }
    assert_eq!(agent.head().await.status, 202);
    assert_eq!(*rig.bridge.greeted.lock().unwrap(), 1, "the tunnel was lost");
}
