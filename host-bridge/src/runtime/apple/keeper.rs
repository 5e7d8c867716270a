//! A socket of the host's that is never absent: the container's machine dials it, and a single refusal there ends its relay
//! for good (containerization up to 0.40.2).
//!
//! ```text
//! the machine's relay ──► this socket, from before the start to the end ──► the bridge's, where a bridge is
//! ```
//!
//! The run's holder keeps it, since a bridge may go and come back while the run is there. A connection that finds no
//! bridge ends at once, which is an attempt in vain and no refusal. Bytes are passed on as they are, and when one
//! direction ends both do: a half-closed connection is not carried everywhere.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use moat_shared::limits;
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};

/// While descriptors are lacking.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens. The machine shows the socket with this mode; on the host the directory keeps others out.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Passes on whoever comes. Never returns.
pub(super) async fn keep(listener: UnixListener, bridge: PathBuf) {
    let mut passing = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = passing.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    passing.spawn(pass(stream, bridge.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the tunnel's socket does not accept");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

async fn pass(mut from: UnixStream, bridge: PathBuf) {
    let Ok(Ok(mut to)) = timeout(limits::HANDSHAKE, UnixStream::connect(bridge)).await else { return };
    let ((mut from_machine, mut to_machine), (mut from_bridge, mut to_bridge)) = (from.split(), to.split());
    tokio::select! {
        _ = tokio::io::copy(&mut from_machine, &mut to_bridge) => {}
        _ = tokio::io::copy(&mut from_bridge, &mut to_machine) => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn it_is_there_whether_or_not_there_is_a_bridge() {
        let directory = tempfile::tempdir().unwrap();
        let (kept, bridge) = (directory.path().join("i"), directory.path().join("bridge.sock"));
        let listener = bind(&kept).unwrap();
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o666);
        let mut keeping = JoinSet::new();
        keeping.spawn(keep(listener, bridge.clone()));
        let mut heard = Vec::new();
        let mut nobody = UnixStream::connect(&kept).await.unwrap();
        assert_eq!(nobody.read_to_end(&mut heard).await.unwrap(), 0, "an attempt in vain");

        let listener = UnixListener::bind(&bridge).unwrap();
        let mut machine = UnixStream::connect(&kept).await.unwrap();
        let (mut accepted, _) = listener.accept().await.unwrap();
        machine.write_all(b"ask").await.unwrap();
        accepted.write_all(b"answer").await.unwrap();
        let mut asked = [0; 3];
        accepted.read_exact(&mut asked).await.unwrap();
        let mut answered = [0; 6];
        machine.read_exact(&mut answered).await.unwrap();
        assert_eq!((&asked, &answered), (b"ask", b"answer"));
        // The end of one direction is the end of both.
        machine.shutdown().await.unwrap();
        assert_eq!(accepted.read_to_end(&mut heard).await.unwrap(), 0);
        assert!(timeout(Duration::from_secs(5), machine.read_to_end(&mut heard)).await.unwrap().is_ok());
    }
}
