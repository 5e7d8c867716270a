//! Where a test's sandboxes are made: one test, several rows of a table.

use std::cell::Cell;

use crate::{
    Outcome,
    engine::{self, Engine},
    parts::Part,
};

/// A runtime, and how its tunnel goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// Namespaces.
    #[default]
    Process,
    /// Docker, no network, the tunnel over a mounted unix socket.
    Docker,
    /// podman, the same.
    Podman,
    /// Docker, with its own network: the bridge goes to a published port.
    Published,
    /// A stand-in for Apple's containers, whose relays are broken in every way that is known.
    Apple,
}

thread_local! {
    static HERE: Cell<Place> = const { Cell::new(Place::Process) };
}

impl Place {
    /// All rows.
    pub const ALL: [Self; 5] = [Self::Process, Self::Docker, Self::Podman, Self::Published, Self::Apple];

    /// As a test's name begins.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Published => "published",
            Self::Apple => "apple",
        }
    }

    /// What moat calls its runtime.
    #[must_use]
    pub const fn runtime(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Docker | Self::Published => "docker",
            Self::Podman => "podman",
            Self::Apple => "apple",
        }
    }

    /// What the machine must have for it.
    #[must_use]
    pub const fn part(self) -> Part {
        match self {
            Self::Process => Part::Sandbox,
            Self::Docker | Self::Published => Part::Docker,
            Self::Podman => Part::Podman,
            Self::Apple => Part::Apple,
        }
    }

    /// The place of this thread's test.
    #[must_use]
    pub fn here() -> Self {
        HERE.get()
    }

    /// From now on this thread's test is here.
    pub fn go(self) {
        HERE.set(self);
    }

    /// Its engine, started if it is not there yet.
    ///
    /// # Errors
    /// When it does not start.
    pub fn engine(self) -> Outcome<Option<&'static Engine>> {
        match self {
            Self::Process | Self::Apple => Ok(None),
            Self::Docker | Self::Published => engine::docker().map(Some),
            Self::Podman => engine::podman().map(Some),
        }
    }
}
