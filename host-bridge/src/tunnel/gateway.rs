//! Where sandboxes come to that reach this machine over their network: a port at the address by which they know it.
//!
//! ```text
//! Open ──► bind ──► accept ──► a worker, as from the unix socket
//!            │ └── a failure is the caller's to tell
//!            └── of a bridge before this one: again and again, until the address is there and the port free
//! ```
//!
//! One port per address, for all runs: who comes is known by the certificate. The address is that of an engine's own
//! network, which exists on this machine alone; it may not be there before the first container is.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::sleep,
};

use super::{
    carrier::{Carrier, Origin},
    dial::Dialled,
};

/// Who connects waits for so many others.
const BACKLOG: u32 = 1024;
/// Between attempts to have a port again, and while descriptors are lacking.
const PAUSE: Duration = Duration::from_secs(1);

/// What is wanted.
#[derive(Debug)]
pub(crate) enum Open {
    /// Some port at this address; which one is the answer.
    Any(IpAddr, oneshot::Sender<io::Result<SocketAddr>>),
    /// The port where sandboxes go to that a bridge before this one has served.
    Again(SocketAddr),
}

/// Asks for ports.
#[derive(Debug, Clone)]
pub(crate) struct Gateways(pub(super) mpsc::UnboundedSender<Open>);

impl Gateways {
    /// Where a sandbox that knows this machine by `address` finds the bridge.
    ///
    /// # Errors
    /// When nothing can be bound there.
    pub(crate) async fn open(&self, address: IpAddr) -> io::Result<SocketAddr> {
        let (answer, opened) = oneshot::channel();
        let gone = || io::Error::other("the bridge is leaving");
        self.0.send(Open::Any(address, answer)).map_err(|_| gone())?;
        opened.await.map_err(|_| gone())?
    }

    /// Has a port served that was given out before.
    pub(crate) fn again(&self, at: SocketAddr) {
        // A bridge that is leaving serves nobody; the next one reads it again.
        let _next_time = self.0.send(Open::Again(at));
    }
}

/// The ports that are open, or are to be.
pub(super) struct Ports {
    open: HashMap<IpAddr, SocketAddr>,
    serving: JoinSet<()>,
    arriving: mpsc::Sender<Dialled>,
}

impl Ports {
    pub(super) fn new(arriving: mpsc::Sender<Dialled>) -> Self {
        Self { open: HashMap::new(), serving: JoinSet::new(), arriving }
    }

    pub(super) fn open(&mut self, wanted: Open) {
        match wanted {
            Open::Any(address, answer) => {
                // Nobody waits: then nobody goes there either.
                drop(answer.send(self.any(address)));
            }
            Open::Again(at) => self.again(at),
        }
    }

    fn any(&mut self, address: IpAddr) -> io::Result<SocketAddr> {
        if let Some(at) = self.open.get(&address) {
            return Ok(*at);
        }
        let listener = bind(SocketAddr::new(address, 0))?;
        let at = listener.local_addr()?;
        tracing::info!(%at, "sandboxes may come here");
        self.open.insert(address, at);
        self.serving.spawn(serve(listener, self.arriving.clone()));
        Ok(at)
    }

    fn again(&mut self, at: SocketAddr) {
        // Several runs have the same.
        if self.open.insert(at.ip(), at) == Some(at) {
            return;
        }
        let arriving = self.arriving.clone();
        self.serving.spawn(async move {
            let mut told = false;
            let listener = loop {
                match bind(at) {
                    Ok(listener) => break listener,
                    Err(error) if !told => {
                        tracing::error!(%at, %error, "sandboxes go here and do not find the bridge; it tries to have the port again");
                        told = true;
                    }
                    Err(_) => {}
                }
                sleep(PAUSE).await;
            };
            tracing::info!(%at, "sandboxes may come here again");
            serve(listener, arriving).await;
        });
    }
}

/// Also at an address that is not there yet.
fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    #[cfg(target_os = "linux")]
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpFreebind, &true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

async fn serve(listener: TcpListener, arriving: mpsc::Sender<Dialled>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Small frames wait for each other without it, which is no reason to refuse.
                let _slower = stream.set_nodelay(true).is_err();
                if arriving.send((Carrier::Tcp(stream), Origin::Accepted)).await.is_err() {
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
    use std::net::Ipv4Addr;
    use tokio::{net::TcpStream, time::timeout};

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn any(ports: &mut Ports, address: IpAddr) -> io::Result<SocketAddr> {
        let (answer, mut opened) = oneshot::channel();
        ports.open(Open::Any(address, answer));
        opened.try_recv().unwrap()
    }

    async fn arrives(arriving: &mut mpsc::Receiver<Dialled>) -> bool {
        let arrived = timeout(Duration::from_secs(5), arriving.recv()).await;
        matches!(arrived, Ok(Some((Carrier::Tcp(_), Origin::Accepted))))
    }

    #[tokio::test]
    async fn an_address_has_one_port_and_a_wrong_one_none() {
        let (to, mut arriving) = mpsc::channel(1);
        let mut ports = Ports::new(to);
        let at = any(&mut ports, HERE).unwrap();
        assert_eq!(any(&mut ports, HERE).unwrap(), at);
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
        let mut ports = Ports::new(to);
        ports.open(Open::Again(at));
        ports.open(Open::Again(at));
        assert_eq!(any(&mut ports, HERE).unwrap(), at, "runs that come meanwhile go there as well");
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
}
