//! Where the browser comes back: a listener on 127.0.0.1 that takes the answer to one request and then is gone
//! (RFC 8252 section 7.3).
//!
//! | what comes | answer | effect |
//! |---|---|---|
//! | another path, method or `Host` | 404, 405, 403 | none |
//! | not this request's answer | 400 | none: the flow goes on |
//! | this request's answer | held until the exchange is done | the flow ends |
//! | the same again | the same page | none |

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};
use url::Url;

use super::authorize::{Pending, Verdict};

/// What one connection may take.
const CONNECTION: Duration = Duration::from_secs(30);
const HEAD_TIME: Duration = Duration::from_secs(10);
const HEAD_SIZE: usize = 16 * 1024;
const CONNECTIONS: usize = 32;
/// How long the browser waits for the exchange.
const HOLD: Duration = Duration::from_secs(10);
/// For a reload that comes at once, after the flow's end.
const LINGER: Duration = Duration::from_millis(300);

/// The listener, bound.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
    redirect_uri: Url,
}

/// The page that the browser shows in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Page {
    Done,
    Failed(String),
}

/// What the flow is told.
#[derive(Debug)]
pub(crate) enum Came {
    Answer(Verdict),
    /// The first one only.
    Stray,
}

impl Listener {
    /// Takes a port of loopback: a given one, or any. `like` is a redirect URI whose host and path are to be used.
    pub(crate) async fn bind(port: Option<u16>, like: Option<&Url>) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port.unwrap_or(0))).await?;
        let address = listener.local_addr()?;
        let host = like.and_then(Url::host_str).unwrap_or("127.0.0.1");
        let path = like.map_or("/callback", Url::path);
        let redirect_uri = Url::parse(&format!("http://{host}:{}{path}", address.port()));
        let redirect_uri =
            redirect_uri.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Self { listener, address, redirect_uri })
    }

    pub(crate) fn redirect_uri(&self) -> &Url {
        &self.redirect_uri
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Answers browsers until `page` has been set and shown. Every answer that counts goes to `came`.
    pub(crate) async fn run(
        self,
        pending: Arc<Pending>,
        came: mpsc::Sender<Came>,
        mut page: watch::Receiver<Option<Page>>,
    ) {
        let desk = Arc::new(Desk {
            port: self.address.port(),
            path: self.redirect_uri.path().to_owned(),
            pending,
            came,
            page: page.clone(),
            taken: Mutex::default(),
        });
        let mut connections = JoinSet::new();
        // Oldest first: who says nothing makes room for who comes.
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        let shown = async {
            let _closed = page.wait_for(Option::is_some).await.is_err();
            sleep(LINGER).await;
        };
        let mut shown = std::pin::pin!(shown);
        loop {
            tokio::select! {
                () = &mut shown => break,
                Some(_) = connections.join_next() => {}
                accepted = self.listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    open.retain(|connection| !connection.is_finished());
                    if open.len() >= CONNECTIONS && let Some(oldest) = open.pop_front() {
                        oldest.abort();
                    }
                    open.push_back(connections.spawn(serve(stream, desk.clone())));
                }
            }
        }
        // Nobody is kept waiting, and nobody keeps this waiting.
        drop(self.listener);
        let until = Instant::now() + LINGER;
        while tokio::time::timeout_at(until, connections.join_next()).await.is_ok_and(|done| done.is_some()) {
        }
    }
}

#[derive(Debug)]
struct Desk {
    port: u16,
    path: String,
    pending: Arc<Pending>,
    came: mpsc::Sender<Came>,
    page: watch::Receiver<Option<Page>>,
    /// The query that was taken, and whether a stray one was told of.
    taken: Mutex<(Option<String>, bool)>,
}

async fn serve(stream: TcpStream, desk: Arc<Desk>) {
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(desk.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_SIZE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let _ended = timeout(CONNECTION, connection).await.is_ok();
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let hosts = request.headers().get_all(header::HOST);
        let mut hosts = hosts.iter();
        let host = hosts.next().and_then(|host| host.to_str().ok());
        let ours = host.is_some_and(|host| {
            [format!("127.0.0.1:{}", self.port), format!("localhost:{}", self.port)]
                .contains(&host.to_owned())
        });
        if !ours || hosts.next().is_some() {
            return page(StatusCode::FORBIDDEN, "Not here", "This address is not one of moat's.");
        }
        if request.uri().path() != self.path {
            return page(StatusCode::NOT_FOUND, "Not found", "There is nothing here.");
        }
        if request.method() != Method::GET {
            return page(StatusCode::METHOD_NOT_ALLOWED, "Not allowed", "Only a sign-in ends here.");
        }
        let query = request.uri().query().unwrap_or_default();
        match self.take(query).await {
            Taken::Stray => page(
                StatusCode::BAD_REQUEST,
                "Nothing to do",
                "This page does not belong to a sign-in that moat started. You can close it.",
            ),
            Taken::Ours => self.finally().await,
        }
    }

    async fn take(&self, query: &str) -> Taken {
        let told = {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            let (known, stray) = &mut *taken;
            if known.as_deref() == Some(query) {
                return Taken::Ours;
            }
            match self.pending.judge(query) {
                // One answer is enough.
                _ if known.is_some() => return Taken::Stray,
                Verdict::Stray if std::mem::replace(stray, true) => return Taken::Stray,
                Verdict::Stray => Came::Stray,
                verdict => {
                    *known = Some(query.to_owned());
                    Came::Answer(verdict)
                }
            }
        };
        let stray = matches!(told, Came::Stray);
        let _flow_is_over = self.came.send(told).await.is_err();
        if stray { Taken::Stray } else { Taken::Ours }
    }

    async fn finally(&self) -> Response<Full<Bytes>> {
        let mut shown = self.page.clone();
        let outcome = timeout(HOLD, shown.wait_for(Option::is_some)).await;
        let outcome = outcome.ok().and_then(Result::ok).and_then(|page| page.clone());
        match outcome {
            Some(Page::Done) => {
                page(StatusCode::OK, "Authorization successful", "You can close this window.")
            }
            Some(Page::Failed(why)) => page(StatusCode::BAD_REQUEST, "Authorization failed", &why),
            None => page(StatusCode::OK, "One moment", "moat is still at it: look at the terminal."),
        }
    }
}

enum Taken {
    Stray,
    Ours,
}

fn page(status: StatusCode, title: &str, text: &str) -> Response<Full<Bytes>> {
    let (title, text) = (escaped(title), escaped(text));
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><h1>{title}</h1><p>{text}</p>\n"
    );
    let mut response = Response::new(Full::new(Bytes::from(html)));
    *response.status_mut() = status;
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONNECTION, "close"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oauth::authorize::pending_for_tests;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn asks(port: u16, head: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(head.replace("PORT", &port.to_string()).as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn get(target: &str) -> String {
        format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n")
    }

    /// A listener at work.
    struct Listened {
        port: u16,
        answers: mpsc::Receiver<Came>,
        show: watch::Sender<Option<Page>>,
        tasks: JoinSet<()>,
    }

    async fn listened(pending: &Arc<Pending>) -> Listened {
        let listener = Listener::bind(None, None).await.unwrap();
        let port = listener.port();
        let (came, answers) = mpsc::channel(4);
        let (show, shown) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(listener.run(Arc::clone(pending), came, shown));
        Listened { port, answers, show, tasks }
    }

    #[tokio::test]
    async fn a10_every_row_and_a_hundred_strays_and_then_the_true_one() {
        let pending = Arc::new(pending_for_tests(Some("https://as.example"), false));
        let Listened { port, mut answers, show, mut tasks } = listened(&pending).await;

        let status = |answer: &str| answer.split(' ').nth(1).unwrap_or_default().to_owned();
        assert_eq!(status(&asks(port, &get("/favicon.ico")).await), "404");
        let post = "POST /callback HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(status(&asks(port, post).await), "405");
        let rebound = "GET /callback?code=c HTTP/1.1\r\nHost: evil.example:PORT\r\n\r\n";
        assert_eq!(status(&asks(port, rebound).await), "403");
        for round in 0..100 {
            let stray = ["code=c", "error=access_denied", "code=c&state=x", ""][round % 4];
            let answer = asks(port, &get(&format!("/callback?{stray}"))).await;
            assert_eq!(status(&answer), "400");
            assert!(answer.contains("does not belong to a sign-in that moat started"));
        }
        assert!(matches!(answers.recv().await, Some(Came::Stray)));
        assert!(answers.try_recv().is_err(), "one line for all strays");

        let query = format!("/callback?code=c&state={}", pending.state());
        let request = get(&query);
        let (first, ()) = tokio::join!(asks(port, &request), async {
            assert!(matches!(answers.recv().await, Some(Came::Answer(Verdict::Code(_)))));
            // A prefetch or a reload waits for the same page and counts once.
            show.send_replace(Some(Page::Done));
        });
        assert!(first.contains("200 OK") && first.contains("Authorization successful"), "{first}");
        for header in ["no-store", "no-referrer", "default-src 'none'"] {
            assert!(first.contains(header), "{header}");
        }
        assert!(!first.to_lowercase().contains("access-control") && !first.contains("script"));
        assert!(answers.try_recv().is_err());
        tasks.join_next().await.unwrap().unwrap();
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "it closes after");
    }

    #[tokio::test]
    async fn a10_who_says_nothing_keeps_nobody_out() {
        let pending = Arc::new(pending_for_tests(None, false));
        let Listened { port, mut answers, show, mut tasks } = listened(&pending).await;
        // Half a request each, and many more than there may be connections.
        let mut silent = Vec::new();
        for _ in 0..3 * CONNECTIONS {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.write_all(b"GET /callback?code=c HTTP/1.1\r\nHost: 127").await.unwrap();
            silent.push(stream);
        }
        let request = get(&format!("/callback?code=c&state={}", pending.state()));
        let (page, ()) = tokio::join!(asks(port, &request), async {
            assert!(matches!(answers.recv().await, Some(Came::Answer(Verdict::Code(_)))));
            show.send_replace(Some(Page::Done));
        });
        assert!(page.contains("Authorization successful"), "{page}");
        timeout(Duration::from_secs(5), tasks.join_next()).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_a_server_says_is_escaped() {
        let answer = page(StatusCode::BAD_REQUEST, "Authorization failed", "<script>\"x\"&</script>");
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains("&lt;script&gt;&quot;x&quot;&amp;&lt;/script&gt;"), "{text}");
    }
}
