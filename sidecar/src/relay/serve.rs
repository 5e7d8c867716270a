//! One connection of an agent: HTTP/1.1 or h2c, told apart by the first bytes.
//!
//! ```text
//! accepted ──► first bytes ──"PRI * HTTP/2.0"──► HTTP/2
//!                   └───────── else ──────────► HTTP/1.1
//! ```
//!
//! Thousands of them are idle, each with an event stream that is open for hours. So what is not needed then is in boxes
//! of its own: either protocol's state, and what it takes to answer a request until its answer begins.

use std::{convert::Infallible, io, pin::pin, sync::Arc};

use bytes::{Bytes, BytesMut};
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use moat_shared::{limits, rt::drain::Drain};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::OwnedSemaphorePermit, time::timeout};

use super::{Context, http1, respond::respond, rewind::Rewind};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Streams of one h2c connection.
const STREAMS: u32 = 1024;
/// Windows of one h2c connection: all its streams' fit into the connection's, so that none stalls another.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// Cancelled requests that an agent may leave behind before its connection is cut.
const CANCELLED: usize = 65_536;

/// Serves one connection until its end, in its place among all of them.
pub(crate) async fn serve(
    context: Arc<Context>,
    stream: TcpStream,
    drain: Drain,
    _place: OwnedSemaphorePermit,
) {
    if stream.set_nodelay(true).is_err() {
        return; // The agent has gone already.
    }
    match timeout(context.timing.request_head, first_bytes(stream)).await {
        Ok(Ok((true, stream))) => Box::pin(serve_http2(context, stream, drain)).await,
        Ok(Ok((false, stream))) => http1::serve(context, stream, drain).await,
        // Gone, or too slow: there is nobody to answer.
        Ok(Err(_)) | Err(_) => {}
    }
}

/// Finds out which protocol this is. The first bytes are looked at and left where they are, as far as they come at once:
/// so they are read once, into the buffer that they stay in.
async fn first_bytes(mut stream: TcpStream) -> io::Result<(bool, Rewind)> {
    let mut start = [0; PREFACE.len()];
    let length = stream.peek(&mut start).await?;
    let http2 = start[..length] == PREFACE[..length];
    if length > 0 && (!http2 || length == PREFACE.len()) {
        return Ok((http2, Rewind::new(Bytes::new(), stream)));
    }
    let mut first = BytesMut::with_capacity(PREFACE.len());
    loop {
        if stream.read_buf(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = first.len().min(PREFACE.len());
        let http2 = first[..length] == PREFACE[..length];
        if !http2 || length == PREFACE.len() {
            return Ok((http2, Rewind::new(first.freeze(), stream)));
        }
    }
}

async fn serve_http2(context: Arc<Context>, stream: Rewind, mut drain: Drain) {
    let service = {
        let context = Arc::clone(&context);
        service_fn(move |request| {
            let context = Arc::clone(&context);
            async move { Ok::<_, Infallible>(respond(&context, request).await) }
        })
    };
    let connection = http2::Builder::new(context.tasks.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(limits::HEADER_LIST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_pending_accept_reset_streams(CANCELLED)
        .max_local_error_reset_streams(CANCELLED)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let _ended = tokio::select! {
        ended = connection.as_mut() => ended.is_ok(),
        () = drain.signalled() => {
            connection.as_mut().graceful_shutdown();
            connection.await.is_ok()
        }
    };
}
