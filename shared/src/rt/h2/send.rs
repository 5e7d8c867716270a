//! The body of a message on its way into the tunnel.
//!
//! ```text
//! a frame ──► room in the stream's window ──► sent ──► the next one ... ──► END_STREAM
//!    │                                                  ├── the body is cut ──► RST_STREAM(INTERNAL_ERROR)
//!    └── the other side resets the stream ──────────────┴──► over
//! ```

use std::{future::poll_fn, pin::pin};

use ::h2::{Reason, SendStream};
use bytes::Bytes;
use http_body::{Body, Frame};

/// Sends a body to its end, or until the other side wants no more of it. One that is cut does not look complete.
pub async fn send<B>(body: B, mut out: SendStream<Bytes>)
where
    B: Body<Data = Bytes>,
{
    let mut body = pin!(body);
    loop {
        let frame = tokio::select! {
            biased;
            _reset = poll_fn(|context| out.poll_reset(context)) => return,
            frame = poll_fn(|context| body.as_mut().poll_frame(context).map(|frame| {
                frame.map(|frame| frame.map(Frame::into_data).map_err(drop))
            })) => frame,
        };
        let last = body.is_end_stream();
        // An error means that the stream is over, or the tunnel: whoever waits for the answer hears of it.
        let sent = match frame {
            Some(Ok(Ok(data))) if data.is_empty() && !last => continue,
            Some(Ok(Ok(data))) => match room(&mut out, data.len()).await {
                Some(()) => out.send_data(data, last),
                None => return,
            },
            Some(Ok(Err(frame))) => match frame.into_trailers() {
                Ok(trailers) => {
                    drop(out.send_trailers(trailers));
                    return;
                }
                Err(_unknown) => continue,
            },
            Some(Err(())) => return out.send_reset(Reason::INTERNAL_ERROR),
            None => {
                drop(out.send_data(Bytes::new(), true));
                return;
            }
        };
        if last || sent.is_err() {
            return;
        }
    }
}

/// Waits for room in the stream's window, and does not ask for more than is needed to begin: what exceeds it waits in
/// HTTP/2's buffer, one piece at most.
async fn room(out: &mut SendStream<Bytes>, length: usize) -> Option<()> {
    if length > 0 {
        out.reserve_capacity(1);
        while out.capacity() == 0 {
            poll_fn(|context| out.poll_capacity(context)).await?.ok()?;
        }
    }
    Some(())
}
