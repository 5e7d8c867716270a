//! Apple's containers: one virtual machine each, driven through the `container` command.
//!
//! ```text
//! version, service, image ─► stage ─► create ─► start -a, held open ─► plan and key over stdin ─► its exit status
//! ```
//!
//! The command has no `wait`, no second attach, and keeps no exit code: the foreground `start -a` is held for as long as
//! the container runs, and its exit status is the run's. The plan and the key go over its stdin, as into any container:
//! they are in no file that the machine shares, in no argument and no variable, and in nothing that the service keeps. A
//! terminal in between is quiet from the start, and PID 1 says when its own end is.
//!
//! [`version`] says which tool is good enough, [`cli`] how it is asked, [`json`] what it answers, [`arguments`] what kind
//! of container it is, [`stage`] what lies on the host for it, [`keeper`] keeps a socket that must never be absent,
//! [`foreground`] is the held `start -a`, [`removal`] that nothing is left.

mod arguments;
mod cli;
pub(crate) mod exec;
mod foreground;
mod json;
mod keeper;
pub(crate) mod removal;
mod stage;
mod version;

use std::{io, path::PathBuf};

use moat_shared::{
    endpoint::{Dialler, Endpoint},
    plan::{Filter, Ids, Startup, Tunnel, User, framed},
};
use nix::sys::signal::Signal;
use tokio::task::JoinSet;

pub(crate) use self::{
    cli::{AppleError, Cli},
    version::Version,
};
use self::{foreground::Foreground, json::Variant, removal::Removal, stage::Stage};
use super::{
    Carriers, Io, Order, Runtime, RuntimeError, Size, TunnelKind, View, Way,
    docker::WORKSPACE,
    embed::{self, Architecture},
    image::{Image, is_built_here, variables},
    owner,
};
use crate::{config::NetworkMode, env::Environment, home::Home};

/// `container stop` gives five seconds, and PID 1 needs some of them for itself.
const GRACE_MS: u64 = 4_000;
/// As `runtime:` spells it.
const NAME: &str = "apple";

/// The tool, found and asked who it is.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) cli: Cli,
    pub(crate) version: Version,
    /// It works, but.
    pub(crate) warning: Option<String>,
}

/// Makes containers.
#[derive(Debug)]
pub(crate) struct Apple<'a> {
    pub(crate) cli: Cli,
    pub(crate) home: &'a Home,
}

/// Decided: this image, that container.
#[derive(Debug)]
pub(crate) struct Created {
    cli: Cli,
    name: String,
    image: Image,
    order: Order,
    arguments: Vec<String>,
    command: Vec<String>,
    sidecar: &'static [u8],
    filters: Vec<Filter>,
    door: Door,
    stage: Stage,
    bridge: PathBuf,
}

/// What connects it with the bridge: exactly one socket, and one connection over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// The sidecar listens in the machine, the bridge dials. An unlucky moment does not end it.
    OutOf,
    /// The host listens, the sidecar dials. Where PID 1 is not root there is no place to listen at in the machine.
    Into,
}

/// The tool at work.
#[derive(Debug)]
pub(crate) struct Building {
    cli: Cli,
    terminal: Option<Size>,
    dial: Option<Endpoint>,
    keeper: JoinSet<()>,
    container: JoinSet<Result<Removal, AppleError>>,
}

/// PID 1 runs in it.
#[derive(Debug)]
pub(crate) struct Running {
    cli: Cli,
    foreground: Foreground,
    dial: Option<Endpoint>,
    /// It was asked to end at once already.
    is_killed: bool,
    _keeper: JoinSet<()>,
    removal: Removal,
}

/// The tool, if it is there and new enough; its service may not be running.
pub(crate) async fn find(env: &Environment) -> Result<Found, AppleError> {
    let cli = Cli::find(env)?;
    let version = cli.version().await?;
    let warning = version.judge()?;
    Ok(Found { cli, version, warning })
}

/// Is its service there?
pub(crate) async fn check_service(cli: &Cli) -> Result<(), AppleError> {
    const DOING: &str = "asking for the state of its service";
    let said = match cli.ask(DOING, &["system", "status", "--format", "json"], cli::SOON).await {
        Ok(said) => said,
        // It says so, and exits with 1.
        Err(AppleError::Refused { message, .. }) => return Err(AppleError::NotRunning(message)),
        Err(error) => return Err(error),
    };
    let service = json::service(&said).map_err(|source| AppleError::Form { doing: DOING, source })?;
    if service.is_running { Ok(()) } else { Err(AppleError::NotRunning(service.status)) }
}

/// Is the image here?
pub(crate) async fn has_image(cli: &Cli, name: &str) -> Result<bool, AppleError> {
    Ok(inspect(cli, name).await?.is_some())
}

async fn inspect(cli: &Cli, name: &str) -> Result<Option<Vec<Variant>>, AppleError> {
    const DOING: &str = "looking at the image";
    match cli.ask(DOING, &["image", "inspect", name], cli::SOON).await {
        Ok(said) => {
            json::variants(&said).map(Some).map_err(|source| AppleError::Form { doing: DOING, source })
        }
        Err(AppleError::Gone { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks the image up; fetches it first if it is not here and a registry may have it.
async fn image(cli: &Cli, name: &str) -> Result<(Image, Architecture), AppleError> {
    let found = match inspect(cli, name).await? {
        Some(found) => Some(found),
        None if is_built_here(name) => None,
        None => {
            crate::cli::print::note(&format!("Fetching image {name}..."));
            cli.ask("fetching the image", &["image", "pull", name], cli::FETCH).await?;
            inspect(cli, name).await?
        }
    };
    choose(name, found.ok_or_else(|| AppleError::NoImage(name.to_owned()))?)
}

/// What this machine runs itself, else what it can run as well: on Apple's machines amd64, by Rosetta.
fn choose(name: &str, variants: Vec<Variant>) -> Result<(Image, Architecture), AppleError> {
    let theirs = variants.iter().map(|variant| variant.architecture.as_str()).collect::<Vec<_>>().join(", ");
    let known = |variant: Variant| Some((Architecture::named(&variant.architecture)?, variant));
    let known = variants.into_iter().filter_map(known);
    let best = known.max_by_key(|(architecture, _)| *architecture == Architecture::OWN);
    let (architecture, variant) =
        best.ok_or_else(|| AppleError::Architecture { image: name.to_owned(), theirs })?;
    let image = Image {
        id: name.to_owned(),
        entrypoint: variant.entrypoint,
        cmd: variant.cmd,
        user: variant.user,
        directory: variant.directory,
        env: variables(&variant.env),
    };
    Ok((image, architecture))
}

impl Runtime for Apple<'_> {
    type Created = Created;

    fn name(&self) -> &'static str {
        NAME
    }

    fn carriers(&self, order: &Order) -> Carriers {
        carriers(order)
    }

    async fn create(&self, order: Order) -> Result<Created, RuntimeError> {
        if order.network == Some(NetworkMode::Host) {
            return Err(RuntimeError::Network { mode: "host", runtime: NAME });
        }
        let door = door(&order)?;
        let named = order.image.as_deref().ok_or(RuntimeError::NoImage(NAME))?;
        check_service(&self.cli).await?;
        let (image, architecture) = image(&self.cli, named).await?;
        // Before anything is there: what it would be missing.
        let sidecar = embed::sidecar_for(architecture)?.bytes;
        let command = image.command(&order)?;
        let name = owner::name();
        let stage = Stage::plan(self.home, &name)?;
        let secret = std::fs::canonicalize(self.home.root())
            .map_err(|source| RuntimeError::Io { doing: "finding moat's directory".to_owned(), source })?;
        let labels = owner::owner(self.home, &name);
        let arguments = arguments::of(&arguments::Wish {
            name: &name,
            order: &order,
            image: &image,
            architecture,
            door,
            stage: &stage,
            labels: &labels,
            secret: &secret,
        })?;
        let filters = if architecture == Architecture::OWN { super::docker::filters()? } else { Vec::new() };
        Ok(Created {
            cli: self.cli.clone(),
            name,
            image,
            order,
            arguments,
            command,
            sidecar,
            filters,
            door,
            stage,
            bridge: self.home.tunnel_socket(),
        })
    }
}

/// The bridge dials where it can: an unlucky moment ends nothing then.
fn carriers(order: &Order) -> Carriers {
    use TunnelKind::{Published, Unix};
    let by_themselves = if order.container.no_capabilities { vec![Unix] } else { vec![Published, Unix] };
    Carriers { by_themselves, when_asked_for: vec![] }
}

/// What was asked for, or what fits best.
fn door(order: &Order) -> Result<Door, RuntimeError> {
    let tunnel = order.tunnel.or_else(|| carriers(order).by_themselves.first().copied());
    match (tunnel, order.container.no_capabilities) {
        (Some(TunnelKind::Gateway), _) => Err(RuntimeError::Tunnel(NAME, TunnelKind::Gateway.name())),
        (Some(TunnelKind::Published), true) => Err(RuntimeError::Refused {
            text: "the tunnel 'published' needs a PID 1 that is root, and container.cap_drop takes that away"
                .to_owned(),
            hint: Some("use --tunnel unix".to_owned()),
        }),
        (Some(TunnelKind::Unix) | None, _) => Ok(Door::Into),
        (Some(TunnelKind::Published), false) => Ok(Door::OutOf),
    }
}

impl super::Created for Created {
    type Built = Building;

    fn view(&self) -> View {
        let (socket, dialler) = match self.door {
            Door::OutOf => (arguments::OUT_OF, Dialler::Bridge),
            Door::Into => (arguments::INTO, Dialler::Sidecar),
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
            tunnel: Way::Known(Tunnel { endpoint: Endpoint::Unix(socket.into()), dialler }),
            grace_ms: GRACE_MS,
        }
    }

    fn engine(&self) -> Option<PathBuf> {
        Some(self.cli.program().to_path_buf())
    }

    fn build(self) -> Result<Building, RuntimeError> {
        let io = |doing: &str| {
            let doing = doing.to_owned();
            move |source| RuntimeError::Io { doing, source }
        };
        let mut keeper = JoinSet::new();
        let dial = (self.door == Door::OutOf).then(|| Endpoint::Unix(self.stage.out_of()));
        self.stage.make(self.sidecar).map_err(io("putting the sidecar where the container finds it"))?;
        // From now on, whatever happens.
        let removal = Removal::of_expected(&self.cli, &self.name, self.stage.clone());
        if self.door == Door::Into {
            let kept = keeper::bind(&self.stage.host_socket()).map_err(io("making the tunnel's socket"))?;
            keeper.spawn(keeper::keep(kept, self.bridge));
        }
        let mut container = JoinSet::new();
        container.spawn(make(self.cli.clone(), self.arguments, removal));
        Ok(Building { cli: self.cli, terminal: self.order.terminal, dial, keeper, container })
    }
}

/// Makes the container. What is dropped on the way is removed.
async fn make(cli: Cli, arguments: Vec<String>, mut removal: Removal) -> Result<Removal, AppleError> {
    match cli.ask("making the container", &arguments, cli::WORK).await {
        // Made by a first attempt that was not answered: no other has this name.
        Err(AppleError::Refused { message, .. }) if message.contains("already exists") => {}
        Err(error @ (AppleError::Refused { .. } | AppleError::NoKernel | AppleError::NotRunning(_))) => {
            removal.not_made();
            return Err(error);
        }
        made => drop(made?),
    }
    removal.made();
    Ok(removal)
}

impl super::Built for Building {
    type Running = Running;

    async fn start(self, startup: &Startup) -> Result<(Running, Io), RuntimeError> {
        let Self { cli, terminal, dial, keeper, mut container } = self;
        let failed = |doing: &str, source| RuntimeError::Io { doing: doing.to_owned(), source };
        let made = container.join_next().await.transpose();
        let made = made.map_err(|error| failed("making the container", io::Error::other(error)))?;
        let removal = made.ok_or(AppleError::Gone { doing: "making the container" })??;
        let frame = framed(startup).map_err(|error| failed("writing the plan", error.into()))?;
        let started = foreground::start(&cli, removal.id(), terminal, frame).await;
        let (foreground, io) = started?;
        Ok((Running { cli, foreground, dial, is_killed: false, _keeper: keeper, removal }, io))
    }
}

impl super::Running for Running {
    fn id(&self) -> String {
        self.removal.id().to_owned()
    }

    fn dial(&self) -> Option<Endpoint> {
        self.dial.clone()
    }

    async fn signal(&self, signal: Signal) -> io::Result<()> {
        let arguments = ["kill", "--signal", signal.as_str().trim_start_matches("SIG"), self.removal.id()];
        match self.cli.ask("signalling the container", &arguments, cli::SOON).await {
            Ok(_) | Err(AppleError::Gone { .. }) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    async fn kill(&mut self) -> io::Result<()> {
        // A service that does not answer keeps nobody: the command that is held ends, and the bridge removes the rest.
        if std::mem::replace(&mut self.is_killed, true) {
            self.foreground.end()?;
        }
        self.signal(Signal::SIGKILL).await
    }

    async fn wait(&mut self) -> io::Result<u8> {
        self.foreground.wait().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ContainerOptions;
    use test_case::test_case;

    pub(super) fn order() -> Order {
        Order {
            name: "n".into(),
            workspace: "/w".into(),
            mounts: vec![],
            terminal: None,
            command: vec![],
            is_agent: false,
            image: Some("node:22".into()),
            container: ContainerOptions::default(),
            network: None,
            tunnel: None,
        }
    }

    #[test_case(None, false => "OutOf"; "the bridge dials")]
    #[test_case(None, true => "Into"; "nobody could listen")]
    #[test_case(Some(TunnelKind::Unix), false => "Into"; "said")]
    #[test_case(Some(TunnelKind::Published), false => "OutOf"; "said, and the default")]
    #[test_case(Some(TunnelKind::Published), true => "refused"; "said, and impossible")]
    #[test_case(Some(TunnelKind::Gateway), false => "refused"; "no network is needed")]
    fn doors(tunnel: Option<TunnelKind>, no_capabilities: bool) -> String {
        let container = ContainerOptions { no_capabilities, ..ContainerOptions::default() };
        door(&Order { tunnel, container, ..order() })
            .map_or_else(|_| "refused".into(), |door| format!("{door:?}"))
    }

    #[test]
    fn an_image_for_this_machine_comes_first() {
        let variant = |name: &str| Variant { architecture: name.into(), ..Variant::default() };
        let other = if Architecture::OWN == Architecture::Arm64 { "amd64" } else { "arm64" };
        let own = Architecture::OWN.name();
        let chosen = |names: &[&str]| choose("x", names.iter().map(|name| variant(name)).collect());
        assert_eq!(chosen(&[other, own, "s390x"]).unwrap().1, Architecture::OWN);
        assert_eq!(chosen(&[own, other]).unwrap().1, Architecture::OWN);
        assert_eq!(chosen(&[other]).unwrap().1.name(), other);
        assert!(chosen(&["s390x", "riscv64"]).unwrap_err().to_string().contains("s390x, riscv64"));
    }
}
