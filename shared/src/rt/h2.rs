//! The HTTP/2 settings of the tunnel, chosen and not defaulted.
//!
//! The sidecar's window for the connection holds thousands of streams' windows, so that an agent that stalls never disturbs
//! another; and it is large because h2 charges unread tiny frames against half of it. The bridge's bounds what a sandbox
//! can make it hold. Both ends raise the bounds on resets, so
//! that a storm of cancelled requests costs nothing but itself.

pub mod pulse;
pub mod received;
pub mod send;
pub mod serve;
mod stream;

use std::time::Duration;

use ::h2::{client, server};

use crate::limits;

/// The longest frame that the bridge takes: the least that it may (RFC 9113, section 6.5.2).
const FRAME: u32 = 16 * 1024;
const STREAM_WINDOW: u32 = 256 * 1024;
const SIDECAR_CONNECTION_WINDOW: u32 = (1 << 31) - 1;
/// What a run may leave at the bridge of bodies that no upstream takes. Beyond it the run's own uploads wait.
const BRIDGE_CONNECTION_WINDOW: u32 = 64 << 20;
/// Bytes of one stream that may wait to be sent; hyper's own defaults are up to sixteen times as much.
const SEND_BUFFER: usize = 64 * 1024;
const PENDING_RESETS: usize = 65_536;
const LOCAL_RESETS: usize = 1_000_000;
const REMEMBERED_RESETS: usize = 4096;
const REMEMBER_RESETS_FOR: Duration = Duration::from_secs(30);

/// The sidecar's end: the HTTP/2 client, whoever dialled. Its pings are its own.
#[must_use]
pub fn sidecar() -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(SIDECAR_CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_max_send_streams(limits::STREAMS_PER_RUN as usize)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .reset_stream_duration(REMEMBER_RESETS_FOR)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(LOCAL_RESETS))
        .max_header_list_size(limits::HEADER_LIST);
    builder
}

/// The bridge's end: the HTTP/2 server. Its pings are its own too.
fn bridge() -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(BRIDGE_CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(limits::STREAMS_PER_RUN)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(LOCAL_RESETS))
        .max_header_list_size(limits::HEADER_LIST);
    builder
}

#[cfg(test)]
mod tests;
