//! Streams between a guest and its host (`AF_VSOCK`), from either side.
//!
//! A stream that is open is a stream socket as any other: read, written and closed with the same calls as a unix
//! socket's. So it goes by the name of one ([`Stream`]). Nothing here half-closes and goes on reading: between a guest
//! and its host that is not portable.

use std::io;

use tokio::net::UnixStream;

/// An open stream. A unix socket in name: neither std nor tokio has another owner of a stream socket that asks for no
/// address. Its peer's address is not to be asked for.
pub type Stream = UnixStream;

#[cfg(target_os = "linux")]
pub use linux::{Listener, dial};
#[cfg(not(target_os = "linux"))]
pub use nowhere::{Listener, dial};

#[cfg(target_os = "linux")]
mod linux {
    use std::{io, os::unix::net};

    use socket2::{Domain, SockAddr, SockRef, Socket, Type};
    use tokio::io::Interest;

    use super::Stream;

    /// There is one tunnel to a run.
    const BACKLOG: i32 = 128;

    fn opened() -> io::Result<Socket> {
        let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    fn named(socket: Socket) -> io::Result<Stream> {
        Stream::from_std(net::UnixStream::from(std::os::fd::OwnedFd::from(socket)))
    }

    /// Connects. The kernel gives up after 2 s.
    ///
    /// # Errors
    /// When nobody is there, or this machine has no such sockets.
    pub async fn dial(cid: u32, port: u32) -> io::Result<Stream> {
        let socket = opened()?;
        match socket.connect(&SockAddr::vsock(cid, port)) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let stream = named(socket)?;
        let connected = || {
            let socket = SockRef::from(&stream);
            match socket.take_error()? {
                Some(error) => Err(error),
                // Woken too early: from here on it is not writable.
                None if socket.peer_addr().is_err() => Err(io::ErrorKind::WouldBlock.into()),
                None => Ok(()),
            }
        };
        stream.async_io(Interest::WRITABLE, connected).await?;
        Ok(stream)
    }

    /// A port that is listened to.
    #[derive(Debug)]
    pub struct Listener {
        /// Named so for what it waits with; nothing is read from it.
        socket: Stream,
    }

    impl Listener {
        /// Takes the port of that CID, which has to be one of this machine's.
        ///
        /// # Errors
        /// When it is not, or somebody else has the port.
        pub fn bind(cid: u32, port: u32) -> io::Result<Self> {
            let socket = opened()?;
            socket.bind(&SockAddr::vsock(cid, port))?;
            socket.listen(BACKLOG)?;
            Ok(Self { socket: named(socket)? })
        }

        /// The next who comes.
        ///
        /// # Errors
        /// For want of descriptors.
        pub async fn accept(&self) -> io::Result<Stream> {
            let take = || SockRef::from(&self.socket).accept();
            let (accepted, _) = self.socket.async_io(Interest::READABLE, take).await?;
            accepted.set_nonblocking(true)?;
            named(accepted)
        }
    }
}

/// Other systems' kernels have none, or others.
#[cfg(not(target_os = "linux"))]
mod nowhere {
    use std::io;

    use super::Stream;

    /// # Errors
    /// Always.
    pub async fn dial(_cid: u32, _port: u32) -> io::Result<Stream> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// There is none.
    #[derive(Debug)]
    pub enum Listener {}

    impl Listener {
        /// # Errors
        /// Always.
        pub fn bind(_cid: u32, _port: u32) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        /// # Errors
        /// Never: there is none.
        pub async fn accept(&self) -> io::Result<Stream> {
            match *self {}
        }
    }
}

/// What to do about a failure, where its code tells more than its text.
#[must_use]
pub fn hint(error: &io::Error) -> Option<&'static str> {
    use nix::errno::Errno;
    match error.raw_os_error().map(Errno::from_raw) {
        // No transport, or a kernel without the family.
        Some(Errno::ENODEV | Errno::EAFNOSUPPORT) => {
            Some("this machine has no vsock device: give its virtual machine one, or use another endpoint")
        }
        // The CID is none of this machine's.
        Some(Errno::EADDRNOTAVAIL) => Some(
            "this machine is not the host of virtual machines that come over vsock (on Linux: modprobe vhost_vsock); \
             where its end is a unix socket, use vsock:<path>:<port>",
        ),
        Some(Errno::EPERM | Errno::EACCES) => Some("vsock sockets are forbidden here"),
        // One device tells it at once, another lets it time out.
        Some(Errno::ECONNRESET | Errno::ETIMEDOUT) => {
            Some("nobody listens there: is the bridge running? try `moat proxy status` on the host")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn a_code_that_says_little_is_explained() {
        let hint = |errno: Errno| super::hint(&errno.into());
        assert!(hint(Errno::ENODEV).is_some_and(|text| text.contains("no vsock device")));
        assert_eq!(
            hint(Errno::ECONNRESET),
            hint(Errno::ETIMEDOUT),
            "one device resets, another lets it time out"
        );
        assert_eq!(hint(Errno::EIO), None);
        assert_eq!(super::hint(&io::ErrorKind::TimedOut.into()), None);
    }
}
