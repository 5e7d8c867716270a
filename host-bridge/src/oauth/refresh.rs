//! Spending a refresh token once, whatever dies meanwhile: the steps, as pure state machines.
//!
//! ```text
//! lock ─► read ─► journal: "about to spend this one" ─► POST ─► record: temporary file, rename, directory ─► forget the
//! K1              K2                                   K3      K4      K5      K6           journal, unlock   K7
//! ```
//!
//! A journal that names the record's refresh token and generation says: *the outcome is unknown*. Such a token is sent
//! once more and never again; an answer that refuses it for good, or a second unknown outcome, ends in a record without
//! a refresh token, which asks for a new grant.
//!
//! Nothing here does anything: a machine says what to [`Do`] and is told what it [`Got`]. [`drive`] performs, with a
//! [`Port`] that knows files and network; `model` performs with every interleaving, crash and loss there can be. Both
//! run the same machines. Tokens are known by their [`Print`] alone.

mod machines;
#[cfg(test)]
mod model;

use std::future::Future;

use serde::{Deserialize, Serialize};

pub(crate) use self::machines::{Forget, Keep, Refresh};

/// The fingerprint of a token: its SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Print([u8; 32]);

impl Print {
    pub(crate) fn of(token: &str) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
        let mut print = [0; 32];
        print.copy_from_slice(digest.as_ref());
        Self(print)
    }

    #[cfg(test)]
    pub(crate) const fn numbered(number: u8) -> Self {
        Self([number; 32])
    }
}

impl std::fmt::Debug for Print {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{:02x}{:02x}", self.0[0], self.0[1])
    }
}

/// What a machine knows of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Seen {
    pub(crate) generation: u64,
    pub(crate) access: Print,
    /// None: there is none, or it was refused for good.
    pub(crate) refresh: Option<Print>,
    /// The server refused the refresh token, or nobody knows what became of it.
    pub(crate) rejected: bool,
    /// The access token is not about to expire.
    pub(crate) fresh: bool,
}

/// "About to spend this refresh token": durable before the token leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal {
    pub(crate) generation: u64,
    pub(crate) refresh: Print,
    /// How often the token was sent again because nobody knew what had become of it: 0 or 1.
    pub(crate) replays: u8,
    /// Is it on its way? `false`: the server answered and did not take it; `replays` still counts.
    pub(crate) open: bool,
}

/// What a refresh is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Need {
    /// The access token expires or has expired.
    Expiry,
    /// A server refused the access token.
    Refused,
}

/// Why a server did not give tokens; in one word, for status and audit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Class {
    InvalidGrant,
    InvalidClient,
    UnauthorizedClient,
    UnsupportedGrantType,
    InvalidTarget,
    InvalidScope,
    InvalidRequest,
    /// Nobody knows what became of the token, twice.
    AnswerLost,
    /// 200, but no token in it, or one that cannot be used.
    UnusableAnswer,
    Timeout,
    Connection,
    Tls,
    Name,
    /// The address is one that OAuth requests never go to.
    ForbiddenAddress,
    Redirect,
    Throttled,
    ServerError,
    /// 4xx without an OAuth error.
    Refused,
    /// The lock could not be had.
    Busy,
    /// The disk does not take the record or the journal.
    Storage,
}

impl Class {
    /// For people.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::InvalidGrant => "invalid_grant",
            Self::InvalidClient => "invalid_client",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::InvalidTarget => "invalid_target",
            Self::InvalidScope => "invalid_scope",
            Self::InvalidRequest => "invalid_request",
            Self::AnswerLost => "the answer was lost",
            Self::UnusableAnswer => "an answer without a usable token",
            Self::Timeout => "timeout",
            Self::Connection => "no connection",
            Self::Tls => "TLS failed",
            Self::Name => "its name cannot be resolved",
            Self::ForbiddenAddress => "its address is not allowed",
            Self::Redirect => "it redirects",
            Self::Throttled => "too many requests",
            Self::ServerError => "server error",
            Self::Refused => "refused",
            Self::Busy => "another process holds the lock",
            Self::Storage => "the credential cannot be written",
        }
    }

    /// What a person can do about it who is signing in.
    pub(crate) const fn remedy(self) -> &'static str {
        match self {
            Self::Name => "Is the name right, and is this machine online?",
            Self::Connection | Self::Timeout | Self::AnswerLost => {
                "Is the server up, and is this machine online? If so, try again."
            }
            Self::Tls => {
                "Its certificate is for another name, has expired, or is signed by nobody whom this machine trusts."
            }
            Self::ForbiddenAddress => "If it is in your own network: --allow-private-network",
            Self::Redirect => "Give the address that it leads to, if you trust that one.",
            Self::Throttled | Self::ServerError => "Try again in a while.",
            Self::InvalidClient | Self::UnauthorizedClient => {
                "The server does not know this client: check --client-id and --client-secret. If moat registered itself \
                 there: --new-client"
            }
            Self::InvalidTarget => {
                "The server does not take this resource: --no-resource, or --resource <uri>"
            }
            Self::InvalidScope => "The server does not know these scopes: give others with --scopes.",
            Self::Busy => "Another moat changes this grant at this moment. Try again.",
            Self::Storage => "Is the disk full, or moat's directory not writable?",
            Self::InvalidGrant => "The sign-in took too long, or was used already. Try again.",
            Self::UnsupportedGrantType | Self::InvalidRequest | Self::UnusableAnswer | Self::Refused => {
                "Ask whoever runs the server; moat can do nothing about it."
            }
        }
    }
}

/// What a machine wants done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Do {
    /// Take the grant's lock.
    Lock,
    /// Read record and journal.
    Read,
    /// Write the journal's temporary file and sync it.
    PrepareJournal(Journal),
    /// Give the journal its name.
    RenameJournal,
    /// Send the refresh token of the record that was read last; with the scopes that were asked for, or without.
    Post {
        scope: bool,
    },
    /// Write the record's temporary file and sync it.
    PrepareRecord(Change),
    /// Give the record its name.
    RenameRecord,
    /// Remove the record.
    RemoveRecord,
    /// Sync the directory: what was renamed and removed stays so.
    SyncDirectory,
    RemoveJournal,
    Unlock,
}

/// What becomes of the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Change {
    /// The answer's tokens, one generation on.
    Renewed,
    /// No refresh token any more, and why. The access token stays.
    Rejected(Class),
    /// A new grant, one generation on.
    Granted,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Got {
    /// It is done.
    Done,
    /// It could not be done; nothing changed.
    Failed,
    Read {
        record: Option<Seen>,
        journal: Option<Journal>,
    },
    Answer(Answer),
}

/// What the token endpoint said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Tokens,
    /// Refused for good.
    Terminal(Class),
    /// Not now: 429, 5xx, or a refusal that need not be for good.
    Later(Class),
    /// No byte of the request was written.
    NotSent(Class),
    /// The request was written, at least in part, and nobody knows whether the token was taken: there is no answer,
    /// or one of success with nothing usable in it.
    Unknown(Class),
}

/// How a refresh ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// New tokens are in the record.
    Renewed,
    /// Somebody else had put new tokens there.
    Adopted,
    /// The refresh token is gone: a new grant is needed.
    NeedsGrant,
    /// There never was one.
    NoRefreshToken,
    /// There is no record.
    Gone,
    /// Nothing changed; it may be tried again.
    Later(Class),
}

/// A machine.
pub(crate) trait Machine {
    type Outcome;
    /// The next thing to do, after what became of the last one. The first call gets [`Got::Done`].
    fn next(&mut self, got: Got) -> Step<Self::Outcome>;
}

/// What a machine says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step<O> {
    Do(Do),
    End(O),
}

/// Files and network.
pub(crate) trait Port {
    /// Does one thing and says what came of it.
    fn perform(&mut self, what: Do) -> impl Future<Output = Got> + Send;
}

/// Runs a machine to its end.
pub(crate) async fn drive<M: Machine, P: Port>(mut machine: M, port: &mut P) -> M::Outcome {
    let mut got = Got::Done;
    loop {
        match machine.next(got) {
            Step::Do(what) => got = port.perform(what).await,
            Step::End(outcome) => return outcome,
        }
    }
}
