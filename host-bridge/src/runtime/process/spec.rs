//! What `moat run` tells `__sandbox`, and what it hears back: JSON over inherited descriptors.
//!
//! No secret is in here: the run's key travels in a descriptor of its own, which the builder hands on unread.

use std::{
    fmt, io,
    os::fd::{AsFd, OwnedFd, RawFd},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{
    hide::Hidden,
    ids::Users,
    sys::{self, Size},
};
use crate::runtime::Mount;

/// Everything that the builder needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Spec {
    pub(super) hostname: String,
    /// On the host; canonical.
    pub(super) workspace: PathBuf,
    /// Holds the tunnel's socket and nothing else.
    pub(super) tunnel_dir: PathBuf,
    pub(super) mounts: Vec<Mount>,
    pub(super) hidden: Hidden,
    /// The one of [`Hidden`] that is hidden in workspace and mounts as well.
    pub(super) secret: PathBuf,
    pub(super) users: Users,
    /// The pasta that connects the sandbox to the network; none: there is no interface but `lo`.
    pub(super) pasta: Option<PathBuf>,
    /// A terminal of this size; else three pipes.
    pub(super) terminal: Option<Size>,
}

/// What the builder says: one message, then silence. The end of the stream means that PID 1 runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// With one descriptor (a terminal's) or three (the far ends of stdin, stdout and stderr).
    Io,
    /// Nothing was started.
    Failed { text: String, hint: Option<String> },
}

/// The largest report.
pub(super) const REPORT: usize = 16 * 1024;

impl Report {
    pub(super) fn send(&self, to: &OwnedFd, descriptors: &[RawFd]) -> io::Result<()> {
        sys::send(to.as_fd(), &serde_json::to_vec(self)?, descriptors)
    }
}

/// The sandbox cannot be built: what was tried, and the remedy where one is known.
#[derive(Debug)]
pub(super) struct BuildError {
    doing: String,
    source: Option<io::Error>,
    hint: Option<String>,
}

impl BuildError {
    pub(super) fn new(doing: impl Into<String>) -> Self {
        Self { doing: doing.into(), source: None, hint: None }
    }

    #[must_use]
    pub(super) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub(super) fn with_source(mut self, source: impl Into<io::Error>) -> Self {
        self.source = Some(source.into());
        self
    }

    pub(super) fn report(&self) -> Report {
        Report::Failed { text: self.to_string(), hint: self.hint.clone() }
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {source}", self.doing),
            None => f.write_str(&self.doing),
        }
    }
}

/// Says what was being done when it failed.
pub(super) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, BuildError>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, BuildError> {
        self.map_err(|error| BuildError::new(what()).with_source(error))
    }
}
