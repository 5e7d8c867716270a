//! Streams between HTTP/2's own client and the end that answers, in memory.

use std::{
    future::{pending, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::Duration,
};

use ::h2::{Reason, RecvStream, SendStream, client};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{
    HeaderMap, HeaderValue, Request, Response,
    header::{AGE, ALLOW, CONNECTION, CONTENT_LENGTH},
};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::{
    io::{AsyncWriteExt, DuplexStream, duplex},
    sync::Notify,
    task::{JoinSet, yield_now},
    time::{Instant, timeout},
};

use super::{
    pulse::Pulse,
    received::Received,
    send::Sending,
    serve::{Broken, serve},
    stream::Stream,
};
use crate::{limits, rt::exec::Owned};

type Answer = Response<UnsyncBoxBody<Bytes, ::h2::Error>>;

/// A client whose requests are answered by a service.
struct Client {
    streams: client::SendRequest<Bytes>,
    server: JoinSet<Result<(), Broken>>,
    _connection: JoinSet<()>,
    close: Arc<Notify>,
}

impl Client {
    async fn of<F>(window: u32, service: impl Fn(Request<Received>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let (ours, theirs) = duplex(1 << 16);
        let close = Arc::new(Notify::new());
        let mut server = JoinSet::new();
        server.spawn(served(theirs, Arc::clone(&close), service));
        let (streams, connection) =
            client::Builder::new().initial_window_size(window).handshake(ours).await.unwrap();
        let connection = JoinSet::from_iter([async { drop(connection.await) }]);
        Self { streams, server, _connection: connection, close }
    }

    async fn send(
        &self,
        head: http::request::Builder,
        over: bool,
    ) -> (client::ResponseFuture, SendStream<Bytes>) {
        let mut request = head.body(()).unwrap();
        *request.uri_mut() = format!("http://bridge.moat{}", request.uri()).parse().unwrap();
        self.streams.clone().ready().await.unwrap().send_request(request, over).unwrap()
    }

    async fn ask(&self, target: &str) -> Response<RecvStream> {
        soon(self.send(Request::get(target), true).await.0).await.unwrap()
    }
}

async fn served<F>(
    io: DuplexStream,
    close: Arc<Notify>,
    service: impl Fn(Request<Received>) -> F,
) -> Result<(), Broken>
where
    F: Future<Output = Answer> + Send + 'static,
{
    let tasks = Owned::default();
    serve(io, Pulse::USUAL, close.notified(), &tasks, service).await
}

fn whole(text: &'static str) -> Answer {
    Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync())
}

fn frames(
    frames: impl IntoIterator<IntoIter: Send + 'static, Item = Result<Frame<Bytes>, ::h2::Error>>,
) -> Answer {
    Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
}

fn data(bytes: &'static [u8]) -> Result<Frame<Bytes>, ::h2::Error> {
    Ok(Frame::data(Bytes::from_static(bytes)))
}

async fn soon<F: Future>(future: F) -> F::Output {
    timeout(Duration::from_secs(5), future).await.expect("in time")
}

async fn read(mut body: RecvStream) -> Result<String, ::h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = soon(body.data()).await {
        all.extend_from_slice(&data?);
    }
    Ok(String::from_utf8(all).unwrap())
}

/// How often this was not dropped yet.
struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn until(count: &AtomicUsize, wanted: usize) {
    soon(async {
        while count.load(Ordering::SeqCst) != wanted {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_says_how_long_it_is_and_nothing_else_of_itself() {
    let client = Client::of(65_535, |request| async move {
        match request.uri().query() {
            None => whole("three"),
            Some("empty") => whole(""),
            Some(_) => {
                // HTTP/2 ends a connection on which too many were seen.
                let empty = std::iter::repeat_with(|| data(b"")).take(100_000);
                frames([data(b"one")].into_iter().chain(empty).chain([data(b"two")]))
            }
        }
    })
    .await;
    let said = async |target| {
        let answer = client.ask(target).await;
        let lengths: Vec<_> = answer.headers().values().cloned().collect();
        let over = answer.body().is_end_stream();
        let (mut body, mut pieces) = (answer.into_body(), Vec::new());
        while let Some(piece) = soon(body.data()).await.transpose().unwrap() {
            pieces.push(String::from_utf8(piece.to_vec()).unwrap());
        }
        (lengths, over, pieces.join("|"))
    };
    assert_eq!(said("/mcp/x").await, (vec!["5".parse().unwrap()], false, "three".to_owned()));
    assert_eq!(said("/mcp/x?empty").await, (Vec::new(), true, String::new()));
    assert_eq!(said("/mcp/x?unknown").await, (Vec::new(), false, "one|two|".to_owned()));
}

/// What an upstream's stream was reset with says nothing of this one.
#[tokio::test]
async fn an_answer_that_is_cut_is_reset_and_one_with_trailers_ends() {
    let client = Client::of(65_535, |request| async move {
        match request.uri().query() {
            None => frames([data(b"x"), Err(Reason::REFUSED_STREAM.into())]),
            Some(_) => {
                let trailers = HeaderMap::from_iter([(CONTENT_LENGTH, "7".parse().unwrap())]);
                frames([data(b"x"), Ok(Frame::trailers(trailers))])
            }
        }
    })
    .await;
    // A reset throws away what is queued of its stream.
    let cut = match soon(client.send(Request::get("/mcp/x"), true).await.0).await {
        Ok(answer) => read(answer.into_body()).await.unwrap_err(),
        Err(cut) => cut,
    };
    assert_eq!(cut.reason(), Some(Reason::INTERNAL_ERROR));
    let mut ended = client.ask("/mcp/x?trailers").await.into_body();
    while soon(ended.data()).await.transpose().unwrap().is_some() {}
    assert!(ended.trailers().await.unwrap().unwrap().contains_key(CONTENT_LENGTH));
}

/// A head that HTTP/2 does not have (RFC 9113, section 8.2.2) is nobody's answer.
#[tokio::test]
async fn a_head_that_cannot_be_sent_is_not_waited_for() {
    let client = Client::of(65_535, |_| async {
        let mut answer = whole("x");
        answer.headers_mut().insert(CONNECTION, "close".parse().unwrap());
        answer
    })
    .await;
    let (answer, _) = client.send(Request::get("/mcp/x"), true).await;
    assert_eq!(soon(answer).await.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR));
}

/// RFC 9113, section 8.1: the answer counts, what is left of the request does not.
#[tokio::test]
async fn a_body_that_nobody_reads_is_declined_politely() {
    let client = Client::of(65_535, |_| async { whole("enough") }).await;
    let (answer, mut upload) = client.send(Request::post("/mcp/x"), false).await;
    assert_eq!(read(soon(answer).await.unwrap().into_body()).await.unwrap(), "enough");
    assert_eq!(soon(poll_fn(|context| upload.poll_reset(context))).await.unwrap(), Reason::NO_ERROR);
}

#[tokio::test]
async fn a_body_says_how_long_it_is_if_its_head_does_once() {
    let client = Client::of(65_535, |request| async move {
        let mut body = request.into_body();
        let before = body.size_hint().exact();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let after = body.size_hint().exact();
        assert_eq!(first, "one");
        let told = [before, after].map(|length| HeaderValue::from(length.unwrap_or(99)));
        let mut answer = whole("");
        *answer.headers_mut() = HeaderMap::from_iter([(AGE, told[0].clone()), (ALLOW, told[1].clone())]);
        answer
    })
    .await;
    for (lengths, told) in [(&["7"][..], ["7", "4"]), (&[], ["99", "99"]), (&["7", "7"], ["99", "99"])] {
        let head = Request::post("/mcp/x");
        let head = lengths.iter().fold(head, |head, length| head.header(CONTENT_LENGTH, *length));
        let (answer, mut upload) = client.send(head, false).await;
        upload.send_data("one".into(), false).unwrap();
        let answer = soon(answer).await.unwrap();
        assert_eq!([&answer.headers()[AGE], &answer.headers()[ALLOW]], told);
    }
}

/// A client that goes takes with it all that is done for it: before the answer, in a silence, and where it reads nothing.
#[tokio::test]
async fn a_stream_that_is_reset_is_dropped_at_once() {
    let busy = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&busy);
    let client = Client::of(10, move |request| {
        let busy = Busy::new(&count);
        async move {
            let flood = match request.uri().query() {
                None => pending().await,
                Some(query) => query == "flood",
            };
            let pieces = stream::repeat_with(|| data(b"0123456789")).take(if flood { usize::MAX } else { 1 });
            let silence = stream::once(async move { (busy, pending().await).1 });
            Response::new(StreamBody::new(pieces.chain(silence)).boxed_unsync())
        }
    })
    .await;
    for target in ["/mcp/x", "/mcp/x?silent", "/mcp/x?flood"] {
        let (answer, mut out) = client.send(Request::get(target), true).await;
        until(&busy, 1).await;
        let answer = match target {
            "/mcp/x" => None,
            _ => Some(soon(answer).await.unwrap()),
        };
        out.send_reset(Reason::CANCEL);
        until(&busy, 0).await;
        drop(answer);
    }
}

/// One piece at most is taken from a body beyond what the stream has room for.
#[tokio::test]
async fn a_body_that_nobody_takes_is_not_asked_for_more() {
    let taken = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&taken);
    let client = Client::of(10, move |_| {
        let count = Arc::clone(&count);
        async move {
            frames(std::iter::repeat_with(move || {
                count.fetch_add(1, Ordering::SeqCst);
                data(b"12345678")
            }))
        }
    })
    .await;
    let mut body = client.ask("/mcp/x").await.into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap().len(), 8);
    assert_eq!(soon(body.data()).await.unwrap().unwrap().len(), 2);
    for _ in 0..100 {
        yield_now().await;
    }
    assert_eq!(taken.load(Ordering::SeqCst), 3);
    body.flow_control().release_capacity(10).unwrap();
    assert_eq!(soon(body.data()).await.unwrap().unwrap().len(), 6);
}

/// So that head and body leave in one write: both are queued before the connection has its turn.
#[tokio::test]
async fn a_request_that_is_there_needs_one_turn() {
    let (ours, theirs) = duplex(1 << 16);
    let bridge = super::bridge().handshake::<_, Bytes>(theirs);
    let (here, there) = tokio::join!(client::handshake(ours), bridge);
    let ((streams, here), mut there) = (here.unwrap(), there.unwrap());
    let mut streams = streams.ready().await.unwrap();
    let request = Request::post("http://bridge.moat/mcp/x").body(()).unwrap();
    let (_answer, out) = streams.send_request(request, false).unwrap();
    let mut sending = Sending::new(Full::new(Bytes::from_static(b"all of it")), out).with_head();
    assert!(Pin::new(&mut sending).poll(&mut Context::from_waker(Waker::noop())).is_ready());
    let _here = JoinSet::from_iter([async { drop(here.await) }]);
    let (request, _reply) = soon(there.accept()).await.unwrap().unwrap();
    let serve = async { while there.accept().await.is_some() {} };
    tokio::select! {
        read = read(request.into_body()) => assert_eq!(read.unwrap(), "all of it"),
        () = serve => panic!("the connection is over"),
    }
}

/// So it is with an answer.
#[tokio::test]
async fn an_answer_that_is_there_needs_one_turn() {
    let (ours, theirs) = duplex(1 << 16);
    let (here, there) = tokio::join!(client::handshake(ours), super::bridge().handshake(theirs));
    let ((streams, here), mut there) = (here.unwrap(), there.unwrap());
    let _here = JoinSet::from_iter([async { drop(here.await) }]);
    let mut streams = streams.ready().await.unwrap();
    let request = Request::get("http://bridge.moat/mcp/x").body(()).unwrap();
    let (answer, _out) = streams.send_request(request, true).unwrap();
    let (_request, reply) = soon(there.accept()).await.unwrap().unwrap();
    let mut stream = pin!(Stream::new(async { whole("all of it") }, reply));
    assert!(stream.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
    let _there = JoinSet::from_iter([async move { while there.accept().await.is_some() {} }]);
    assert_eq!(read(soon(answer).await.unwrap().into_body()).await.unwrap(), "all of it");
}

#[tokio::test]
async fn told_to_close_it_finishes_what_there_is() {
    let rest = Arc::new(Notify::new());
    let told = Arc::clone(&rest);
    let mut client = Client::of(65_535, move |_| {
        let rest = Arc::clone(&told);
        async move {
            let rest = stream::once(async move { (rest.notified().await, data(b"y")).1 });
            Response::new(StreamBody::new(stream::iter([data(b"x")]).chain(rest)).boxed_unsync())
        }
    })
    .await;
    let answer = client.ask("/mcp/x").await;
    client.close.notify_one();
    soon(async {
        while client.streams.clone().ready().await.is_ok() {
            yield_now().await;
        }
    })
    .await;
    rest.notify_one();
    assert_eq!(read(answer.into_body()).await.unwrap(), "xy");
    // Either side may be the first to leave.
    drop(soon(client.server.join_next()).await.unwrap().unwrap());
}

/// Pings are all that tells: a dead client closes nothing.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_dead_is_found_out_though_a_stream_is_open() {
    let (mut ours, theirs) = duplex(1 << 16);
    // The preface, SETTINGS, and a GET of "/" (RFC 7541, appendix A).
    ours.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    ours.write_all(b"\0\0\x03\x01\x05\0\0\0\x01\x82\x84\x86").await.unwrap();
    let begun = Instant::now();
    let busy = Arc::<AtomicUsize>::default();
    let service = |_| {
        let busy = Busy::new(&busy);
        async move { (busy, pending().await).1 }
    };
    let ended = served(theirs, Arc::default(), service).await;
    assert!(matches!(ended, Err(Broken::Silent)), "{ended:?}");
    assert_eq!(begun.elapsed(), limits::PING_INTERVAL + limits::PING_TIMEOUT);
    until(&busy, 0).await;
}
