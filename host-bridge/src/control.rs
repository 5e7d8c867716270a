//! The control socket: HTTP over `proxy/daemon.sock`, for the `moat` command of the same user only.

pub(crate) mod api;
pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod spawn;
