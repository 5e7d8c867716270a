//! A sandbox whose sidecar is the enemy's: it has a run's key and says over the tunnel what it likes. Whatever it does,
//! the real bridge keeps within its bounds and serves its other runs.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{io::AsyncWriteExt, net::UnixStream};

use crate::{
    raw::{
        self, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RST_STREAM, Raw, SETTINGS,
        STATUS_200, WINDOW_UPDATE,
    },
    support::{
        Daemon, House, PATIENCE, Run, eventually, hello, register, register_for, register_with, unregister,
    },
    upstream::Upstream,
};

/// Room for answers that nobody is going to miss.
const WINDOW: u32 = 65_535;

/// A bridge with two runs: the enemy's, and one that must not notice.
struct Scene {
    house: House,
    daemon: Daemon,
    upstream: Upstream,
    enemy: Run,
    honest: Raw,
}

impl Scene {
    async fn new() -> Self {
        let house = House::new();
        let daemon = Daemon::start(&house).await;
        let upstream = Upstream::start().await;
        let servers = json!([{"name": "up", "url": upstream.url()}]);
        let enemy = register_with(&house, &servers).await.unwrap();
        let other = register_with(&house, &servers).await.unwrap();
        let mut honest = Raw::open(&house, &other, WINDOW).await;
        honest.answers("/mcp/up/ok").await;
        Self { house, daemon, upstream, enemy, honest }
    }

    async fn enemy(&self, window: u32) -> Raw {
        Raw::open(&self.house, &self.enemy, window).await
    }

    /// The bridge's resident memory, in KiB.
    fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Processor time that the bridge has used, in hundredths of a second.
    fn used(&self) -> usize {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.daemon.pid())).unwrap();
        let after_name = stat.rsplit_once(')').unwrap().1;
        // utime and stime, proc(5).
        after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<usize>().unwrap()).sum()
    }

    /// What the bridge's memory grew by, once it is at rest: between two looks it did next to nothing. A busy machine takes
    /// its time.
    async fn growth(&self, before: usize) -> usize {
        let mut last = (self.memory(), self.used());
        let deadline = Instant::now() + 4 * PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "the bridge's memory does not come to rest: {last:?}");
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = (self.memory(), self.used());
            if now.0.abs_diff(last.0) < 256 && now.1 - last.1 <= 1 {
                return now.0.saturating_sub(before);
            }
            last = now;
        }
    }

    /// The other run works, and does not wait for it.
    async fn others_work(&mut self) {
        let asked = Instant::now();
        self.honest.answers("/mcp/up/ok").await;
        assert!(asked.elapsed() < Duration::from_secs(2), "the other run waited {:?}", asked.elapsed());
    }
}

#[expect(clippy::print_stderr, reason = "a figure for whoever asks with --nocapture")]
fn report(what: &str, kib: usize) {
    eprintln!("{what}: {kib} KiB");
}

/// Streams that upstreams flood and nobody reads: with what the client takes in, or with no window at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_that_nobody_reads_cost_little() {
    const STREAMS: usize = 150;
    for window in [WINDOW, 0] {
        let mut scene = Scene::new().await;
        let before = scene.memory();
        let mut enemy = scene.enemy(window).await;
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            streams.push(enemy.get("/mcp/up/flood", &[]).await.unwrap());
        }
        enemy.until("all heads", |seen| streams.iter().all(|stream| seen.heads.contains_key(stream))).await;
        let grown = scene.growth(before).await;
        report("150 floods", grown);
        // 16 MiB for the run, and of each stream a frame, what was read ahead and the connection's buffers: how many of them
        // are full at the same time is the machine's to say. Without the run's budget it is 110 MiB and more.
        assert!(grown < 16 * 1024 + STREAMS * 256, "{grown} KiB");
        scene.others_work().await;
        // A sibling is not held up either: its head comes without any window.
        enemy.answers("/mcp/up/ok").await;
        if window > 0 {
            let sibling = enemy.get("/mcp/up/ok", &[]).await.unwrap();
            enemy.until("a whole answer", |seen| seen.ended.contains(&sibling)).await;
            // A flooded stream that is read again goes on.
            let first = streams[0];
            let had = enemy.seen().bodies[&first].len();
            enemy.frame(WINDOW_UPDATE, 0, first, &100_000u32.to_be_bytes()).await.unwrap();
            enemy.until("more of a flood", |seen| seen.bodies[&first].len() >= had + 100_000).await;
        }
        drop(enemy);
        let upstream = &scene.upstream;
        eventually("the floods end with the tunnel", || upstream.open() <= 8).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_streams_cost_little() {
    const STREAMS: usize = 1500;
    let mut scene = Scene::new().await;
    let before = scene.memory();
    let mut enemy = scene.enemy(WINDOW).await;
    for batch in 0..STREAMS / 100 {
        let first = enemy.get("/mcp/up/idle", &[]).await.unwrap();
        for _ in 1..100 {
            enemy.get("/mcp/up/idle", &[]).await.unwrap();
        }
        let expected = (batch + 1) * 100;
        enemy.until("their first events", |seen| seen.bodies.range(first..).count() == 100).await;
        assert!(scene.upstream.open() >= expected);
    }
    let each = scene.growth(before).await / STREAMS;
    report("an idle stream, plain HTTP/1.1", each);
    assert!(each <= 32, "{each} KiB each");
    scene.others_work().await;
    enemy.answers("/mcp/up/ok").await;
}

/// CVE-2023-44487: requests that are reset at once; and DESIGN's storm of cancels, which must not cost the tunnel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_cost_neither_the_tunnel_nor_the_bridge() {
    let mut scene = Scene::new().await;
    let before = scene.memory();
    let mut enemy = scene.enemy(WINDOW).await;
    for _ in 0..200 {
        let mut burst = Vec::new();
        for _ in 0..50 {
            let stream = enemy.stream();
            let head = raw::head(b"\x82", "/mcp/up/hang", &[]);
            burst.extend(raw::frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
            burst.extend(raw::frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        }
        enemy.send(&burst).await.unwrap();
    }
    scene.others_work().await;
    enemy.answers("/mcp/up/ok").await;
    let upstream = &scene.upstream;
    eventually("nothing is left at the upstream", || upstream.open() <= 16).await;
    let grown = scene.growth(before).await;
    report("10,000 rapid resets", grown);
    assert!(grown < 64 * 1024, "{grown} KiB");
}

/// Where many wait for their answers already, one that is cancelled with its request is not begun at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancels_among_many_that_wait_are_not_begun() {
    const WAIT: usize = 300;
    let scene = Scene::new().await;
    let mut enemy = scene.enemy(WINDOW).await;
    for _ in 0..WAIT {
        enemy.get("/mcp/up/hang", &[]).await.unwrap();
    }
    let upstream = &scene.upstream;
    eventually("all of them wait", || upstream.open() >= WAIT).await;
    let mut burst = Vec::new();
    for _ in 0..100 {
        let stream = enemy.stream();
        let head = raw::head(b"\x82", "/mcp/up/cancelled", &[]);
        burst.extend(raw::frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
        burst.extend(raw::frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    enemy.send(&burst).await.unwrap();
    enemy.answers("/mcp/up/ok").await;
    let trace = scene.house.root().join("runs").join(&scene.enemy.id).join("network.jsonl");
    let lines = |what: &str| fs::read_to_string(&trace).unwrap_or_default().matches(what).count();
    eventually("what was begun is in the trace", || lines("/ok\"") > 0).await;
    // One may be parted from its cancel by how much is read at once.
    assert!(lines("/cancelled") <= 2, "{} of 100 were begun", lines("/cancelled"));
}

/// CVE-2025-8671: the bridge is made to reset the streams itself, by frames that are errors of their stream alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_the_bridge_is_made_to_reset() {
    let mut scene = Scene::new().await;
    let before = scene.memory();
    let mut enemy = scene.enemy(WINDOW).await;
    for _ in 0..100 {
        let mut burst = Vec::new();
        for _ in 0..50 {
            let stream = enemy.stream();
            let head = raw::head(b"\x82", "/mcp/up/hang", &[]);
            burst.extend(raw::frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
            // An increment that takes the stream's window beyond 2^31-1.
            burst.extend(raw::frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes()));
        }
        if enemy.send(&burst).await.is_err() {
            break;
        }
    }
    scene.others_work().await;
    let upstream = &scene.upstream;
    eventually("nothing is left at the upstream", || upstream.open() <= 16).await;
    let grown = scene.growth(before).await;
    report("5,000 streams that the bridge was made to reset", grown);
    assert!(grown < 24 * 1024, "{grown} KiB");
}

/// CVE-2024-27316: a head that never ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn continuations_without_end() {
    let mut scene = Scene::new().await;
    let before = scene.memory();
    let mut enemy = scene.enemy(WINDOW).await;
    let stream = enemy.stream();
    enemy.frame(HEADERS, END_STREAM, stream, &raw::head(b"\x82", "/mcp/up/ok", &[])).await.unwrap();
    let mut sent = 0usize;
    let mut field = vec![0];
    raw::text(&mut field, "x-more");
    raw::text(&mut field, &"y".repeat(16_000));
    while sent < 64 << 20 && !enemy.seen().closed {
        if enemy.frame(CONTINUATION, 0, stream, &field).await.is_err() {
            break;
        }
        sent += field.len();
    }
    enemy.until("the tunnel is closed", |seen| seen.closed || seen.goaway.is_some()).await;
    assert!(sent < 8 << 20, "{sent} bytes of one head were taken");
    scene.others_work().await;
    let grown = scene.growth(before).await;
    report("a head without end", grown);
    assert!(grown < 4 * 1024, "{grown} KiB");
}

/// A head that is small on the wire and large when it is unpacked: one long field, named again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_unpack_to_much() {
    let mut scene = Scene::new().await;
    let before = scene.memory();
    let mut enemy = scene.enemy(WINDOW).await;
    // Literal with incremental indexing, once; then its index in the dynamic table, 62, 16,000 times: 64 MB.
    let mut first = raw::head(b"\x82", "/mcp/up/ok", &[]);
    first.push(0x40);
    raw::text(&mut first, "x-long");
    raw::text(&mut first, &"z".repeat(3_900));
    let stream = enemy.stream();
    enemy.frame(HEADERS, END_HEADERS | END_STREAM, stream, &first).await.unwrap();
    enemy.until("a long head passes", |seen| seen.heads.contains_key(&stream)).await;
    assert_eq!(enemy.seen().heads[&stream], STATUS_200);
    for _ in 0..100 {
        let mut bomb = raw::head(b"\x82", "/mcp/up/ok", &[]);
        bomb.extend([0xbe; 16_000]);
        let stream = enemy.stream();
        if enemy.frame(HEADERS, END_HEADERS | END_STREAM, stream, &bomb).await.is_err() {
            break;
        }
        enemy
            .until("it is refused", |seen| {
                seen.heads.contains_key(&stream) || seen.reset.contains(&stream) || seen.goaway.is_some()
            })
            .await;
        assert_ne!(enemy.seen().heads.get(&stream), Some(&STATUS_200), "a head of 64 MB was taken");
    }
    assert_eq!(scene.upstream.asked(), 2, "only what is short enough reached the upstream");
    scene.others_work().await;
    let grown = scene.growth(before).await;
    report("heads that unpack to 64 MB", grown);
    assert!(grown < 8 * 1024, "{grown} KiB");
}

/// Frames that want an answer each, from somebody who reads none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_and_settings_without_end() {
    for (what, one) in [
        ("PING", raw::frame(PING, 0, 0, &[7; 8])),
        ("SETTINGS", raw::frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("SETTINGS that acknowledge nothing", raw::settings_ack()),
        ("WINDOW_UPDATE", raw::frame(WINDOW_UPDATE, 0, 0, &0u32.to_be_bytes())),
    ] {
        let mut scene = Scene::new().await;
        let before = scene.memory();
        let mut enemy = scene.enemy(WINDOW).await;
        enemy.stop_reading();
        let burst = one.repeat(10_000);
        for _ in 0..40 {
            // Held back, or thrown out: both are bounds.
            if enemy.send(&burst).await.is_err() {
                break;
            }
        }
        scene.others_work().await;
        let grown = scene.growth(before).await;
        report(what, grown);
        assert!(grown < 4 * 1024, "{what}: {grown} KiB");
    }
}

/// A window that opens by one byte at a time makes as many frames as bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_of_one_byte() {
    let mut scene = Scene::new().await;
    let before = scene.memory();
    let mut enemy = scene.enemy(0).await;
    let stream = enemy.get("/mcp/up/flood", &[]).await.unwrap();
    enemy.until("its head", |seen| seen.heads.contains_key(&stream)).await;
    let burst = raw::frame(WINDOW_UPDATE, 0, stream, &1u32.to_be_bytes()).repeat(1000);
    for _ in 0..20 {
        enemy.send(&burst).await.unwrap();
    }
    enemy
        .until("byte by byte", |seen| seen.bodies.get(&stream).is_some_and(|body| body.len() >= 20_000))
        .await;
    scene.others_work().await;
    enemy.answers("/mcp/up/ok").await;
    let grown = scene.growth(before).await;
    report("a window of one byte", grown);
    assert!(grown < 4 * 1024, "{grown} KiB");
}

/// Bodies that the upstream does not take: as large as the window, and in the smallest of frames.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_nobody_takes() {
    for size in [16_384, 1] {
        let mut scene = Scene::new().await;
        let before = scene.memory();
        let mut enemy = scene.enemy(WINDOW).await;
        let chunk = raw::frame(DATA, 0, 0, &vec![b' '; size]);
        let mut streams = 0usize;
        'attack: for _ in 0..1000 {
            let stream = enemy.stream();
            let head = raw::head(b"\x83", "/mcp/up/deaf", &[("content-type", "application/json")]);
            if enemy.frame(HEADERS, END_HEADERS, stream, &head).await.is_err() {
                break;
            }
            streams += 1;
            let mut numbered = chunk.clone();
            numbered[5..9].copy_from_slice(&stream.to_be_bytes());
            // As much as the stream's window takes, at most.
            let burst = numbered.repeat((256 * 1024 / size).min(8192));
            if enemy.send(&burst).await.is_err() || enemy.seen().closed {
                break 'attack;
            }
        }
        scene.others_work().await;
        let grown = scene.growth(before).await;
        // Tiny frames end the tunnel before the bodies are read as far as that.
        assert!(size == 1 || scene.upstream.asked() > 2, "no upload reached the upstream");
        report(&format!("{streams} uploads in frames of {size}"), grown);
        assert!(grown < 128 * 1024, "{streams} uploads in frames of {size}: {grown} KiB");
    }
}

/// Bodies that a policy has to judge are held whole, each within its limit: all together are bounded as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_are_held_to_be_judged() {
    const RULES: &str = r#"{"scope":"x","mode":"enforce","on_error":"closed","case_sensitive":false,"rules":[{"name":"r","operation":"a","action":"deny","line":3}]}"#;
    const SHA256: &str = "sha256:a35a04da96cee0be18488b87c43f827e700057e0e26bcf597d4109907bdada71";
    let mut scene = Scene::new().await;
    let judged = json!([{
        "name": "up", "url": scene.upstream.url(),
        "policy": {"source": {"form": "inline"}, "sha256": SHA256, "text": RULES},
    }]);
    let run = register_with(&scene.house, &judged).await.unwrap();
    let before = scene.memory();
    let mut enemy = Raw::open(&scene.house, &run, WINDOW).await;
    let chunk = raw::frame(DATA, 0, 0, &[b' '; 16_384]);
    let mut streams = Vec::new();
    // 3.75 MiB each, so that none is over its own limit: 300 MiB.
    for _ in 0..80 {
        let stream = enemy.stream();
        let head = raw::head(b"\x83", "/mcp/up", &[("content-type", "application/json")]);
        enemy.frame(HEADERS, END_HEADERS, stream, &head).await.unwrap();
        streams.push(stream);
    }
    for _ in 0..240 {
        for stream in &streams {
            let mut numbered = chunk.clone();
            numbered[5..9].copy_from_slice(&stream.to_be_bytes());
            enemy.send(&numbered).await.unwrap();
        }
    }
    enemy.until("one is refused", |seen| streams.iter().any(|stream| seen.heads.contains_key(stream))).await;
    scene.others_work().await;
    let grown = scene.growth(before).await;
    report("300 MiB to be judged", grown);
    assert!(grown < 160 * 1024, "{grown} KiB");
    // What was refused makes room: the run goes on.
    drop(enemy);
    let mut again = Raw::open(&scene.house, &run, WINDOW).await;
    let call = br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"b","arguments":{}}}"#;
    let stream = again.stream();
    let head = raw::head(b"\x83", "/mcp/up", &[("content-type", "application/json")]);
    again.frame(HEADERS, END_HEADERS, stream, &head).await.unwrap();
    again.frame(DATA, END_STREAM, stream, call).await.unwrap();
    again.until("a call is answered", |seen| seen.heads.contains_key(&stream)).await;
}

/// Many long heads at once: each is within the limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_heads_on_many_streams() {
    let mut scene = Scene::new().await;
    let before = scene.memory();
    let mut enemy = scene.enemy(WINDOW).await;
    let value = "v".repeat(12_000);
    let headers = [("x-long", value.as_str())];
    let mut streams = Vec::new();
    for _ in 0..3000 {
        streams.push(enemy.get("/mcp/up/hang", &headers).await.unwrap());
    }
    let upstream = &scene.upstream;
    eventually("all of them arrive, or are refused", || {
        upstream.asked() + enemy.seen().heads.len() > streams.len()
    })
    .await;
    scene.others_work().await;
    let grown = scene.growth(before).await;
    report("3,000 requests with heads of 12 KB", grown);
    assert!(grown < 64 * 1024, "{grown} KiB");
    let refused = enemy.seen().heads.len();
    assert!(refused > 2000, "only {refused} were refused");
    // Short ones are taken in all the same.
    enemy.answers("/mcp/up/ok").await;
}

/// The run is the certificate (T5): nothing that a request says makes it another's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_lies_about_its_run() {
    let scene = Scene::new().await;
    let victim = register_with(&scene.house, &json!([{"name": "treasure", "url": scene.upstream.url()}]))
        .await
        .unwrap();
    let asked = scene.upstream.asked();
    let mut enemy = scene.enemy(WINDOW).await;
    let headers = [
        ("x-moat-run", victim.id.as_str()),
        ("moat-run-id", victim.id.as_str()),
        ("x-forwarded-client-cert", "Subject=\"CN=victim\""),
        ("host", "run-000000000000.run.moat.internal"),
        ("forwarded", "for=victim"),
    ];
    for header in headers {
        for path in [
            "/mcp/treasure/ok".to_owned(),
            format!("/{}/mcp/treasure/ok", victim.id),
            "/mcp/up/../treasure/ok".to_owned(),
        ] {
            let stream = enemy.get(&path, &[header]).await.unwrap();
            enemy
                .until("an answer", |seen| seen.ended.contains(&stream) || seen.reset.contains(&stream))
                .await;
            let seen = enemy.seen();
            assert_ne!(seen.heads.get(&stream), Some(&STATUS_200), "{path} with {header:?}");
            let body = seen.bodies.get(&stream).map(|body| String::from_utf8_lossy(body).into_owned());
            assert!(!body.unwrap_or_default().contains(scene.upstream.url().as_str()));
        }
    }
    assert_eq!(scene.upstream.asked(), asked, "nothing reached the other run's server");
    // A key of another installation, and one of a run that is over, open nothing.
    let elsewhere = House::new();
    let foreign_bridge = Daemon::start(&elsewhere).await;
    let foreign = register(&elsewhere).await.unwrap();
    assert!(hello(&scene.house, &foreign).await.is_err(), "a key of another installation");
    drop(foreign_bridge);
    unregister(&scene.house, &victim.id).await;
    assert_eq!(hello(&scene.house, &victim).await.unwrap(), 503, "the run is over");
}

/// Connections that say nothing, or half of a hello, by the thousand: without a key, and with hardly a descriptor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_half_open_connections() {
    let mut scene = Scene::new().await;
    let before = scene.memory();
    let socket = scene.house.proxy().join("tunnel/bridge.sock");
    let mut open = Vec::new();
    for number in 0..3000 {
        let Ok(mut stream) = UnixStream::connect(&socket).await else { continue };
        if number % 2 == 1 {
            // The beginning of a TLS record that says it is a long one.
            drop(stream.write_all(&[22, 3, 1, 64, 0, 1]).await);
        }
        open.push(stream);
    }
    let asked = Instant::now();
    let mut enemy = scene.enemy(WINDOW).await;
    assert!(asked.elapsed() < Duration::from_secs(2), "a key's owner waited {:?}", asked.elapsed());
    enemy.answers("/mcp/up/ok").await;
    scene.others_work().await;
    let descriptors = fs::read_dir(format!("/proc/{}/fd", scene.daemon.pid())).unwrap().count();
    assert!(descriptors < 256 + 64, "{descriptors} descriptors");
    let grown = scene.growth(before).await;
    report("3,000 half-open connections", grown);
    assert!(grown < 10 * 1024, "{grown} KiB");
}

/// The same to a bridge that has fewer descriptors than it allows connections: nobody's run ends, nobody is kept out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_descriptor_left() {
    let house = House::new();
    let daemon = Daemon::with_descriptors(&house, 100).await;
    let run = register(&house).await.unwrap();
    // A holder that can be looked at without a descriptor: no start time, so that the pid alone has to do.
    let mut holder = Command::new("sleep").arg("600").spawn().unwrap();
    let witness = json!({"pid": holder.id(), "started": 0});
    let witness = register_for(&house, &json!([]), &witness).await.unwrap();
    let socket = house.proxy().join("tunnel/bridge.sock");
    let mut open = Vec::new();
    for _ in 0..400 {
        // Those that are not taken in stay in the socket's queue, which is short.
        let connecting = tokio::time::timeout(Duration::from_millis(20), UnixStream::connect(&socket));
        open.push(connecting.await);
    }
    // Until the registry has looked whether the holders of its runs live.
    holder.kill().unwrap();
    holder.wait().unwrap();
    let ended =
        || house.log().lines().any(|line| line.contains("unregistered") && line.contains(&witness.id));
    eventually("the witness's run is over", ended).await;
    let asked = Instant::now();
    assert_eq!(hello(&house, &run).await.unwrap(), 200, "the run is served: {}", house.log());
    assert!(asked.elapsed() < Duration::from_secs(5), "an honest tunnel waited {:?}", asked.elapsed());
    drop((open, daemon));
}
