//! `moat __bridge`: the daemon, in the foreground. `moat` starts it by itself when it is needed.

use std::time::Duration;

use moat_shared::{exit, hint::Hint, limits};
use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
    stat::{Mode, umask},
};
use tokio::signal::unix::{SignalKind, signal};

use super::{Context, Failure, Outcome, with_causes};
use crate::{
    bridge::{BindError, Bridge, Config, lock::LockError, log},
    build,
    home::private_dir,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave after this long without a run
    #[arg(long, value_name = "SECONDS", default_value_t = limits::BRIDGE_IDLE.as_secs())]
    idle_seconds: u64,
    /// Leave the terminal's session; errors go to the log alone
    #[arg(long)]
    detach: bool,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        self.prepare(context)?;
        tracing::info!(
            version = build::VERSION,
            commit = build::COMMIT,
            pid = std::process::id(),
            "starting"
        );
        // For all but the tunnels, which have threads of their own; files and fsync are on the blocking pool.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(16)
            .enable_all()
            .build()
            .map_err(|error| Failure::new(format!("starting the bridge: {error}")))?;
        let config = Config {
            home: context.home.clone(),
            env: context.env.clone(),
            idle: Duration::from_secs(self.idle_seconds),
        };
        let outcome = runtime.block_on(serve(config));
        // A blocking task that hangs on a dead disk must not keep the process.
        runtime.shutdown_timeout(Duration::from_secs(1));
        match outcome {
            Ok(()) => Ok(exit::OK),
            Err(BindError::Lock(LockError::Running)) => {
                tracing::info!("another bridge runs: this one is not needed");
                Ok(exit::OK)
            }
            Err(error) => {
                tracing::error!(hint = error.hint().as_deref(), "not started: {}", with_causes(&error));
                if self.detach { Ok(exit::FAILURE) } else { Err(Failure::from_error(&error)) }
            }
        }
    }

    fn prepare(&self, context: &Context) -> Result<(), Failure> {
        umask(Mode::from_bits_truncate(0o077));
        let failed = |what: &str, error: &dyn std::fmt::Display| Failure::new(format!("{what}: {error}"));
        private_dir(&context.home.proxy())
            .map_err(|error| failed("making the bridge's directory", &error))?;
        log::start(&context.home, context.global.verbose)
            .map_err(|error| failed("opening the bridge's log", &error))?;
        if self.detach {
            nix::unistd::setsid().map_err(|error| failed("leaving the terminal's session", &error))?;
        }
        harden();
        Ok(())
    }
}

/// Nobody of the same user reads the bridge's memory through ptrace, and it has descriptors for many streams.
fn harden() {
    #[cfg(target_os = "linux")]
    if let Err(error) = prctl::set_dumpable(false) {
        tracing::warn!(%error, "the bridge's memory is open to the user's other processes");
    }
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

async fn serve(config: Config) -> Result<(), BindError> {
    let failed = |source| BindError::Signals { source };
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let bridge = Bridge::bind(config).await?;
    let reason = bridge
        .run(async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
    tracing::info!(?reason, "left");
    Ok(())
}
