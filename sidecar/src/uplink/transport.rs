//! The one file that knows unix, tcp and vsock, and who dials. Above it a tunnel is a stream of bytes.
//!
//! No name is ever resolved: endpoints hold literal addresses.

use std::{fmt, io, os::unix::net::UnixListener};

use moat_shared::{
    endpoint::{Dialler, Endpoint},
    hint::Hint,
    plan,
    rt::{stream::Stream, vsock},
};
use tokio::net::{TcpStream, UnixStream};

use super::listen::Listening;

/// How a stream to the bridge comes to be; only ever in a way that is supported.
#[derive(Debug)]
pub(crate) enum Transport {
    Dials(Dialling),
    Listens(Listening),
}

/// The endpoint cannot be used by this build.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The host's name for a guest's port.
    #[error("the endpoint {0} is the host's name for it: a guest's is vsock:<cid>:<port>")]
    Hosts(Endpoint),
    /// A socket's listener is PID 1's to hand over.
    #[error("waiting for the bridge to dial {0} needs a listener, and PID 1 has handed none over")]
    NoListener(Endpoint),
    /// Somebody else has the port.
    #[error("listening at {endpoint}")]
    Bind {
        /// Where.
        endpoint: Endpoint,
        /// Why not.
        source: io::Error,
    },
}

/// The bridge cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("no connection to the bridge at {endpoint}")]
pub(crate) struct DialError {
    pub(super) endpoint: Endpoint,
    #[source]
    pub(super) source: io::Error,
}

impl Hint for DialError {
    fn hint(&self) -> Option<std::borrow::Cow<'_, str>> {
        let vsock =
            matches!(self.endpoint, Endpoint::Vsock { .. }).then(|| vsock::hint(&self.source)).flatten();
        Some(vsock.unwrap_or("is the bridge running? try `moat proxy status` on the host").into())
    }
}

impl Transport {
    /// `socket`: PID 1's, where the bridge dials one.
    pub(crate) fn new(tunnel: &plan::Tunnel, socket: Option<UnixListener>) -> Result<Self, TransportError> {
        let endpoint = tunnel.endpoint.clone();
        let listening = match (tunnel.dialler, &endpoint, socket) {
            (_, Endpoint::Hybrid { .. }, _) => return Err(TransportError::Hosts(endpoint)),
            (Dialler::Sidecar, ..) => return Ok(Self::Dials(Dialling(endpoint))),
            (Dialler::Bridge, Endpoint::Unix(_), Some(socket)) => {
                Some(Listening::of_pid_1(endpoint.clone(), socket))
            }
            (Dialler::Bridge, ..) => Listening::at(endpoint.clone()),
        };
        match listening {
            Some(Ok(listening)) => Ok(Self::Listens(listening)),
            Some(Err(source)) => Err(TransportError::Bind { endpoint, source }),
            None => Err(TransportError::NoListener(endpoint)),
        }
    }

    pub(crate) fn is_vsock(&self) -> bool {
        let endpoint = match self {
            Self::Dials(to) => &to.0,
            Self::Listens(at) => at.endpoint(),
        };
        matches!(endpoint, Endpoint::Vsock { .. })
    }

    /// While a tunnel stands, whoever else comes is turned away. Never returns.
    pub(crate) async fn turn_away(&self) {
        match self {
            Self::Dials(_) => std::future::pending().await,
            Self::Listens(at) => at.turn_away().await,
        }
    }

    /// What did not happen when there is no tunnel in time.
    pub(crate) fn nobody(&self) -> &'static str {
        match self {
            Self::Dials(_) => "the bridge did not answer",
            Self::Listens(_) => "the bridge did not connect to this sandbox",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dials(to) => to.0.fmt(f),
            Self::Listens(at) => at.fmt(f),
        }
    }
}

/// Where the bridge is.
#[derive(Debug)]
pub(crate) struct Dialling(Endpoint);

impl Dialling {
    /// Opens a stream.
    pub(crate) async fn dial(&self) -> Result<Stream, DialError> {
        self.open().await.map_err(|source| DialError { endpoint: self.0.clone(), source })
    }

    async fn open(&self) -> io::Result<Stream> {
        Stream::new(match &self.0 {
            Endpoint::Unix(path) => UnixStream::connect(path).await?.into_std()?.into(),
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                stream.into_std()?.into()
            }
            Endpoint::Vsock { cid, port } => vsock::dial(*cid, *port).await?,
            Endpoint::Hybrid { .. } => return Err(io::ErrorKind::Unsupported.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("unix:/a", Dialler::Sidecar => true; "unix")]
    #[test_case("tcp:127.0.0.1:1", Dialler::Sidecar => true; "tcp")]
    #[test_case("tcp:127.0.0.1:0", Dialler::Bridge => true; "a port that the bridge dials")]
    #[test_case("vsock:2:1", Dialler::Sidecar => true; "vsock")]
    #[test_case("vsock:/v.sock:1", Dialler::Sidecar => false; "what only the host has")]
    #[test_case("unix:/a", Dialler::Bridge => false; "a socket that the bridge dials, and nobody listens at")]
    #[tokio::test]
    async fn supported(endpoint: &str, dialler: Dialler) -> bool {
        let endpoint: Endpoint = endpoint.parse().unwrap();
        match Transport::new(&plan::Tunnel { endpoint: endpoint.clone(), dialler }, None) {
            Ok(_) => true,
            Err(error) => {
                assert!(error.to_string().contains(&endpoint.to_string()), "{error}");
                false
            }
        }
    }
}
