//! One run from its registration to its end.
//!
//! ```text
//! build ═══════════════╗
//! register ──► on disk ═╩═► start ──► hold until the sandbox ends ──► unregister
//!     │          │            │             │ signal, `moat stop`: forward, wait, kill
//!     └──────────┴────────────┴── interrupted: nothing is left
//! ```

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use moat_shared::{
    endpoint::{Dialler, Endpoint},
    exit,
    id::RunId,
    plan::{Identity, Startup, Tunnel},
};
use nix::sys::signal::Signal;
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep_until, timeout},
};

use super::{
    attach::{self, Attached, attach},
    detach,
    hold::hold,
    log::Log,
    metadata::{Metadata, Record},
    order::Order,
    plan::plan,
    signals::{Signals, Told},
    terminal, tracked,
};
use crate::{
    cli::{Context, Failure, print, with_causes},
    config::RuntimeName,
    control::{
        api::{Dial, HoldEvent, Process, Register, Registered},
        client::Client,
        spawn,
    },
    runtime::{self, Built, Created, Io, Running, Runtime, Way},
};

/// From a stop to SIGKILL: more than PID 1 takes for the same.
const PATIENCE: Duration = Duration::from_millis(runtime::GRACE_MS + 3_000);
/// An engine that does not answer is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// For the bridge to take note of the end.
const FAREWELL: Duration = Duration::from_secs(5);
/// After so long people want to know what is going on.
const MOMENT: Duration = Duration::from_secs(1);
/// For the last output to be written somewhere that does not take it.
const LAST_OUTPUT: Duration = Duration::from_secs(5);

/// Registers, starts, attaches, waits. The exit code is that of the command.
pub(crate) async fn run<R: Runtime>(order: Order, runtime: &R, context: &Context) -> Result<u8, Failure> {
    let mut signals =
        Signals::listen().map_err(|error| Failure::new(format!("listening to signals: {error}")))?;
    let size = terminal::size();
    let created = runtime
        .create(runtime::Order {
            name: order.name.to_string(),
            workspace: order.workspace.clone(),
            mounts: order.mounts.clone(),
            terminal: size,
            command: order.command.clone(),
            is_agent: order.agent.is_some(),
            image: order.image.clone(),
            container: order.config.container,
            network: order.config.network,
            tunnel: order.tunnel,
        })
        .await
        .map_err(|error| Failure::from_error(&error))?;
    let (view, engine) = (created.view(), created.engine());
    // The sandbox comes into being while the run is registered. Nothing happens in it before PID 1 is told what.
    let built = created.build().map_err(|error| Failure::from_error(&error))?;
    let Some((client, registered)) =
        register(&order, runtime.name(), engine.clone(), &view, context, &mut signals).await?
    else {
        return Ok(exit::from_signal(INTERRUPTED));
    };
    let Registered { run: id, identity, listen } = registered;
    let session = Session { order, context, client, id, interactive: size.is_some() };
    let mut record = match session.record(runtime.name(), engine.as_deref()) {
        Ok(record) => record,
        Err(failure) => {
            session.unregister().await;
            return Err(failure);
        }
    };
    let end = session.registered(built, view, (identity, listen), &mut record, &mut signals).await;
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
    Failed(Failure),
}

/// A run that is registered.
struct Session<'a> {
    order: Order,
    context: &'a Context,
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
        let ended = match started {
            Ok((running, io)) => self.started(running, io, record, signals).await,
            Err(error) => Err(Failure::from_error(&error)),
        };
        ended.map_or_else(End::Failed, End::Exited)
    }

    /// Takes note of the end: this command in the run's metadata, the bridge in its list, both at the same time.
    async fn close(&self, mut record: Record, end: End) -> Result<u8, Failure> {
        let (home, now) = (self.context.home.clone(), Timestamp::now());
        let noted = match &end {
            End::Exited(code) => Ok(*code),
            End::Interrupted(_) => Err("interrupted".to_owned()),
            End::Failed(failure) => Err(failure.text.clone()),
        };
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
                Ok(code)
            }
            (End::Interrupted(signal), Ok(())) => Ok(code_of(signal)),
            (End::Failed(failure), Ok(())) | (_, Err(failure)) => Err(failure),
        }
    }

    fn record(&self, runtime: &str, engine: Option<&Path>) -> Result<Record, Failure> {
        let order = &self.order;
        let now = Timestamp::now();
        let mut metadata =
            Metadata::new(order.name.to_string(), &order.workspace, runtime, Process::current(), now);
        metadata.grants = order.config.grants.iter().map(|grant| grant.as_str().to_owned()).collect();
        metadata.servers = order.config.servers.iter().map(|server| server.name.to_string()).collect();
        let agent = order.agent.map(|agent| agent.name().to_owned());
        metadata.agent = agent.or_else(|| order.config.agent.clone()).unwrap_or_default();
        metadata.interactive = self.interactive;
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
        let plan =
            plan(&self.order, self.id.clone(), view, tunnel, &self.context.env, mcp_json, self.interactive);
        Ok(Startup { plan, identity })
    }

    /// PID 1 runs.
    async fn started(
        &self,
        mut running: impl Running,
        io: Io,
        record: &mut Record,
        signals: &mut Signals,
    ) -> Result<u8, Failure> {
        let home = &self.context.home;
        record.running(home, running.id(), Timestamp::now()).map_err(|error| Failure::from_error(&error))?;
        if let Some(endpoint) = running.dial() {
            // PID 1 waits for it.
            let told = self.client.dial(&self.id, &Dial { endpoint }).await;
            told.map_err(|error| Failure::from_error(&error))?;
        }
        match self.order.agent {
            Some(_) => print::note(&format!("Started agent \"{}\" ({})", self.order.name, self.id)),
            None => print::note(&format!("Started {} ({})", self.order.name, self.id)),
        }
        let detached = self.order.detached;
        if !self.interactive && !detached {
            print::note("Press Ctrl+C to stop");
        }
        let failed = |error| Failure::new(format!("attaching to the sandbox: {error}"));
        let log = Log::open(&home.logs(&self.id)).map_err(failed)?;
        let attached =
            if detached { attach::to_log(io, &log) } else { attach(io, Some(&log)) }.map_err(failed)?;
        if detached {
            // Whoever interrupts the command before it has returned wants no run.
            detach::report(&self.id, &self.order.name.to_string())
                .map_err(|error| Failure::new(format!("nobody waits for this run: {error}")))?;
        }
        let code = self.watch(&mut running, &attached, record, signals).await;
        if timeout(LAST_OUTPUT, attached.finish()).await.is_err() {
            tracing::warn!("the last output was not taken");
        }
        code
    }

    /// Until the sandbox ends, by itself or because somebody said so.
    async fn watch(
        &self,
        running: &mut impl Running,
        attached: &Attached,
        record: &mut Record,
        signals: &mut Signals,
    ) -> Result<u8, Failure> {
        let (events, mut told) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        let Context { home, env, .. } = self.context;
        tasks.spawn(hold(home.clone(), env.clone(), self.id.clone(), self.client.clone(), events));
        let mut deadline: Option<Instant> = None;
        loop {
            let patience = deadline;
            let out_of_patience = async {
                match patience {
                    Some(deadline) => sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            let stop = tokio::select! {
                code = running.wait() => {
                    return code.map_err(|error| Failure::new(format!("waiting for the sandbox: {error}")));
                }
                () = out_of_patience => {
                    let killed = told_in_time(running.kill()).await;
                    // Again, until it has ended.
                    deadline = killed.err().map(|error| {
                        attached.note(&format!("Warning: the sandbox was not ended: {error}"));
                        Instant::now() + ASK_AGAIN
                    });
                    continue;
                }
                told = signals.next() => match told {
                    Told::Resized => {
                        attached.resize();
                        continue;
                    }
                    Told::Stop(signal) => signal,
                },
                Some(event) = told.recv() => match event {
                    HoldEvent::Held => continue,
                    HoldEvent::Warning { text } => {
                        attached.note(&text);
                        continue;
                    }
                    HoldEvent::Stop => Signal::SIGTERM,
                    HoldEvent::Ended { reason } => {
                        attached.note(&format!("Warning: the run has ended for the bridge: {reason}"));
                        Signal::SIGTERM
                    }
                },
            };
            if deadline.is_none() {
                deadline = Some(Instant::now() + PATIENCE);
                record.stopping(home).map_err(|error| Failure::from_error(&error))?;
            }
            // What it was not told ends by force when the time is over.
            if let Err(error) = told_in_time(running.signal(stop)).await {
                attached.note(&format!("Warning: the sandbox was not told to stop: {error}"));
            }
        }
    }

    async fn unregister(&self) {
        farewell(&self.client, &self.id).await;
    }
}

/// An engine that hangs keeps nobody from asking again.
async fn told_in_time(telling: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    tokio::time::timeout(ASK_AGAIN, telling).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn code_of(signal: Signal) -> u8 {
    exit::from_signal(u8::try_from(signal as i32).unwrap_or_default())
}
