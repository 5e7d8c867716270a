//! One request as one stream of the tunnel (T1): what goes out, and what comes back, both at once.
//!
//! ```text
//! Sender::send ──► head ──┬── body that is there ──► with it
//!                         └── else ──► upload, a task of its own: until its end, or until nobody wants the answer
//! answer's head ──► Incoming: data and trailers, as they are asked for
//! ```
//!
//! Nothing here is sent twice: a request is handed back only when the tunnel was closed before it was taken (T4).

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::Full;
use moat_shared::rt::h2::{pulse::Heard, received::Received, send::Sending};
use tokio::{sync::Notify, task::JoinSet};

use crate::body::{Upload, Windowed};

/// Makes streams of one tunnel.
#[derive(Debug, Clone)]
pub(crate) struct Sender {
    streams: SendRequest<Bytes>,
    heard: Heard,
    /// Told when the tunnel takes no more requests: those in flight may go on for hours.
    closing: Arc<Notify>,
}

/// A request was not answered.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// It never left.
    Unsent(Box<Request<Upload>>),
    /// It may have arrived.
    Lost,
}

impl Sender {
    pub(super) fn new(streams: SendRequest<Bytes>, heard: Heard, closing: Arc<Notify>) -> Self {
        Self { streams, heard, closing }
    }

    /// Sends a request; its answer as soon as the head is there. Dropping this, or the answer's body, cancels both.
    ///
    /// # Errors
    /// When the tunnel is closed or breaks.
    pub(crate) async fn send(self, request: Request<Upload>) -> Result<Response<Incoming>, Unanswered> {
        let Self { streams, heard, closing } = self;
        let mut streams = match streams.ready().await {
            Ok(streams) => streams,
            Err(error) => {
                // A connection that broke has told already.
                if error.is_go_away() {
                    closing.notify_one();
                }
                return Err(Unanswered::Unsent(Box::new(request)));
            }
        };
        ask(&mut streams, request, heard).await.map_err(|_| Unanswered::Lost)
    }

    /// Asks something that is not an agent's.
    ///
    /// # Errors
    /// When the tunnel breaks.
    pub(super) async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, h2::Error> {
        ask(&mut self.streams.clone().ready().await?, request, self.heard.clone()).await
    }
}

async fn ask<B>(
    streams: &mut SendRequest<Bytes>,
    request: Request<B>,
    heard: Heard,
) -> Result<Response<Incoming>, h2::Error>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
{
    let (head, body) = request.into_parts();
    let (answer, out) = streams.send_request(Request::from_parts(head, ()), body.is_end_stream())?;
    let mut upload = JoinSet::new();
    if !body.is_end_stream() {
        // Most bodies are there, and go with the head.
        let mut sending = Sending::new(body, out).with_head();
        if poll_fn(|context| Poll::Ready(Pin::new(&mut sending).poll(context))).await.is_pending() {
            upload.spawn(sending);
        }
    }
    let answer = answer.await?;
    Ok(answer.map(|stream| Incoming { body: Received::new(stream, heard), _upload: upload }))
}

/// An answer's body on its way out of the tunnel. With it goes what is left of the upload. More comes when what was taken
/// is released.
#[derive(Debug)]
pub(crate) struct Incoming {
    body: Received,
    _upload: JoinSet<()>,
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        self.body.poll_withheld(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

impl Windowed for Incoming {
    fn is_withheld(&self) -> bool {
        self.body.is_withheld()
    }

    fn release(&mut self) -> Result<(), h2::Error> {
        self.body.release()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Channel};
    use std::{future::pending, time::Duration};
    use tokio::{io::duplex, time::timeout};

    #[tokio::test]
    async fn an_upload_ends_with_who_wants_its_answer() {
        let (ours, theirs) = duplex(1 << 16);
        let (here, there) = tokio::join!(h2::client::handshake(ours), h2::server::handshake(theirs));
        let ((streams, here), mut there) = (here.unwrap(), there.unwrap());
        let (mut agent, body) = Channel::<Bytes, h2::Error>::new(1);
        let request = Request::post("http://bridge.moat/mcp/notion").body(body).unwrap();
        let ask = async {
            let mut streams = streams.ready().await.unwrap();
            let answer = ask(&mut streams, request, Heard::default()).await.unwrap();
            let piece = Bytes::from_static(b"x");
            agent.send_data(piece.clone()).await.unwrap();
            drop(answer);
            while agent.send_data(piece.clone()).await.is_ok() {}
        };
        let serve = async {
            let mut held = Vec::new();
            while let Some(request) = there.accept().await {
                let (request, mut reply) = request.unwrap();
                held.push((reply.send_response(Response::new(()), false).unwrap(), request));
            }
            pending().await
        };
        tokio::select! {
            () = ask => {}
            _ = here => panic!("the connection is over"),
            () = serve => {}
        }
    }

    /// The clock stands still until nobody has anything to do: what does not come by then does not come.
    #[tokio::test(start_paused = true)]
    async fn more_comes_when_what_was_taken_is_released() {
        const WINDOW: usize = 16;
        let (ours, theirs) = duplex(1 << 16);
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(u32::try_from(WINDOW).unwrap());
        let (here, there) = tokio::join!(builder.handshake(ours), h2::server::handshake(theirs));
        let ((streams, here), mut there) = (here.unwrap(), there.unwrap());
        let ask = async {
            let mut streams = streams.ready().await.unwrap();
            let request = Request::get("http://bridge.moat/mcp/notion").body(Full::default()).unwrap();
            let mut body = ask(&mut streams, request, Heard::default()).await.unwrap().into_body();
            for _ in 0..3 {
                let mut taken = 0;
                while taken < WINDOW {
                    taken += body.frame().await.unwrap().unwrap().into_data().unwrap().len();
                }
                assert_eq!(taken, WINDOW);
                let idle = timeout(Duration::from_secs(1), body.frame()).await;
                assert!(idle.is_err(), "more than a window");
                body.release().unwrap();
            }
        };
        let serve = async {
            let (_request, mut reply) = there.accept().await.unwrap().unwrap();
            let mut out = reply.send_response(Response::new(()), false).unwrap();
            out.send_data(vec![0; 3 * WINDOW].into(), false).unwrap();
            let _nothing = there.accept().await;
        };
        tokio::select! {
            () = ask => {}
            _ = here => panic!("the connection is over"),
            () = serve => panic!("the connection is over"),
        }
    }

    #[tokio::test]
    async fn an_answer_s_trailers_pass_and_a_reset_is_an_error_however_polite() {
        let (ours, theirs) = duplex(1 << 16);
        let (here, there) = tokio::join!(h2::client::handshake(ours), h2::server::handshake(theirs));
        let ((streams, here), mut there) = (here.unwrap(), there.unwrap());
        let seen = Notify::new();
        let ask = async {
            let mut streams = streams.ready().await.unwrap();
            for polite in [false, true] {
                let request = Request::get("http://bridge.moat/mcp/notion");
                let request = request.body(Full::default()).unwrap();
                let answer = ask(&mut streams, request, Heard::default()).await.unwrap();
                let mut body = answer.into_body();
                assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data");
                seen.notify_one();
                match body.collect().await {
                    Ok(rest) => assert_eq!(rest.trailers().unwrap()["x-end"], "1"),
                    Err(reset) => assert!(polite, "{reset}"),
                }
            }
        };
        let serve = async {
            let mut polite = false;
            while let Some(request) = there.accept().await {
                let (_request, mut reply) = request.unwrap();
                let mut out = reply.send_response(Response::new(()), false).unwrap();
                out.send_data(Bytes::from_static(b"data"), false).unwrap();
                // The connection moves only while its next stream is waited for.
                tokio::select! {
                    biased;
                    () = seen.notified() => {}
                    _ = there.accept() => panic!("one after the other"),
                }
                match polite {
                    true => out.send_reset(h2::Reason::NO_ERROR),
                    false => {
                        let trailers = [("x-end".parse().unwrap(), "1".parse().unwrap())];
                        out.send_trailers(trailers.into_iter().collect()).unwrap();
                    }
                }
                polite = true;
            }
            pending().await
        };
        tokio::select! {
            () = ask => {}
            _ = here => panic!("the connection is over"),
            () = serve => {}
        }
    }
}
