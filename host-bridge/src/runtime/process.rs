//! The process runtime: Linux namespaces on the host's own root file system, and no network but `lo` unless asked.
//!
//! [`builder`] and [`inside`] are the two halves of `moat __sandbox`, which this starts and talks to:
//! [`spec`] says how. [`tree`] is the file system, [`ids`] the users, [`hide`] what is kept from sight,
//! [`super::seccomp`] what may not be asked of the kernel, [`network`] the way out where one is wanted.

mod builder;
mod enter;
mod etc;
mod hide;
mod idmap;
mod ids;
mod inside;
mod network;
mod spec;
mod sys;
mod tree;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
};

use moat_shared::{
    endpoint::{Dialler, Endpoint},
    plan::{Startup, Tunnel, User},
};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::{Signal, kill},
        socket::{AddressFamily, SockFlag, SockType, socketpair},
    },
    unistd::Pid,
};
use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{UnixDatagram, unix::pipe},
    process::Child,
};

use self::spec::{Report, Spec};
use super::{Carriers, Io, Order, Runtime, RuntimeError, TunnelKind, View, Way, Window};
use crate::{config::NetworkMode, env::Environment, home::Home};

pub(crate) use self::{
    builder::{Descriptors, main as build},
    enter::{Entering, main as join},
    sys::{Size, set_size, size},
};

/// Makes sandboxes of namespaces.
#[derive(Debug)]
pub(crate) struct Process<'a> {
    pub(crate) env: &'a Environment,
    pub(crate) home: &'a Home,
}

/// Checked and decided.
#[derive(Debug)]
pub(crate) struct Created {
    spec: Spec,
    path: String,
    home: PathBuf,
    command: Vec<String>,
    env: BTreeMap<String, String>,
}

/// The builder at work. PID 1 waits at the other end of `startup`.
#[derive(Debug)]
pub(crate) struct Building {
    running: Running,
    status: OwnedFd,
    startup: OwnedFd,
}

/// The builder, which watches PID 1 and ends with it.
#[derive(Debug)]
pub(crate) struct Running {
    builder: Child,
    /// Its other end is the builder's proof that we live.
    _alive: io::PipeWriter,
}

impl Runtime for Process<'_> {
    type Created = Created;

    fn name(&self) -> &'static str {
        "process"
    }

    fn carriers(&self, _order: &Order) -> Carriers {
        Carriers::default()
    }

    async fn create(&self, order: Order) -> Result<Created, RuntimeError> {
        super::embed::sidecar()?;
        let pasta = self.check(&order)?;
        let host = ids::survey(&order.workspace, std::process::id(), self.has_mappers())
            .map_err(failed("looking at the workspace"))?;
        self.refuse_half_root(host.uid)?;
        let (hidden, secret) = self.hidden(&order)?;
        let spec = Spec {
            hostname: order.name,
            workspace: order.workspace,
            tunnel_dir: self.home.tunnel_dir(),
            mounts: order.mounts,
            hidden,
            secret,
            users: ids::choose(&host),
            pasta,
            terminal: order.terminal,
        };
        let path = self.env.get("PATH").unwrap_or("/usr/sbin:/usr/bin:/sbin:/bin").to_owned();
        let env = BTreeMap::from([("PATH".to_owned(), inside_path(self.env))]);
        Ok(Created { spec, path, home: self.home.root().to_path_buf(), command: order.command, env })
    }
}

impl Process<'_> {
    /// Only what can be enforced is accepted. What connects the sandbox to the network, if it is to be.
    fn check(&self, order: &Order) -> Result<Option<PathBuf>, RuntimeError> {
        if order.command.is_empty() {
            return Err(RuntimeError::NoCommand);
        }
        if let Some(tunnel) = order.tunnel.filter(|tunnel| *tunnel != TunnelKind::Unix) {
            return Err(RuntimeError::Tunnel(self.name(), tunnel.name()));
        }
        match order.network {
            None | Some(NetworkMode::None) => Ok(None),
            Some(NetworkMode::Open) => self.pasta().map(Some).ok_or(RuntimeError::NoPasta),
            // The relay would listen on the host's own loopback, for every process there.
            Some(NetworkMode::Host) => Err(RuntimeError::Network { mode: "host", runtime: self.name() }),
        }
    }

    /// What `network.mode: open` needs.
    pub(crate) fn pasta(&self) -> Option<PathBuf> {
        self.env.path().map(|dir| dir.join(network::PASTA)).find(|path| path.is_absolute() && path.is_file())
    }

    /// Would relay and agent be different users in a sandbox for this workspace?
    pub(crate) fn separates_users(&self, workspace: &Path) -> io::Result<bool> {
        let host = ids::survey(workspace, std::process::id(), self.has_mappers())?;
        Ok(!matches!(ids::choose(&host), ids::Users::Single { .. }))
    }

    fn has_mappers(&self) -> bool {
        ["newuidmap", "newgidmap"].iter().all(|program| self.has_program(program))
    }

    fn has_program(&self, name: &str) -> bool {
        self.env.path().any(|dir| dir.join(name).is_file())
    }

    /// Root without its rights would be its own agent: files of root would be the agent's.
    fn refuse_half_root(&self, uid: u32) -> Result<(), RuntimeError> {
        let whole = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_ADMIN);
        if uid != 0 || whole.unwrap_or(false) {
            return Ok(());
        }
        Err(RuntimeError::Refused {
            text: "root without CAP_SYS_ADMIN cannot make a sandbox that is safe from root's files"
                .to_owned(),
            hint: Some("start moat as an ordinary user, or outside of this container".to_owned()),
        })
    }

    /// What the sandbox must not see, and moat's own directory among it.
    fn hidden(&self, order: &Order) -> Result<(hide::Hidden, PathBuf), RuntimeError> {
        let refuse = |text: String| RuntimeError::Refused { text, hint: None };
        let secret = std::fs::canonicalize(self.home.root()).map_err(failed("finding moat's directory"))?;
        let mut hidden = hide::Hidden::default();
        hidden.secret(&secret).map_err(|path| {
            refuse(format!("moat's directory {} cannot be hidden from the sandbox", path.display()))
        })?;
        for source in order.mounts.iter().map(|mount| &mount.source).chain([&order.workspace]) {
            if source.starts_with(&secret) {
                return Err(refuse(format!("{} lies in moat's own directory", source.display())));
            }
        }
        if let Some(home) = self.env.user_home() {
            hidden.directory(&home);
        }
        if let Some(runtime) = self.env.get("XDG_RUNTIME_DIR") {
            hidden.directory(Path::new(runtime));
        }
        if let Some(agent) = self.env.get("SSH_AUTH_SOCK") {
            hidden.file(Path::new(agent));
        }
        for name in ["DOCKER_HOST", "CONTAINER_HOST", "DBUS_SESSION_BUS_ADDRESS"] {
            let address = self.env.get(name).unwrap_or_default();
            if let Some(path) = address.strip_prefix("unix://").or_else(|| address.strip_prefix("unix:path="))
            {
                hidden.file(Path::new(path.split(',').next().unwrap_or(path)));
            }
        }
        hide::survey(&mut hidden);
        Ok((hidden.minimal(), secret))
    }
}

impl super::Created for Created {
    type Built = Building;

    fn view(&self) -> View {
        let user =
            User { ids: ids::Users::agent(), name: etc::AGENT_NAME.to_owned(), home: tree::HOME.into() };
        let endpoint = Endpoint::Unix(Path::new(tree::TUNNEL).join("bridge.sock"));
        View {
            workspace: tree::WORKSPACE.into(),
            directory: tree::WORKSPACE.into(),
            command: self.command.clone(),
            env: self.env.clone(),
            user,
            relay_user: self.spec.users.relay(),
            image_user: None,
            filters: Vec::new(),
            tunnel: Way::Known(Tunnel { endpoint, dialler: Dialler::Sidecar }),
            grace_ms: super::GRACE_MS,
        }
    }

    fn build(self) -> Result<Building, RuntimeError> {
        super::make_tunnel_dir(&self.spec.tunnel_dir)?;
        let spec = document(&self.spec)?;
        let (startup, told) = io::pipe().map_err(failed("making a pipe"))?;
        let (status, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(failed("making a socket pair"))?;
        let (alive_end, alive) = io::pipe().map_err(failed("making a pipe"))?;
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command.arg0("moat").arg("__sandbox").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        // The builder needs to find newuidmap, and nothing else of the environment.
        command.env_clear().env("PATH", &self.path).env("MOAT_HOME", &self.home);
        let handed = [
            ("--spec-fd", spec.as_fd()),
            ("--startup-fd", startup.as_fd()),
            ("--status-fd", theirs.as_fd()),
            ("--alive-fd", alive_end.as_fd()),
        ];
        for (flag, fd) in handed {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map_err(failed("handing over descriptors"))?;
            command.arg(flag).arg(fd.as_raw_fd().to_string());
        }
        let builder = command.spawn().map_err(failed("starting the sandbox's builder"))?;
        drop((spec, startup, theirs, alive_end));
        Ok(Building { running: Running { builder, _alive: alive }, status, startup: told.into() })
    }
}

impl super::Built for Building {
    type Running = Running;

    async fn start(self, startup: &Startup) -> Result<(Running, Io), RuntimeError> {
        let Self { mut running, status, startup: told } = self;
        let (told, io) = tokio::join!(tell(told, startup), running.reported(status));
        // Who does not listen has said why.
        let io = io?;
        told?;
        Ok((running, io))
    }
}

/// Has PID 1 of the sandbox with this builder start a further command.
pub(crate) async fn enter(
    builder: &str,
    command: &[String],
    size: Option<Size>,
) -> Result<(Running, Io), RuntimeError> {
    let (status, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(failed("making a socket pair"))?;
    let (alive_end, alive) = io::pipe().map_err(failed("making a pipe"))?;
    let mut asking = tokio::process::Command::new("/proc/self/exe");
    asking.arg0("moat").arg("__enter").kill_on_drop(true).env_clear();
    asking.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    for (flag, fd) in [("--status-fd", theirs.as_fd()), ("--alive-fd", alive_end.as_fd())] {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).map_err(failed("handing over descriptors"))?;
        asking.arg(flag).arg(fd.as_raw_fd().to_string());
    }
    asking.arg("--builder").arg(builder).env("MOAT_HOME", "/");
    if let Some(Size { rows, columns }) = size {
        asking.arg("--rows").arg(rows.to_string()).arg("--columns").arg(columns.to_string());
    }
    let child = asking.arg("--").args(command).spawn().map_err(failed("joining the sandbox"))?;
    drop((theirs, alive_end));
    let mut running = Running { builder: child, _alive: alive };
    let io = running.reported(status).await?;
    Ok((running, io))
}

/// Writes the plan and the run's key into the pipe that PID 1 reads to its end.
async fn tell(to: OwnedFd, startup: &Startup) -> Result<(), RuntimeError> {
    let doing = || failed("telling PID 1 what to do");
    let text =
        zeroize::Zeroizing::new(serde_json::to_vec(startup).map_err(io::Error::from).map_err(doing())?);
    let mut to = pipe::Sender::from_owned_fd(to).map_err(doing())?;
    to.write_all(&text).await.map_err(doing())
}

impl Running {
    /// Waits until PID 1 runs, or for the reason why not.
    async fn reported(&mut self, status: OwnedFd) -> Result<Io, RuntimeError> {
        let doing = || failed("hearing from the sandbox's builder");
        // One message after the other, and an end: tokio knows no type for that, but a datagram's does all it takes.
        let status = std::os::unix::net::UnixDatagram::from(status);
        status.set_nonblocking(true).map_err(doing())?;
        let status = UnixDatagram::from_std(status).map_err(doing())?;
        let mut io = None;
        loop {
            let mut buffer = vec![0; spec::REPORT];
            let receive = || sys::receive(status.as_fd(), &mut buffer);
            let (length, descriptors) = status.async_io(Interest::READABLE, receive).await.map_err(doing())?;
            if length == 0 {
                return io.ok_or_else(|| RuntimeError::Refused {
                    text: "the sandbox's builder ended without a word".to_owned(),
                    hint: None,
                });
            }
            match serde_json::from_slice(&buffer[..length]).map_err(io::Error::from).map_err(doing())? {
                Report::Io => io = Some(ends(descriptors)?),
                Report::Failed { text, hint } => {
                    return Err(RuntimeError::Refused { text: format!("sandbox: {text}"), hint });
                }
            }
        }
    }
}

impl super::Running for Running {
    fn id(&self) -> String {
        self.builder.id().map(|pid| pid.to_string()).unwrap_or_default()
    }

    async fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pid) = self.builder.id().and_then(|pid| i32::try_from(pid).ok()) else { return Ok(()) };
        // Not reaped yet, so the number is still the builder's.
        Ok(kill(Pid::from_raw(pid), signal)?)
    }

    async fn kill(&mut self) -> io::Result<()> {
        self.builder.start_kill()
    }

    async fn wait(&mut self) -> io::Result<u8> {
        use std::os::unix::process::ExitStatusExt;
        let status = self.builder.wait().await?;
        let signal = |number: i32| moat_shared::exit::from_signal(u8::try_from(number).unwrap_or_default());
        let code = status.code().map(|code| u8::try_from(code).unwrap_or(moat_shared::exit::FAILURE));
        Ok(code.or_else(|| status.signal().map(signal)).unwrap_or(moat_shared::exit::FAILURE))
    }
}

fn ends(descriptors: Vec<OwnedFd>) -> Result<Io, RuntimeError> {
    let mut files = descriptors.into_iter().map(File::from);
    match (files.next(), files.next(), files.next()) {
        (Some(stdin), Some(stdout), Some(stderr)) => Ok(Io::Pipes { stdin, stdout, stderr }),
        (Some(bytes), None, None) => {
            let window = Box::new(Pty(bytes.try_clone().map_err(failed("keeping the terminal"))?));
            Ok(Io::Terminal { bytes, window })
        }
        _ => Err(failed("hearing from the sandbox's builder")(io::ErrorKind::InvalidData)),
    }
}

/// The sandbox's terminal, seen from this side.
#[derive(Debug)]
struct Pty(File);

impl Window for Pty {
    fn resize(&self, size: Size) -> io::Result<()> {
        set_size(self.0.as_fd(), size)
    }
}

/// Where programs usually are.
const PATH: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// The user's PATH without what the sandbox does not see, and the usual places.
fn inside_path(host: &Environment) -> String {
    const HIDDEN: [&str; 8] = ["/root", "/home", "/tmp", "/run", "/mnt", "/media", "/var/tmp", "/proc"];
    let home = host.user_home();
    let hidden = |dir: &Path| {
        HIDDEN.iter().any(|hidden| dir.starts_with(hidden))
            || home.as_ref().is_some_and(|home| dir.starts_with(home))
    };
    let mut dirs: Vec<PathBuf> = Vec::new();
    for dir in host.path().chain(PATH.map(Path::new)) {
        if dir.is_absolute() && !hidden(dir) && !dirs.iter().any(|known| known == dir) {
            dirs.push(dir.to_path_buf());
        }
    }
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.to_string_lossy()).collect();
    dirs.join(":")
}

/// A document in memory, at its beginning, which goes to one process and lies in no file system.
fn document<T: serde::Serialize>(what: &T) -> Result<OwnedFd, RuntimeError> {
    const DOING: &str = "writing what the sandbox is told";
    let fd = memfd_create(c"moat", MFdFlags::MFD_CLOEXEC).map_err(failed(DOING))?;
    let mut file = File::from(fd);
    let text = serde_json::to_vec(what).map_err(io::Error::from).map_err(failed(DOING))?;
    file.write_all(&text).map_err(failed(DOING))?;
    io::Seek::rewind(&mut file).map_err(failed(DOING))?;
    Ok(file.into())
}

fn failed<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> RuntimeError {
    move |error| RuntimeError::Io { doing: doing.to_owned(), source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_has_nothing_that_is_hidden() {
        let host = Environment::from([
            ("PATH", "/home/alice/bin:/opt/node/bin:/usr/bin:relative:/data/alice/bin"),
            ("HOME", "/data/alice"),
        ]);
        assert_eq!(
            inside_path(&host),
            "/opt/node/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin"
        );
    }
}
