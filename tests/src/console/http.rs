//! One HTTP/1.1 exchange, written byte for byte and timed as it comes back. No library stands between test and wire.

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, tcp::OwnedReadHalf},
};

use super::Event;
use crate::{Outcome, Trouble, clock};

/// What to send, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// `host:port`.
    pub to: String,
    /// A request whose positive answer comes before `head` is sent: CONNECT.
    pub first: Option<String>,
    /// Request line and headers, with the empty line.
    pub head: String,
    /// The body.
    pub body: Body,
    /// Report the pieces of the body, not only their size.
    pub keep: bool,
}

/// A request's body.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// This text.
    Text(String),
    /// These bytes.
    Raw(Vec<u8>),
    /// `before`, so many times the letter m, `after`.
    Padded {
        /// First.
        before: String,
        /// How many letters.
        fill: usize,
        /// Last.
        after: String,
    },
}

impl Body {
    /// Its length.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Raw(bytes) => bytes.len(),
            Self::Padded { before, fill, after } => before.len() + *fill + after.len(),
        }
    }

    /// Is there none?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) -> Outcome {
        match self {
            Self::Text(text) => to.write_all(text.as_bytes()).await?,
            Self::Raw(bytes) => to.write_all(bytes).await?,
            Self::Padded { before, fill, after } => {
                to.write_all(before.as_bytes()).await?;
                let block = vec![b'm'; 16 * 1024];
                let mut left = *fill;
                while left > 0 {
                    let now = left.min(block.len());
                    to.write_all(&block[..now]).await?;
                    left -= now;
                }
                to.write_all(after.as_bytes()).await?;
            }
        }
        Ok(())
    }
}

/// Makes the exchange; `report` hears of everything as it happens.
///
/// # Errors
/// When the connection cannot be made or what comes is not HTTP.
pub async fn exchange(call: Call, report: impl Fn(Event)) -> Outcome {
    let stream = TcpStream::connect(&call.to).await?;
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut reader = Reader { read, buffer: Vec::new(), done: 0 };
    if let Some(first) = &call.first {
        write.write_all(first.as_bytes()).await?;
        let head = reader.head().await?;
        if head.status != 200 {
            report(head.event());
            return reader.body(&head, call.keep, &report).await;
        }
    }
    let writing = async {
        write.write_all(call.head.as_bytes()).await?;
        call.body.write(&mut write).await?;
        Ok::<_, Trouble>(write)
    };
    let reading = async {
        let head = reader.head().await?;
        report(head.event());
        reader.body(&head, call.keep, &report).await
    };
    // The answer may come, and the connection end, before all is written; the answer counts.
    let (_written, read) = tokio::join!(writing, reading);
    read
}

struct Head {
    status: u16,
    headers: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &str) -> Outcome<Self> {
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| Trouble::new(format!("not an answer of HTTP/1.1: {text:?}")))?;
        let header = |line: &str| {
            line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        Ok(Self { status, headers: lines.filter_map(header).collect() })
    }

    fn event(&self) -> Event {
        Event::Head { at: clock::now(), status: self.status, headers: self.headers.clone() }
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Reads an answer, piece by piece.
struct Reader {
    read: OwnedReadHalf,
    buffer: Vec<u8>,
    /// Bytes of the buffer that have been reported.
    done: usize,
}

impl Reader {
    /// Reads more; false at the end of the connection.
    async fn more(&mut self) -> Outcome<bool> {
        self.buffer.drain(..self.done);
        self.done = 0;
        let mut block = vec![0; 64 * 1024];
        let count = self.read.read(&mut block).await?;
        self.buffer.extend_from_slice(&block[..count]);
        Ok(count > 0)
    }

    /// Takes a part that ends with `end`, without it.
    async fn until(&mut self, end: &[u8]) -> Outcome<String> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer[self.done..], end) {
                let text = String::from_utf8_lossy(&self.buffer[self.done..self.done + at]).into_owned();
                self.done += at + end.len();
                return Ok(text);
            }
            if !self.more().await? {
                return Err(Trouble::new("the connection ended inside a head"));
            }
        }
    }

    async fn head(&mut self) -> Outcome<Head> {
        loop {
            let head = Head::parse(&self.until(b"\r\n\r\n").await?)?;
            if head.status >= 200 {
                return Ok(head);
            }
        }
    }

    async fn body(&mut self, head: &Head, keep: bool, report: &impl Fn(Event)) -> Outcome {
        let chunked =
            head.value("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        let length = head.value("content-length").and_then(|value| value.parse().ok());
        let clean = if chunked {
            self.chunks(keep, report).await
        } else {
            let none = matches!(head.status, 204 | 304);
            let wanted = if none { Some(0) } else { length };
            self.piece(wanted.unwrap_or(usize::MAX), keep, report).await? || length.is_none()
        };
        report(Event::End { at: clock::now(), clean });
        Ok(())
    }

    /// Reads chunks; false when the connection broke before the last one.
    async fn chunks(&mut self, keep: bool, report: &impl Fn(Event)) -> bool {
        while let Ok(line) = self.until(b"\r\n").await {
            let Ok(size) = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)
            else {
                return false;
            };
            if size == 0 {
                return self.until(b"\r\n").await.is_ok();
            }
            let whole = matches!(self.piece(size, keep, report).await, Ok(true));
            if !whole || self.until(b"\r\n").await.is_err() {
                return false;
            }
        }
        false
    }

    /// Reads so many bytes; false when the connection ended before.
    async fn piece(&mut self, mut wanted: usize, keep: bool, report: &impl Fn(Event)) -> Outcome<bool> {
        while wanted > 0 {
            if self.done == self.buffer.len() && !self.more().await.unwrap_or(false) {
                return Ok(false);
            }
            let now = wanted.min(self.buffer.len() - self.done);
            let bytes = &self.buffer[self.done..self.done + now];
            let text = if keep { String::from_utf8_lossy(bytes).into_owned() } else { String::new() };
            report(Event::Data { at: clock::now(), bytes: now, text });
            self.done += now;
            wanted -= now;
        }
        Ok(true)
    }
}
