//! Streams between a guest and its host (`AF_VSOCK`), from either side.
//!
//! A stream that is open is a stream socket as any other. Nothing here half-closes and goes on reading: between a guest
//! and its host that is not portable.

use std::io;

#[cfg(target_os = "linux")]
pub use linux::{Listener, dial};
#[cfg(not(target_os = "linux"))]
pub use nowhere::{Listener, dial};

#[cfg(target_os = "linux")]
mod linux {
    use std::io;

    use socket2::{Domain, SockAddr, Socket, Type};
    use tokio::io::{Interest, unix::AsyncFd};

    use crate::rt::watch::watch;

    /// There is one tunnel to a run.
    const BACKLOG: i32 = 128;

    fn opened() -> io::Result<Socket> {
        let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// Connects. The kernel gives up after 2 s.
    ///
    /// # Errors
    /// When nobody is there, or this machine has no such sockets.
    pub async fn dial(cid: u32, port: u32) -> io::Result<Socket> {
        let socket = opened()?;
        match socket.connect(&SockAddr::vsock(cid, port)) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let connecting = watch(socket, Interest::WRITABLE)?;
        let connected = |socket: &Socket| match socket.take_error()? {
            Some(error) => Err(error),
            // Woken too early: from here on it is not writable.
            None if socket.peer_addr().is_err() => Err(io::ErrorKind::WouldBlock.into()),
            None => Ok(()),
        };
        connecting.async_io(Interest::WRITABLE, connected).await?;
        Ok(connecting.into_inner())
    }

    /// A port that is listened to.
    #[derive(Debug)]
    pub struct Listener(AsyncFd<Socket>);

    impl Listener {
        /// Takes the port of that CID, which has to be one of this machine's.
        ///
        /// # Errors
        /// When it is not, or somebody else has the port.
        pub fn bind(cid: u32, port: u32) -> io::Result<Self> {
            let socket = opened()?;
            socket.bind(&SockAddr::vsock(cid, port))?;
            socket.listen(BACKLOG)?;
            watch(socket, Interest::READABLE).map(Self)
        }

        /// The next who comes.
        ///
        /// # Errors
        /// For want of descriptors.
        pub async fn accept(&self) -> io::Result<Socket> {
            let (accepted, _) = self.0.async_io(Interest::READABLE, Socket::accept).await?;
            Ok(accepted)
        }
    }
}

/// Other systems' kernels have none, or others.
#[cfg(not(target_os = "linux"))]
mod nowhere {
    use std::io;

    use socket2::Socket;

    /// # Errors
    /// Always.
    pub async fn dial(_cid: u32, _port: u32) -> io::Result<Socket> {
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
        pub async fn accept(&self) -> io::Result<Socket> {
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
