//! Container engines: Docker, and podman through its compatible socket.
//!
//! ```text
//! inspect image ─► the sidecar's volume ─► create ─► attach, wait ─► start ─► plan and key over stdin ─► the agent's
//! ```
//!
//! The sidecar becomes the entrypoint of any image; what the image would have started, it starts. The run's key goes
//! through the engine's attached stream into PID 1's memory: it is in no file, no variable, no argument, and in nothing
//! that the engine keeps. [`shelf`] keeps the sidecar there, [`container`] says what kind of container it is, [`engine`] where engines are, [`raw`] the two
//! requests that must be byte-exact, [`stream`] what comes and goes while it runs, [`removal`] that nothing is left.

mod archive;
pub(crate) mod build;
pub(super) mod container;
pub(crate) mod engine;
pub(crate) mod exec;
mod image;
mod raw;
pub(crate) mod removal;
mod shelf;
mod stream;

use std::{
    io,
    net::IpAddr,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
};

use bollard::{
    models::ContainerCreateBody,
    query_parameters::{CreateContainerOptionsBuilder, KillContainerOptionsBuilder},
};
use moat_shared::{
    endpoint::{Dialler, Endpoint},
    exit,
    plan::{Filter, Ids, Startup, Tunnel, User, framed},
};
use nix::sys::signal::Signal;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use self::{
    container::Door,
    removal::Removal,
    stream::{Of, Stream},
};
use super::{
    Carriers, Io, Order, Runtime, RuntimeError, Size, TunnelKind, View, Way, Window, embed::Sidecar,
    image::Image, owner,
};
use crate::{config::NetworkMode, home::Home};

pub(crate) use self::engine::{Engine, EngineError};

/// Where the sandbox has what is moat's.
pub(crate) const OWN: &str = "/.moat";
/// The workspace in the sandbox.
pub(super) const WORKSPACE: &str = "/workspace";

/// Makes containers.
#[derive(Debug)]
pub(crate) struct Docker<'a> {
    pub(crate) engine: Engine,
    pub(crate) home: &'a Home,
}

/// Decided: this image, that container.
#[derive(Debug)]
pub(crate) struct Created {
    engine: Engine,
    name: String,
    image: Image,
    order: Order,
    body: ContainerCreateBody,
    tunnel_dir: PathBuf,
    command: Vec<String>,
    door: Door,
    filters: Vec<Filter>,
}

/// The engine at work.
#[derive(Debug)]
pub(crate) struct Building {
    engine: Engine,
    terminal: Option<Size>,
    is_published: bool,
    container: JoinSet<Result<Removal, EngineError>>,
}

/// PID 1 runs in it.
#[derive(Debug)]
pub(crate) struct Running {
    engine: Engine,
    id: String,
    /// Where this machine has its port, if it has one.
    dial: Option<Endpoint>,
    /// Its exit code, once it has ended.
    ended: watch::Receiver<Option<u8>>,
    /// What comes and goes, and the wait for the end; over with this.
    _tasks: JoinSet<()>,
    removal: Removal,
}

impl Runtime for Docker<'_> {
    type Created = Created;

    fn name(&self) -> &'static str {
        self.engine.kind.name()
    }

    fn carriers(&self, order: &Order) -> Carriers {
        carriers(order.network, self.engine.is_apart)
    }

    async fn create(&self, order: Order) -> Result<Created, RuntimeError> {
        super::embed::sidecar()?;
        if order.network == Some(NetworkMode::Host) {
            return Err(RuntimeError::Network { mode: "host", runtime: self.name() });
        }
        let name = order.image.as_deref().ok_or(RuntimeError::NoImage(self.name()))?;
        let image = image::find(&self.engine, name).await?;
        let command = image.command(&order)?;
        let tunnel_dir = self.home.tunnel_dir();
        let secret = std::fs::canonicalize(self.home.root())
            .map_err(|source| RuntimeError::Io { doing: "finding moat's directory".to_owned(), source })?;
        let hidden = container::hidden(&order, &secret).map_err(|source| RuntimeError::Refused {
            text: format!("{} lies in moat's own directory", source.display()),
            hint: None,
        })?;
        let door = match tunnel(&order, self.engine.is_apart)? {
            TunnelKind::Unix => Door::Directory(tunnel_dir.clone()),
            TunnelKind::Published => Door::Port,
            TunnelKind::Gateway => Door::Gateway(gateway(&self.engine).await?),
        };
        let name = owner::name();
        let body = container::body(&order, &image, &door, &hidden, &owner::owner(self.home, &name));
        Ok(Created {
            engine: self.engine.clone(),
            name,
            image,
            order,
            body,
            tunnel_dir,
            command,
            door,
            filters: filters()?,
        })
    }
}

impl super::Created for Created {
    type Built = Building;

    fn view(&self) -> View {
        let tunnel = match self.door {
            Door::Directory(_) => {
                let endpoint = Endpoint::Unix(container::tunnel_socket());
                Way::Known(Tunnel { endpoint, dialler: Dialler::Sidecar })
            }
            Door::Port => Way::Known(Tunnel { endpoint: container::tunnel_port(), dialler: Dialler::Bridge }),
            Door::Gateway(address) => Way::Gateway(address),
        };
        let nobody = Ids { uid: u32::MAX - 1, gid: u32::MAX - 1 };
        View {
            workspace: WORKSPACE.into(),
            directory: self.image.directory(&self.order).unwrap_or_else(|| WORKSPACE.into()),
            command: self.command.clone(),
            env: self.image.env.clone(),
            // The image's files say who it is: PID 1 finds out.
            user: User { ids: nobody, name: String::new(), home: "/".into() },
            relay_user: nobody,
            image_user: Some(self.image.user.clone()),
            filters: self.filters.clone(),
            tunnel,
            grace_ms: super::GRACE_MS,
        }
    }

    fn engine(&self) -> Option<PathBuf> {
        Some(self.engine.socket.clone())
    }

    fn build(self) -> Result<Building, RuntimeError> {
        super::make_tunnel_dir(&self.tunnel_dir)?;
        let sidecar = super::embed::sidecar()?;
        let terminal = self.order.terminal;
        let engine = self.engine.clone();
        let mut container = JoinSet::new();
        container.spawn(make(self.engine, self.name, self.body, sidecar));
        Ok(Building { engine, terminal, container, is_published: self.door == Door::Port })
    }
}

/// Makes the container, with the sidecar in it. What is dropped on the way is removed.
async fn make(
    engine: Engine,
    name: String,
    mut body: ContainerCreateBody,
    sidecar: Sidecar,
) -> Result<Removal, EngineError> {
    let labels = body.labels.clone().unwrap_or_default();
    let volume = shelf::with(&engine, sidecar, &labels).await?;
    let host = body.host_config.get_or_insert_default();
    host.mounts.get_or_insert_default().push(shelf::mount(&volume, true));
    made(&engine, &name, body).await
}

/// Makes one container.
async fn made(engine: &Engine, name: &str, body: ContainerCreateBody) -> Result<Removal, EngineError> {
    let options = CreateContainerOptionsBuilder::new().name(name).build();
    let mut removal = Removal::of_expected(engine, name);
    match engine.api.create_container(Some(options), body).await {
        Ok(created) => removal.made(created.id),
        Err(source) => {
            // One that said no has made none.
            if engine::said_no(&source) {
                removal.not_needed();
            }
            return Err(EngineError::Asking { doing: "making the container", source });
        }
    }
    Ok(removal)
}

impl super::Built for Building {
    type Running = Running;

    async fn start(self, startup: &Startup) -> Result<(Running, Io), RuntimeError> {
        let Self { engine, terminal, mut container, is_published } = self;
        let made = container.join_next().await.transpose();
        let made = made.map_err(|error| EngineError::Archive(io::Error::other(error)))?;
        let removal = made.ok_or(EngineError::Gone)??;
        let id = removal.id().to_owned();
        let frame = framed(startup).map_err(|error| EngineError::Archive(error.into()))?;
        // Both are there before it can end.
        let attached = raw::attach(&engine.socket, &id).await?;
        let waiting = raw::wait(&engine.socket, &id, raw::NEXT_EXIT).await?;
        let started = engine.api.start_container(&id, None).await;
        started.map_err(|source| EngineError::Asking { doing: "starting the container", source })?;

        let (told, ended) = watch::channel(None);
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_end(engine.clone(), id.clone(), waiting, told));
        let stream =
            Stream { engine: engine.clone(), id: id.clone(), ended: ended.clone(), of: Of::Container };
        let io = match terminal {
            Some(size) => {
                // Before the program can look how large it is.
                stream.resize(size).await;
                let attached = attached.told_on_a_terminal(&frame).await?;
                let (bytes, theirs) = pair()?;
                tasks.spawn(stream.clone().terminal(attached, theirs));
                let (window, sizes) = mpsc::unbounded_channel();
                tasks.spawn(stream.resizes(sizes));
                Io::Terminal { bytes: bytes.into(), window: Box::new(Pane(window)) }
            }
            None => {
                let attached = attached.told(&frame).await;
                let ((stdin, to), (stdout, out), (stderr, err)) = (pair()?, pair()?, pair()?);
                tasks.spawn(stream.pipes(attached, to, out, err));
                Io::Pipes { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() }
            }
        };
        let dial = if is_published { Some(published(&engine, &id).await?) } else { None };
        Ok((Running { engine, id, ended, dial, _tasks: tasks, removal }, io))
    }
}

/// The same as in namespaces. A moat on another kernel cannot write them, and leaves it to the engine's own.
pub(super) fn filters() -> Result<Vec<Filter>, RuntimeError> {
    #[cfg(target_os = "linux")]
    return Ok(super::seccomp::filters()?);
    #[cfg(not(target_os = "linux"))]
    return Ok(Vec::new());
}

/// What fits the engine. That one in a machine of its own passes on a socket of this machine's is the exception: that is
/// tried last. A port of the bridge's on a network is opened only when somebody asks for it.
fn carriers(network: Option<NetworkMode>, is_apart: bool) -> Carriers {
    use TunnelKind::{Gateway, Published, Unix};
    let (by_themselves, when_asked_for) = match (is_apart, network) {
        (false, Some(NetworkMode::None)) => (vec![Unix], vec![]),
        (false, _) => (vec![Unix, Published], vec![Gateway]),
        (true, Some(NetworkMode::None)) => (vec![Published], vec![]),
        (true, _) => (vec![Published, Unix], vec![]),
    };
    Carriers { by_themselves, when_asked_for }
}

/// What was asked for, or what fits the engine best.
fn tunnel(order: &Order, is_apart: bool) -> Result<TunnelKind, RuntimeError> {
    let fitting = carriers(order.network, is_apart).by_themselves.first().copied();
    let tunnel = order.tunnel.or(fitting).unwrap_or(TunnelKind::Unix);
    match (tunnel, order.network) {
        (TunnelKind::Unix, _) => Ok(tunnel),
        (_, Some(NetworkMode::None)) => Err(RuntimeError::NoNetwork(tunnel.name())),
        (TunnelKind::Gateway, _) if is_apart => Err(RuntimeError::GatewayApart),
        _ => Ok(tunnel),
    }
}

/// This machine's address on the network that containers get.
async fn gateway(engine: &Engine) -> Result<IpAddr, RuntimeError> {
    let network = engine.kind.network();
    let inspected = engine.api.inspect_network(network, None).await;
    let doing = "asking for the engine's network";
    let inspected = inspected.map_err(|source| EngineError::Asking { doing, source })?;
    let configured = inspected.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
    let gateway = configured
        .iter()
        .find_map(|config| container::gateway(config.gateway.as_deref(), config.subnet.as_deref()));
    gateway.ok_or_else(|| RuntimeError::NoGateway(network.to_owned()))
}

/// The port that the engine has chosen.
async fn published(engine: &Engine, id: &str) -> Result<Endpoint, EngineError> {
    let doing = "asking which port was published";
    let inspected = engine.api.inspect_container(id, None).await;
    let inspected = inspected.map_err(|source| EngineError::Asking { doing, source })?;
    let ports = inspected.network_settings.and_then(|settings| settings.ports).unwrap_or_default();
    container::published_at(&ports).ok_or(EngineError::NoPort)
}

/// The holder's end, which blocks, and ours, which does not.
fn pair() -> Result<(OwnedFd, tokio::net::UnixStream), RuntimeError> {
    let made = UnixStream::pair().and_then(|(theirs, ours)| {
        ours.set_nonblocking(true)?;
        Ok((theirs.into(), tokio::net::UnixStream::from_std(ours)?))
    });
    made.map_err(|source| RuntimeError::Io { doing: "making a socket pair".to_owned(), source })
}

/// The size of a container's terminal.
#[derive(Debug)]
struct Pane(mpsc::UnboundedSender<Size>);

impl Window for Pane {
    fn resize(&self, size: Size) -> io::Result<()> {
        self.0.send(size).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Tells the exit code when there is one. An engine that goes away is asked again when it is back: it takes no container
/// with it that it can find again, and the run goes on.
async fn watch_end(engine: Engine, id: String, first: raw::Waiting, told: watch::Sender<Option<u8>>) {
    let mut waiting = Some(first);
    let mut pause = engine::FIRST_PAUSE;
    loop {
        let lost = match waiting.take() {
            Some(waiting) => match waiting.code().await {
                Ok(code) => return told.send_modify(|ended| *ended = Some(code)),
                Err(error) => Some(error),
            },
            None => None,
        };
        if let Some(error) = lost {
            tracing::warn!("lost sight of container {id}: {error}");
        }
        match raw::wait(&engine.socket, &id, raw::NOT_RUNNING).await {
            Ok(again) => {
                waiting = Some(again);
                pause = engine::FIRST_PAUSE;
            }
            Err(EngineError::Gone) => {
                tracing::warn!("container {id} is gone, and nobody knows how it ended");
                return told.send_modify(|ended| *ended = Some(exit::from_signal(9)));
            }
            Err(_) => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(engine::LONGEST_PAUSE);
            }
        }
    }
}

impl super::Running for Running {
    fn id(&self) -> String {
        self.id.clone()
    }

    fn dial(&self) -> Option<Endpoint> {
        self.dial.clone()
    }

    async fn signal(&self, signal: Signal) -> io::Result<()> {
        let options = KillContainerOptionsBuilder::new().signal(signal.as_str()).build();
        match self.engine.api.kill_container(&self.id, Some(options)).await {
            Err(error) if !engine::is_over(&error) => Err(io::Error::other(error)),
            _ => Ok(()),
        }
    }

    async fn kill(&mut self) -> io::Result<()> {
        self.signal(Signal::SIGKILL).await
    }

    async fn wait(&mut self) -> io::Result<u8> {
        let ended = self.ended.wait_for(Option::is_some).await.map_err(io::Error::other)?;
        let code = (*ended).unwrap_or(exit::FAILURE);
        drop(ended);
        // The engine removes what has ended.
        self.removal.not_needed();
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(false, None => "unix published | gateway"; "here")]
    #[test_case(false, Some(NetworkMode::None) => "unix | "; "here, without a network")]
    #[test_case(true, None => "published unix | "; "in a machine of its own")]
    #[test_case(true, Some(NetworkMode::None) => "published | "; "which is refused with the remedy")]
    fn carriers_in_their_order(is_apart: bool, network: Option<NetworkMode>) -> String {
        let Carriers { by_themselves, when_asked_for } = carriers(network, is_apart);
        let names =
            |kinds: Vec<TunnelKind>| kinds.into_iter().map(TunnelKind::name).collect::<Vec<_>>().join(" ");
        format!("{} | {}", names(by_themselves), names(when_asked_for))
    }
}
