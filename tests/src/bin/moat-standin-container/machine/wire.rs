//! What a guest's first program and the host say to each other: a request and its answer, a line of JSON each, and after
//! them, where a program was started, frames: what it reads and writes, and its exit code.
//!
//! One connection carries all of it: a guest's vsock device has no half of a connection that could end.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::unix::net::UnixStream,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Exec;
use crate::{Answer, Refusal, store::Container, terminal::Size};

/// A line is no longer.
const LINE: usize = 1 << 20;
/// Nor is a frame.
pub(super) const FRAME: usize = 64 * 1024;

/// Of the host.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// The container, once; `modes` are those of the sockets that are mounted, `size` is its terminal's, if it has one.
    Start { container: Box<Container>, modes: Vec<u32>, size: Option<Size> },
    /// A program beside it.
    Exec { exec: Exec, size: Option<Size> },
    /// To its first process, by its number.
    Signal(i32),
}

/// Of a program.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// For its stdin; empty at its end.
    Input(Vec<u8>),
    Output(Vec<u8>),
    Errors(Vec<u8>),
    /// A line of JSON.
    Size(Vec<u8>),
    Exit(u8),
}

/// Says something in a line.
pub(super) fn say(mut to: &UnixStream, what: &impl Serialize) -> Answer {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    Ok(to.write_all(&line)?)
}

/// Reads a line and not a byte more.
pub(super) fn hear<T: DeserializeOwned>(mut from: &UnixStream) -> Answer<T> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" && line.len() < LINE {
        from.read_exact(&mut byte)?;
        line.extend(byte);
    }
    Ok(serde_json::from_slice(&line)?)
}

/// Asks, and waits for the answer.
pub(super) fn ask(connection: &UnixStream, request: &Request) -> Answer {
    say(connection, request)?;
    hear::<Result<(), String>>(connection)?.map_err(|text| Refusal::Said("internalError", text))
}

/// Answers.
pub(super) fn answer(connection: &UnixStream, outcome: Answer) -> Answer {
    say(connection, &outcome.map_err(|refusal| refusal.to_string()))
}

impl Frame {
    pub(super) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, bytes) = match self {
            Self::Input(bytes) => (b'i', bytes.as_slice()),
            Self::Output(bytes) => (b'o', bytes.as_slice()),
            Self::Errors(bytes) => (b'e', bytes.as_slice()),
            Self::Size(line) => (b's', line.as_slice()),
            Self::Exit(code) => (b'x', std::slice::from_ref(code)),
        };
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        to.write_all(&[&[kind], &length.to_be_bytes()[..], bytes].concat())
    }

    pub(super) fn read(from: &mut impl Read) -> io::Result<Self> {
        let (mut kind, mut length) = ([0], [0; 4]);
        from.read_exact(&mut kind)?;
        from.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
        if length > FRAME {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; length];
        from.read_exact(&mut bytes)?;
        match (kind, &bytes[..]) {
            ([b'i'], _) => Ok(Self::Input(bytes)),
            ([b'o'], _) => Ok(Self::Output(bytes)),
            ([b'e'], _) => Ok(Self::Errors(bytes)),
            ([b's'], _) => Ok(Self::Size(bytes)),
            ([b'x'], [code]) => Ok(Self::Exit(*code)),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let frames = [
            Frame::Input(b"typed".to_vec()),
            Frame::Input(Vec::new()),
            Frame::Output(vec![0; FRAME]),
            Frame::Errors(vec![255, 0]),
            Frame::Size(b"[\"33\",\"99\"]".to_vec()),
            Frame::Exit(137),
        ];
        let mut bytes = Vec::new();
        for frame in &frames {
            frame.write(&mut bytes).unwrap();
        }
        let mut from = bytes.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut from).unwrap(), frame);
        }
        assert!(Frame::read(&mut from).is_err(), "there is no more");
    }

    #[test]
    fn what_nobody_writes_is_refused() {
        for bytes in [&b"o\0\x01\0\x01"[..], b"x\0\0\0\0", b"?\0\0\0\0"] {
            assert_eq!(Frame::read(&mut &*bytes).unwrap_err().kind(), ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
