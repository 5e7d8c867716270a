//! A further command in a sandbox that runs: `moat exec`.
//!
//! It is started by the sandbox's PID 1, beside the agent and as the agent: same user, same environment, no capability, same
//! filters. The runtimes differ only in how PID 1 is reached: an engine starts the asking half of the sidecar in its
//! container, the process runtime does so itself in the sandbox's namespaces.

use std::path::Path;

use moat_shared::exit;

use super::{
    attach::{Attached, attach},
    metadata::{Record, State},
    signals::{Signals, Told},
    terminal,
};
use crate::{
    cli::{Context, Failure, Outcome},
    config::RuntimeName,
    env::Environment,
    runtime::{
        Io, RuntimeError, Size, apple,
        docker::{self, Engine, engine::Kind},
        process,
    },
};

/// The command, running.
enum Further {
    Process(process::Running),
    Engine(docker::exec::Further),
    Apple(apple::exec::Further),
}

impl Further {
    async fn wait(&mut self) -> std::io::Result<u8> {
        match self {
            Self::Process(running) => crate::runtime::Running::wait(running).await,
            Self::Engine(further) => further.wait().await,
            Self::Apple(further) => further.wait().await,
        }
    }
}

/// Starts, attaches, waits. The exit code is the command's.
pub(crate) fn exec(record: &Record, command: &[String], context: &Context) -> Outcome {
    if record.state() != State::Running {
        return Err(Failure::new(format!("run {} is not running: it is {}", record.id, record.state()))
            .with_hint("Runs that are: moat list"));
    }
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("starting: {error}")))?;
    tokio.block_on(async {
        let failed = |what: &'static str| move |error| Failure::new(format!("{what}: {error}"));
        let mut signals = Signals::listen().map_err(failed("listening to signals"))?;
        let (mut further, io) = start(record, command, terminal::size(), &context.env)
            .await
            .map_err(|error| Failure::from_error(&error))?;
        let attached = attach(io, None).map_err(failed("attaching to the command"))?;
        let code =
            watch(&mut further, &attached, &mut signals).await.map_err(failed("waiting for the command"))?;
        attached.finish().await;
        Ok(code)
    })
}

async fn watch(further: &mut Further, attached: &Attached, signals: &mut Signals) -> std::io::Result<u8> {
    loop {
        tokio::select! {
            code = further.wait() => return code,
            told = signals.next() => match told {
                Told::Resized => attached.resize(),
                // PID 1 hangs up on what nobody waits for.
                Told::Stop(signal) => {
                    return Ok(exit::from_signal(u8::try_from(signal as i32).unwrap_or_default()));
                }
            },
        }
    }
}

async fn start(
    record: &Record,
    command: &[String],
    size: Option<Size>,
    env: &Environment,
) -> Result<(Further, Io), RuntimeError> {
    let metadata = &record.metadata;
    let engine = |kind: Kind| async move {
        match metadata.engine.as_str() {
            "" => kind.find(env).await,
            socket => Engine::at(Path::new(socket)).await,
        }
    };
    let kind = match metadata.runtime.parse::<RuntimeName>() {
        Ok(RuntimeName::Process) => {
            let (running, io) = process::enter(&metadata.container_id, command, size).await?;
            return Ok((Further::Process(running), io));
        }
        Ok(RuntimeName::Docker) => Kind::Docker,
        Ok(RuntimeName::Podman) => Kind::Podman,
        Ok(RuntimeName::Apple) => {
            let cli = match metadata.engine.as_str() {
                "" => apple::Cli::find(env)?,
                program => apple::Cli::at(program.into(), env),
            };
            let (further, io) = apple::exec::start(&cli, &metadata.container_id, command, size).await?;
            return Ok((Further::Apple(further), io));
        }
        Err(_) => return Err(RuntimeError::Unknown(metadata.runtime.clone())),
    };
    let (further, io) =
        docker::exec::start(engine(kind).await?, &metadata.container_id, command, size).await?;
    Ok((Further::Engine(further), io))
}
