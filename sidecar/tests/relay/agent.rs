//! An agent, as its bytes look, and the relay that it speaks to.

use std::time::Duration;

use moat_shared::rt::{drain, drain::Trigger, exec::Owned};
use moat_sidecar::{
    relay::{Relay, Timing},
    uplink::{Tunnel, Uplink},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::bridge::{Authority, Bridge, soon};

pub(crate) const RUN: &str = "run_0123456789ab";

/// A relay with its uplink, and the bridge at the other end.
pub(crate) struct Rig {
    pub(crate) bridge: Bridge,
    pub(crate) relay: Started,
}

/// A relay with its uplink.
pub(crate) struct Started {
    pub(crate) port: u16,
    pub(crate) tunnel: Tunnel,
    pub(crate) stop_relay: Option<Trigger>,
    _stop_uplink: Trigger,
    tasks: Owned,
}

/// Short where a test would otherwise wait.
pub(crate) fn quick() -> Timing {
    Timing {
        request_head: Duration::from_millis(400),
        refused_body: Duration::from_millis(200),
        tunnel_wait: Duration::from_millis(400),
        keep_alive: Duration::from_millis(300),
        ..Timing::default()
    }
}

impl Rig {
    /// With a tunnel that stands.
    pub(crate) async fn open() -> Self {
        let rig = Self::down().await;
        rig.bridge.start();
        assert_eq!(soon(rig.relay.tunnel.first_outcome()).await, moat_sidecar::uplink::FirstOutcome::Open);
        rig
    }

    /// With a bridge that is not started.
    pub(crate) async fn down() -> Self {
        let authority = Authority::new();
        let bridge = Bridge::new(&authority);
        let relay = Started::new(&bridge, &authority.run(), quick()).await;
        Self { bridge, relay }
    }

    pub(crate) async fn agent(&self) -> Agent {
        self.relay.agent().await
    }

    /// A connection with this request on it.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> Agent {
        let mut agent = self.agent().await;
        agent.ask(method, path, body).await;
        agent
    }
}

impl Started {
    pub(crate) async fn new(bridge: &Bridge, identity: &moat_shared::plan::Identity, timing: Timing) -> Self {
        Self::on(&bridge.tunnel(), identity, timing).await
    }

    pub(crate) async fn on(
        tunnel: &moat_shared::plan::Tunnel,
        identity: &moat_shared::plan::Identity,
        timing: Timing,
    ) -> Self {
        let (uplink, tunnel) = Uplink::new(tunnel, identity, None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let relay = Relay::new(listener, port, RUN.parse().unwrap(), tunnel.clone(), timing);
        let (stop_relay, relay_drain) = drain::drain();
        let (stop_uplink, uplink_drain) = drain::drain();
        let tasks = Owned::default();
        tasks.spawn(relay.run(relay_drain));
        tasks.spawn(uplink.run(uplink_drain));
        Self { port, tunnel, stop_relay: Some(stop_relay), _stop_uplink: stop_uplink, tasks }
    }

    pub(crate) async fn agent(&self) -> Agent {
        self.agent_with_window(1 << 20).await
    }

    pub(crate) async fn agent_with_window(&self, bytes: u32) -> Agent {
        Agent::connect(self.port, bytes).await
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.tasks.abort_all();
    }
}

/// One connection to the relay.
pub(crate) struct Agent {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
    port: u16,
}

/// A response's head.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Head {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

impl Agent {
    /// A connection that takes so many bytes before it is read, and as many to be sent.
    pub(crate) async fn connect(port: u16, window: u32) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(window).unwrap();
        socket.set_send_buffer_size(window).unwrap();
        let stream = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new(), port }
    }

    pub(crate) async fn write(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).await.unwrap();
    }

    pub(crate) async fn ask(&mut self, method: &str, path: &str, body: &str) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAccept: application/json, text/event-stream\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        );
        self.write(request).await;
    }

    pub(crate) async fn head(&mut self) -> Head {
        let text = self.until("\r\n\r\n").await;
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        Head { status, text }
    }

    /// Reads up to and with `end`.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|window| window == end.as_bytes()) {
                let rest = self.read.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap();
            }
            let read = soon(self.stream.read_buf(&mut self.read)).await.unwrap();
            assert_ne!(read, 0, "ended before {end:?}: {:?}", String::from_utf8_lossy(&self.read));
        }
    }

    /// One chunk of a chunked body; the last one is empty.
    pub(crate) async fn chunk(&mut self) -> String {
        let size = self.until("\r\n").await;
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let chunk = self.exactly(size).await;
        assert_eq!(self.until("\r\n").await, "\r\n");
        chunk
    }

    /// A body of this length.
    pub(crate) async fn exactly(&mut self, length: usize) -> String {
        while self.read.len() < length {
            assert_ne!(soon(self.stream.read_buf(&mut self.read)).await.unwrap(), 0, "ended too early");
        }
        let rest = self.read.split_off(length);
        String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap()
    }

    /// The rest of a chunked body, if it ends properly; `None` when the connection is cut.
    pub(crate) async fn until_end_of_response(&mut self) -> Option<String> {
        while !self.read.ends_with(b"0\r\n\r\n") {
            if !soon(self.stream.read_buf(&mut self.read)).await.is_ok_and(|read| read > 0) {
                return None;
            }
        }
        let mut body = String::new();
        loop {
            match self.chunk().await {
                chunk if chunk.is_empty() => return Some(body),
                chunk => body.push_str(&chunk),
            }
        }
    }

    /// What comes until the connection is closed.
    pub(crate) async fn rest(&mut self) -> String {
        while soon(self.stream.read_buf(&mut self.read)).await.unwrap() > 0 {}
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }

    /// Status, and the JSON body.
    pub(crate) async fn answer(&mut self) -> (u16, serde_json::Value) {
        let head = self.head().await;
        assert_eq!(head.header("content-type"), Some("application/json"), "{head:?}");
        let length = head.header("content-length").unwrap().parse().unwrap();
        (head.status, serde_json::from_str(&self.exactly(length).await).unwrap())
    }
}
