//! An MCP server as far as a hostile client needs one: a bare HTTP/1.1 server on loopback that answers by path.
//!
//! | path | answer |
//! |---|---|
//! | `/ok` | an empty document |
//! | `/flood` | events without end, as fast as they are taken |
//! | `/idle` | one event, then silence |
//! | `/hang` | nothing |
//! | `/deaf` | nothing, and no more is read |

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

/// The server; gone when it is dropped.
pub(crate) struct Upstream {
    port: u16,
    open: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        // A small buffer: what is not read is soon held back.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(4096).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, asked) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = JoinSet::new();
        let (counts, requests) = (Arc::clone(&open), Arc::clone(&asked));
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let (open, asked) = (Arc::clone(&counts), Arc::clone(&requests));
                open.fetch_add(1, Ordering::SeqCst);
                connections.spawn(async move {
                    // It ends when the bridge goes away, which is what is counted.
                    let _gone = serve(stream, &asked).await.is_err();
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { port, open, asked, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Requests that arrived.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

const STREAM: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const EVENT: &[u8] = b"10\r\ndata: 12345678\n\n\r\n";

async fn serve(mut stream: TcpStream, asked: &AtomicUsize) -> std::io::Result<()> {
    let mut head = Vec::new();
    loop {
        // What follows of a body is nobody's.
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if stream.read_buf(&mut head).await? == 0 {
                return Ok(());
            }
        }
        asked.fetch_add(1, Ordering::SeqCst);
        let path = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default().to_vec();
        head.clear();
        match path.as_slice() {
            b"/flood" => {
                stream.write_all(STREAM).await?;
                let events = EVENT.repeat(512);
                loop {
                    stream.write_all(&events).await?;
                }
            }
            b"/idle" => stream.write_all(&[STREAM, EVENT].concat()).await?,
            b"/hang" => {}
            b"/deaf" => std::future::pending().await,
            _ => {
                let answer =
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
                stream.write_all(answer).await?;
            }
        }
    }
}
