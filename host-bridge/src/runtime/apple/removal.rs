//! That no container is left, and nothing of what lay on the host for it: by whoever made it, and by the bridge when that
//! one has died.

use std::{path::Path, thread, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    cli::{self, AppleError, Cli},
    json,
    stage::{self, Stage},
};
use crate::{env::Environment, home::Home, runtime::owner::is_left_behind};

/// A tool that was asked to make a container, and not waited for, makes it within this or not at all.
const EXPECTED: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(200);

/// A container and its stage, removed when this is dropped.
#[derive(Debug)]
pub(super) struct Removal {
    cli: Cli,
    id: String,
    stage: Stage,
    state: Made,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    /// The tool is being asked to make it.
    Expected,
    Yes,
    No,
}

impl Removal {
    /// Of a container that is about to be made.
    pub(super) fn of_expected(cli: &Cli, id: &str, stage: Stage) -> Self {
        Self { cli: cli.clone(), id: id.to_owned(), stage, state: Made::Expected }
    }

    pub(super) fn made(&mut self) {
        self.state = Made::Yes;
    }

    /// The tool said no.
    pub(super) fn not_made(&mut self) {
        self.state = Made::No;
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Removal {
    /// In a thread with a runtime of its own: this may be dropped anywhere, also while another runtime ends.
    fn drop(&mut self) {
        let (cli, id, state) = (self.cli.clone(), self.id.clone(), self.state);
        let remove = move || {
            if state == Made::No {
                return Ok(());
            }
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let tokio = tokio.map_err(|error| error.to_string())?;
            tokio.block_on(remove_expected(&cli, &id, state)).map_err(|error| error.to_string())
        };
        let removing = thread::Builder::new().name("removal".into()).spawn(remove);
        let removed = match removing.map(thread::JoinHandle::join) {
            Ok(Ok(removed)) => removed,
            Ok(Err(_)) => Err("its thread ended".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = removed {
            tracing::warn!("container {} was not removed: {error}", self.id);
        }
        if let Err(error) = self.stage.remove() {
            tracing::warn!("what lay on the host for container {} was not removed: {error}", self.id);
        }
    }
}

/// One that may not be there yet is waited for.
async fn remove_expected(cli: &Cli, id: &str, state: Made) -> Result<(), AppleError> {
    let until = (state == Made::Expected).then(|| Instant::now() + EXPECTED);
    while !remove(cli, id).await? && until.is_some_and(|until| Instant::now() < until) {
        sleep(PAUSE).await;
    }
    Ok(())
}

/// By force. One that is not there any more is as good. Was it there?
async fn remove(cli: &Cli, id: &str) -> Result<bool, AppleError> {
    match cli.ask("removing a container", &["delete", "--force", id], cli::SOON).await {
        Ok(_) => Ok(true),
        Err(AppleError::Gone { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the containers and stages of this installation whose holders have died. Returns how many containers there were.
pub(crate) async fn sweep(program: &Path, env: &Environment, home: &Home) -> Result<usize, AppleError> {
    const DOING: &str = "listing containers";
    let cli = Cli::at(program.to_path_buf(), env);
    let said = cli.ask(DOING, &["list", "--all", "--format", "json"], cli::SOON).await?;
    let listed = json::containers(&said).map_err(|source| AppleError::Form { doing: DOING, source })?;
    let (mut removed, mut failed) = (0, None);
    for container in listed {
        if is_left_behind(&container.labels, std::slice::from_ref(&container.id), home) {
            // One that cannot be removed does not keep the others.
            match remove(&cli, &container.id).await {
                Ok(_) => removed += 1,
                Err(error) => failed = Some(error),
            }
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    for stage in stage::left_behind(home).map_err(AppleError::Stage)? {
        stage.remove().map_err(AppleError::Stage)?;
    }
    Ok(removed)
}
