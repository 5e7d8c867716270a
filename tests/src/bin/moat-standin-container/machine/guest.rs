//! A machine that is a real guest: QEMU without KVM and without a network device, a kernel, and [`first`](super::first).
//!
//! ```text
//! host                                                     guest
//! start -a ── __guest ─┬─ vhost-device-vsock ── virtio ──► first: the container, its programs, its relays
//!                      ├─ virtiofsd × shares ── virtio ──► root file system and mounts of the container
//!                      └─ QEMU
//! ```
//!
//! All of it ends with the process that is called `__guest`, however that ends.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use moat_tests::{
    Outcome, Trouble,
    apple::shares_program,
    clock::eventually,
    guest::{BOOT, Device, QEMU, VSOCK, installed_program, qemu},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    Exec, mode, session, vsock,
    wire::{self, Request},
};
use crate::{
    Answer, Refusal,
    store::{Around, Container},
    terminal::{self, Raw},
};

const MEGABYTES: u32 = 384;
/// For a part around it to come up, and for a guest that has nothing more to do to end.
const SOON: Duration = Duration::from_secs(10);
/// A file that is there as soon as the guest answers.
const UP: &str = "up";

/// What starts one.
pub(super) fn command(container: &Container, terminal: Option<&Path>) -> Answer<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("__guest").arg(&container.directory).args(terminal);
    Ok(command)
}

/// What starts a program in it.
pub(super) fn exec(container: &Container, exec: &Exec, terminal: Option<&Path>) -> Answer<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("__exec").arg(&container.directory).arg(serde_json::to_string(exec)?).args(terminal);
    Ok(command)
}

/// To the container's first process. A guest that does not answer is ended, if it is to end at all.
pub(super) fn signal(container: &Container, pid: Pid, signal: Signal) -> Answer {
    let asked = dial(container, vsock::CONTROL).map_err(Refusal::from);
    match asked.and_then(|connection| wire::ask(&connection, &Request::Signal(signal as i32))) {
        Err(_) if signal == Signal::SIGKILL => Ok(kill(pid, signal)?),
        asked => asked,
    }
}

/// To a socket that is published.
pub(super) fn connect(container: &Container, number: usize) -> io::Result<UnixStream> {
    dial(container, vsock::published(number))
}

/// Where the guest's end of one that is mounted comes to.
pub(super) fn listen(container: &Container, number: usize) -> io::Result<UnixListener> {
    UnixListener::bind(port(container, vsock::mounted(number)))
}

/// Where the device connects to when the guest dials this port of the host's.
fn port(container: &Container, port: u32) -> PathBuf {
    container.directory.join(format!("{VSOCK}_{port}"))
}

/// A port of the guest's, as one asks a device whose end is a unix socket. One that is asked before there is anybody in its
/// guest may not recover.
fn dial(container: &Container, port: u32) -> io::Result<UnixStream> {
    if !container.directory.join(UP).exists() {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let mut stream = UnixStream::connect(container.directory.join(VSOCK))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let (mut line, mut byte) = (Vec::new(), [0]);
    while byte != *b"\n" && line.len() < 32 {
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    if !line.starts_with(b"OK ") {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// Is the guest, as long as the container runs. Its exit code.
pub(super) fn run(directory: &Path, terminal: Option<&Path>) -> Answer<u8> {
    let container = Container::load(directory)?;
    let resizes = terminal.map(own).transpose()?;
    let raw = terminal.is_some().then(Raw::new).transpose()?;
    let told = UnixListener::bind(port(&container, vsock::READY))?;
    let mut around = Surroundings::start(&container).map_err(Refusal::internal)?;
    let ran = around.first_word(&told).map_err(Refusal::internal).and_then(|connection| {
        let modes = container.wanted.volumes.iter().map(|(host, _)| mode(host)).collect::<io::Result<_>>()?;
        let size = terminal.map(|_| terminal::own_size()).transpose()?;
        wire::ask(&connection, &Request::Start { container: Box::new(container.clone()), modes, size })?;
        fs::write(directory.join(UP), "")?;
        session::attach(&connection, resizes)
    });
    // It may have been deleted.
    let _gone = fs::remove_file(directory.join(UP));
    drop(raw);
    around.end(ran.is_ok());
    ran.map_err(|refusal| around.explained(directory, refusal))
}

/// Is in the foreground for a program in the guest. Its exit code.
pub(super) fn run_exec(directory: &Path, exec: &str, terminal: Option<&Path>) -> Answer<u8> {
    let container = Container::load(directory)?;
    let resizes = terminal.map(own).transpose()?;
    let _raw = terminal.is_some().then(Raw::new).transpose()?;
    let connection = dial(&container, vsock::CONTROL)?;
    let size = terminal.map(|_| terminal::own_size()).transpose()?;
    let request = Request::Exec { exec: serde_json::from_str(exec)?, size };
    wire::ask(&connection, &request)?;
    session::attach(&connection, resizes)
}

/// The terminal is this process's from now on, and tells it its sizes.
fn own(terminal: &Path) -> Answer<nix::sys::signalfd::SignalFd> {
    terminal::take(terminal)?;
    terminal::resizes()
}

/// The processes around a guest. Fields are dropped in their order.
struct Surroundings {
    machine: Child,
    shares: Vec<Child>,
    _device: Device,
}

/// A program that ends when this process does, even if that is killed.
fn held(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).stdin(Stdio::null());
    command
}

impl Surroundings {
    fn start(container: &Container) -> Outcome<Self> {
        let Around::Guest(files) = &container.around else {
            return Err(Trouble::new("this container has no guest"));
        };
        let directory = &container.directory;
        let device = Device::start_with(held(installed_program()?), directory)?;
        let mut command = qemu(held(QEMU), directory, MEGABYTES, files, "rdinit=/bin/first -- __first")?;
        command
            .args(["-chardev", &format!("socket,id=vsock,path={}", device.socket.display())])
            .args(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
        let mut shares = Vec::new();
        let mounts = container.wanted.mounts.iter().enumerate();
        let mounts = mounts.map(|(number, mount)| (format!("mount{number}"), mount.source.clone()));
        for (tag, source) in [("root".to_owned(), container.root())].into_iter().chain(mounts) {
            let socket = directory.join(&tag).with_extension("sock");
            shares.push(share(&source, &socket)?);
            command
                .args(["-chardev", &format!("socket,id={tag},path={}", socket.display())])
                .args(["-device", &format!("vhost-user-fs-pci,chardev={tag},tag={tag}")]);
        }
        let log = fs::File::create(directory.join("qemu.log"))?;
        let machine = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Self { machine, shares, _device: device })
    }

    /// Waits until the guest says that it is there.
    fn first_word(&mut self, told: &UnixListener) -> Outcome<UnixStream> {
        told.set_nonblocking(true)?;
        let heard = eventually("the guest is up", BOOT, || match told.accept() {
            Ok((connection, _)) => Some(Ok(connection)),
            Err(_) => self.machine.try_wait().ok().flatten().map(Err),
        })?;
        let connection = heard.map_err(|status| Trouble::new(format!("it ended: {status}")))?;
        connection.set_nonblocking(false)?;
        Ok(connection)
    }

    /// Waits for the guest to end by itself, if it is about to.
    fn end(&mut self, by_itself: bool) {
        if by_itself {
            let _killed_below =
                eventually("the guest ends", SOON, || self.machine.try_wait().ok().flatten().map(drop));
        }
        for child in std::iter::once(&mut self.machine).chain(&mut self.shares) {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }

    /// With what the guest said last.
    fn explained(&self, directory: &Path, refusal: Refusal) -> Refusal {
        let read = |name: &str| fs::read(directory.join(name)).unwrap_or_default();
        let said = [read("console"), read("qemu.log")].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let lines: Vec<&str> = said.lines().collect();
        let last = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default();
        Refusal::Plain(format!("{refusal}\nthe guest's last words:\n{}", last.join("\n")))
    }
}

impl Drop for Surroundings {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// A directory for the guest, by virtio.
fn share(source: &Path, socket: &Path) -> Outcome<Child> {
    let program = shares_program().ok_or_else(|| Trouble::new("no virtiofsd"))?;
    let log = fs::File::create(socket.with_extension("log"))?;
    let child = held(program)
        .arg(format!("--socket-path={}", socket.display()))
        .args(["-f", "-o", "sandbox=chroot", "-o", &format!("source={}", source.display())])
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    eventually("virtiofsd listens", SOON, || socket.exists().then_some(()))?;
    Ok(child)
}
