//! What tunnels come over: sockets, accepted or dialled, on their way to the thread that serves them.

use std::io;

use moat_shared::{
    endpoint::{Dialler, Endpoint},
    id::RunId,
    rt::vsock,
};
use socket2::Socket;
use tokio::{
    net::{TcpStream, UnixStream},
    sync::oneshot,
};

use super::hybrid;

/// Who opened it.
#[derive(Debug)]
pub(super) enum Origin {
    /// A sidecar came here; how, for people.
    Accepted(&'static str),
    /// The bridge went to the sandbox of this run: nobody else is served there.
    Dialled {
        run: RunId,
        via: &'static str,
        /// Dropped when the tunnel is over.
        _over: oneshot::Sender<()>,
    },
}

/// Goes to a sandbox.
pub(super) async fn dial(endpoint: &Endpoint) -> io::Result<Socket> {
    match endpoint {
        Endpoint::Unix(path) => UnixStream::connect(path).await?.into_std().map(Socket::from),
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            stream.into_std().map(Socket::from)
        }
        Endpoint::Vsock { cid, port } => vsock::dial(*cid, *port).await,
        Endpoint::Hybrid { path, port } => hybrid::dial(path, *port).await?.into_std().map(Socket::from),
    }
}

impl Origin {
    /// How the tunnel comes about, for people.
    pub(super) const fn via(&self) -> &'static str {
        match self {
            Self::Accepted(via) | Self::Dialled { via, .. } => via,
        }
    }
}

/// How a tunnel comes about, for people.
pub(crate) const fn via(endpoint: &Endpoint, dialler: Dialler) -> &'static str {
    match (endpoint, dialler) {
        (Endpoint::Unix(_), Dialler::Sidecar) => "unix",
        (Endpoint::Unix(_), Dialler::Bridge) => "unix, dialled",
        (Endpoint::Tcp(_), Dialler::Sidecar) => "gateway",
        (Endpoint::Tcp(_), Dialler::Bridge) => "published",
        (Endpoint::Vsock { .. }, Dialler::Sidecar) => "vsock",
        (Endpoint::Vsock { .. }, Dialler::Bridge) => "vsock, dialled",
        (Endpoint::Hybrid { .. }, Dialler::Sidecar) => "hybrid vsock",
        (Endpoint::Hybrid { .. }, Dialler::Bridge) => "hybrid vsock, dialled",
    }
}
