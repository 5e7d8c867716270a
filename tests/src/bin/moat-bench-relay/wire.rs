//! One HTTP/1.1 connection of the load generator: as little as can measure, the same for whoever answers.

use std::io;

use bytes::{Bytes, BytesMut};
use moat_tests::{Outcome, Trouble};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A byte stream, over TLS or not.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection with what was read ahead.
pub(crate) struct Connection {
    io: Box<dyn Io>,
    buffer: BytesMut,
}

/// The head of an answer.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) status: u16,
    pub(crate) session: Option<String>,
    pub(crate) body: Body,
}

/// What is left of an answer's body.
#[derive(Debug)]
pub(crate) enum Body {
    Exactly(usize),
    /// So many bytes of the current chunk, its line break not counted.
    Chunked(usize),
    ToTheEnd,
}

impl Connection {
    pub(crate) fn new(io: Box<dyn Io>) -> Self {
        Self { io, buffer: BytesMut::new() }
    }

    /// Sends a request.
    pub(crate) async fn send(&mut self, request: &[u8]) -> Outcome {
        self.io.write_all(request).await?;
        Ok(self.io.flush().await?)
    }

    /// The head of the next answer.
    pub(crate) async fn head(&mut self) -> Outcome<Head> {
        let head = loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                break self.buffer.split_to(end + 4);
            }
            self.more().await?;
        };
        parse(&head).ok_or_else(|| Trouble::new(format!("not HTTP/1.1: {}", String::from_utf8_lossy(&head))))
    }

    /// The next piece of a body; `None` at its end.
    pub(crate) async fn data(&mut self, body: &mut Body) -> Outcome<Option<Bytes>> {
        match body {
            Body::Exactly(0) => Ok(None),
            Body::Exactly(left) => {
                let piece = self.piece(*left).await?;
                *left -= piece.len();
                Ok(Some(piece))
            }
            Body::Chunked(left) => {
                if *left == 0 {
                    let size = self.chunk().await?;
                    if size == 0 {
                        *body = Body::Exactly(0);
                        return Ok(None);
                    }
                    *left = size;
                }
                let piece = self.piece(*left).await?;
                *left -= piece.len();
                if *left == 0 {
                    self.line().await?;
                }
                Ok(Some(piece))
            }
            Body::ToTheEnd => match self.piece(usize::MAX).await {
                Ok(piece) => Ok(Some(piece)),
                Err(_) => Ok(None),
            },
        }
    }

    /// All that is left of a body, passed over; its length.
    pub(crate) async fn skip(&mut self, body: &mut Body) -> Outcome<usize> {
        let mut length = 0;
        while let Some(piece) = self.data(body).await? {
            length += piece.len();
        }
        Ok(length)
    }

    /// A whole body.
    pub(crate) async fn whole(&mut self, body: &mut Body) -> Outcome<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(piece) = self.data(body).await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    async fn piece(&mut self, most: usize) -> Outcome<Bytes> {
        if self.buffer.is_empty() {
            self.more().await?;
        }
        let length = most.min(self.buffer.len());
        Ok(self.buffer.split_to(length).freeze())
    }

    async fn chunk(&mut self) -> Outcome<usize> {
        let line = self.line().await?;
        let text = std::str::from_utf8(&line)?;
        let size = usize::from_str_radix(text.split(';').next().unwrap_or_default().trim(), 16)?;
        if size == 0 {
            self.line().await?;
        }
        Ok(size)
    }

    async fn line(&mut self) -> Outcome<Bytes> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.buffer, b"\r\n") {
                return Ok(self.buffer.split_to(end + 2).freeze());
            }
            self.more().await?;
        }
    }

    async fn more(&mut self) -> Outcome {
        const READ: usize = 16 * 1024;
        self.buffer.reserve(READ);
        match self.io.read_buf(&mut self.buffer).await? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => Ok(()),
        }
    }
}

fn parse(head: &[u8]) -> Option<Head> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.get(9..12)?.parse().ok()?;
    let mut parsed = Head { status, session: None, body: Body::ToTheEnd };
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            parsed.body = Body::Exactly(value.trim().parse().ok()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            parsed.body = Body::Chunked(0);
        } else if name.eq_ignore_ascii_case("mcp-session-id") {
            parsed.session = Some(value.trim().to_owned());
        }
    }
    if matches!(status, 202 | 204) && matches!(parsed.body, Body::ToTheEnd) {
        parsed.body = Body::Exactly(0);
    }
    Some(parsed)
}
