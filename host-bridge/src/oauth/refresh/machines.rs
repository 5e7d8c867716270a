//! The three things that change a grant's record: [`Refresh`] (the bridge), [`Keep`] (a new grant) and [`Forget`]
//! (its removal). All of them hold the grant's lock from before they read until after the directory is synced.

use super::{Answer, Change, Class, Do, Got, Journal, Machine, Need, Outcome, Print, Seen, Step};

/// Attempts to write tokens that exist nowhere else.
const STORE_ATTEMPTS: u8 = 3;

/// A refresh of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Refresh {
    /// The access token that the request had.
    access: Print,
    need: Need,
    /// The record has requested scopes, and they are still to be sent.
    scope: bool,
    at: At,
}

/// Where a refresh stands: what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Start,
    Lock,
    /// The first look (K1).
    Look,
    /// The journal is on its way to the disk (K2).
    Journal {
        attempt: Attempt,
        write: Write,
    },
    /// The token is on its way (K3).
    Answer {
        attempt: Attempt,
    },
    /// A look before the refresh token is given up (K8).
    LookAgain {
        attempt: Attempt,
        class: Class,
    },
    /// The record is on its way to the disk (K4 to K6).
    Record {
        change: Change,
        write: Write,
        tries: u8,
    },
    /// The journal says that the token was answered and not taken.
    Settle {
        outcome: Outcome,
        write: Write,
    },
    /// What somebody else wrote becomes durable before it is used: they may have died before they synced it.
    Adopt {
        stale_journal: bool,
    },
    Tidy {
        outcome: Outcome,
    },
    Unlock {
        outcome: Outcome,
    },
    End,
}

/// One sending of a refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Attempt {
    generation: u64,
    refresh: Print,
    replays: u8,
}

impl Attempt {
    fn journal(self, open: bool) -> Journal {
        Journal { generation: self.generation, refresh: self.refresh, replays: self.replays, open }
    }
}

/// The three steps of a durable write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Write {
    Prepare,
    Rename,
    Sync,
}

impl Refresh {
    /// A refresh for a request that saw the access token `access`.
    pub(crate) fn new(access: Print, need: Need, scope: bool) -> Self {
        Self { access, need, scope, at: At::Start }
    }

    #[cfg(test)]
    pub(super) const fn at_start(access: Print, need: Need) -> Self {
        Self { access, need, scope: false, at: At::Start }
    }

    fn go(&mut self, at: At, what: Do) -> Step<Outcome> {
        self.at = at;
        Step::Do(what)
    }

    fn unlock(&mut self, outcome: Outcome) -> Step<Outcome> {
        self.go(At::Unlock { outcome }, Do::Unlock)
    }

    fn tidy(&mut self, outcome: Outcome) -> Step<Outcome> {
        self.go(At::Tidy { outcome }, Do::RemoveJournal)
    }

    /// K1: what is there to do at all?
    fn look(&mut self, record: Option<Seen>, journal: Option<Journal>) -> Step<Outcome> {
        let Some(record) = record else { return self.unlock(Outcome::Gone) };
        let of_record = |j: &Journal| j.generation == record.generation && Some(j.refresh) == record.refresh;
        if journal.is_some_and(|journal| !of_record(&journal)) {
            // Somebody died between K5 and K7. What they wrote becomes durable first, then it is looked at again.
            return self.go(At::Adopt { stale_journal: true }, Do::SyncDirectory);
        }
        if record.access != self.access || (self.need == Need::Expiry && record.fresh) {
            return self.go(At::Adopt { stale_journal: false }, Do::SyncDirectory);
        }
        if record.rejected {
            return self.unlock(Outcome::NeedsGrant);
        }
        let Some(refresh) = record.refresh else { return self.unlock(Outcome::NoRefreshToken) };
        let mut attempt = Attempt { generation: record.generation, refresh, replays: 0 };
        match journal {
            None => self.spend(attempt),
            Some(journal) if !journal.open => {
                attempt.replays = journal.replays;
                self.spend(attempt)
            }
            // The outcome is unknown: once more, or never again.
            Some(journal) => {
                attempt.replays = journal.replays;
                self.unknown(attempt, Class::AnswerLost)
            }
        }
    }

    /// K2.
    fn spend(&mut self, attempt: Attempt) -> Step<Outcome> {
        let what = Do::PrepareJournal(attempt.journal(true));
        self.go(At::Journal { attempt, write: Write::Prepare }, what)
    }

    fn unknown(&mut self, attempt: Attempt, class: Class) -> Step<Outcome> {
        if attempt.replays == 0 {
            self.spend(Attempt { replays: 1, ..attempt })
        } else {
            self.go(At::LookAgain { attempt, class }, Do::Read)
        }
    }

    fn post(&mut self, attempt: Attempt) -> Step<Outcome> {
        let scope = self.scope;
        self.go(At::Answer { attempt }, Do::Post { scope })
    }

    /// K3 is over.
    fn answered(&mut self, attempt: Attempt, answer: Answer) -> Step<Outcome> {
        match answer {
            Answer::Tokens => self.store(Change::Renewed, 1),
            // Scopes are judged before the token is taken.
            Answer::Terminal(Class::InvalidScope) if std::mem::take(&mut self.scope) => self.post(attempt),
            Answer::Terminal(class) => self.go(At::LookAgain { attempt, class }, Do::Read),
            Answer::Later(class) | Answer::NotSent(class) if attempt.replays == 0 => {
                self.tidy(Outcome::Later(class))
            }
            // The token was sent again already, and that is not forgotten.
            Answer::Later(class) | Answer::NotSent(class) => {
                let at = At::Settle { outcome: Outcome::Later(class), write: Write::Prepare };
                self.go(at, Do::PrepareJournal(attempt.journal(false)))
            }
            Answer::Unknown(class) => self.unknown(attempt, class),
        }
    }

    /// K8: is it still the token that was refused?
    fn look_again(&mut self, attempt: Attempt, class: Class, record: Option<Seen>) -> Step<Outcome> {
        match record {
            None => self.tidy(Outcome::Gone),
            Some(record) if record.refresh != Some(attempt.refresh) => {
                self.go(At::Adopt { stale_journal: true }, Do::SyncDirectory)
            }
            Some(_) => self.store(Change::Rejected(class), 1),
        }
    }

    /// K4.
    fn store(&mut self, change: Change, tries: u8) -> Step<Outcome> {
        self.go(At::Record { change, write: Write::Prepare, tries }, Do::PrepareRecord(change))
    }

    fn storing(&mut self, change: Change, write: Write, tries: u8, done: bool) -> Step<Outcome> {
        match (write, done) {
            (Write::Prepare, true) => {
                self.go(At::Record { change, write: Write::Rename, tries }, Do::RenameRecord)
            }
            (Write::Rename, true) => {
                self.go(At::Record { change, write: Write::Sync, tries }, Do::SyncDirectory)
            }
            // K6 is over: the new token may be used.
            (Write::Sync, true) => self.tidy(match change {
                Change::Renewed | Change::Granted => Outcome::Renewed,
                Change::Rejected(_) => Outcome::NeedsGrant,
            }),
            (_, false) if tries < STORE_ATTEMPTS => self.store(change, tries + 1),
            // The journal stays: the outcome is unknown to whoever comes next.
            (_, false) => self.unlock(Outcome::Later(Class::Storage)),
        }
    }
}

impl Machine for Refresh {
    type Outcome = Outcome;

    fn next(&mut self, got: Got) -> Step<Outcome> {
        let done = matches!(got, Got::Done);
        match (self.at, got) {
            (At::Start, _) => self.go(At::Lock, Do::Lock),
            (At::Lock, Got::Done) => self.go(At::Look, Do::Read),
            (At::Lock, _) => self.end(Outcome::Later(Class::Busy)),
            (At::Look, Got::Read { record, journal }) => self.look(record, journal),
            (At::Journal { attempt, write: Write::Prepare }, Got::Done) => {
                self.go(At::Journal { attempt, write: Write::Rename }, Do::RenameJournal)
            }
            (At::Journal { attempt, write: Write::Rename }, Got::Done) => {
                self.go(At::Journal { attempt, write: Write::Sync }, Do::SyncDirectory)
            }
            (At::Journal { attempt, write: Write::Sync }, Got::Done) => self.post(attempt),
            (At::Answer { attempt }, Got::Answer(answer)) => self.answered(attempt, answer),
            (At::LookAgain { attempt, class }, Got::Read { record, .. }) => {
                self.look_again(attempt, class, record)
            }
            (At::Record { change, write, tries }, _) => self.storing(change, write, tries, done),
            (At::Settle { outcome, write: Write::Prepare }, Got::Done) => {
                self.go(At::Settle { outcome, write: Write::Rename }, Do::RenameJournal)
            }
            (At::Settle { outcome, write: Write::Rename }, Got::Done) => {
                self.go(At::Settle { outcome, write: Write::Sync }, Do::SyncDirectory)
            }
            (At::Settle { outcome, .. }, _) => self.unlock(outcome),
            (At::Adopt { stale_journal: true }, Got::Done) => self.tidy(Outcome::Adopted),
            (At::Adopt { stale_journal: false }, Got::Done) => self.unlock(Outcome::Adopted),
            // The look that follows finds no journal, or one of the record.
            (At::Tidy { outcome: Outcome::Adopted }, Got::Done) => self.go(At::Look, Do::Read),
            (At::Tidy { outcome }, _) => self.unlock(outcome),
            (At::Unlock { outcome }, _) => self.end(outcome),
            // Reading or writing failed before anything was sent; or a port answered what was not asked.
            _ => self.unlock(Outcome::Later(Class::Storage)),
        }
    }
}

impl Refresh {
    fn end(&mut self, outcome: Outcome) -> Step<Outcome> {
        self.at = At::End;
        Step::End(outcome)
    }
}

/// A new grant takes the place of what is there. The lock is held while `granted` is exchanged for tokens, so the
/// exchange itself happens between [`Do::Read`] and [`Do::PrepareRecord`], in the port's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Keep {
    at: Phase,
}

/// Removes a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Forget {
    at: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Phase {
    #[default]
    Start,
    Lock,
    Read,
    Prepare,
    Rename,
    Sync,
    Journal,
    Unlock(Result<(), Class>),
}

impl Machine for Keep {
    type Outcome = Result<(), Class>;

    fn next(&mut self, got: Got) -> Step<Self::Outcome> {
        let failed = matches!(got, Got::Failed);
        let (at, what) = match self.at {
            Phase::Start => (Phase::Lock, Do::Lock),
            Phase::Lock if failed => return Step::End(Err(Class::Busy)),
            Phase::Lock => (Phase::Read, Do::Read),
            // What cannot be read is replaced: that is what a new grant is for.
            Phase::Read => (Phase::Prepare, Do::PrepareRecord(Change::Granted)),
            Phase::Prepare if !failed => (Phase::Rename, Do::RenameRecord),
            Phase::Rename if !failed => (Phase::Sync, Do::SyncDirectory),
            Phase::Sync if !failed => (Phase::Journal, Do::RemoveJournal),
            Phase::Journal => (Phase::Unlock(Ok(())), Do::Unlock),
            Phase::Unlock(result) => return Step::End(result),
            Phase::Prepare | Phase::Rename | Phase::Sync => (Phase::Unlock(Err(Class::Storage)), Do::Unlock),
        };
        self.at = at;
        Step::Do(what)
    }
}

impl Machine for Forget {
    type Outcome = Result<(), Class>;

    fn next(&mut self, got: Got) -> Step<Self::Outcome> {
        let failed = matches!(got, Got::Failed);
        let (at, what) = match self.at {
            Phase::Start => (Phase::Lock, Do::Lock),
            Phase::Lock if failed => return Step::End(Err(Class::Busy)),
            Phase::Lock => (Phase::Read, Do::Read),
            // Unreadable or not: it goes.
            Phase::Read => (Phase::Rename, Do::RemoveRecord),
            Phase::Rename if !failed => (Phase::Sync, Do::SyncDirectory),
            Phase::Sync if !failed => (Phase::Journal, Do::RemoveJournal),
            Phase::Journal => (Phase::Unlock(Ok(())), Do::Unlock),
            Phase::Unlock(result) => return Step::End(result),
            Phase::Prepare | Phase::Rename | Phase::Sync => (Phase::Unlock(Err(Class::Storage)), Do::Unlock),
        };
        self.at = at;
        Step::Do(what)
    }
}
