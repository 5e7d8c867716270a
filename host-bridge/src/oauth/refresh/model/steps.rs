//! What can happen next in a world, and what must hold of it then and in the end.

use super::{
    super::{Answer, Change, Class, Do, Got, Need, Outcome, Refresh},
    Broken, Checked, Mutant, require,
    world::{Family, Flight, Kind, Mind, Next, Record, World, print, seen},
};

impl World {
    /// All that can happen next.
    pub(super) fn successors(&self, mutant: Mutant) -> Checked<Vec<Self>> {
        let mut all = Vec::new();
        for at in 0..self.processes.len() {
            match self.processes[at].next {
                Next::Do(what) => {
                    self.perform(at, what, mutant, &mut all)?;
                }
                Next::Waiting => {
                    if let Some(answer) = self.processes[at].answer {
                        let mut next = self.clone();
                        next.processes[at].answer = None;
                        next.told(at, Got::Answer(answer));
                        all.push(next);
                    }
                    if self.faults > 0 {
                        let mut lost = self.clone();
                        lost.faults -= 1;
                        lost.doubts += 1;
                        lost.processes[at].answer = None;
                        if let Some(token) = lost.processes[at].spending.take() {
                            *lost.unknown_of(token) += 1;
                        }
                        lost.told(at, Got::Answer(Answer::Unknown(Class::AnswerLost)));
                        all.push(lost);
                    }
                }
                Next::Ended(_) | Next::Dead => continue,
            }
            if self.faults > 0 {
                let mut crashed = self.clone();
                crashed.faults -= 1;
                crashed.doubts += u8::from(self.holder == Some(at) && self.doubtful());
                let token = crashed.dies(at);
                crashed.forgets(token);
                all.push(crashed);
            }
        }
        for (index, flight) in self.flights.iter().enumerate() {
            let mut arrived = self.clone();
            arrived.flights.remove(index);
            let waits = arrived.processes[flight.from].next == Next::Waiting
                && arrived.processes[flight.from].spending == Some(flight.token);
            arrived.late |= !waits;
            let taken = arrived.take(flight.token);
            if waits {
                let process = &mut arrived.processes[flight.from];
                process.tokens = taken;
                process.answer = Some(match taken {
                    Some(_) => Answer::Tokens,
                    None => Answer::Terminal(Class::InvalidGrant),
                });
            }
            if self.faults > 0 && waits {
                // A success that says nothing, from a server that took the token or did not.
                for server in [&arrived, self] {
                    let mut unusable = server.clone();
                    unusable.flights.clone_from(&arrived.flights);
                    unusable.faults -= 1;
                    unusable.doubts += 1;
                    let process = &mut unusable.processes[flight.from];
                    (process.tokens, process.spending) = (None, None);
                    process.answer = Some(Answer::Unknown(Class::UnusableAnswer));
                    *unusable.unknown_of(flight.token) += 1;
                    all.push(unusable);
                }
            }
            all.push(arrived);
            if self.faults > 0 && waits {
                let mut refused = self.clone();
                refused.faults -= 1;
                refused.flights.remove(index);
                refused.processes[flight.from].answer = Some(Answer::Later(Class::ServerError));
                all.push(refused);
            }
            if !waits {
                // Never arrived.
                let mut dropped = self.clone();
                dropped.flights.remove(index);
                all.push(dropped);
            }
        }
        if self.faults > 0 && self.processes.iter().any(|p| matches!(p.next, Next::Do(_) | Next::Waiting)) {
            for (record, journal) in [(false, false), (false, true), (true, false), (true, true)] {
                let mut cut = self.clone();
                cut.faults -= 1;
                let mut tokens = Vec::new();
                for at in 0..cut.processes.len() {
                    if matches!(cut.processes[at].next, Next::Do(_) | Next::Waiting) {
                        tokens.push(cut.dies(at));
                    }
                }
                cut.seen.record = if record { cut.seen.record } else { cut.durable.record };
                cut.seen.journal = if journal { cut.seen.journal } else { cut.durable.journal };
                cut.durable = cut.seen;
                tokens.into_iter().for_each(|token| cut.forgets(token));
                cut.doubts += u8::from(cut.doubtful());
                all.push(cut);
            }
        }
        Ok(all)
    }

    fn perform(&self, at: usize, what: Do, mutant: Mutant, all: &mut Vec<Self>) -> Checked<()> {
        let mut next = self.clone();
        let stranger = matches!(self.processes[at].mind, Mind::Stranger(_));
        let ours = stranger || self.holder == Some(at);
        let skipped = match what {
            Do::PrepareJournal(_) | Do::RenameJournal => mutant == Mutant::NoJournal,
            Do::SyncDirectory => mutant == Mutant::NoSync,
            _ => false,
        };
        if skipped {
            next.told(at, Got::Done);
            all.push(next);
            return Ok(());
        }
        match what {
            Do::Lock => {
                if mutant != Mutant::NoLock && self.holder.is_some() {
                    return Ok(());
                }
                next.holder = Some(at);
                next.told(at, Got::Done);
            }
            Do::Unlock => {
                if self.holder == Some(at) {
                    next.holder = None;
                }
                next.told(at, Got::Done);
            }
            Do::Read => {
                next.processes[at].read = self.seen.record;
                let mut record = self.seen.record.map(seen);
                if mutant == Mutant::NoAdoption
                    && let (Some(record), Mind::Refresh(_)) = (&mut record, self.processes[at].mind)
                {
                    record.access = print(0);
                    record.fresh = false;
                }
                next.told(at, Got::Read { record, journal: self.seen.journal });
            }
            Do::PrepareJournal(journal) => {
                require(ours, "a journal is written only under the lock")?;
                next.prepared_journal = Some(journal);
                next.told(at, Got::Done);
            }
            Do::RenameJournal => {
                next.seen.journal = self.prepared_journal;
                next.told(at, Got::Done);
            }
            Do::Post { .. } => return self.post(at, stranger, all),
            Do::PrepareRecord(change) => {
                require(ours, "a record is written only under the lock")?;
                next.prepared_record = next.changed(at, change);
                next.told(at, Got::Done);
            }
            Do::RenameRecord => {
                if stranger {
                    // Written in place, with the same generation.
                    let (access, refresh) = self.processes[at].tokens.unwrap_or_default();
                    if let Some(record) = &mut next.seen.record {
                        *record =
                            Record { access, refresh: refresh.or(record.refresh), fresh: true, ..*record };
                    }
                    next.durable.record = next.seen.record;
                } else {
                    require(ours, "a record is renamed only under the lock")?;
                    next.seen.record = self.prepared_record;
                }
                next.told(at, Got::Done);
            }
            Do::RemoveRecord => {
                next.seen.record = None;
                next.forgotten = true;
                next.told(at, Got::Done);
            }
            Do::SyncDirectory => {
                next.durable = next.seen;
                // What became of the token is on the disk now.
                if !self.doubtful() {
                    next.processes[at].spending = None;
                }
                next.told(at, Got::Done);
            }
            Do::RemoveJournal => {
                next.seen.journal = None;
                next.processes[at].spending = None;
                next.told(at, Got::Done);
            }
        }
        if let (Do::Unlock, Next::Ended(Some(Outcome::Renewed | Outcome::Adopted))) =
            (what, next.processes[at].next)
        {
            require(
                self.durable.record == self.seen.record,
                "K6: a token is handed out before it is durable",
            )?;
            require(
                self.seen.record.is_some_and(|record| record.access != 0),
                "what is handed out is not the token that had expired",
            )?;
        }
        all.push(next);
        Ok(())
    }

    fn post(&self, at: usize, stranger: bool, all: &mut Vec<Self>) -> Checked<()> {
        let Some(token) = self.processes[at].read.and_then(|record| record.refresh) else {
            require(stranger, "a refresh token that is not there is sent")?;
            let mut next = self.clone();
            next.told(at, Got::Failed);
            all.push(next);
            return Ok(());
        };
        let mut next = self.clone();
        if !stranger {
            require(self.holder == Some(at), "O6: a refresh token is sent without the lock")?;
            let journal = self.durable.journal;
            require(
                journal.is_some_and(|journal| journal.open && journal.refresh == print(token)),
                "K2: a refresh token is sent that the disk does not say is being sent",
            )?;
            // A stranger may put a record back that is older than what is known of its token.
            require(
                *next.unknown_of(token) <= 1 || self.has_stranger(),
                "O6: a refresh token is replayed more than once",
            )?;
            require(
                self.durable.record.is_some_and(|record| !record.rejected),
                "a refresh token is sent that is known to be dead",
            )?;
        }
        next.posts += 1;
        next.processes[at].spending = Some(token);
        next.processes[at].next = Next::Waiting;
        next.flights.push(Flight { from: at, token });
        all.push(next);
        if self.faults > 0 && !stranger {
            let mut unsent = self.clone();
            unsent.faults -= 1;
            unsent.told(at, Got::Answer(Answer::NotSent(Class::Connection)));
            all.push(unsent);
        }
        Ok(())
    }

    fn changed(&mut self, at: usize, change: Change) -> Option<Record> {
        let read = self.processes[at].read;
        match change {
            Change::Renewed => {
                let (access, refresh) = self.processes[at].tokens?;
                let read = read?;
                Some(Record {
                    generation: read.generation + 1,
                    access,
                    refresh: refresh.or(read.refresh),
                    rejected: false,
                    fresh: true,
                })
            }
            Change::Rejected(_) => Some(Record { refresh: None, rejected: true, ..read? }),
            Change::Granted => {
                let token = self.issue();
                self.families.push(Family {
                    current: token,
                    previous: None,
                    members: vec![token],
                    alive: true,
                });
                Some(Record {
                    generation: read.map_or(0, |read| read.generation) + 1,
                    access: token,
                    refresh: Some(token),
                    rejected: false,
                    fresh: true,
                })
            }
        }
    }

    /// Nobody does anything any more. Whoever comes now, with no further fault, must get what there is to get.
    pub(super) fn at_the_end(&self, clean: bool, mutant: Mutant) -> Checked<()> {
        let Some(record) = self.seen.record else {
            return require(self.forgotten, "the record is lost");
        };
        let strangers = self.has_stranger();
        let mut world = self.clone();
        world.faults = 0;
        // The access token expires once more.
        if let Some(record) = &mut world.seen.record {
            record.fresh = false;
        }
        world.durable = world.seen;
        let last = world.start(Mind::Refresh(Refresh::new(print(record.access), Need::Expiry, false)));
        for _ in 0..200 {
            if let Next::Ended(outcome) = world.processes[last].next {
                let outcome = outcome.ok_or(Broken("a refresh ends without an outcome"))?;
                let unknown = self.unknown.iter().map(|(_, count)| *count).max().unwrap_or_default();
                // A strict server takes nothing twice; the others take a token whose answer was lost once more.
                let may_fail = strangers
                    || self.late
                    || self.doubts > 1
                    || (self.kind == Kind::Strict && (unknown > 0 || self.doubts > 0));
                return match outcome {
                    Outcome::Renewed => Ok(()),
                    Outcome::NeedsGrant if may_fail && !clean => Ok(()),
                    Outcome::NeedsGrant => Err(Broken("a grant is lost without need")),
                    _ => Err(Broken("it neither works nor says that a new grant is needed")),
                };
            }
            let mut all = world.successors(mutant)?;
            world = all.pop().ok_or(Broken("the last refresh stands still"))?;
        }
        Err(Broken("the last refresh never ends"))
    }
}
