//! That no container is left: by whoever made it, and by the bridge when that one has died.

use std::{
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder};
use tokio::time::{Instant, sleep, timeout};

use super::engine::{self, Engine, EngineError};
use crate::{
    home::Home,
    runtime::owner::{HOME, is_left_behind},
};

/// Longer nobody waits for an engine that does not answer; the bridge tries again.
const PATIENCE: Duration = Duration::from_secs(10);
/// An engine that was asked to make a container, and not waited for, makes it within this or not at all.
const EXPECTED: Duration = Duration::from_secs(3);

/// A container that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Removal {
    id: String,
    socket: PathBuf,
    needed: bool,
    /// The engine has been asked to make it, and has not answered.
    expected: bool,
}

impl Removal {
    /// Of a container that the engine is about to be asked to make.
    pub(super) fn of_expected(engine: &Engine, name: &str) -> Self {
        Self { id: name.to_owned(), socket: engine.socket.clone(), needed: true, expected: true }
    }

    /// It was made, and this is its id.
    pub(super) fn made(&mut self, id: String) {
        self.id = id;
        self.expected = false;
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The container has ended, and the engine removes it by itself.
    pub(super) fn not_needed(&mut self) {
        self.needed = false;
    }
}

impl Drop for Removal {
    /// In a thread with a runtime of its own: this may be dropped anywhere, also while another runtime ends.
    fn drop(&mut self) {
        if !self.needed {
            return;
        }
        let (id, socket, expected) = (self.id.clone(), self.socket.clone(), self.expected);
        let remove = move || {
            let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            // Timers are made in the runtime's context.
            let removed =
                tokio.block_on(async { timeout(PATIENCE, remove_expected(&socket, &id, expected)).await });
            match removed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!("container {id} was not removed: {error}")
                }
                Err(_) => tracing::warn!("container {id} was not removed: its engine does not answer"),
            }
            std::io::Result::Ok(())
        };
        let removing = thread::Builder::new().name("removal".into()).spawn(remove);
        let done = removing.map(|thread| thread.join().is_ok());
        if !matches!(done, Ok(true)) {
            tracing::warn!("container {} was not removed", self.id);
        }
    }
}

/// One that may not be there yet is waited for.
async fn remove_expected(socket: &Path, id: &str, expected: bool) -> Result<(), EngineError> {
    let engine = Engine::at(socket).await?;
    let until = expected.then(|| Instant::now() + EXPECTED);
    while !remove(&engine, id).await? && until.is_some_and(|until| Instant::now() < until) {
        sleep(engine::FIRST_PAUSE).await;
    }
    Ok(())
}

/// By force, with its anonymous volumes. One that is not there any more, or is being removed, is as good. Was it there?
async fn remove(engine: &Engine, id: &str) -> Result<bool, EngineError> {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match engine.api.remove_container(id, Some(options)).await {
        Err(error) if !engine::is_over(&error) => {
            Err(EngineError::Asking { doing: "removing a container", source: error })
        }
        removed => Ok(removed.is_ok()),
    }
}

/// Removes the containers of this installation whose holders have died. Returns how many there were.
pub(crate) async fn sweep(socket: &Path, home: &Home) -> Result<usize, EngineError> {
    let engine = Engine::at(socket).await?;
    let ours = format!("{HOME}={}", home.root().display());
    let options = ListContainersOptionsBuilder::new()
        .all(true)
        .filters(&std::collections::HashMap::from([("label", vec![ours.as_str()])]))
        .build();
    let listed = engine.api.list_containers(Some(options)).await;
    let listed = listed.map_err(|source| EngineError::Asking { doing: "listing containers", source })?;
    let (mut removed, mut failed) = (0, None);
    for container in listed {
        let (labels, names) = (container.labels.unwrap_or_default(), container.names.unwrap_or_default());
        if let (true, Some(id)) = (is_left_behind(&labels, &names, home), container.id) {
            // One that cannot be removed does not keep the others.
            match remove(&engine, &id).await {
                Ok(_) => removed += 1,
                Err(error) => failed = Some(error),
            }
        }
    }
    failed.map_or(Ok(removed), Err)
}
