//! What a container reads and writes, while it runs: between the engine's stream and the holder's sockets.
//!
//! A terminal's bytes go as they are. Without one the engine tells stdout from stderr by a head of eight bytes before
//! each piece: the stream's number, three zeroes, the length. When the engine goes away and the container does not, the
//! stream is taken up again.

use std::{io, time::Duration};

use bollard::query_parameters::{ResizeContainerTTYOptionsBuilder, ResizeExecOptionsBuilder};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use super::{
    engine::{Engine, EngineError, FIRST_PAUSE, LONGEST_PAUSE},
    raw::{self, Attached},
};
use crate::runtime::Size;

/// Bytes are passed on in pieces of at most this size.
const PIECE: usize = 64 * 1024;
/// After the last byte the engine needs a moment to say that the container has ended.
const MOMENT: Duration = Duration::from_secs(1);

/// The container whose stream it is.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    pub(super) engine: Engine,
    pub(super) id: String,
    /// Its exit code.
    pub(super) ended: watch::Receiver<Option<u8>>,
    pub(super) of: Of,
}

/// What it is the stream of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Container,
    /// A further command, whose stream cannot be taken up again.
    Command,
}

impl Stream {
    /// Bytes both ways, until the container ends.
    pub(super) async fn terminal(mut self, first: Attached, local: UnixStream) {
        let (mut from_user, mut to_user) = local.into_split();
        let mut attached = Some(first);
        while let Some(Attached { first, mut from, mut to }) = attached {
            let outward = async {
                to_user.write_all(&first).await?;
                copy(&mut from, &mut to_user).await
            };
            one_way(outward, inward(&mut from_user, &mut to)).await;
            attached = self.again().await;
        }
    }

    /// Stdin one way, stdout and stderr the other.
    pub(super) async fn pipes(
        mut self,
        first: Attached,
        stdin: UnixStream,
        stdout: UnixStream,
        stderr: UnixStream,
    ) {
        let (mut from_user, _) = stdin.into_split();
        let ((_, mut out), (_, mut err)) = (stdout.into_split(), stderr.into_split());
        let mut attached = Some(first);
        while let Some(Attached { first, from, mut to }) = attached {
            let mut from = io::Cursor::new(first).chain(from);
            one_way(part(&mut from, &mut out, &mut err), inward(&mut from_user, &mut to)).await;
            attached = self.again().await;
        }
    }

    /// The stream has ended: with the container (`None`), or it is taken up again.
    async fn again(&mut self) -> Option<Attached> {
        if self.of == Of::Command {
            return None;
        }
        let mut pause = FIRST_PAUSE;
        if let Ok(Ok(_)) = timeout(MOMENT, self.ended.wait_for(Option::is_some)).await {
            return None;
        }
        loop {
            match raw::attach(&self.engine.socket, &self.id).await {
                Ok(attached) => return Some(attached),
                Err(EngineError::Gone | EngineError::Refused { .. }) => return None,
                Err(error) => tracing::info!("the engine is away: {error}"),
            }
            tokio::select! {
                _ = self.ended.wait_for(Option::is_some) => return None,
                () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }

    /// Tells the engine how large the terminal is.
    pub(super) async fn resize(&self, Size { rows, columns }: Size) {
        let (api, rows, columns) = (&self.engine.api, rows.into(), columns.into());
        let resized = match self.of {
            Of::Container => {
                let options = ResizeContainerTTYOptionsBuilder::new().h(rows).w(columns).build();
                api.resize_container_tty(&self.id, options).await
            }
            Of::Command => {
                let options = ResizeExecOptionsBuilder::new().h(rows).w(columns).build();
                api.resize_exec(&self.id, options).await
            }
        };
        if let Err(error) = resized {
            tracing::warn!("the window's size was not passed on: {error}");
        }
    }

    /// The same for each size that comes, until nobody is left to tell one.
    pub(super) async fn resizes(self, mut sizes: mpsc::UnboundedReceiver<Size>) {
        while let Some(size) = sizes.recv().await {
            self.resize(size).await;
        }
    }
}

/// Runs until the container's side ends; the user's may end before.
async fn one_way(
    outward: impl Future<Output = io::Result<()>>,
    inward: impl Future<Output = io::Result<()>>,
) {
    let inward = async {
        if let Err(error) = inward.await {
            tracing::debug!("the sandbox's stdin: {error}");
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = outward => if let Err(error) = ended {
            tracing::debug!("the sandbox's output: {error}");
        },
        () = inward => {}
    }
}

/// The user's bytes, and their end.
async fn inward(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> io::Result<()> {
    copy(from, to).await?;
    to.shutdown().await
}

async fn copy(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece).await? {
            0 => return Ok(()),
            length => to.write_all(&piece[..length]).await?,
        }
    }
}

/// Tells stdout from stderr.
async fn part(
    from: &mut (impl AsyncRead + Unpin),
    out: &mut (impl tokio::io::AsyncWrite + Unpin),
    err: &mut (impl tokio::io::AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let mut head = [0; 8];
        match from.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other.map(drop)?,
        }
        let [stream @ 0..=2, 0, 0, 0, length @ ..] = head else {
            return Err(io::Error::other("the engine's stream cannot be understood"));
        };
        let mut left = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
        while left > 0 {
            let room = left.min(PIECE);
            let length = from.read(&mut piece[..room]).await?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= length;
            match stream {
                2 => err.write_all(&piece[..length]).await?,
                _ => out.write_all(&piece[..length]).await?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn parted(bytes: &[u8]) -> (io::Result<()>, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut from = bytes;
        let ended = part(&mut from, &mut out, &mut err).await;
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (ended, text(out), text(err))
    }

    fn frame(stream: u8, text: &str) -> Vec<u8> {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        [&[stream, 0, 0, 0], &length[..], text.as_bytes()].concat()
    }

    #[tokio::test]
    async fn stdout_and_stderr_are_told_apart() {
        let large = "x".repeat(3 * PIECE);
        let bytes = [frame(1, "one"), frame(2, "two"), frame(1, ""), frame(1, &large)].concat();
        let (ended, out, err) = parted(&bytes).await;
        ended.unwrap();
        assert_eq!((out.len(), err.as_str()), (3 + large.len(), "two"));
    }

    #[tokio::test]
    async fn what_is_cut_or_no_stream_at_all_is_an_error() {
        let cut = frame(1, "cut off");
        let (ended, out, _) = parted(&cut[..10]).await;
        assert!(ended.is_err() && out == "cu");
        assert!(parted(b"HTTP/1.1 200 OK").await.0.is_err());
    }
}
