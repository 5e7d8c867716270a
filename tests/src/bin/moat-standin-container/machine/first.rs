//! The first program of a guest: the part that `vminitd` has in Apple's machines. It is this program as well, started by
//! the kernel, and no other stays beside it.
//!
//! It mounts what the host shares, runs the container in namespaces of the guest by the code that runs it in this
//! machine's, is the guest's end of the socket relays, and starts and signals what it is asked to. When the container has
//! ended, so does the guest.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread,
};

use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        signal::Signal,
    },
    unistd::{Pid, chdir, chroot},
};

use super::{
    namespaces, session, vsock,
    wire::{self, Request},
};
use crate::{
    Answer, Refusal, relay,
    store::{Around, Container},
};

/// Where it keeps the container's parts.
const DIRECTORY: &str = "/run/container";
const NOTHING: Option<&str> = None;

/// What all its threads know.
struct Guest {
    container: Container,
    /// The container's first process, as the guest numbers it.
    process: OnceLock<Pid>,
}

/// Does all of it. A first program that ends takes the guest along.
pub(super) fn run() -> Answer<u8> {
    if std::process::id() != 1 {
        return Err(Refusal::Usage("only a guest's kernel starts this".to_owned()));
    }
    file_systems()?;
    drivers()?;
    let requests = vsock::listen(vsock::CONTROL)?;
    let connection = vsock::dial(vsock::READY)?;
    let Request::Start { container, modes, size } = wire::hear(&connection)? else {
        return Err(Refusal::Usage("the first request is not the container".to_owned()));
    };
    let guest = match prepare(*container, &modes) {
        Ok(guest) => Arc::new(guest),
        Err(refusal) => {
            wire::answer(&connection, Err(refusal))?;
            return until_heard(connection);
        }
    };
    answer_requests(&guest, requests);
    wire::answer(&connection, Ok(()))?;
    let command = |terminal: Option<&Path>| namespaces::command(&guest.container, terminal);
    session::serve(&connection, size, command, |child| {
        let pid = namespaces::first_process(child)?;
        guest.process.set(pid).map_err(|_| Refusal::Usage("a second container".to_owned()))
    })?;
    until_heard(connection)
}

/// The host has heard all of it, and the guest may end.
fn until_heard(mut connection: UnixStream) -> Answer<u8> {
    let _until_it_is_gone = connection.read_to_end(&mut Vec::new());
    match reboot(RebootMode::RB_AUTOBOOT)? {}
}

/// The kernel's first root directory cannot be left for another: a second name of it can.
fn file_systems() -> Answer {
    fs::create_dir_all("/root")?;
    mount(Some("/"), "/root", NOTHING, MsFlags::MS_BIND, NOTHING)?;
    chdir("/root")?;
    mount(Some("."), "/", NOTHING, MsFlags::MS_MOVE, NOTHING)?;
    chroot(".")?;
    chdir("/")?;
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("devpts", "/dev/pts")]
    {
        fs::create_dir_all(place)?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), NOTHING)?;
    }
    Ok(())
}

fn drivers() -> Answer {
    for name in fs::read_to_string("/module/order")?.lines() {
        finit_module(File::open(Path::new("/module").join(name))?, c"", ModuleInitFlags::empty())?;
    }
    Ok(())
}

/// Mounts what is shared, and starts the ends of the relays.
fn prepare(mut container: Container, modes: &[u32]) -> Answer<Guest> {
    container.directory = DIRECTORY.into();
    container.around = Around::Itself;
    share("root", &container.root())?;
    for (number, mount) in container.wanted.mounts.iter_mut().enumerate() {
        let tag = format!("mount{number}");
        mount.source = PathBuf::from(DIRECTORY).join(&tag);
        share(&tag, &mount.source)?;
    }
    container.save()?;
    let relays = relay::Shared::sound(&container);
    for (number, (_, path)) in container.wanted.published.iter().enumerate() {
        let (container, path) = (container.clone(), path.clone());
        let dial = move || namespaces::connect(&container, &path);
        relays.serve(vsock::listen(vsock::published(number))?, dial, false);
    }
    for ((number, (_, path)), mode) in container.wanted.volumes.iter().enumerate().zip(modes) {
        let listener = namespaces::listen(&container, path, *mode)?;
        relays.serve(relay::accepts(listener), move || vsock::dial(vsock::mounted(number)), false);
    }
    Ok(Guest { container, process: OnceLock::new() })
}

fn share(tag: &str, place: &Path) -> Answer {
    fs::create_dir_all(place)?;
    Ok(mount(Some(tag), place, Some("virtiofs"), MsFlags::empty(), NOTHING)?)
}

fn answer_requests(
    guest: &Arc<Guest>,
    mut accept: impl FnMut() -> std::io::Result<UnixStream> + Send + 'static,
) {
    let guest = Arc::clone(guest);
    thread::spawn(move || {
        while let Ok(connection) = accept() {
            let guest = Arc::clone(&guest);
            thread::spawn(move || {
                if let Err(refusal) = guest.serve(&connection) {
                    // The console's, which the host's error shows.
                    eprintln!("{refusal}");
                }
            });
        }
    });
}

impl Guest {
    fn serve(&self, connection: &UnixStream) -> Answer {
        let request = wire::hear(connection)?;
        let Some(pid) = self.process.get().copied() else {
            let text = "it does not run yet".to_owned();
            return wire::answer(connection, Err(Refusal::Said("invalidState", text)));
        };
        match request {
            Request::Signal(number) => {
                let sent = Signal::try_from(number).and_then(|signal| nix::sys::signal::kill(pid, signal));
                wire::answer(connection, sent.map_err(Refusal::from))
            }
            Request::Exec { exec, size } => {
                wire::answer(connection, Ok(()))?;
                let command = |_: Option<&Path>| Ok(namespaces::exec(&self.container, pid, &exec));
                session::serve(connection, size, command, |_| Ok(()))
            }
            Request::Start { .. } => {
                wire::answer(connection, Err(Refusal::Usage("a second container".to_owned())))
            }
        }
    }
}
