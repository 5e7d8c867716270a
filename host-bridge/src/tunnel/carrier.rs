//! What tunnels come over: streams of bytes, accepted or dialled, on their way to the thread that serves them.

use std::{io, net::TcpStream as StdTcp, os::unix::net::UnixStream as StdUnix};

use moat_shared::{endpoint::Endpoint, id::RunId};
use tokio::{
    net::{TcpStream, UnixStream},
    sync::oneshot,
};

/// A stream of bytes to a sidecar.
#[derive(Debug)]
pub(super) enum Carrier {
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
    /// A sidecar came here.
    Accepted,
    /// The bridge went to the sandbox of this run: nobody else is served there.
    Dialled {
        run: RunId,
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
            Endpoint::Vsock { .. } => Err(io::ErrorKind::Unsupported.into()),
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

/// How a tunnel comes about, for people.
pub(super) fn name(carrier: &Carrier, origin: &Origin) -> &'static str {
    match (carrier, origin) {
        (Carrier::Unix(_), Origin::Accepted) => "unix",
        (Carrier::Unix(_), Origin::Dialled { .. }) => "unix, dialled",
        (Carrier::Tcp(_), Origin::Accepted) => "gateway",
        (Carrier::Tcp(_), Origin::Dialled { .. }) => "published",
    }
}
