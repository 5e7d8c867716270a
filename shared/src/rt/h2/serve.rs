//! A connection at the end that answers: each request becomes a task.
//!
//! ```text
//! handshake ──► open: accepts streams ──told to close──► GOAWAY: those that are there finish ──► over
//!                 └──────────── broken, or the other side is dead ────────────┘──► Broken
//! ```

use std::{future::Future, pin::pin};

use ::h2::server::Connection;
use bytes::Buf;
use http::{Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    pulse::{Heard, Pulse},
    received::Received,
    stream::Stream,
};
use crate::rt::exec::Owned;

/// Why a connection ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It was lost, or the other side broke its rules.
    #[error(transparent)]
    Http2(#[from] ::h2::Error),
    /// The other side does not live any more.
    #[error("the other side does not answer pings any more")]
    Silent,
}

/// Serves a connection to its end. Each stream is one of `tasks`, and ends at once when the other side resets it: whoever
/// owns the tasks ends them with the connection.
///
/// # Errors
/// When the connection breaks.
pub async fn serve<I, S, F, B>(
    io: I,
    pulse: Pulse,
    closing: impl Future<Output = ()>,
    tasks: &Owned,
    mut service: S,
) -> Result<(), Broken>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: FnMut(Request<Received>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data: Buf + Default + Send> + Unpin + Send + 'static,
{
    let mut connection: Connection<I, B::Data> = super::bridge().handshake(io).await?;
    let heard = Heard::default();
    let pings = connection.ping_pong();
    let mut dead = pin!(async {
        match pings {
            Some(pings) => pulse.stops(pings, heard.clone()).await,
            None => std::future::pending().await,
        }
    });
    let mut closing = pin!(closing);
    let mut closed = false;
    loop {
        tokio::select! {
            biased;
            () = &mut closing, if !closed => {
                closed = true;
                connection.graceful_shutdown();
            }
            over = accept(&mut connection, &heard, tasks, &mut service) => return Ok(over?),
            () = &mut dead => return Err(Broken::Silent),
        }
    }
}

/// Makes tasks of streams. May be dropped at any time: none is lost.
async fn accept<I, S, F, B>(
    connection: &mut Connection<I, B::Data>,
    heard: &Heard,
    tasks: &Owned,
    service: &mut S,
) -> Result<(), ::h2::Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: FnMut(Request<Received>) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data: Buf + Default + Send> + Unpin + Send + 'static,
{
    while let Some(accepted) = connection.accept().await {
        let (request, reply) = accepted?;
        let (head, stream) = request.into_parts();
        let body = Received::new(stream, heard.clone()).of_length(&head.headers);
        tasks.spawn(Stream::new(service(Request::from_parts(head, body)), reply));
    }
    Ok(())
}
