//! The binary itself in relay mode, started as PID 1 starts it.

use std::{
    net::TcpListener,
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use moat_init::relay::RelayStart;
use moat_shared::{hello::Hello, plan::Identity};
use tokio::{io::AsyncReadExt, net::unix::pipe};

use crate::{
    agent::{Agent, RUN},
    bridge::{Authority, Bridge, soon},
};

/// The relay's process.
struct Process {
    child: Child,
    port: u16,
    ready: pipe::Receiver,
    _directory: tempfile::TempDir,
}

impl Process {
    /// The shell puts the descriptors where PID 1 leaves them: 3 listens, 4 tells that the relay is ready.
    fn start(bridge: &Bridge, identity: Identity) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let start =
            RelayStart { run: RUN.parse().unwrap(), tunnel: bridge.tunnel(), relay_port: port, identity };
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("start.json");
        std::fs::write(&file, serde_json::to_vec(&start).unwrap()).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", r#"exec 3<&0 4>&1 <"$1" >/dev/null; exec "$0" relay"#])
            .args([Path::new(env!("CARGO_BIN_EXE_moat-sidecar")), &file])
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let ready = OwnedFd::from(child.stdout.take().unwrap());
        let ready = pipe::Receiver::from_owned_fd(ready).unwrap();
        Self { child, port, ready, _directory: directory }
    }

    async fn readiness(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            assert_ne!(
                soon(self.ready.read_buf(&mut line)).await.unwrap(),
                0,
                "the relay ended without a word"
            );
        }
        String::from_utf8(line).unwrap()
    }

    async fn agent(&self) -> Agent {
        Agent::connect(self.port, 1 << 20).await
    }

    /// SIGTERM, and the exit code.
    async fn stop(mut self) -> Option<i32> {
        let killed = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        let asked = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(asked.elapsed() < Duration::from_secs(8), "the relay does not stop");
            tokio::task::yield_now().await;
        }
    }

    fn kilobytes(&self, key: &str) -> usize {
        self.status(key).strip_suffix(" kB").unwrap().trim().parse().unwrap()
    }

    fn status(&self, key: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap().trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.child.try_wait().is_ok_and(|status| status.is_some()) {
            let _gone = self.child.kill().and_then(|()| self.child.wait()).is_ok();
        }
    }
}

#[tokio::test]
async fn the_relay_process_says_ready_and_serves_and_drains() {
    let authority = Authority::new();
    let mut bridge = Bridge::new(&authority);
    let mut relay = Process::start(&bridge, authority.run());
    bridge.start();
    assert_eq!(relay.readiness().await, "ready\n");
    let mut agent = relay.agent().await;
    agent.ask("POST", "/mcp/notion", "{\"id\":1}").await;
    bridge.call().await.reply(202, &[], "");
    assert_eq!(agent.head().await.status, 202);
    assert_eq!(relay.status("Threads"), "1");
    println!("idle with an open tunnel: VmRSS {}", relay.status("VmRSS"));

    // A request in flight holds the drain up, and is answered.
    agent.ask("POST", "/mcp/notion", "{\"id\":2}").await;
    let call = bridge.call().await;
    let finish = async {
        call.reply(200, &[], "done");
        assert_eq!(agent.head().await.status, 200);
    };
    let (code, ()) = tokio::join!(relay.stop(), finish);
    assert_eq!(code, Some(0));
}

/// 64 MiB in each direction, without holding them.
#[tokio::test]
async fn large_bodies_take_little_memory() {
    const LENGTH: usize = 64 << 20;
    const PART: usize = 64 * 1024;
    const GROWTH_KB: usize = 8 * 1024;
    let authority = Authority::new();
    let mut bridge = Bridge::new(&authority);
    bridge.start();
    let mut relay = Process::start(&bridge, authority.run());
    assert_eq!(relay.readiness().await, "ready\n");
    let before = relay.kilobytes("VmHWM");

    let mut agent = relay.agent().await;
    let head = format!(
        "POST /mcp/notion HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: {LENGTH}\r\n\r\n",
        relay.port
    );
    agent.write(head).await;
    let mut call = bridge.call().await;
    let write = async {
        for _ in 0..LENGTH / PART {
            agent.write(vec![b'y'; PART]).await;
        }
    };
    let (asked, ()) = tokio::join!(call.read(), write);
    assert_eq!(asked.len(), LENGTH);

    let feed = call.stream("application/json");
    assert_eq!(agent.head().await.status, 200);
    let feeding = async {
        for _ in 0..LENGTH / PART {
            feed.send(vec![b'x'; PART]).await;
        }
        drop(feed);
    };
    let reading = async {
        let mut total = 0;
        loop {
            match agent.chunk().await.len() {
                0 => return total,
                read => total += read,
            }
        }
    };
    let ((), answered) = tokio::join!(feeding, reading);
    assert_eq!(answered, LENGTH);
    let grown = relay.kilobytes("VmHWM") - before;
    assert!(grown < GROWTH_KB, "the relay grew by {grown} kB");
}

#[tokio::test]
async fn the_relay_process_says_why_it_will_not_be_ready() {
    let authority = Authority::new();
    let bridge = Bridge::new(&authority);
    *bridge.hello.lock().unwrap() = Hello { protocol: 9, oldest: 9, build: "9.9.9".into() };
    bridge.start();
    let mut relay = Process::start(&bridge, authority.run());
    let said = relay.readiness().await;
    assert!(said.starts_with("failed: ") && said.contains("9.9.9"), "{said}");
}

#[test]
fn without_what_pid_1_leaves_nothing_starts() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_moat-sidecar")).arg("relay").stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(moat_shared::exit::SETUP)));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the relay cannot start: the listening socket is not usable"), "{said}");
}

#[test]
fn the_key_is_in_no_error() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("start.json");
    std::fs::write(&file, r#"{"run":"run_0123456789ab","identity":{"key_pem":"s3cr3t","ca_pem":7}}"#)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let output = Command::new("sh")
        .args(["-c", r#"exec 3<&0 4>/dev/null <"$1"; exec "$0" relay"#])
        .args([Path::new(env!("CARGO_BIN_EXE_moat-sidecar")), &file])
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(i32::from(moat_shared::exit::SETUP)));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("line 1") && !said.contains("s3cr3t"), "{said}");
}
