//! The matrix of faults: what goes wrong, crossed with what an agent may be asking when it does, and what comes of it.
//!
//! ```text
//! upstream (faults of a server) ─┐
//! process (tunnel and processes) ┴──► Cell: what the agent gets, within what time, what trace and log say
//!                                        ├──► page: docs/FAULTS.md
//!                                        └──► tests/e2e: made to happen, and compared
//! ```
//!
//! The tables are the expectation; nothing here runs anything but the [`server`] that fails.

pub mod page;
pub mod process;
pub mod server;
pub mod upstream;

use std::fmt;

use serde_json::{Value, json};

/// What an agent may be asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call whose answer is JSON.
    Call,
    /// A call whose answer is an event stream.
    Stream,
    /// The GET stream of the revisions of 2025.
    Get,
    /// `subscriptions/listen` of 2026-07-28: a POST whose stream stays open.
    Listen,
    /// A notification.
    Notification,
    /// The end of a session.
    Delete,
}

impl Kind {
    /// All, in the order of a row.
    pub const ALL: [Self; 6] =
        [Self::Call, Self::Stream, Self::Get, Self::Listen, Self::Notification, Self::Delete];

    /// The last segment of its URL's path.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Stream => "stream",
            Self::Get => "get",
            Self::Listen => "listen",
            Self::Notification => "notification",
            Self::Delete => "delete",
        }
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The id that an answer has to carry.
    #[must_use]
    pub fn id(self) -> Value {
        match self {
            Self::Call => json!(7),
            Self::Stream => json!("s-1"),
            Self::Listen => json!("listen:0"),
            Self::Get | Self::Notification | Self::Delete => Value::Null,
        }
    }

    /// Does a stream answer it?
    #[must_use]
    pub const fn streams(self) -> bool {
        matches!(self, Self::Stream | Self::Get | Self::Listen)
    }
}

/// What the agent gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gets {
    /// The upstream's own answer, whole.
    Answer,
    /// This status, with the upstream's own body if it had one.
    Status(u16),
    /// A JSON-RPC error that moat made, of this kind, for the request's id.
    Error(u16, &'static str),
    /// The stream's events so far, one event with such an error, and a proper end.
    Event(&'static str),
    /// The stream's events so far, then a broken connection: the client opens it again, or resumes.
    Cut,
    /// Nothing yet, or what came so far; when the agent gives up, the upstream notices.
    Waits,
    /// A broken connection instead of an answer: the relay itself is gone.
    Broken,
}

impl fmt::Display for Gets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer => f.write_str("answer"),
            Self::Status(status) => write!(f, "{status}"),
            Self::Error(status, kind) => write!(f, "{status} {kind}"),
            Self::Event(kind) => write!(f, "event {kind}"),
            Self::Cut => f.write_str("cut"),
            Self::Waits => f.write_str("open"),
            Self::Broken => f.write_str("broken"),
        }
    }
}

/// What the network trace says of an exchange that is over: one line with a duration, and not more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traced {
    /// That it went well.
    Well,
    /// Why it failed, in this word.
    As(&'static str),
    /// Nothing: whoever could have written it is gone, or was never asked.
    Nothing,
}

/// One cell: the fate of one request under one fault.
#[derive(Debug, Clone, Copy)]
pub struct Cell {
    /// What the agent gets.
    pub gets: Gets,
    /// Milliseconds until it has that, on a machine that is busy; of [`Gets::Waits`], until the upstream notices that
    /// the agent has left.
    pub within: u64,
    /// What the network trace says of the exchange.
    pub traced: Traced,
    /// Is there a warning in the bridge's log?
    pub logged: bool,
    /// How often the upstream is asked. Never more than once.
    pub arrives: usize,
}

/// On a busy machine. Nothing below depends on a timer of moat's unless its cell says more.
pub const AT_ONCE: u64 = 2000;

impl Cell {
    const fn new(gets: Gets, traced: Traced, logged: bool) -> Self {
        Self { gets, within: AT_ONCE, traced, logged, arrives: 1 }
    }

    /// The upstream's own answer.
    #[must_use]
    pub const fn answer() -> Self {
        Self::new(Gets::Answer, Traced::Well, false)
    }

    /// The upstream's status and body.
    #[must_use]
    pub const fn status(status: u16) -> Self {
        Self::new(Gets::Status(status), Traced::Well, false)
    }

    /// An error of moat's.
    #[must_use]
    pub const fn error(status: u16, kind: &'static str, traced: &'static str) -> Self {
        Self::new(Gets::Error(status, kind), Traced::As(traced), true)
    }

    /// An error of moat's at the end of a stream.
    #[must_use]
    pub const fn event(kind: &'static str, traced: &'static str) -> Self {
        Self::new(Gets::Event(kind), Traced::As(traced), true)
    }

    /// A cut.
    #[must_use]
    pub const fn cut(traced: &'static str) -> Self {
        Self::new(Gets::Cut, Traced::As(traced), true)
    }

    /// A wait.
    #[must_use]
    pub const fn waits() -> Self {
        Self::new(Gets::Waits, Traced::As("cancelled"), false)
    }

    /// The same, later: so many milliseconds.
    #[must_use]
    pub const fn within(mut self, millis: u64) -> Self {
        self.within = millis;
        self
    }

    /// The same, with another trace, and with or without a warning in the log.
    #[must_use]
    pub const fn recorded(mut self, traced: Traced, logged: bool) -> Self {
        self.traced = traced;
        self.logged = logged;
        self
    }

    /// A connection that breaks, since the relay is gone.
    #[must_use]
    pub const fn broken() -> Self {
        Self::new(Gets::Broken, Traced::As("cancelled"), false)
    }

    /// The same, and the upstream never hears of it.
    #[must_use]
    pub const fn unsent(mut self) -> Self {
        self.arrives = 0;
        self
    }
}

/// One fault, and its six cells in the order of [`Kind::ALL`].
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The fault's name: a server's in moat.yaml, and the first segment of its path.
    pub name: &'static str,
    /// What happens.
    pub what: &'static str,
    /// What comes of it.
    pub cells: [Cell; 6],
}

impl Row {
    /// All kinds alike.
    #[must_use]
    pub const fn all(name: &'static str, what: &'static str, cell: Cell) -> Self {
        Self { name, what, cells: [cell; 6] }
    }

    /// Each its own.
    #[must_use]
    pub const fn each(name: &'static str, what: &'static str, cells: [Cell; 6]) -> Self {
        Self { name, what, cells }
    }
}
