//! A vsock device that is none: unix sockets on both sides, with the quirks that real devices have and that no device which
//! is at hand has all of. What is shown with it is how moat's ends take them, and nothing about any device.
//!
//! ```text
//! host   the bridge ◄── <vsock>_5000 ◄──┐                ┌──► guest.sock   a relay of this machine
//!        the bridge ──► <vsock>, CONNECT ┴─ this process ─┴──► listens.sock
//! ```
//!
//! - Half of an end is not carried: it ends both directions ([`Ends::Both`], Apple's relays), or it is kept back until
//!   everything has ended ([`Ends::Absorbed`], Firecracker and vhost-device-vsock from the guest's side).
//! - It takes so many connections, and no more: the next one hangs or is closed. One that has ended may keep its place.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{Outcome, guest::PORT};

/// After this an end that is only half of one is taken for meant so.
const MEANT: u16 = 1000;

/// What becomes of half of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// Both directions end.
    Both,
    /// Nothing, until everything has ended.
    Absorbed,
}

/// What becomes of a connection for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Hangs,
    Closes,
}

/// The device.
#[derive(Debug, Clone)]
pub struct Device(Arc<State>);

#[derive(Debug)]
struct State {
    directory: PathBuf,
    ends: Ends,
    full: Full,
    room: usize,
    /// Places that are taken, and by whom they are kept who has left.
    taken: AtomicUsize,
    kept: AtomicUsize,
    keeps: AtomicBool,
    peak: AtomicUsize,
    turned_away: AtomicUsize,
    halves: AtomicUsize,
    hung: Mutex<Vec<UnixStream>>,
}

impl Device {
    /// In this directory, which is nobody else's.
    ///
    /// # Errors
    /// When its sockets cannot be made.
    pub fn start(directory: &Path, ends: Ends, room: usize, full: Full) -> Outcome<Self> {
        fs::create_dir(directory)?;
        let device = Self(Arc::new(State {
            directory: directory.to_owned(),
            ends,
            full,
            room,
            taken: AtomicUsize::default(),
            kept: AtomicUsize::default(),
            keeps: AtomicBool::default(),
            peak: AtomicUsize::default(),
            turned_away: AtomicUsize::default(),
            halves: AtomicUsize::default(),
            hung: Mutex::default(),
        }));
        let to_host = format!("{}_{PORT}", device.host().display());
        let from_guest = UnixListener::bind(device.guest())?;
        let own = device.clone();
        thread::spawn(move || own.serve(&from_guest, || UnixStream::connect(&to_host)));
        let (from_host, own) = (UnixListener::bind(device.host())?, device.clone());
        thread::spawn(move || own.serve(&from_host, || UnixStream::connect(own.listens())));
        Ok(device)
    }

    /// Its socket on the host.
    #[must_use]
    pub fn host(&self) -> PathBuf {
        self.0.directory.join("v")
    }

    /// Where the guest dials.
    #[must_use]
    pub fn guest(&self) -> PathBuf {
        self.0.directory.join("guest.sock")
    }

    /// Where the guest listens.
    #[must_use]
    pub fn listens(&self) -> PathBuf {
        self.0.directory.join("listens.sock")
    }

    /// Whether connections that have ended keep their places; places that were kept are given back.
    pub fn keep_places(&self, keeps: bool) {
        self.0.keeps.store(keeps, Ordering::SeqCst);
        let kept = self.0.kept.swap(0, Ordering::SeqCst);
        self.0.taken.fetch_sub(kept, Ordering::SeqCst);
    }

    /// Connections that there are.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.taken.load(Ordering::SeqCst) - self.0.kept.load(Ordering::SeqCst)
    }

    /// At a time at most.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.0.peak.load(Ordering::SeqCst)
    }

    /// For which there was no room.
    #[must_use]
    pub fn turned_away(&self) -> usize {
        self.0.turned_away.load(Ordering::SeqCst)
    }

    /// How often somebody ended one direction, and went on with the other.
    #[must_use]
    pub fn halves(&self) -> usize {
        self.0.halves.load(Ordering::SeqCst)
    }

    fn serve(&self, listener: &UnixListener, dial: impl Fn() -> std::io::Result<UnixStream>) {
        let is_host = listener.local_addr().is_ok_and(|at| at.as_pathname() == Some(&self.host()));
        for accepted in listener.incoming() {
            let Ok(mut accepted) = accepted else { return };
            let taken = self.0.taken.fetch_add(1, Ordering::SeqCst) + 1;
            if taken > self.0.room {
                self.0.taken.fetch_sub(1, Ordering::SeqCst);
                self.0.turned_away.fetch_add(1, Ordering::SeqCst);
                if self.0.full == Full::Hangs {
                    self.0.hung.lock().unwrap_or_else(PoisonError::into_inner).push(accepted);
                }
                continue;
            }
            self.0.peak.fetch_max(taken, Ordering::SeqCst);
            // Where nobody listens it just ends.
            let dialled = if is_host && !asks(&mut accepted) { None } else { dial().ok() };
            match dialled {
                Some(dialled) if !is_host || accepted.write_all(b"OK 1\n").is_ok() => {
                    let own = self.clone();
                    thread::spawn(move || own.carry(&accepted, &dialled));
                }
                _ => self.left(),
            }
        }
    }

    fn left(&self) {
        if self.0.keeps.load(Ordering::SeqCst) {
            self.0.kept.fetch_add(1, Ordering::SeqCst);
        } else {
            self.0.taken.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn carry(&self, one: &UnixStream, other: &UnixStream) {
        thread::scope(|scope| {
            for (from, to) in [(one, other), (other, one)] {
                scope.spawn(move || {
                    let is_their_end = copy(from, to);
                    if is_their_end && self.0.ends == Ends::Absorbed && !has_ended(from, MEANT.into()) {
                        self.0.halves.fetch_add(1, Ordering::SeqCst);
                        has_ended(from, PollTimeout::NONE);
                    }
                    // It may have gone.
                    let _gone = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                });
            }
        });
        self.left();
    }
}

/// `CONNECT 5000`
fn asks(host: &mut UnixStream) -> bool {
    let mut asked = vec![0; format!("CONNECT {PORT}\n").len()];
    host.read_exact(&mut asked).is_ok()
}

/// Until one end of it is over: is it the one that is read?
fn copy(mut from: &UnixStream, mut to: &UnixStream) -> bool {
    let mut piece = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        if to.write_all(piece.get(..length).unwrap_or_default()).is_err() {
            return false;
        }
    }
    true
}

/// Have both directions of it ended, by now or within this time?
fn has_ended(stream: &UnixStream, within: PollTimeout) -> bool {
    let mut asked = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let polled = poll(&mut asked, within);
    polled.is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::eventually;

    /// Somebody dials from the guest, and ends only what it says itself.
    fn half_closed(ends: Ends) -> (Device, UnixStream, UnixStream) {
        let directory = tempfile::tempdir().unwrap();
        let device = Device::start(&directory.path().join("d"), ends, 1, Full::Closes).unwrap();
        let host = UnixListener::bind(format!("{}_{PORT}", device.host().display())).unwrap();
        let mut guest = UnixStream::connect(device.guest()).unwrap();
        let mut bridge = host.accept().unwrap().0;
        guest.write_all(b"ask").unwrap();
        bridge.read_exact(&mut [0; 3]).unwrap();
        guest.shutdown(Shutdown::Write).unwrap();
        (device, guest, bridge)
    }

    #[test]
    fn half_of_an_end_is_absorbed_and_counted() {
        let (device, mut guest, mut bridge) = half_closed(Ends::Absorbed);
        let within = Duration::from_secs(5);
        eventually("it is counted", within, || (device.halves() == 1).then_some(())).unwrap();
        bridge.write_all(b"answer").unwrap();
        guest.read_exact(&mut [0; 6]).unwrap();
        assert_eq!(device.open(), 1);
        drop(guest);
        assert_eq!(bridge.read(&mut [0]).unwrap(), 0, "everything has ended");
        eventually("its place is free", within, || (device.open() == 0).then_some(())).unwrap();
    }

    #[test]
    fn or_it_is_the_end_of_all_of_it() {
        let (device, mut guest, mut bridge) = half_closed(Ends::Both);
        assert_eq!(guest.read(&mut [0]).unwrap(), 0);
        assert_eq!(bridge.read(&mut [0]).unwrap(), 0);
        assert_eq!(device.halves(), 0);
    }
}
