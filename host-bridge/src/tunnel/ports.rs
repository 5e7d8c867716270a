//! Where sandboxes come to that cannot come to the one socket of all: a port at the address by which they know this machine
//! on an engine's network, or the port that a guest dials over vsock.
//!
//! ```text
//! Open ──► bind ──► accept ──► a worker, as from the one socket ──► neither a run nor a registration needs it ──► closed
//!            │ └── a failure is the caller's to tell
//!            └── of a bridge before this one: again and again, until the address is there and the port free
//! ```
//!
//! Runs share a port: who comes is known by the certificate. An address on an engine's network exists on this machine
//! alone; it may not be there before the first container is. A guest's port is the kernel's (CID 2), or a unix socket named
//! after the one of its device.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs, io,
    net::SocketAddr,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    time::Duration,
};

use moat_shared::{
    endpoint::{Dialler, Endpoint, hybrid_port},
    id::RunId,
    rt::vsock,
};
use socket2::Socket;
use tokio::{
    net::{TcpListener, TcpSocket, UnixListener},
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use super::{
    carrier::{Origin, via},
    dial::Dialled,
};
use crate::registry::Registry;

/// Who connects waits for so many others.
const BACKLOG: u32 = 1024;
/// Between attempts to have a port again, and while descriptors are lacking.
const PAUSE: Duration = Duration::from_secs(1);

/// What is wanted.
#[derive(Debug)]
pub(crate) enum Open {
    /// This port, or some port at this address; which one is the answer.
    Any(Endpoint, oneshot::Sender<io::Result<Opened>>),
    /// For as long as this run is served, which may have come from the bridge before this one.
    Keep(RunId, Endpoint),
}

/// A port that is open for as long as this lives, or a run needs it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) at: Endpoint,
    _needed: oneshot::Sender<()>,
}

/// Asks for ports.
#[derive(Debug, Clone)]
pub(crate) struct Ports(pub(super) mpsc::UnboundedSender<Open>);

impl Ports {
    /// Where a sandbox that knows this machine by such an endpoint finds the bridge.
    ///
    /// # Errors
    /// When nothing can be bound there.
    pub(crate) async fn open(&self, wanted: Endpoint) -> io::Result<Opened> {
        let (answer, opened) = oneshot::channel();
        let gone = || io::Error::other("the bridge is leaving");
        self.0.send(Open::Any(wanted, answer)).map_err(|_| gone())?;
        opened.await.map_err(|_| gone())?
    }

    /// Has a port served that was given out, for this run.
    pub(crate) fn keep(&self, run: RunId, at: Endpoint) {
        // A bridge that is leaving serves nobody; the next one reads it again.
        let _next_time = self.0.send(Open::Keep(run, at));
    }
}

/// The ports that are open, or are to be.
pub(super) struct Table {
    /// By what they are asked for: any port of an address is one.
    open: HashMap<Endpoint, Port>,
    serving: JoinSet<()>,
    /// Each ends with its run, or with the [`Opened`] of one that is to be.
    needed: JoinSet<Endpoint>,
    registry: Registry,
    arriving: mpsc::Sender<Dialled>,
}

struct Port {
    at: Endpoint,
    /// By so many.
    needed: usize,
    serving: AbortHandle,
    _file: Unlinked,
}

/// A socket's file goes with its port, before another can be bound in its place.
struct Unlinked(Option<PathBuf>);

impl Drop for Unlinked {
    fn drop(&mut self) {
        let Some(path) = self.0.take() else { return };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a socket that nobody needs stays");
            }
            _ => {}
        }
    }
}

impl Port {
    fn new(at: Endpoint, serving: AbortHandle) -> Self {
        let file = Unlinked(socket(&at));
        Self { at, needed: 0, serving, _file: file }
    }
}

impl Table {
    pub(super) fn new(registry: Registry, arriving: mpsc::Sender<Dialled>) -> Self {
        Self { open: HashMap::new(), serving: JoinSet::new(), needed: JoinSet::new(), registry, arriving }
    }

    pub(super) fn open(&mut self, wanted: Open) {
        match wanted {
            Open::Any(wanted, answer) => {
                // Where nobody waits any more it is not needed.
                drop(answer.send(self.any(wanted)));
            }
            Open::Keep(run, at) => self.keep(run, at),
        }
    }

    /// Somebody needs a port no more; `None` when nobody needs one.
    pub(super) async fn released(&mut self) -> Option<()> {
        let over = self.needed.join_next().await?;
        if let Ok(key) = over
            && let Some(port) = self.open.get_mut(&key)
        {
            port.needed -= 1;
            if port.needed == 0 {
                port.serving.abort();
                self.open.remove(&key);
            }
        }
        while self.serving.try_join_next().is_some() {}
        Some(())
    }

    fn any(&mut self, wanted: Endpoint) -> io::Result<Opened> {
        let key = key(&wanted);
        let port = match self.open.entry(key.clone()) {
            Entry::Occupied(port) => port.into_mut(),
            Entry::Vacant(place) => {
                let (listener, at) = bind(&wanted)?;
                tracing::info!(%at, "sandboxes may come here");
                let serving = self.serving.spawn(serve(listener, at.clone(), self.arriving.clone()));
                place.insert(Port::new(at, serving))
            }
        };
        port.needed += 1;
        let (needed, over) = oneshot::channel::<()>();
        self.needed.spawn(async move {
            // Nothing is ever sent.
            let _over = over.await;
            key
        });
        Ok(Opened { at: port.at.clone(), _needed: needed })
    }

    fn keep(&mut self, run: RunId, at: Endpoint) {
        let key = key(&at);
        if self.open.get(&key).is_none_or(|port| port.at != at) {
            let serving = self.serving.spawn(again(at.clone(), self.arriving.clone()));
            let before = self.open.insert(key.clone(), Port::new(at, serving));
            // Runs of the other port count for this one; both are served until all are over.
            if let (Some(port), Some(before)) = (self.open.get_mut(&key), before) {
                port.needed = before.needed;
            }
        }
        if let Some(port) = self.open.get_mut(&key) {
            port.needed += 1;
        }
        let registry = self.registry.clone();
        self.needed.spawn(async move {
            // One that is not served needs nothing.
            if let Ok(mut ticket) = registry.admit(run).await {
                ticket.revoked().await;
            }
            key
        });
    }
}

fn key(endpoint: &Endpoint) -> Endpoint {
    match endpoint {
        Endpoint::Tcp(at) => Endpoint::Tcp(SocketAddr::new(at.ip(), 0)),
        other => other.clone(),
    }
}

/// Serves what a bridge before this one did, as soon as it can be had.
async fn again(at: Endpoint, arriving: mpsc::Sender<Dialled>) {
    let mut told = false;
    let listener = loop {
        match bind(&at) {
            Ok((listener, _)) => break listener,
            Err(error) if !told => {
                tracing::error!(%at, %error, "sandboxes go here and do not find the bridge; it tries to have the port again");
                told = true;
            }
            Err(_) => {}
        }
        sleep(PAUSE).await;
    };
    tracing::info!(%at, "sandboxes may come here again");
    serve(listener, at, arriving).await;
}

enum Listener {
    Tcp(TcpListener),
    Vsock(vsock::Listener),
    Unix(UnixListener),
}

/// Where the socket is, if it is one with a path.
fn socket(at: &Endpoint) -> Option<PathBuf> {
    match at {
        Endpoint::Unix(path) => Some(path.clone()),
        Endpoint::Hybrid { path, port } => Some(hybrid_port(path, *port)),
        Endpoint::Tcp(_) | Endpoint::Vsock { .. } => None,
    }
}

fn bind(at: &Endpoint) -> io::Result<(Listener, Endpoint)> {
    let listener = match at {
        Endpoint::Tcp(address) => {
            let listener = bind_tcp(*address)?;
            let at = Endpoint::Tcp(listener.local_addr()?);
            return Ok((Listener::Tcp(listener), at));
        }
        Endpoint::Vsock { cid, port } => Listener::Vsock(vsock::Listener::bind(*cid, *port)?),
        Endpoint::Unix(path) => bind_unix(path)?,
        Endpoint::Hybrid { path, port } => bind_unix(&hybrid_port(path, *port))?,
    };
    Ok((listener, at.clone()))
}

/// Also at an address that is not there yet.
fn bind_tcp(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    #[cfg(target_os = "linux")]
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpFreebind, &true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

/// In the place of one that a bridge before this one has left; nothing else is removed. As with the socket of all, its
/// directory says who gets here, and TLS who is served: the guest's device may be another user's process.
fn bind_unix(path: &Path) -> io::Result<Listener> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => return Err(io::ErrorKind::AlreadyExists.into()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    crate::bridge::listen(path, 0o666).map(Listener::Unix)
}

impl Listener {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Small frames wait for each other without it, which is no reason to refuse.
                let _slower = stream.set_nodelay(true).is_err();
                stream.into_std().map(Socket::from)
            }
            Self::Vsock(listener) => listener.accept().await,
            Self::Unix(listener) => listener.accept().await?.0.into_std().map(Socket::from),
        }
    }
}

async fn serve(listener: Listener, at: Endpoint, arriving: mpsc::Sender<Dialled>) {
    let via = via(&at, Dialler::Sidecar);
    loop {
        match listener.accept().await {
            Ok(socket) => {
                if arriving.send((socket, Origin::Accepted(via))).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(%error, "accepting a tunnel failed");
                sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{home::Home, record::Recorder, registry::Owner, tunnel::asks};
    use std::net::{IpAddr, Ipv4Addr};
    use tokio::{net::TcpStream, time::timeout};

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Of a bridge that has left: no run is served.
    fn ports(to: mpsc::Sender<Dialled>) -> Table {
        let dir = tempfile::tempdir().unwrap();
        let (recorder, _) = Recorder::new(1);
        let left_behind = mpsc::unbounded_channel().0;
        let restored = Owner::restore(&Home::at(dir.path()), recorder, left_behind, asks().0);
        Table::new(restored.unwrap().0, to)
    }

    fn open(ports: &mut Table, wanted: Endpoint) -> io::Result<Opened> {
        let (answer, mut opened) = oneshot::channel();
        ports.open(Open::Any(wanted, answer));
        opened.try_recv().unwrap()
    }

    fn any(ports: &mut Table, address: IpAddr) -> io::Result<(SocketAddr, Opened)> {
        let opened = open(ports, Endpoint::Tcp((address, 0).into()))?;
        match &opened.at {
            Endpoint::Tcp(at) => Ok((*at, opened)),
            other => panic!("{other}"),
        }
    }

    async fn arrives(arriving: &mut mpsc::Receiver<Dialled>) -> bool {
        let arrived = timeout(Duration::from_secs(5), arriving.recv()).await;
        matches!(arrived, Ok(Some((_, Origin::Accepted("gateway")))))
    }

    #[tokio::test]
    async fn an_address_has_one_port_and_a_wrong_one_none() {
        let (to, mut arriving) = mpsc::channel(1);
        let mut ports = ports(to);
        let (at, _opened) = any(&mut ports, HERE).unwrap();
        assert_eq!(any(&mut ports, HERE).unwrap().0, at);
        let _stream = TcpStream::connect(at).await.unwrap();
        assert!(arrives(&mut arriving).await);
        // TEST-NET-1 (RFC 5737) is not there, and an engine's address may come.
        #[cfg(target_os = "linux")]
        assert!(any(&mut ports, Ipv4Addr::new(192, 0, 2, 1).into()).is_ok());
    }

    #[tokio::test]
    async fn a_port_is_had_again_as_soon_as_it_is_free() {
        let taken = std::net::TcpListener::bind((HERE, 0)).unwrap();
        let at = taken.local_addr().unwrap();
        let (to, mut arriving) = mpsc::channel(1);
        let mut ports = ports(to);
        for run in [1, 2] {
            ports.open(Open::Keep(RunId::from_random([run; 6]), Endpoint::Tcp(at)));
        }
        assert_eq!(any(&mut ports, HERE).unwrap().0, at, "runs that come meanwhile go there as well");
        // It has been tried in vain.
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(taken);
        let reached = async {
            loop {
                if let Ok(stream) = TcpStream::connect(at).await {
                    return stream;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let _stream = timeout(Duration::from_secs(10), reached).await.unwrap();
        assert!(arrives(&mut arriving).await);
    }

    #[tokio::test]
    async fn a_port_that_no_run_came_to_need_is_closed() {
        let mut ports = ports(mpsc::channel(1).0);
        let (at, first) = any(&mut ports, HERE).unwrap();
        let (_, second) = any(&mut ports, HERE).unwrap();
        drop(first);
        ports.released().await.unwrap();
        assert!(TcpStream::connect(at).await.is_ok(), "another registration needs it");
        drop(second);
        ports.released().await.unwrap();
        while ports.serving.join_next().await.is_some() {}
        assert!(TcpStream::connect(at).await.is_err());
        // Nor does one stay for whom nobody waits.
        let (answer, nobody) = oneshot::channel();
        drop(nobody);
        ports.open(Open::Any(Endpoint::Tcp((HERE, 0).into()), answer));
        ports.released().await.unwrap();
        assert!(ports.open.is_empty());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (path, port) = (dir.path().join("v.sock"), 5000);
        let file = hybrid_port(&path, port);
        fs::write(&file, "mine").unwrap();
        let mut ports = ports(mpsc::channel(1).0);
        assert!(open(&mut ports, Endpoint::Hybrid { path, port }).is_err());
        assert_eq!(fs::read_to_string(file).unwrap(), "mine");
    }
}
