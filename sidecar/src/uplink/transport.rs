//! The one file that knows unix, tcp and vsock, and who dials. Above it a tunnel is a stream of bytes.
//!
//! No name is ever resolved: endpoints hold literal addresses.

use std::{fmt, io};

use moat_shared::{
    endpoint::{Dialler, Endpoint},
    hint::Hint,
    plan,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

/// A stream of bytes to the bridge.
pub(crate) trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for T {}

/// How the bridge is reached; only ever one that is supported.
#[derive(Debug, Clone)]
pub(crate) struct Transport(Endpoint);

/// The endpoint cannot be used by this build.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// vsock.
    #[error("the endpoint {0} is not supported yet: use unix:<path> or tcp:<ip>:<port>")]
    Vsock(Endpoint),
    /// The bridge would have to dial.
    #[error("waiting for the bridge to dial {0} is not supported yet: the sidecar has to dial")]
    Listening(Endpoint),
}

/// The bridge cannot be reached.
#[derive(Debug, thiserror::Error)]
#[error("no connection to the bridge at {endpoint}")]
pub(crate) struct DialError {
    endpoint: Endpoint,
    #[source]
    source: io::Error,
}

impl Hint for DialError {
    fn hint(&self) -> Option<std::borrow::Cow<'_, str>> {
        Some("is the bridge running? try `moat proxy status` on the host".into())
    }
}

impl Transport {
    pub(crate) fn new(tunnel: &plan::Tunnel) -> Result<Self, TransportError> {
        let endpoint = tunnel.endpoint.clone();
        match (tunnel.dialler, &endpoint) {
            (Dialler::Bridge, _) => Err(TransportError::Listening(endpoint)),
            (Dialler::Sidecar, Endpoint::Vsock { .. }) => Err(TransportError::Vsock(endpoint)),
            (Dialler::Sidecar, Endpoint::Unix(_) | Endpoint::Tcp(_)) => Ok(Self(endpoint)),
        }
    }

    /// Opens a stream.
    pub(crate) async fn open(&self) -> Result<Box<dyn Carrier>, DialError> {
        self.dial().await.map_err(|source| DialError { endpoint: self.0.clone(), source })
    }

    async fn dial(&self) -> io::Result<Box<dyn Carrier>> {
        match &self.0 {
            Endpoint::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Endpoint::Vsock { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("unix:/a", Dialler::Sidecar => true; "unix")]
    #[test_case("tcp:127.0.0.1:1", Dialler::Sidecar => true; "tcp")]
    #[test_case("vsock:2:1", Dialler::Sidecar => false; "vsock")]
    #[test_case("unix:/a", Dialler::Bridge => false; "listening")]
    fn supported(endpoint: &str, dialler: Dialler) -> bool {
        let endpoint: Endpoint = endpoint.parse().unwrap();
        match Transport::new(&plan::Tunnel { endpoint: endpoint.clone(), dialler }) {
            Ok(_) => true,
            Err(error) => {
                assert!(error.to_string().contains(&endpoint.to_string()), "{error}");
                assert!(error.to_string().contains("not supported yet"), "{error}");
                false
            }
        }
    }
}
