//! Carries one response from the tunnel to the agent's [`Queue`](super::queue::Queue), whether the agent reads or not.
//!
//! ```text
//!        ┌─ bytes ──► push ──► room? ──► release: more may come
//! wait ──┼─ silence ─► comment (event streams, between events: R20)
//!   ▲    ├─ agent gone ──► drop the stream: RST_STREAM(CANCEL) (R17)
//!   └────┼─ end ──► complete
//!        ├─ not complete, says the bridge ─► cut (T3)
//!        └─ lost ─► last words, or cut (R18)
//! ```
//!
//! All that comes is taken at once: what is left in HTTP/2 is charged to the whole connection, and a frame of a few bytes
//! costs hundreds there. But past [`STALLED_READER`](moat_shared::limits::STALLED_READER) it is not released, so that the
//! stream's own window holds the sender back; and a reader that takes nothing at all is given up, alone.

use std::{
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use moat_shared::wire;
use tokio::time::{Instant, sleep_until};

use super::{
    Timing,
    lost::{Asked, EventStream},
    queue::{End, Queue, Stuck},
};
use crate::body::Windowed;

const COMMENT: &[u8] = b":\n\n";
/// For streams on which no comment may be written.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// One response on its way.
#[derive(Debug)]
pub(crate) struct Pump<B> {
    pub(crate) body: B,
    pub(crate) queue: Queue,
    pub(crate) asked: Asked,
    /// What is followed of an uncompressed event stream; nothing of any other body.
    pub(crate) events: Option<EventStream>,
    pub(crate) timing: Timing,
}

enum Step<E> {
    Frame(Option<Result<Frame<Bytes>, E>>),
    Silence,
    Room(Result<(), Stuck>),
}

impl<B> Pump<B>
where
    B: Windowed<Data = Bytes> + Unpin,
{
    /// Takes what came with the head, so that both leave in one write. The response is over when this breaks.
    pub(crate) fn take_first(&mut self) -> ControlFlow<()> {
        match Pin::new(&mut self.body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(frame) => self.take(frame),
            Poll::Pending => ControlFlow::Continue(()),
        }
    }

    /// Runs until the response is over, one way or the other. The queue's reader is told which.
    pub(crate) async fn run(mut self) {
        let mut heard = Instant::now();
        loop {
            if self.queue.has_room() && self.body.release().is_err() {
                return self.lost();
            }
            match self.step(heard).await {
                Step::Frame(frame) => {
                    if self.take(frame).is_break() {
                        return;
                    }
                    heard = Instant::now();
                }
                Step::Silence => {
                    if self.queue.is_empty() {
                        self.queue.push(Bytes::from_static(COMMENT));
                    }
                    heard = Instant::now();
                }
                Step::Room(Ok(())) => {}
                Step::Room(Err(Stuck::Gone)) => return,
                Step::Room(Err(Stuck::Stalled)) => return self.queue.abandon(),
            }
        }
    }

    /// Passes on what came; breaks at the end, of which the queue's reader is told.
    fn take(&mut self, frame: Option<Result<Frame<Bytes>, B::Error>>) -> ControlFlow<()> {
        match frame {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => self.pass(bytes),
                // The bridge has told whom it could, in its own words; what is left is not to end well.
                Err(frame) if says_incomplete(&frame) => {
                    self.queue.end(End::Cut);
                    return ControlFlow::Break(());
                }
                // Other trailers are dropped (T8).
                Err(_) => {}
            },
            None if self.body.is_end_stream() => {}
            Some(Err(_)) | None => {
                self.lost();
                return ControlFlow::Break(());
            }
        }
        // A stream that is reset politely also ends, but not with an end of stream (T3).
        if self.body.is_end_stream() {
            self.queue.end(End::Complete);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    async fn step(&mut self, heard: Instant) -> Step<B::Error> {
        let withheld = self.body.is_withheld();
        let quiet = match &self.events {
            Some(events) if !withheld && events.between_events() => self.timing.keep_alive,
            _ => NEVER,
        };
        let room = async {
            if withheld {
                return self.queue.room(self.timing.stalled).await;
            }
            self.queue.gone().await;
            Err(Stuck::Gone)
        };
        tokio::select! {
            biased;
            room = room => Step::Room(room),
            frame = self.body.frame() => Step::Frame(frame),
            () = sleep_until(heard + quiet) => Step::Silence,
        }
    }

    fn pass(&mut self, bytes: Bytes) {
        if let Some(events) = &mut self.events {
            events.push(&bytes);
        }
        self.queue.push(bytes);
    }

    fn lost(&self) {
        match self.events.as_ref().and_then(|events| events.last_words(&self.asked)) {
            Some(words) => {
                self.queue.push(words);
                self.queue.end(End::Complete);
            }
            None => self.queue.end(End::Cut),
        }
    }
}

fn says_incomplete(frame: &Frame<Bytes>) -> bool {
    frame.trailers_ref().is_some_and(|trailers| trailers.contains_key(wire::INCOMPLETE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        body::Upload,
        relay::queue::{Reader, queue},
    };
    use http::Method;
    use http_body::Body;
    use http_body_util::{Channel, Full, channel::Sender};
    use moat_shared::limits;
    use std::{convert::Infallible, task::ready};
    use test_case::test_case;

    const KEEP_ALIVE: Duration = Duration::from_secs(15);

    type Tunnel = Sender<Bytes, &'static str>;

    const WINDOW: usize = 64 * 1024;

    /// What comes through a window.
    struct ThroughWindow {
        body: Channel<Bytes, &'static str>,
        withheld: usize,
        waker: Option<Waker>,
    }

    impl Body for ThroughWindow {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            if self.withheld >= WINDOW {
                self.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
            if let Some(Ok(frame)) = &frame {
                self.withheld += frame.data_ref().map_or(0, Bytes::len);
            }
            Poll::Ready(frame)
        }

        fn is_end_stream(&self) -> bool {
            self.body.is_end_stream()
        }
    }

    impl Windowed for ThroughWindow {
        fn is_withheld(&self) -> bool {
            self.withheld > 0
        }

        fn release(&mut self) -> Result<(), &'static str> {
            self.withheld = 0;
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
            Ok(())
        }
    }

    async fn asked(method: Method, body: &'static str) -> Asked {
        let mut upload: Upload<Full<Bytes>> = Upload::new(Full::new(Bytes::from_static(body.as_bytes())));
        let noted = upload.noted();
        upload.read_ahead().await.unwrap_or_else(|never: Infallible| match never {});
        Asked { method, server: "notion".parse().unwrap(), noted }
    }

    fn start(asked: Asked, events: bool) -> (Tunnel, Reader, impl Future<Output = ()>) {
        let (tunnel, body) = Channel::new(8);
        let body = ThroughWindow { body, withheld: 0, waker: None };
        let (queue, reader) = queue();
        let events = events.then(EventStream::default);
        (tunnel, reader, Pump { body, queue, asked, events, timing: Timing::default() }.run())
    }

    /// Everything that the agent gets, and whether the end is a proper one.
    async fn read(mut reader: Reader) -> (String, bool) {
        let mut seen = Vec::new();
        loop {
            match reader.frame().await {
                Some(Ok(frame)) => seen.extend_from_slice(&frame.into_data().unwrap()),
                Some(Err(_)) => return (String::from_utf8(seen).unwrap(), false),
                None => return (String::from_utf8(seen).unwrap(), true),
            }
        }
    }

    async fn pause(times: u32) {
        tokio::time::sleep(KEEP_ALIVE * times + KEEP_ALIVE / 2).await;
    }

    #[test_case(true, "data: a\n\n", ":\n\n:\n\ndata: a\n\n:\n\n"; "an event stream, between events")]
    #[test_case(true, "data: a\n", ":\n\n:\n\ndata: a\n"; "not inside an event")]
    #[test_case(false, "data: a\n\n", "data: a\n\n"; "not in any other body")]
    #[tokio::test(start_paused = true)]
    async fn comments(events: bool, chunk: &'static str, expected: &str) {
        let (mut tunnel, reader, pump) = start(asked(Method::GET, "").await, events);
        let feed = async {
            pause(2).await;
            tunnel.send_data(Bytes::from_static(chunk.as_bytes())).await.unwrap();
            pause(1).await;
            drop(tunnel);
        };
        let ((), (), (seen, _)) = tokio::join!(pump, feed, read(reader));
        assert_eq!(seen, expected);
    }

    const CALL: &str = r#"{"jsonrpc":"2.0","id":"a-7","method":"tools/call"}"#;
    const LISTEN: &str = r#"{"jsonrpc":"2.0","id":"listen:0","method":"subscriptions/listen"}"#;

    #[test_case(Method::POST, CALL, true, "data: a\n\n" => Some("data: a\n\n".into()); "between events")]
    #[test_case(Method::POST, CALL, true, "data: a\n\ndata: b" => Some("data: a\n\ndata: b\n\n".into()); "inside an event")]
    #[test_case(Method::POST, CALL, true, "" => Some(String::new()); "before the first")]
    #[test_case(Method::POST, CALL, true, "id: 1\ndata: a\n\n" => None; "resumable")]
    #[test_case(Method::POST, CALL, false, "{\"jsonrpc\"" => None; "json")]
    #[test_case(Method::POST, LISTEN, true, "data: a\n\n" => None; "listen")]
    #[test_case(Method::POST, "[]", true, "data: a\n\n" => None; "no id")]
    #[test_case(Method::GET, "", true, "data: a\n\n" => None; "get")]
    #[tokio::test(start_paused = true)]
    async fn losses(
        method: Method,
        request: &'static str,
        events: bool,
        sent: &'static str,
    ) -> Option<String> {
        let (mut tunnel, reader, pump) = start(asked(method, request).await, events);
        let feed = async {
            if !sent.is_empty() {
                tunnel.send_data(Bytes::from_static(sent.as_bytes())).await.unwrap();
            }
            tunnel.abort("lost");
        };
        let ((), (), (seen, proper)) = tokio::join!(pump, feed, read(reader));
        let Some((before, last)) = seen.split_once("event: message\ndata: ") else {
            assert!(!proper, "a lost stream never just ends: {seen:?}");
            assert_eq!(seen, sent, "what came before the loss is not withheld");
            return None;
        };
        assert!(proper && last.ends_with("\n\n"));
        let error: serde_json::Value = serde_json::from_str(last.trim_end()).unwrap();
        assert_eq!(error["id"], "a-7");
        assert_eq!(error["error"]["data"]["kind"], "tunnel_lost");
        Some(before.to_owned())
    }

    /// No error of ours is added: the response may have been in what came.
    #[test_case(true => false; "ours")]
    #[test_case(false => true; "another")]
    #[tokio::test(start_paused = true)]
    async fn a_trailer_of_the_bridges_is_a_cut(ours: bool) -> bool {
        let (mut tunnel, reader, pump) = start(asked(Method::POST, CALL).await, true);
        let feed = async {
            tunnel.send_data(Bytes::from_static(b"data: a\n\n")).await.unwrap();
            let name = if ours { wire::INCOMPLETE } else { "x-other" };
            let trailers = [(name.parse().unwrap(), http::HeaderValue::from_static("1"))];
            tunnel.send_trailers(trailers.into_iter().collect()).await.unwrap();
            drop(tunnel);
        };
        let ((), (), (seen, proper)) = tokio::join!(pump, feed, read(reader));
        assert!(seen.starts_with("data: a\n\n"));
        assert_eq!(seen.len() == 9, ours, "{seen}");
        proper
    }

    /// HTTP/2 lets a peer reset a stream with NO_ERROR, and hyper shows that as the end of the body.
    #[tokio::test(start_paused = true)]
    async fn an_end_that_is_no_end_of_stream_is_a_loss() {
        let (tunnel, reader, pump) = start(asked(Method::POST, "[]").await, true);
        drop(tunnel);
        let ((), (_, proper)) = tokio::join!(pump, read(reader));
        assert!(!proper);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_never_reads_is_given_up() {
        let (mut tunnel, reader, pump) = start(asked(Method::GET, "").await, true);
        let feed = async {
            let event = Bytes::from_static(b"data: 12345\n\n");
            while tunnel.send_data(event.clone()).await.is_ok() {}
        };
        tokio::join!(pump, feed);
        assert_eq!(read(reader).await, (String::new(), false));
    }

    /// A server may send an event byte by byte, and HTTP/2 holds hundreds of bytes for each of them that nobody takes.
    #[tokio::test(start_paused = true)]
    async fn all_that_the_window_lets_through_is_taken_however_small_its_pieces() {
        const MOST: usize = limits::STALLED_READER + WINDOW;
        let (mut tunnel, mut reader, pump) = start(asked(Method::GET, "").await, true);
        let agent = async {
            let piece = Bytes::from_static(b"data: 1234567\n\n\n");
            for _ in 0..MOST / piece.len() {
                tunnel.send_data(piece.clone()).await.unwrap();
            }
            // The channel holds eight, and nobody else any more.
            let more = async {
                for sent in 0.. {
                    if let Err(_elapsed) =
                        tokio::time::timeout(KEEP_ALIVE, tunnel.send_data(piece.clone())).await
                    {
                        return sent;
                    }
                }
                0
            };
            assert!(more.await <= 8, "more than the window's worth");
            let (mut taken, mut pieces) = (0, 0);
            while taken < MOST {
                taken += reader.frame().await.unwrap().unwrap().into_data().unwrap().len();
                pieces += 1;
            }
            assert!(pieces < MOST / 1000, "{pieces} pieces");
            // There is room again.
            for _ in 0..WINDOW / piece.len() {
                tunnel.send_data(piece.clone()).await.unwrap();
            }
        };
        tokio::select! {
            biased;
            () = agent => {}
            () = pump => panic!("the response is over"),
        }
    }

    /// Half an hour, and nothing but comments: no part of the pump has a limit on silence.
    #[tokio::test(start_paused = true)]
    async fn half_an_hour_of_silence_is_one_comment_every_fifteen_seconds() {
        const TIMES: u32 = 120;
        let (mut tunnel, mut reader, pump) = start(asked(Method::GET, "").await, true);
        let agent = async {
            let asked = Instant::now();
            for time in 1..=TIMES {
                let comment = reader.frame().await.unwrap().unwrap().into_data().unwrap();
                assert_eq!((&comment[..], asked.elapsed()), (COMMENT, KEEP_ALIVE * time));
            }
            tunnel.send_data(Bytes::from_static(b"data: a\n\n")).await.unwrap();
            drop(tunnel);
            read(reader).await.0
        };
        let ((), late) = tokio::join!(pump, agent);
        assert_eq!(late, "data: a\n\n");
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_goes_away_ends_the_stream() {
        let (mut tunnel, reader, pump) = start(asked(Method::GET, "").await, true);
        let gone = Instant::now();
        tokio::join!(pump, async {
            tokio::task::yield_now().await;
            drop(reader);
        });
        assert_eq!(gone.elapsed(), Duration::ZERO, "noticed by chance, with the next comment");
        assert!(tunnel.send_data(Bytes::from_static(b"x")).await.is_err());
    }
}
