//! Two hosts of the tests' own, as network namespaces with a cable between them: one that moat runs on, whose way out leads
//! to the other. What a sandbox with a network reaches is seen without a packet that leaves this machine.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
};

use crate::{Outcome, Trouble, trouble::ensure};

/// The host that moat runs on, as the other one knows it.
pub const HOST: &str = "10.99.7.1";
/// The other host.
pub const BEYOND: &str = "10.99.7.2";

/// The two hosts. Dropping it ends everything on them.
#[derive(Debug)]
pub struct World {
    host: String,
    beyond: String,
    /// The settings of the host's resolver, which `ip netns exec` puts in their place.
    resolver: PathBuf,
    servers: Vec<Server>,
}

/// A thread that answers in a namespace until it is dropped.
#[derive(Debug)]
struct Server {
    _end: UnixStream,
}

impl World {
    /// Makes them; `mark` is in their names.
    ///
    /// # Errors
    /// When this process may not, or `ip` is not there.
    pub fn new(mark: &str) -> Outcome<Self> {
        let name = |end: &str| format!("{mark}-{end}");
        let (host, beyond) = (name("h"), name("b"));
        let resolver = Path::new("/etc/netns").join(&host);
        let world = Self { host: host.clone(), beyond: beyond.clone(), resolver, servers: Vec::new() };
        for name in [&host, &beyond] {
            ip(&["netns", "add", name])?;
        }
        ip(&[
            "link", "add", "cable", "netns", &host, "type", "veth", "peer", "name", "cable", "netns", &beyond,
        ])?;
        for (name, address) in [(&host, HOST), (&beyond, BEYOND)] {
            ip(&["-n", name, "address", "add", &format!("{address}/24"), "dev", "cable"])?;
            ip(&["-n", name, "link", "set", "cable", "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        ip(&["-n", &host, "route", "add", "default", "via", BEYOND])?;
        fs::create_dir_all(&world.resolver)?;
        fs::write(world.resolver.join("resolv.conf"), "nameserver 127.0.0.1\nsearch moat.test\n")?;
        Ok(world)
    }

    /// What a command must begin with to run on the host.
    #[must_use]
    pub fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.host].map(str::to_owned).to_vec()
    }

    /// The host's network namespace, as `/proc/<pid>/ns/net` names it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn namespace(&self) -> Outcome<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(fs::metadata(format!("/run/netns/{}", self.host))?.ino())
    }

    /// Greets whoever connects, on every address of the host; its port.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn greet_on_host(&mut self) -> Outcome<u16> {
        let name = self.host.clone();
        self.greet(&name)
    }

    /// The same on the other host.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn greet_beyond(&mut self) -> Outcome<u16> {
        let name = self.beyond.clone();
        self.greet(&name)
    }

    fn greet(&mut self, namespace: &str) -> Outcome<u16> {
        let open = || TcpListener::bind(("0.0.0.0", 0));
        let answer = |listener: &TcpListener| {
            if let Ok((stream, _)) = listener.accept() {
                // Whoever closes with something unread resets the connection, and the answer with it.
                let mut request = BufReader::new(&stream).lines();
                let _asked = request.find(|line| line.as_ref().is_ok_and(String::is_empty));
                let _gone = (&stream)
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
            }
        };
        let (server, listener) = serve(namespace, open, answer)?;
        self.servers.push(server);
        Ok(listener.port())
    }

    /// A name server on the host's loopback, for which every name is the other host's.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn answer_names(&mut self) -> Outcome {
        let open = || UdpSocket::bind(("127.0.0.1", 53));
        let (server, _) = serve(&self.host, open, |socket: &UdpSocket| {
            let mut query = [0; 512];
            if let Ok((length, from)) = socket.recv_from(&mut query) {
                let _asked_again = answer(&query[..length]).map(|answer| socket.send_to(&answer, from));
            }
        })?;
        self.servers.push(server);
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.servers.clear();
        for name in [&self.host, &self.beyond] {
            let _never_made = ip(&["netns", "delete", name]);
        }
        let _never_made = fs::remove_dir_all(&self.resolver);
    }
}

fn ip(arguments: &[&str]) -> Outcome {
    let ran = Command::new("ip").args(arguments).stdin(Stdio::null()).output()?;
    ensure(ran.status.success(), || {
        format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&ran.stderr))
    })
}

/// A socket that a [`Server`] waits for.
trait Socket: AsFd + Send + 'static {
    fn address(&self) -> std::io::Result<SocketAddr>;
}

impl Socket for TcpListener {
    fn address(&self) -> std::io::Result<SocketAddr> {
        self.local_addr()
    }
}

impl Socket for UdpSocket {
    fn address(&self) -> std::io::Result<SocketAddr> {
        self.local_addr()
    }
}

/// Opens a socket in a namespace, on a thread that is in it, and answers there.
fn serve<S: Socket>(
    namespace: &str,
    open: impl FnOnce() -> std::io::Result<S> + Send + 'static,
    answer: impl Fn(&S) + Send + 'static,
) -> Outcome<(Server, SocketAddr)> {
    let place = fs::File::open(format!("/run/netns/{namespace}"))?;
    let (end, ended) = UnixStream::pair()?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let opened = setns(place, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from).and_then(|()| {
            let socket = open()?;
            let address = socket.address()?;
            Ok((socket, address))
        });
        let (socket, address) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let _nobody_waits = tell.send(Err(error));
                return;
            }
        };
        let _nobody_waits = tell.send(Ok(address));
        loop {
            let mut fds = [
                PollFd::new(socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(ended.as_fd(), PollFlags::POLLIN),
            ];
            if poll(&mut fds, PollTimeout::NONE).is_err() || fds[1].any() != Some(false) {
                return;
            }
            answer(&socket);
        }
    });
    let address = told.recv().map_err(|_| Trouble::new("the server's thread ended"))??;
    Ok((Server { _end: end }, address))
}

/// RFC 1035: the same question, and for an A record [`BEYOND`]; nothing for any other.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let name = query.get(12..)?.iter().position(|byte| *byte == 0)?;
    let question = query.get(12..12 + name + 5)?;
    let is_a = question[name + 1..name + 3] == [0, 1];
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    answer.extend(question);
    if is_a {
        let address: std::net::Ipv4Addr = BEYOND.parse().ok()?;
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
