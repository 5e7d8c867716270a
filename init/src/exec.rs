//! The door for further commands: `moat exec` has one started beside the agent, as the agent is.
//!
//! Whoever asks hands over the three descriptors, is told the exit code, and when it goes away first its command is hung
//! up. PID 1 takes what it is given for hostile: bounded, never waited for, and worth nothing that the asker has not.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
};

use moat_shared::exec::{MESSAGE, SOCKET, Told, Wish};
use nix::{
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket,
        sockopt::PeerCredentials,
    },
    unistd::Pid,
};

use crate::sys;

pub mod client;

/// Whoever has not said what it wants is let go when there are more.
const WAITING: usize = 8;
/// Commands at a time.
const RUNNING: usize = 64;

/// The door, open.
#[derive(Debug)]
pub(crate) struct Door {
    listener: UnixListener,
    waiting: Vec<UnixStream>,
    running: BTreeMap<Pid, UnixStream>,
}

/// Somebody wants this.
#[derive(Debug)]
pub(crate) struct Asked {
    from: UnixStream,
    pub(crate) wish: Wish,
    /// stdin, stdout, stderr.
    pub(crate) descriptors: [OwnedFd; 3],
}

/// What there is to do.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) asked: Vec<Asked>,
    /// Their askers are gone.
    pub(crate) abandoned: Vec<Pid>,
}

impl Door {
    /// Before anything else runs in the sandbox, so that the name is ours.
    pub(crate) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        bind(listener.as_raw_fd(), &UnixAddr::new_abstract(SOCKET)?)?;
        listen(&listener, Backlog::new(8)?)?;
        Ok(Self { listener: listener.into(), waiting: Vec::new(), running: BTreeMap::new() })
    }

    /// Everything that wakes it.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let streams = self.waiting.iter().chain(self.running.values());
        std::iter::once(self.listener.as_fd()).chain(streams.map(AsFd::as_fd)).collect()
    }

    /// Looks what has come. Waits for nothing.
    pub(crate) fn look(&mut self) -> News {
        while let Ok((stream, _)) = self.listener.accept() {
            if is_inside(&stream) && stream.set_nonblocking(true).is_ok() {
                self.waiting.push(stream);
            }
        }
        let mut news = News::default();
        for stream in std::mem::take(&mut self.waiting) {
            match receive(&stream) {
                Ok(Some((wish, descriptors))) => news.asked.push(Asked { from: stream, wish, descriptors }),
                Ok(None) => self.waiting.push(stream),
                Err(error) => tell(&stream, &refusal(&error.to_string())),
            }
        }
        let many = self.waiting.len().saturating_sub(WAITING);
        self.waiting.drain(..many);
        for (pid, stream) in &mut self.running {
            // Nothing more is said: anything but "not yet" is the end.
            if !matches!(stream.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
                news.abandoned.push(*pid);
            }
        }
        for pid in &news.abandoned {
            self.running.remove(pid);
        }
        news
    }

    /// Is there room for one more?
    pub(crate) fn is_full(&self) -> bool {
        self.running.len() >= RUNNING
    }

    /// It runs.
    pub(crate) fn started(&mut self, from: UnixStream, pid: Pid) {
        self.running.insert(pid, from);
    }

    /// A process has ended. Was it one of these?
    pub(crate) fn ended(&mut self, pid: Pid, code: u8) {
        if let Some(stream) = self.running.remove(&pid) {
            tell(&stream, &Told::Ended(code));
        }
    }
}

impl Asked {
    /// What is to be started, whom to tell, and what it gets.
    pub(crate) fn into_parts(self) -> (Wish, UnixStream, Vec<(OwnedFd, i32)>) {
        (self.wish, self.from, self.descriptors.into_iter().zip(0..).collect())
    }

    /// Says no.
    pub(crate) fn refuse(&self, text: &str) {
        tell(&self.from, &refusal(text));
    }
}

fn refusal(text: &str) -> Told {
    Told::Refused { code: moat_shared::exit::FAILURE, text: text.to_owned() }
}

/// Is the other end in this sandbox? A process elsewhere that shares the network has no number here.
fn is_inside(stream: &UnixStream) -> bool {
    getsockopt(stream, PeerCredentials).is_ok_and(|peer| peer.pid() != 0)
}

/// What somebody says, or nothing yet.
fn receive(stream: &UnixStream) -> io::Result<Option<(Wish, [OwnedFd; 3])>> {
    let mut text = vec![0; MESSAGE];
    let (length, descriptors) = match sys::receive(stream.as_fd(), &mut text) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        received => received?,
    };
    let wish: Wish = serde_json::from_slice(text.get(..length).unwrap_or_default())
        .map_err(|_| io::Error::other("what is to be started cannot be understood"))?;
    if wish.argv.is_empty() {
        return Err(io::Error::other("nothing to start"));
    }
    let descriptors = <[OwnedFd; 3]>::try_from(descriptors)
        .map_err(|_| io::Error::other("stdin, stdout and stderr are missing"))?;
    Ok(Some((wish, descriptors)))
}

/// Whoever does not listen is not waited for.
pub(crate) fn tell(mut stream: &UnixStream, told: &Told) {
    let text = serde_json::to_vec(told).unwrap_or_default();
    let _nobody_listens = stream.write_all(&text).is_err();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_wish_is_refused() {
        let pair = || {
            nix::sys::socket::socketpair(
                AddressFamily::Unix,
                SockType::SeqPacket,
                None,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            )
            .unwrap()
        };
        let said = |text: &[u8], count: usize| {
            let (ours, theirs) = pair();
            let (ours, theirs) = (UnixStream::from(ours), UnixStream::from(theirs));
            let stdin = io::stdin();
            let descriptors = vec![stdin.as_fd(); count];
            sys::send(theirs.as_fd(), text, &descriptors).unwrap();
            receive(&ours)
        };
        let wish = br#"{"argv":["true"],"terminal":false}"#;
        assert!(matches!(said(wish, 3), Ok(Some((Wish { terminal: false, .. }, _)))));
        assert!(said(wish, 2).is_err(), "a descriptor is missing");
        assert!(said(wish, 4).is_err(), "one too many");
        assert!(said(b"{", 3).is_err());
        assert!(said(br#"{"argv":[],"terminal":false}"#, 3).is_err());
        let (ours, _theirs) = pair();
        assert!(receive(&UnixStream::from(ours)).unwrap().is_none(), "nothing yet");
    }
}
