//! One run from its registration to its end.
//!
//! ```text
//! build ═══════════════╗
//! register ──► on disk ═╩═► start ──► a tunnel ──► attach ──► hold until the sandbox ends ──► unregister
//!     │          │            │          └── none in time, and no program was started: again with the next carrier
//!     └──────────┴────────────┴── interrupted: nothing is left
//! ```
//!
//! Until there is a tunnel nobody is attached: what the user types belongs to a program that is started, and what the
//! sandbox says is the reason why another carrier is tried. Another carrier means another sandbox and another
//! registration, with another certificate; of those before only their records stay.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use moat_shared::{
    endpoint::{Dialler, Endpoint},
    exit,
    id::RunId,
    limits,
    plan::{Identity, Startup, Tunnel},
};
use nix::sys::signal::Signal;
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

use super::{
    attach::{self, attach},
    carriers::{Trials, reason},
    detach,
    hold::hold,
    log::Log,
    metadata::{Metadata, Record},
    order::Order,
    plan::{millis, plan},
    signals::Signals,
    terminal, tracked,
    watch::{Seen, Watch},
};
use crate::{
    cli::{Context, Failure, print, with_causes},
    config::RuntimeName,
    control::{
        api::{Dial, Process, Register, Registered},
        client::Client,
        spawn,
    },
    runtime::{self, Built, Created, Io, Running, Runtime, TunnelKind, Way},
};

/// For the bridge to take note of the end.
const FAREWELL: Duration = Duration::from_secs(5);
/// After so long people want to know what is going on.
const MOMENT: Duration = Duration::from_secs(1);
/// For the last output to be written somewhere that does not take it.
const LAST_OUTPUT: Duration = Duration::from_secs(5);

/// Registers, starts, attaches, waits; again, as long as there is another carrier and no tunnel. The exit code is that of
/// the command.
pub(crate) async fn run<R: Runtime>(order: Order, runtime: &R, context: &Context) -> Result<u8, Failure> {
    let mut signals =
        Signals::listen().map_err(|error| Failure::new(format!("listening to signals: {error}")))?;
    let carriers = runtime.carriers(&wish(&order, order.tunnel));
    let mut trials = Trials::new(order.tunnel, carriers);
    loop {
        let attempt = attempt(&order, runtime, context, &trials, &mut signals);
        match Box::pin(attempt).await {
            Ok(Came::Ended(code)) => return Ok(code),
            Ok(Came::NoTunnel(why)) => print::note(&trials.failed(why)?),
            Err(failure) => return Err(trials.amend(failure)),
        }
    }
}

/// What came of one attempt.
enum Came {
    Ended(u8),
    /// Nothing was started, for want of a tunnel; this is why.
    NoTunnel(String),
}

/// What the runtime is asked for.
fn wish(order: &Order, tunnel: Option<TunnelKind>) -> runtime::Order {
    runtime::Order {
        name: order.name.to_string(),
        workspace: order.workspace.clone(),
        mounts: order.mounts.clone(),
        terminal: terminal::size(),
        command: order.command.clone(),
        is_agent: order.agent.is_some(),
        image: order.image.clone(),
        container: order.config.container,
        network: order.config.network,
        tunnel,
    }
}

/// One sandbox, with one carrier.
async fn attempt<R: Runtime>(
    order: &Order,
    runtime: &R,
    context: &Context,
    trials: &Trials,
    signals: &mut Signals,
) -> Result<Came, Failure> {
    let wish = wish(order, trials.now());
    let interactive = wish.terminal.is_some();
    let created = runtime.create(wish).await.map_err(|error| Failure::from_error(&error))?;
    let (view, engine) = (created.view(), created.engine());
    // The sandbox comes into being while the run is registered. Nothing happens in it before PID 1 is told what.
    let built = created.build().map_err(|error| Failure::from_error(&error))?;
    let Some((client, registered)) =
        register(order, runtime.name(), engine.clone(), &view, context, signals).await?
    else {
        return Ok(Came::Ended(exit::from_signal(INTERRUPTED)));
    };
    let Registered { run: id, identity, listen } = registered;
    let session = Session { order, context, trials, client, id, interactive };
    let mut record = match session.record(runtime.name(), engine.as_deref()) {
        Ok(record) => record,
        Err(failure) => {
            session.unregister().await;
            return Err(failure);
        }
    };
    let end = session.registered(built, view, (identity, listen), &mut record, signals).await;
    session.close(record, end).await
}

/// The number of SIGINT.
const INTERRUPTED: u8 = 2;

/// Registers the run. `None`: interrupted, and nothing is left.
async fn register(
    order: &Order,
    runtime: &str,
    engine: Option<PathBuf>,
    view: &runtime::View,
    context: &Context,
    signals: &mut Signals,
) -> Result<Option<(Client, Registered)>, Failure> {
    let wanted = Register {
        name: order.name.to_string(),
        runtime: runtime.to_owned(),
        engine,
        workspace: order.workspace.display().to_string(),
        servers: order.config.servers.clone(),
        profile: context.global.profile.clone(),
        agent: order.agent.map(|agent| agent.name().to_owned()),
        user: nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name),
        listen: match view.tunnel {
            Way::Gateway(address) => Some(Endpoint::Tcp((address, 0).into())),
            Way::Known(_) => None,
        },
        holder: Process::current(),
    };
    let registering = spawn::register(&context.home, &context.env, &wanted);
    tokio::pin!(registering);
    let done = tokio::select! {
        done = patiently("Waiting for the bridge...", &mut registering) => done,
        _ = signals.stop() => {
            // A registration on its way is taken back; a bridge that does not answer sees that we are gone.
            if let Ok(Ok((client, registered))) = timeout(FAREWELL, &mut registering).await {
                farewell(&client, &registered.run).await;
            }
            return Ok(None);
        }
    };
    let (client, registered) = done.map_err(|error| Failure::from_error(&error))?;
    if let Some(text) = client.mismatch() {
        print::note(&text);
    }
    Ok(Some((client, registered)))
}

/// Says what is being waited for when that takes more than a moment.
async fn patiently<T>(what: &str, step: impl Future<Output = T>) -> T {
    tokio::pin!(step);
    match timeout(MOMENT, &mut step).await {
        Ok(done) => done,
        Err(_) => {
            print::note(what);
            step.await
        }
    }
}

async fn farewell(client: &Client, run: &RunId) {
    match timeout(FAREWELL, client.unregister(run)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::info!("{run} was not unregistered: {}", with_causes(&error)),
        Err(_) => tracing::info!("{run} was not unregistered in time; the bridge drops it by itself"),
    }
}

/// How a run came to its end.
enum End {
    /// With the command's exit code.
    Exited(u8),
    /// Before there was a command.
    Interrupted(Signal),
    /// There was no tunnel, and so no command either.
    NoTunnel(String),
    Failed(Failure),
}

/// A run that is registered.
struct Session<'a> {
    order: &'a Order,
    context: &'a Context,
    trials: &'a Trials,
    client: Client,
    id: RunId,
    interactive: bool,
}

impl Session<'_> {
    async fn registered(
        &self,
        built: impl Built,
        view: runtime::View,
        (identity, listen): (Identity, Option<Endpoint>),
        record: &mut Record,
        signals: &mut Signals,
    ) -> End {
        let startup = match self.startup(view, identity, listen) {
            Ok(startup) => startup,
            Err(failure) => return End::Failed(failure),
        };
        let started = tokio::select! {
            started = patiently("Building the sandbox...", built.start(&startup)) => started,
            signal = signals.stop() => return End::Interrupted(signal),
        };
        drop(startup);
        match started {
            Ok((running, io)) => self.started(running, io, record, signals).await.unwrap_or_else(End::Failed),
            Err(error) if error.is_the_carriers() => End::NoTunnel(with_causes(&error)),
            Err(error) => End::Failed(Failure::from_error(&error)),
        }
    }

    /// Takes note of the end: this command in the run's metadata, the bridge in its list, both at the same time.
    async fn close(&self, mut record: Record, end: End) -> Result<Came, Failure> {
        let (home, now) = (self.context.home.clone(), Timestamp::now());
        let noted = match &end {
            End::Exited(code) => Ok(*code),
            End::Interrupted(_) => Err("interrupted".to_owned()),
            End::NoTunnel(why) => Err(format!("the tunnel did not come up, and nothing was started: {why}")),
            End::Failed(failure) => Err(failure.text.clone()),
        };
        record.metadata.gave_way = matches!(end, End::NoTunnel(_)) && self.trials.has_next();
        let write = move || match noted {
            Ok(code) => record.stopped(&home, code, now),
            Err(reason) => record.failed(&home, reason, now),
        };
        let (written, ()) = tokio::join!(spawn_blocking(write), self.unregister());
        let written = match written {
            Ok(written) => written.map_err(|error| Failure::from_error(&error)),
            Err(error) => Err(Failure::new(format!("writing how the run ended: {error}"))),
        };
        match (end, written) {
            (End::Exited(code), Ok(())) => {
                print::note(&format!("View output: moat logs {}", self.id));
                Ok(Came::Ended(code))
            }
            (End::Interrupted(signal), Ok(())) => Ok(Came::Ended(code_of(signal))),
            (End::NoTunnel(why), Ok(())) => Ok(Came::NoTunnel(why)),
            (End::Failed(failure), Ok(())) | (_, Err(failure)) => Err(failure),
        }
    }

    fn record(&self, runtime: &str, engine: Option<&Path>) -> Result<Record, Failure> {
        let order = self.order;
        let now = Timestamp::now();
        let mut metadata =
            Metadata::new(order.name.to_string(), &order.workspace, runtime, Process::current(), now);
        metadata.grants = order.config.grants.iter().map(|grant| grant.as_str().to_owned()).collect();
        metadata.servers = order.config.servers.iter().map(|server| server.name.to_string()).collect();
        let agent = order.agent.map(|agent| agent.name().to_owned());
        metadata.agent = agent.or_else(|| order.config.agent.clone()).unwrap_or_default();
        metadata.interactive = self.interactive;
        metadata.tunnel = self.trials.now().map(|kind| kind.name().to_owned()).unwrap_or_default();
        metadata.engine = engine.map(|socket| socket.display().to_string()).unwrap_or_default();
        if runtime != RuntimeName::Process.as_str() {
            metadata.image = order.image.clone().unwrap_or_default();
        }
        Record::create(&self.context.home, self.id.clone(), metadata)
            .map_err(|error| Failure::from_error(&error))
    }

    fn startup(
        &self,
        view: runtime::View,
        identity: Identity,
        listen: Option<Endpoint>,
    ) -> Result<Startup, Failure> {
        let tunnel = match (&view.tunnel, listen) {
            (Way::Known(tunnel), _) => tunnel.clone(),
            (Way::Gateway(_), Some(endpoint)) => Tunnel { endpoint, dialler: Dialler::Sidecar },
            (Way::Gateway(_), None) => {
                return Err(
                    Failure::new("the bridge is older than --tunnel gateway").with_hint("moat proxy restart")
                );
            }
        };
        let home = &self.context.home;
        let mcp_json = tracked::mcp_json(home, &self.id, &self.order.workspace)
            .map_err(|error| Failure::new(format!("cannot read {}: {error}", home.runs().display())))?;
        let mut plan =
            plan(self.order, self.id.clone(), view, tunnel, &self.context.env, mcp_json, self.interactive);
        if self.trials.has_next() {
            plan.tunnel_ms = millis(limits::FIRST_TUNNEL_OF_SEVERAL);
        }
        Ok(Startup { plan, identity })
    }

    /// PID 1 runs.
    async fn started(
        &self,
        running: impl Running,
        io: Io,
        record: &mut Record,
        signals: &mut Signals,
    ) -> Result<End, Failure> {
        let Context { home, env, .. } = self.context;
        record.running(home, running.id(), Timestamp::now()).map_err(|error| Failure::from_error(&error))?;
        if let Some(endpoint) = running.dial() {
            // PID 1 waits for it.
            let told = self.client.dial(&self.id, &Dial { endpoint }).await;
            told.map_err(|error| Failure::from_error(&error))?;
        }
        let failed = |error| Failure::new(format!("attaching to the sandbox: {error}"));
        let log = Log::open(&home.logs(&self.id)).map_err(failed)?;
        let (events, told) = mpsc::channel(16);
        let mut holding = JoinSet::new();
        holding.spawn(hold(home.clone(), env.clone(), self.id.clone(), self.client.clone(), events));
        let mut watch = Watch { running, home, record, signals, told, _holding: holding, deadline: None };
        // A bridge of another build may not tell; then the sandbox speaks for itself.
        let is_told = self.trials.now().is_some() && self.client.mismatch().is_none();
        let mut ended = None;
        if is_told && let Seen::Ended(code) = patiently("Waiting for the tunnel...", watch.next(None)).await?
        {
            // Whoever wants it to end wants no other either.
            let is_carriers = code == exit::NO_TUNNEL && watch.deadline.is_none();
            if is_carriers && self.had_no_tunnel().await {
                let said = timeout(LAST_OUTPUT, attach::all_said(io, &log)).await;
                return Ok(End::NoTunnel(reason(&said.unwrap_or(Ok(String::new())).map_err(failed)?)));
            }
            ended = Some(code);
        }
        match self.order.agent {
            Some(_) => print::note(&format!("Started agent \"{}\" ({})", self.order.name, self.id)),
            None => print::note(&format!("Started {} ({})", self.order.name, self.id)),
        }
        let detached = self.order.detached;
        if !self.interactive && !detached {
            print::note("Press Ctrl+C to stop");
        }
        let attached =
            if detached { attach::to_log(io, &log) } else { attach(io, Some(&log)) }.map_err(failed)?;
        if detached {
            // Whoever interrupts the command before it has returned wants no run.
            detach::report(&self.id, &self.order.name.to_string())
                .map_err(|error| Failure::new(format!("nobody waits for this run: {error}")))?;
        }
        let code = match ended {
            Some(code) => Ok(code),
            None => watch.end(&attached).await,
        };
        if timeout(LAST_OUTPUT, attached.finish()).await.is_err() {
            tracing::warn!("the last output was not taken");
        }
        code.map(End::Exited)
    }

    /// That there was no tunnel, and so no program that was started, is the bridge's word: exit codes are anybody's. It has
    /// to be the bridge that was there from the start.
    async fn had_no_tunnel(&self) -> bool {
        let Ok(Ok(now)) = timeout(FAREWELL, Client::connect(&self.context.home)).await else { return false };
        let (now, then) = (now.first_status(), self.client.first_status());
        let is_the_same = (now.pid, now.started) == (then.pid, then.started);
        let run = now.runs.iter().find(|status| status.run == self.id);
        is_the_same && run.is_some_and(|run| run.had_tunnel == Some(false))
    }

    async fn unregister(&self) {
        farewell(&self.client, &self.id).await;
    }
}

fn code_of(signal: Signal) -> u8 {
    exit::from_signal(u8::try_from(signal as i32).unwrap_or_default())
}
