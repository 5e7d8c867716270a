//! Where the tunnel is and who dials. The only place that lists the transports.
//!
//! Pure: it parses and prints. Dialling is the business of each end's transport file.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// The longest path of a unix socket on Linux (`sun_path` holds 108 bytes with the final zero).
pub const UNIX_PATH_MAX: usize = 107;

/// Where the tunnel is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    /// `unix:/path`: a socket in a directory that both sides see.
    Unix(PathBuf),
    /// `vsock:<cid>:<port>`: a port of the host (CID 2) or of a guest.
    Vsock {
        /// Context id.
        cid: u32,
        /// Port.
        port: u32,
    },
    /// `vsock:<path>:<port>`: a port of a guest's or of its host's, where the host's end of the vsock device is a unix
    /// socket ("hybrid": Firecracker, Cloud Hypervisor, vhost-device-vsock). The host's name for it; the guest's is the
    /// other form.
    Hybrid {
        /// The device's socket. A port where the host listens is another one, named after it: see [`hybrid_port`].
        path: PathBuf,
        /// Port.
        port: u32,
    },
    /// `tcp:<ip>:<port>`: a published port, or the host's gateway. Literal addresses only, never a name.
    Tcp(SocketAddr),
}

/// The socket where the host listens for what a guest dials at this port.
#[must_use]
pub fn hybrid_port(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

/// Which side opens the byte stream. TLS and HTTP/2 have the sidecar as their client either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialler {
    /// The sidecar connects, the bridge listens.
    Sidecar,
    /// The bridge connects, the sidecar listens.
    Bridge,
}

/// What was given is not an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// No known scheme.
    #[error(
        "invalid endpoint {0:?}: must be unix:<absolute path>, vsock:<cid or absolute path>:<port> or tcp:<ip>:<port>"
    )]
    Form(String),
    /// The path does not fit into a socket address.
    #[error("the socket path {path:?} has {length} bytes, at most {UNIX_PATH_MAX} are possible")]
    TooLong {
        /// The path.
        path: String,
        /// Its length in bytes.
        length: usize,
    },
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || InvalidEndpoint::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return socket_path(path, 0).ok_or_else(form)?.map(Self::Unix);
        }
        if let Some(address) = text.strip_prefix("vsock:") {
            let (at, port) = address.rsplit_once(':').ok_or_else(form)?;
            let number = |text: &str| text.parse().map_err(|_| form());
            // The longer of both names is that of the port.
            if let Some(path) = socket_path(at, 1 + port.len()) {
                return Ok(Self::Hybrid { path: path?, port: number(port)? });
            }
            return Ok(Self::Vsock { cid: number(at)?, port: number(port)? });
        }
        let address = text.strip_prefix("tcp:").ok_or_else(form)?;
        address.parse().map(Self::Tcp).map_err(|_| form())
    }
}

/// A path that fits into a socket's address, with so much more; `None` if it is none.
fn socket_path(text: &str, more: usize) -> Option<Result<PathBuf, InvalidEndpoint>> {
    if !text.starts_with('/') || text.contains('\0') {
        return None;
    }
    let length = text.len() + more;
    Some(if length > UNIX_PATH_MAX {
        Err(InvalidEndpoint::TooLong { path: text.to_owned(), length })
    } else {
        Ok(text.into())
    })
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Hybrid { path, port } => write!(f, "vsock:{}:{port}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl TryFrom<String> for Endpoint {
    type Error = InvalidEndpoint;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}
impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("unix:/run/moat/bridge.sock")]
    #[test_case("vsock:2:5000")]
    #[test_case("vsock:/run/vm/v.sock:5000")]
    #[test_case("tcp:127.0.0.1:4000")]
    #[test_case("tcp:[::1]:4000")]
    fn round_trip(text: &str) {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
    }

    #[test_case("unix:relative"; "relative")]
    #[test_case("tcp:host.docker.internal:4000"; "a name needs a resolver")]
    #[test_case("vsock:2"; "no port")]
    #[test_case("vsock:v.sock:5000"; "a relative path and a port")]
    #[test_case("vsock:/v.sock:x"; "a path and no port")]
    #[test_case("http://127.0.0.1"; "unknown")]
    fn refused(text: &str) {
        assert!(text.parse::<Endpoint>().is_err());
    }

    #[test]
    fn a_socket_path_fits() {
        let path = format!("unix:/{}", "a".repeat(UNIX_PATH_MAX));
        assert!(matches!(path.parse::<Endpoint>(), Err(InvalidEndpoint::TooLong { length: 108, .. })));
        // As does the one of the port, whose name is longer.
        let path = format!("vsock:/{}:5000", "a".repeat(UNIX_PATH_MAX - 5));
        assert!(matches!(path.parse::<Endpoint>(), Err(InvalidEndpoint::TooLong { length: 108, .. })));
        assert_eq!(hybrid_port(Path::new("/a"), 5000), Path::new("/a_5000"));
    }
}
