//! Goes to a port of a guest whose vsock device is a unix socket on its host: Firecracker's convention, which Cloud
//! Hypervisor and vhost-device-vsock have as well.
//!
//! ```text
//! we      CONNECT 5000\n                     tunnel ──►
//! device                  OK 1073741824\n    ◄── tunnel
//! ```
//!
//! Where nobody listens in the guest the device closes without an `OK`. The number in it is the host's port for one and the
//! guest's for another, and means nothing.

use std::{io, path::Path};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// `OK`, a number, and some room.
const ANSWER: usize = 64;

/// A stream to the port. The caller sets the deadline.
pub(super) async fn dial(device: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(device).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(ANSWER);
    loop {
        // Byte by byte: what follows is the tunnel's.
        match stream.read_u8().await {
            Ok(b'\n') => break,
            Ok(byte) if answer.len() < ANSWER => answer.push(byte),
            Ok(_) => return Err(no_device(&answer)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && answer.is_empty() => {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    format!("nobody listens at port {port} of the guest"),
                ));
            }
            Err(error) => return Err(error),
        }
    }
    if answer.starts_with(b"OK ") { Ok(stream) } else { Err(no_device(&answer)) }
}

fn no_device(answer: &[u8]) -> io::Error {
    io::Error::other(format!("this is no vsock device: it answers {:?}", String::from_utf8_lossy(answer)))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// What comes of it when the device answers so, and closes.
    async fn dialled(answer: &[u8]) -> (io::Result<UnixStream>, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let device = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; b"CONNECT 5000\n".len()];
            stream.read_exact(&mut asked).await.unwrap();
            stream.write_all(answer).await.unwrap();
            String::from_utf8(asked).unwrap()
        };
        tokio::join!(dial(&path, 5000), device)
    }

    #[tokio::test]
    async fn the_tunnel_begins_after_the_line() {
        for number in ["5000", "1073741824", ""] {
            let (stream, asked) = dialled(format!("OK {number}\n\x16\x03").as_bytes()).await;
            assert_eq!(asked, "CONNECT 5000\n");
            let mut rest = Vec::new();
            stream.unwrap().read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"\x16\x03", "not a byte of the tunnel is lost");
        }
    }

    #[tokio::test]
    async fn anything_else_is_no_tunnel() {
        let refused = dialled(b"").await.0.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(refused.to_string().contains("port 5000 of the guest"), "{refused}");
        for answer in [&b"HTTP/1.1 400\n"[..], &[b'O'; 1000][..], b"OK", b"\n"] {
            assert!(dialled(answer).await.0.is_err());
        }
    }
}
