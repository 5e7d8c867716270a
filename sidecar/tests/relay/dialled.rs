//! The bridge dials: the sidecar listens on a port that strangers reach as well.

use std::net::SocketAddr;

use moat_shared::{
    endpoint::{Dialler, Endpoint},
    plan::Tunnel,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    agent::{Started, quick},
    bridge::{Authority, Bridge, soon},
};

const CALL: &str = r#"{"jsonrpc":"2.0","method":"tools/call","id":"x-1"}"#;

/// A sidecar that listens, and the bridge that knows where.
struct Rig {
    authority: Authority,
    bridge: Bridge,
    sidecar: Started,
    address: SocketAddr,
}

impl Rig {
    async fn new() -> Self {
        let authority = Authority::new();
        let bridge = Bridge::new(&authority);
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let tunnel = Tunnel { endpoint: Endpoint::Tcp(address), dialler: Dialler::Bridge };
        let sidecar = Started::on(&tunnel, &authority.run(), quick()).await;
        Self { authority, bridge, sidecar, address }
    }

    async fn works(&mut self) {
        let mut agent = self.sidecar.agent().await;
        agent.ask("POST", "/mcp/notion", CALL).await;
        let mut call = self.bridge.call().await;
        assert_eq!(call.read().await, CALL);
        call.reply(202, &[], "");
        assert_eq!(agent.head().await.status, 202);
    }
}

/// What a stranger gets until the sidecar ends the connection: at most the first message of a TLS client.
async fn heard(mut stranger: TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    // Reset or closed, as it may be.
    let _how = soon(stranger.read_to_end(&mut heard)).await.is_ok();
    heard
}

#[tokio::test]
async fn it_works_and_works_again_when_it_was_lost() {
    let mut rig = Rig::new().await;
    rig.bridge.dial(rig.address).await;
    rig.works().await;
    rig.bridge.cut().await;
    rig.bridge.dial(rig.address).await;
    rig.works().await;
    assert_eq!(*rig.bridge.greeted.lock().unwrap(), 2);
}

#[tokio::test]
async fn strangers_get_nothing_and_keep_nobody_waiting() {
    let mut rig = Rig::new().await;
    // Many who say nothing, one who talks, one who leaves.
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(rig.address).await.unwrap());
    }
    let mut loud = TcpStream::connect(rig.address).await.unwrap();
    loud.write_all(b"GET /mcp/notion HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    drop(TcpStream::connect(rig.address).await.unwrap());
    // Another installation's bridge.
    let other = Bridge::new(&Authority::new());
    other.dial(rig.address).await;
    rig.bridge.dial(rig.address).await;
    rig.works().await;
    assert_eq!(*other.greeted.lock().unwrap(), 0);
    let run = moat_shared::tls::run_dns_name(&"run_0123456789ab".parse().unwrap());
    for stranger in [silent.remove(0), loud] {
        let heard = heard(stranger).await;
        let is = |what: &str| heard.windows(what.len()).any(|part| part == what.as_bytes());
        assert!(heard.len() < 1024 && !is(&run) && !is("moat-stub"), "{heard:?}");
    }
}

#[tokio::test]
async fn while_a_tunnel_stands_whoever_comes_is_turned_away() {
    let mut rig = Rig::new().await;
    rig.bridge.dial(rig.address).await;
    rig.works().await;
    assert_eq!(heard(TcpStream::connect(rig.address).await.unwrap()).await, b"");
    // Even the bridge: the first tunnel lives.
    let second = Bridge::new(&rig.authority);
    second.dial(rig.address).await;
    rig.works().await;
    assert_eq!(*second.greeted.lock().unwrap(), 0);
}
