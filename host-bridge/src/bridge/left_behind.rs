//! Removes containers whose holders died without a word: `moat` was killed, and the engine keeps what it started.
//!
//! An engine that does not answer is asked again until it does.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{env::Environment, home::Home, runtime};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// An engine that takes longer is asked again.
const PATIENCE: Duration = Duration::from_secs(60);

/// The engines to look at.
#[derive(Debug)]
pub(super) struct LeftBehind {
    home: Home,
    env: Environment,
    told: mpsc::UnboundedReceiver<PathBuf>,
}

impl LeftBehind {
    /// And the way to tell it of an engine.
    pub(super) fn new(home: Home, env: Environment) -> (Self, mpsc::UnboundedSender<PathBuf>) {
        let (tell, told) = mpsc::unbounded_channel();
        (Self { home, env, told }, tell)
    }

    /// Works until nobody is left who could tell.
    pub(super) async fn run(mut self) {
        while let Some(first) = self.told.recv().await {
            let mut engines = BTreeSet::from([first]);
            let mut pause = FIRST_PAUSE;
            while !engines.is_empty() {
                while let Ok(another) = self.told.try_recv() {
                    engines.insert(another);
                }
                let mut away = BTreeSet::new();
                for engine in engines {
                    if !self.sweep(&engine).await {
                        away.insert(engine);
                    }
                }
                engines = away;
                if !engines.is_empty() {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn sweep(&self, engine: &Path) -> bool {
        match timeout(PATIENCE, runtime::sweep(engine, &self.env, &self.home)).await {
            Ok(Ok(0)) => true,
            Ok(Ok(removed)) => {
                tracing::info!(removed, engine = %engine.display(), "containers of dead holders were removed");
                true
            }
            Ok(Err(error)) => {
                let error = crate::cli::with_causes(&error);
                tracing::warn!(engine = %engine.display(), error, "containers may be left; asking again");
                false
            }
            Err(_) => false,
        }
    }
}
