//! What tunnels come over: streams of bytes, accepted or dialled, on their way to the thread that serves them.

use std::{io, net::TcpStream as StdTcp, os::unix::net::UnixStream as StdUnix};

use moat_shared::{
    endpoint::{Dialler, Endpoint},
    id::RunId,
    rt::vsock,
};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::oneshot,
};

use super::hybrid;

/// A stream of bytes to a sidecar.
#[derive(Debug)]
pub(super) enum Carrier {
    /// Also a vsock stream, which goes by that name.
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// The same between two runtimes.
#[derive(Debug)]
pub(super) enum Parked {
    Unix(StdUnix),
    Tcp(StdTcp),
}

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

impl Carrier {
    /// Goes to a sandbox.
    pub(super) async fn dial(endpoint: &Endpoint) -> io::Result<Self> {
        match endpoint {
            Endpoint::Unix(path) => Ok(Self::Unix(UnixStream::connect(path).await?)),
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Self::Tcp(stream))
            }
            Endpoint::Vsock { cid, port } => Ok(Self::Unix(vsock::dial(*cid, *port).await?)),
            Endpoint::Hybrid { path, port } => Ok(Self::Unix(hybrid::dial(path, *port).await?)),
        }
    }

    pub(super) fn park(self) -> io::Result<Parked> {
        match self {
            Self::Unix(stream) => stream.into_std().map(Parked::Unix),
            Self::Tcp(stream) => stream.into_std().map(Parked::Tcp),
        }
    }
}

impl Parked {
    pub(super) fn unpark(self) -> io::Result<Carrier> {
        match self {
            Self::Unix(stream) => UnixStream::from_std(stream).map(Carrier::Unix),
            Self::Tcp(stream) => TcpStream::from_std(stream).map(Carrier::Tcp),
        }
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
