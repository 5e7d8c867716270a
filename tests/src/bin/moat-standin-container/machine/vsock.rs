//! vsock, in a guest. std has no types for it; to the kernel a stream is a stream, so it is held as a unix socket's.
//!
//! Only in a guest: this machine may be one itself, and its host is not the tests' to talk to.

use std::{io, os::fd::OwnedFd, os::unix::net::UnixStream};

use socket2::{Domain, SockAddr, Socket, Type};

/// Where the guest's first program listens, as Apple's does.
pub(super) const CONTROL: u32 = 1024;
/// Where the guest tells its host that it is there.
pub(super) const READY: u32 = 1025;
/// The first of the sockets that are published, and of those that are mounted: one port for each.
const PUBLISHED: u32 = 2000;
const MOUNTED: u32 = 3000;
/// The machine around a guest.
const HOST: u32 = 2;
const ANY: u32 = u32::MAX;
/// Connections that wait.
const WAITING: i32 = 64;

/// Of a published socket.
pub(super) fn published(number: usize) -> u32 {
    PUBLISHED + u32::try_from(number).unwrap_or_default()
}

/// Of one that is mounted.
pub(super) fn mounted(number: usize) -> u32 {
    MOUNTED + u32::try_from(number).unwrap_or_default()
}

/// The host's port.
pub(super) fn dial(port: u32) -> io::Result<UnixStream> {
    let socket = socket()?;
    socket.connect(&SockAddr::vsock(HOST, port))?;
    Ok(OwnedFd::from(socket).into())
}

/// The guest's port, and what comes to it.
pub(super) fn listen(port: u32) -> io::Result<impl FnMut() -> io::Result<UnixStream> + Send> {
    let socket = socket()?;
    socket.bind(&SockAddr::vsock(ANY, port))?;
    socket.listen(WAITING)?;
    Ok(move || socket.accept().map(|(stream, _)| OwnedFd::from(stream).into()))
}

fn socket() -> io::Result<Socket> {
    if std::process::id() != 1 {
        return Err(io::Error::other("vsock is for the first process of a guest alone"));
    }
    Socket::new(Domain::VSOCK, Type::STREAM, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_s_own_is_not_touched() {
        for error in [dial(CONTROL).err(), listen(CONTROL).err()] {
            assert!(error.is_some_and(|error| error.to_string().contains("first process of a guest")));
        }
    }
}
