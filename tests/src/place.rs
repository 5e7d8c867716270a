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
    /// The same with real guests for machines, whose relays go over vsock.
    AppleGuest,
    /// A virtual machine without a network device, the tunnel over vsock.
    Guest,
}

thread_local! {
    static HERE: Cell<Place> = const { Cell::new(Place::Process) };
}

impl Place {
    /// The rows of each test of a sandbox. Guests have chosen ones: they are slow, and one kind is started by no runtime of
    /// moat's.
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
            Self::AppleGuest => "apple_guest",
            Self::Guest => "guest",
        }
    }

    /// What moat's own commands are told.
    #[must_use]
    pub const fn runtime(self) -> &'static str {
        match self {
            Self::Process | Self::Guest => "process",
            Self::Docker | Self::Published => "docker",
            Self::Podman => "podman",
            Self::Apple | Self::AppleGuest => "apple",
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
            Self::AppleGuest => Part::AppleGuest,
            Self::Guest => Part::Guest,
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
            Self::Process | Self::Apple | Self::AppleGuest | Self::Guest => Ok(None),
            Self::Docker | Self::Published => engine::docker().map(Some),
            Self::Podman => engine::podman().map(Some),
        }
    }
}
