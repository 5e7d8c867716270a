//! One connection of HTTP/1.1. hyper has it, but for the time in which an event stream goes out.
//!
//! ```text
//!         ┌────────────────── its end ──────────────────┐
//!         ▼                                             │
//! ──► hyper: requests, answers ──a stream pauses──► chunks: its rest ──cut, agent gone, last request──► closed
//!         │    ▲
//!         └────┴── CONNECT to ourselves: hyper anew, inside
//! ```
//!
//! Thousands of connections are idle with a stream that is open for hours, and hyper holds two buffers of 8 KiB for
//! each. So the rest of a stream is written without it, from the first time that there is nothing more for now. By then
//! hyper has written a head and whole chunks, and what it has read of the next request it hands back.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::{self, Poll},
};

use bytes::Bytes;
use http::{Request, Response, header::CONTENT_LENGTH};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use moat_shared::{limits, rt::drain::Drain};
use tokio::io::AsyncWriteExt;

use super::{
    Context,
    answer::Answer,
    chunks, headers,
    patience::{Hurried, InFlight, Progress},
    queue::{Cut, Reader},
    respond::{foreign, respond},
    rewind::Rewind,
};

/// hyper's own bound on a head lies above ours, so that what is a little too large gets an answer in JSON-RPC.
const HEAD: usize = 2 * limits::HEADER_LIST as usize;
/// So does its bound on the lines. Not far: it makes room for so many in every request.
const HEADERS: usize = limits::HEADER_COUNT + 32;

/// Who has the connection after hyper.
#[derive(Debug)]
enum Next {
    /// We, for the rest of a stream; the answer to the last request, or not.
    Chunks { rest: Reader, last: bool },
    /// hyper again, for what is inside a CONNECT.
    Inside,
}

/// Where hyper's part leaves who comes next.
#[derive(Debug, Clone, Default)]
struct Slot(Arc<Mutex<Option<Next>>>);

impl Slot {
    fn put(&self, next: Next) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(next);
    }

    fn take_if(&self, wanted: impl FnOnce(&mut Next) -> bool) -> Option<Next> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take_if(wanted)
    }
}

/// Serves a connection until its end.
pub(crate) async fn serve(context: Arc<Context>, mut stream: Rewind, mut drain: Drain) {
    let mut outer = true;
    loop {
        // In a box that is gone when hyper is not wanted.
        let next;
        (next, stream) = match Box::pin(hyper_serves(&context, stream, &mut drain, outer)).await {
            Some(handed) => handed,
            None => return,
        };
        match next {
            Next::Inside => outer = false,
            Next::Chunks { rest, last } => {
                // An error ends this connection alone, and its agent knows.
                if chunks::write(&mut stream, rest).await.is_err() {
                    return;
                }
                if last {
                    let _closed = stream.shutdown().await.is_ok();
                    return;
                }
            }
        }
    }
}

/// hyper's part: ends with who comes next, or at the connection's end.
async fn hyper_serves(
    context: &Arc<Context>,
    stream: Rewind,
    drain: &mut Drain,
    outer: bool,
) -> Option<(Next, Rewind)> {
    let (progress, slot) = (Progress::default(), Slot::default());
    let stream = Hurried::new(stream, context.timing.request_head, progress.clone());
    let service = {
        let (context, progress, slot) = (Arc::clone(context), progress.clone(), slot.clone());
        service_fn(move |request| {
            let (context, in_flight, slot) = (Arc::clone(&context), progress.asked(), slot.clone());
            Box::pin(
                async move { Ok::<_, Infallible>(answer(&context, request, outer, in_flight, slot).await) },
            )
        })
    };
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(context.timing.idle)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut signalled = pin!(drain.signalled());
    let mut draining = false;
    let next = poll_fn(|task| {
        if !draining && signalled.as_mut().poll(task).is_ready() {
            draining = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        poll_hyper(&mut connection, &progress, &slot, task)
    })
    .await?;
    let parts = connection.into_parts();
    // A copy, because it is a part of the whole buffer.
    let ahead = Bytes::copy_from_slice(&parts.read_buf);
    Some((next, parts.io.into_inner().into_inner().before(ahead)))
}

/// Ends when hyper does, and when it waits for a rest that somebody else writes: not before all is out that it wrote.
fn poll_hyper(
    connection: &mut (impl Future<Output = hyper::Result<()>> + Unpin),
    progress: &Progress,
    slot: &Slot,
    task: &mut task::Context<'_>,
) -> Poll<Option<Next>> {
    match Pin::new(connection).poll(task) {
        Poll::Ready(Ok(())) => Poll::Ready(slot.take_if(|_| true)),
        // It ends this connection alone, and its agent knows.
        Poll::Ready(Err(_)) => Poll::Ready(None),
        Poll::Pending => {
            let waits = |next: &mut Next| matches!(next, Next::Chunks { .. }) && progress.is_flushed();
            slot.take_if(waits).map_or(Poll::Pending, |next| Poll::Ready(Some(next)))
        }
    }
}

async fn answer(
    context: &Context,
    request: Request<Incoming>,
    outer: bool,
    in_flight: InFlight,
    slot: Slot,
) -> Response<Lent> {
    let lend = |answer, leave| Lent { answer, leave, in_flight };
    if outer && request.method() == http::Method::CONNECT {
        return match context.guard.check(request.uri(), request.headers()) {
            Ok(()) => {
                slot.put(Next::Inside);
                Response::new(lend(Answer::empty(), None))
            }
            Err(why) => foreign(why).map(|answer| lend(answer, None)),
        };
    }
    let last = headers::ask_to_close(request.headers());
    let response = respond(context, request).await;
    // Without a length, an answer goes out in chunks.
    let chunked = headers::is_writable_stream(&response) && !response.headers().contains_key(CONTENT_LENGTH);
    response.map(|answer| lend(answer, chunked.then_some(Leave { slot, last })))
}

/// An answer while hyper writes it. With it the request is over.
#[derive(Debug)]
struct Lent {
    answer: Answer,
    /// Where its rest goes when there is nothing more for now.
    leave: Option<Leave>,
    in_flight: InFlight,
}

#[derive(Debug)]
struct Leave {
    slot: Slot,
    last: bool,
}

impl Body for Lent {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.answer).poll_frame(task);
        if let (Poll::Pending, Some(leave)) = (&frame, &this.leave)
            && let Some(rest) = this.answer.take_rest()
        {
            this.in_flight.await_flush();
            leave.slot.put(Next::Chunks { rest, last: leave.last });
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{body::Upload, relay::queue::queue};
    use http_body_util::Empty;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, duplex};

    #[tokio::test]
    async fn nothing_that_hyper_wrote_is_left_behind() {
        let (mut agent, relay) = duplex(32);
        let (progress, slot) = (Progress::default(), Slot::default());
        let (queue, reader) = queue();
        queue.push(Bytes::from_static(b"data: a\n\n"));
        let lent = Lent {
            answer: Answer::Streamed { reader, upload: Upload::new(Empty::<Bytes>::new()).noted() },
            leave: Some(Leave { slot: slot.clone(), last: false }),
            in_flight: progress.asked(),
        };
        let lent = Mutex::new(Some(lent));
        let service = service_fn(|_| {
            let answer = Response::new(lent.lock().unwrap().take().unwrap());
            async { Ok::<_, Infallible>(answer) }
        });
        let stream = Hurried::new(relay, Duration::from_secs(10), progress.clone());
        let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        agent.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut seen = Vec::new();
        let next = loop {
            tokio::select! {
                biased;
                next = poll_fn(|task| poll_hyper(&mut connection, &progress, &slot, task)) => break next,
                byte = agent.read_u8() => seen.push(byte.unwrap()),
            }
        };
        assert!(matches!(next, Some(Next::Chunks { last: false, .. })));
        drop(connection);
        agent.read_to_end(&mut seen).await.unwrap();
        let seen = String::from_utf8(seen).unwrap();
        assert!(seen.ends_with("\r\n\r\n9\r\ndata: a\n\n\r\n"), "{seen}");
    }
}
