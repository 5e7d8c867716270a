//! A server that fails on purpose: the path of a request says how.
//!
//! | path | what it does |
//! |---|---|
//! | `/ok` | answers the JSON-RPC request |
//! | `/cut`, `/cut-inside` | an event, then the connection breaks (between events, or inside one) |
//! | `/eof` | an event, then a clean end without the response |
//! | `/hang`, `/hang-stream` | never answers; answers with one event and never ends |
//! | `/status/<code>[/empty]` | this status |
//! | `/redirect?to=<url>` | 307 |
//! | `/ticks?n=5&ms=300` | so many events, so far apart, then the response |
//! | `/resume` | a priming event with an id, then the connection breaks; with `Last-Event-ID` the response |
//! | `/echo/<form>?header=<name>` | reflects the header: `plain`, `json`, `base64`, `percent`, `split`, `events`, `header`, `gzip` |
//! | `/big?bytes=<n>`, `/sink` | a body of so many bytes; counts the request's |

use std::{
    io::Write,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures_util::Stream;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE},
};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    Outcome, clock,
    listen::{Answer, Cut, Listening},
    needles,
    pki::Authority,
    seen::{Event, Request as SeenRequest, Seen},
    upstream::plain,
};

/// A faulty server that is running.
#[derive(Debug)]
pub struct Faults {
    listening: Listening,
    scheme: &'static str,
    /// What reached it.
    pub seen: Seen,
}

impl Faults {
    /// Over HTTPS, with a certificate for these names.
    ///
    /// # Errors
    /// When no port is free.
    pub fn tls(authority: &Authority, names: &[&str]) -> Outcome<Self> {
        Self::start("https", Some(authority.server(names, false)?))
    }

    /// Over plain HTTP.
    ///
    /// # Errors
    /// When no port is free.
    pub fn plain() -> Outcome<Self> {
        Self::start("http", None)
    }

    fn start(scheme: &'static str, tls: Option<Arc<rustls::ServerConfig>>) -> Outcome<Self> {
        let seen = Seen::default();
        let noted = seen.clone();
        let listening = Listening::http(tls, move |request| answer(noted.clone(), request))?;
        Ok(Self { listening, scheme, seen })
    }

    /// Its root; the faults lie below.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://localhost:{}", self.scheme, self.listening.port())
    }
}

async fn answer(seen: Seen, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let mut noted = SeenRequest::of(&head);
    if head.uri.path() == "/sink" {
        seen.note(Event::Request(noted));
        return sink(body).await;
    }
    // A body that breaks off is an empty one here: the request is then seen without it.
    noted.body = body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
    seen.note(Event::Request(noted.clone()));
    Fault { seen, noted }.answer().await
}

async fn sink(mut body: Incoming) -> Answer {
    let mut count = 0;
    while let Some(Ok(frame)) = body.frame().await {
        count += frame.data_ref().map_or(0, Bytes::len);
    }
    document(&json!({"jsonrpc": "2.0", "id": 1, "result": {"received": count}}))
}

/// One request that is to go wrong.
struct Fault {
    seen: Seen,
    noted: SeenRequest,
}

impl Fault {
    async fn answer(self) -> Answer {
        let target = self.noted.target.clone();
        let path = target.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match *parts.as_slice() {
            ["ok"] => document(&self.response(&json!({"ok": true}))),
            ["cut"] => self.stream(|to| async move {
                to.send(progress(1)).await;
                to.cut().await;
            }),
            ["cut-inside"] => self.stream(|to| async move {
                to.send(progress(1)).await;
                to.send("event: message\ndata: {\"jsonrpc\":\"2.0\",".to_owned()).await;
                to.cut().await;
            }),
            ["eof"] => self.stream(|to| async move { to.send(progress(1)).await }),
            ["hang"] => {
                let _gone = Departure { seen: self.seen.clone(), target: target.clone() };
                std::future::pending().await
            }
            ["hang-stream"] => self.stream(|to| async move {
                to.send(progress(1)).await;
                to.closed().await;
            }),
            ["status", code] => self.status(code, true),
            ["status", code, "empty"] => self.status(code, false),
            ["redirect"] => self.redirect(),
            ["headers"] => self.headers(),
            ["ticks"] => self.ticks(),
            ["burst"] => self.burst(),
            ["resume"] => self.resume(),
            ["big"] => self.big(),
            ["echo", form] => self.echo(form),
            _ => plain(StatusCode::NOT_FOUND, "no such fault"),
        }
    }

    /// The request's id, as it was sent.
    fn id(&self) -> Value {
        serde_json::from_slice::<Value>(&self.noted.body).map_or(Value::Null, |body| body["id"].clone())
    }

    fn response(&self, result: &Value) -> Value {
        json!({"jsonrpc": "2.0", "id": self.id(), "result": result})
    }

    fn query(&self, name: &str) -> Option<&str> {
        let query = self.noted.target.split_once('?')?.1;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.query(name).and_then(|text| text.parse().ok()).unwrap_or(default)
    }

    /// What the client sent in the header that `?header=` names: the credential.
    fn credential(&self) -> String {
        let name = self.query("header").unwrap_or("authorization");
        self.noted.values(name).join(", ")
    }

    fn stream<F>(&self, write: impl FnOnce(Sender) -> F) -> Answer
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (to, from) = mpsc::channel(4);
        let departure = Departure { seen: self.seen.clone(), target: self.noted.target.clone() };
        let writing = Box::pin(write(Sender(to)));
        let body = StreamBody::new(Written { writing: Some(writing), from, departure: Some(departure) });
        let mut answer = Response::new(BodyExt::boxed_unsync(body));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        answer
    }

    fn status(&self, code: &str, body: bool) -> Answer {
        let status = code.parse().unwrap_or(StatusCode::IM_A_TEAPOT);
        let error = json!({"jsonrpc": "2.0", "id": self.id(), "error": {"code": -32001, "message": "upstream says no"}});
        let mut answer = if body { document(&error) } else { plain(status, "") };
        *answer.status_mut() = status;
        if status == StatusCode::UNAUTHORIZED {
            answer
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"upstream\""));
        }
        answer
    }

    fn redirect(&self) -> Answer {
        let mut answer = plain(StatusCode::TEMPORARY_REDIRECT, "");
        if let Some(Ok(location)) = self.query("to").map(HeaderValue::from_str) {
            answer.headers_mut().insert(LOCATION, location);
        }
        answer
    }

    /// A good answer with every header that is none of the agent's business.
    fn headers(&self) -> Answer {
        let mut answer = document(&self.response(&json!({})));
        for (name, value) in [
            ("location", "/elsewhere"),
            ("set-cookie", "a=b"),
            ("www-authenticate", "Bearer"),
            ("alt-svc", "h3=\":443\""),
            ("strict-transport-security", "max-age=1"),
            ("x-kept", "yes"),
        ] {
            answer.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        answer
    }

    fn ticks(&self) -> Answer {
        let (count, every) = (self.number("n", 5), Duration::from_millis(self.number("ms", 300).max(1)));
        let response = event(&self.response(&json!({"ticks": count})));
        self.stream(move |to| async move {
            let mut clock = tokio::time::interval(every);
            for number in 0..count {
                clock.tick().await;
                to.send(progress(number)).await;
            }
            to.send(response).await;
        })
    }

    /// Tiny events, as fast as they are taken.
    fn burst(&self) -> Answer {
        let count = self.number("n", 100_000);
        let response = event(&self.response(&json!({"events": count})));
        let seen = self.seen.clone();
        self.stream(move |to| async move {
            for _ in 0..count {
                to.send("data: 1\n\n".to_owned()).await;
                seen.taken();
            }
            to.send(response).await;
        })
    }

    fn resume(&self) -> Answer {
        if let [id] = self.noted.values("last-event-id")[..] {
            let resumed =
                json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"resumed": id}});
            let text = format!("id: second\n{}", event(&resumed));
            return self.stream(|to| async move { to.send(text).await });
        }
        self.stream(|to| async move {
            to.send("id: first\nretry: 300\ndata: \n\n".to_owned()).await;
            to.cut().await;
        })
    }

    fn big(&self) -> Answer {
        let bytes = self.number("bytes", 1 << 20);
        self.stream(move |to| async move {
            let chunk = format!("data: {}\n\n", "m".repeat(16 * 1024 - 8));
            for _ in 0..bytes / (16 * 1024) {
                to.send(chunk.clone()).await;
            }
            to.send(event(&json!({"jsonrpc": "2.0", "id": 1, "result": {"sent": bytes}}))).await;
        })
    }

    /// A compressed answer to a client that asked for none.
    fn compressed(&self, secret: &str) -> Answer {
        let message = self.response(&json!({"text": format!("you sent {secret}, thank you")})).to_string();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let Ok(bytes) = encoder.write_all(message.as_bytes()).and_then(|()| encoder.finish()) else {
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "not compressed");
        };
        let mut answer =
            Response::new(Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync());
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        answer
    }

    /// Reflects the credential in one of the forms of mcp-relay R7's other side.
    fn echo(&self, form: &str) -> Answer {
        let secret = self.credential();
        let wrapped =
            |text: &str| document(&self.response(&json!({"text": format!("you sent {text}, thank you")})));
        match form {
            "plain" => plain(StatusCode::OK, &format!("you sent {secret}, thank you")),
            "json" => wrapped(&secret),
            "base64" => wrapped(&STANDARD.encode(format!("user:{secret}:x"))),
            "percent" => wrapped(&needles::percent(&secret)),
            "gzip" => self.compressed(&secret),
            "header" => {
                let mut answer = document(&self.response(&json!({})));
                if let Ok(value) = HeaderValue::from_str(&secret) {
                    answer.headers_mut().insert("x-you-sent", value);
                }
                answer
            }
            "split" => self.stream(move |to| async move {
                to.send("data: \"you sent ".to_owned()).await;
                for character in secret.chars() {
                    to.send(character.to_string()).await;
                    tokio::task::yield_now().await;
                }
                to.send(", thank you\"\n\n".to_owned()).await;
            }),
            "events" => {
                let half = secret.len() / 2;
                let first =
                    json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"text": secret}});
                let last = self.response(&json!({"first": &secret[..half], "whole": secret}));
                self.stream(move |to| async move {
                    to.send(event(&first)).await;
                    to.send(event(&last)).await;
                })
            }
            _ => plain(StatusCode::NOT_FOUND, "no such form"),
        }
    }
}

fn progress(number: u64) -> String {
    let params = json!({"progressToken": "t", "progress": number});
    event(&json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}))
}

fn event(message: &Value) -> String {
    format!("event: message\ndata: {message}\n\n")
}

fn document(message: &Value) -> Answer {
    let mut answer = plain(StatusCode::OK, &message.to_string());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// The writer's end of a stream.
struct Sender(mpsc::Sender<Result<Frame<Bytes>, Cut>>);

impl Sender {
    /// Sends a chunk. When the peer is gone the rest is nobody's.
    async fn send(&self, text: String) {
        let _nobody_reads = self.0.send(Ok(Frame::data(Bytes::from(text)))).await;
    }

    /// Breaks the connection, once what was sent has had the time to leave.
    async fn cut(&self) {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let _already_gone = self.0.send(Err(Cut::other("cut on purpose"))).await;
    }

    /// Waits for the peer to go.
    async fn closed(&self) {
        self.0.closed().await;
    }
}

type Writing = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A body that a future writes while it is read; notes when the reader goes before the end.
struct Written {
    writing: Option<Writing>,
    from: mpsc::Receiver<Result<Frame<Bytes>, Cut>>,
    departure: Option<Departure>,
}

// `Writing` is only ever polled through `&mut`.
impl Stream for Written {
    type Item = Result<Frame<Bytes>, Cut>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.writing.as_mut().is_some_and(|writing| writing.as_mut().poll(cx).is_ready()) {
            self.writing = None;
        }
        let next = self.from.poll_recv(cx);
        if matches!(next, Poll::Ready(None | Some(Err(_))))
            && let Some(departure) = self.departure.take()
        {
            departure.revoke();
        }
        next
    }
}

/// Notes, when dropped, that the peer went away.
struct Departure {
    seen: Seen,
    target: String,
}

impl Departure {
    /// The stream came to its end: nobody went away.
    fn revoke(mut self) {
        self.target.clear();
    }
}

impl Drop for Departure {
    fn drop(&mut self) {
        if !self.target.is_empty() {
            self.seen.note(Event::Gone { at: clock::now(), target: std::mem::take(&mut self.target) });
        }
    }
}
