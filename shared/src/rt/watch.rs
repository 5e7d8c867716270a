//! A socket that the runtime watches. The crate's only unsafe code.

#![expect(unsafe_code, reason = "tokio wants a promise that the descriptor stays the socket's")]

use std::io;

use socket2::Socket;
use tokio::io::{Interest, unix::AsyncFd};

/// Has the current runtime watch it. It has to be non-blocking.
///
/// # Errors
/// For want of memory, or when it cannot be waited for. The socket is closed then.
///
/// # Panics
/// Outside of a runtime.
pub(super) fn watch(socket: Socket, interest: Interest) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor, has the same one for all its life and closes it no earlier than that ends;
    // and here it is owned by what is returned, which gives it away only after it has ended the watch.
    let watched = unsafe { AsyncFd::register_with_interest(socket, interest) };
    Ok(watched?)
}
