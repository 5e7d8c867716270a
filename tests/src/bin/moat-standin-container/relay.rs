//! The socket relays, with what is known to be wrong with the real ones (containerization up to 0.40.2).
//!
//! - *into*: one refused connection to the host ends it for good, and whoever connects later hangs.
//! - *out-of*: where nobody listens in the machine, the connection is accepted and ends.
//! - Neither carries half of a connection's end: when one direction ends, both do.
//! - Several clients at a time hang it, and all that goes through it.
//! - What is published may be accepted, and nothing ever delivered (seen of nobody; a carrier that does not work at all).
//! - It may stop delivering without closing anything: what is open when a file `stall` appears beside the container.
//!
//! All of that is at the host's end. Where the machine is a guest, its end is the same code without a defect, and between
//! the two is vsock.
//!
//! How many connections there are at a time at most is written to the file `peak`.

use std::{
    fs,
    io::{self, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use moat_tests::apple::Defects;

use super::{Answer, Refusal, machine, store::Container};

/// What the relays of a machine share.
#[derive(Clone)]
pub(crate) struct Shared {
    defects: Defects,
    directory: PathBuf,
    open: Arc<AtomicUsize>,
    peak: Arc<AtomicUsize>,
    hangs: Arc<AtomicBool>,
}

/// Starts those of a container. They end with this process.
pub(crate) fn start(container: &Arc<Container>, defects: Defects) -> Answer {
    let dies = defects.dies_after_refusal;
    let shared = Shared::new(container, defects);
    for (number, (host, _)) in container.wanted.published.iter().enumerate() {
        if host.exists() {
            return Err(Refusal::Said("exists", format!("{} is there already", host.display())));
        }
        let listener = UnixListener::bind(host)?;
        let hangs = Arc::new(AtomicBool::new(shared.defects.published_hangs));
        let own = Shared { hangs, ..shared.clone() };
        let shared = if shared.defects.published_hangs { own } else { shared.clone() };
        let container = Arc::clone(container);
        shared.serve(accepts(listener), move || machine::connect(&container, number), false);
    }
    for (number, (host, _)) in container.wanted.volumes.iter().enumerate() {
        let listener = machine::listen(container, number)?;
        let host = host.clone();
        shared.serve(accepts(listener), move || UnixStream::connect(&host), dies);
    }
    Ok(())
}

/// What comes to a unix socket.
pub(crate) fn accepts(listener: UnixListener) -> impl FnMut() -> io::Result<UnixStream> {
    move || listener.accept().map(|(stream, _)| stream)
}

impl Shared {
    pub(crate) fn new(container: &Container, defects: Defects) -> Self {
        Self {
            defects,
            directory: container.directory.clone(),
            open: Arc::default(),
            peak: Arc::default(),
            hangs: Arc::default(),
        }
    }

    /// One that has no defect.
    pub(crate) fn sound(container: &Container) -> Self {
        Self::new(
            container,
            Defects { dies_after_refusal: false, hangs_at: usize::MAX, published_hangs: false },
        )
    }

    /// In a thread of its own, until nobody comes any more.
    pub(crate) fn serve(
        &self,
        mut accept: impl FnMut() -> io::Result<UnixStream> + Send + 'static,
        dial: impl Fn() -> io::Result<UnixStream> + Send + 'static,
        dies: bool,
    ) {
        let shared = self.clone();
        thread::spawn(move || {
            while let Ok(accepted) = accept() {
                match dial() {
                    Ok(dialled) => shared.pass(accepted, dialled),
                    Err(_) if dies => {
                        note(&shared.directory, "dead", "1");
                        // The listener stays, and nobody looks at it any more. Nor is what was accepted closed.
                        let _both_stay = accepted;
                        loop {
                            thread::park();
                        }
                    }
                    Err(_) => {}
                }
            }
        });
    }

    fn pass(&self, accepted: UnixStream, dialled: UnixStream) {
        let open = self.open.fetch_add(1, Ordering::SeqCst) + 1;
        if open > self.peak.fetch_max(open, Ordering::SeqCst) {
            note(&self.directory, "peak", &open.to_string());
        }
        if open >= self.defects.hangs_at {
            self.hangs.store(true, Ordering::SeqCst);
            note(&self.directory, "hung", "1");
        }
        let ended = Arc::new(AtomicBool::new(false));
        for (from, to) in [(&accepted, &dialled), (&dialled, &accepted)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
            let (shared, ended) = (self.clone(), Arc::clone(&ended));
            thread::spawn(move || {
                shared.copy(&from, &to);
                let _gone = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                if !ended.swap(true, Ordering::SeqCst) {
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    }

    fn copy(&self, mut from: &UnixStream, mut to: &UnixStream) {
        let stall = self.directory.join("stall");
        let is_later = stall.exists();
        let mut piece = vec![0; 64 * 1024];
        loop {
            let length = match from.read(&mut piece) {
                Ok(0) | Err(_) => return,
                Ok(length) => length,
            };
            while self.hangs.load(Ordering::SeqCst) || (!is_later && stall.exists()) {
                thread::park();
            }
            if to.write_all(piece.get(..length).unwrap_or_default()).is_err() {
                return;
            }
        }
    }
}

/// For the test that looks. The container may be gone.
fn note(directory: &Path, name: &str, text: &str) {
    let _gone = fs::write(directory.join(name), text);
}
