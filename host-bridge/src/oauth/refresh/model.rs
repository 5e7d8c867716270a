//! Every interleaving of the machines, with every crash, power cut, lost or useless answer and late request that a budget of
//! faults allows, against authorization servers of three kinds.
//!
//! The machines are the ones that [`super::drive`] runs. What is modelled is the world around them: a directory whose
//! renames may be undone by a power cut until it is synced, a lock that dies with its holder, requests that arrive late,
//! and the server. Each `Mutant` leaves out one thing and must be found: a check that finds nothing is no check.

use std::collections::HashSet;

use super::{
    Answer, Change, Class, Do, Forget, Got, Journal, Keep, Machine, Need, Outcome, Print, Refresh, Seen, Step,
};
use test_case::test_case;

/// Tokens are numbers; 0 is the one that everybody starts with.
type Token = u8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// Rotates; a token that comes twice kills the family.
    Strict,
    /// Rotates; the token before the current one is taken as well.
    Grace,
    /// Does not rotate.
    Fixed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Family {
    current: Token,
    previous: Option<Token>,
    members: Vec<Token>,
    alive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Record {
    generation: u64,
    access: Token,
    refresh: Option<Token>,
    rejected: bool,
    fresh: bool,
}

/// The files of the grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Files {
    record: Option<Record>,
    journal: Option<Journal>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Mind {
    Refresh(Refresh),
    Keep(Keep),
    Forget(Forget),
    /// Another program that shares the directory and knows neither lock nor journal.
    Stranger(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Next {
    Do(Do),
    /// Sent; the answer is not here.
    Waiting,
    Ended(Option<Outcome>),
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Process {
    mind: Mind,
    next: Next,
    read: Option<Record>,
    /// The refresh token that it sent and whose outcome the disk does not know yet.
    spending: Option<Token>,
    /// What the server gave: access and, if it rotates, refresh token.
    tokens: Option<(Token, Option<Token>)>,
    answer: Option<Answer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Flight {
    from: usize,
    token: Token,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    seen: Files,
    durable: Files,
    prepared_record: Option<Record>,
    prepared_journal: Option<Journal>,
    holder: Option<usize>,
    processes: Vec<Process>,
    flights: Vec<Flight>,
    kind: Kind,
    families: Vec<Family>,
    issued: Token,
    /// For each refresh token, how often it was sent without anybody learning what became of it.
    unknown: Vec<(Token, u8)>,
    /// How often nobody was left who knew whether a token is on its way.
    doubts: u8,
    posts: u8,
    faults: u8,
    /// A request was taken after its sender had gone or given up.
    late: bool,
    forgotten: bool,
}

/// What is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    None,
    NoLock,
    NoJournal,
    NoSync,
    NoAdoption,
}

#[derive(Debug)]
struct Broken(#[expect(dead_code, reason = "printed")] &'static str);

type Checked<T> = Result<T, Broken>;

fn print(token: Token) -> Print {
    Print::numbered(token)
}

fn seen(record: Record) -> Seen {
    Seen {
        generation: record.generation,
        access: print(record.access),
        refresh: record.refresh.map(print),
        rejected: record.rejected,
        fresh: record.fresh,
    }
}

fn require(holds: bool, what: &'static str) -> Checked<()> {
    if holds { Ok(()) } else { Err(Broken(what)) }
}

impl World {
    fn new(kind: Kind, minds: &[Mind], faults: u8) -> Self {
        let record = Record { generation: 1, access: 0, refresh: Some(0), rejected: false, fresh: false };
        let files = Files { record: Some(record), journal: None };
        let family = Family { current: 0, previous: None, members: vec![0], alive: true };
        let mut world = Self {
            seen: files,
            durable: files,
            prepared_record: None,
            prepared_journal: None,
            holder: None,
            processes: Vec::new(),
            flights: Vec::new(),
            kind,
            families: vec![family],
            issued: 0,
            unknown: Vec::new(),
            doubts: 0,
            posts: 0,
            faults,
            late: false,
            forgotten: false,
        };
        for mind in minds {
            world.start(*mind);
        }
        world
    }

    fn start(&mut self, mind: Mind) -> usize {
        let process =
            Process { mind, next: Next::Dead, read: None, spending: None, tokens: None, answer: None };
        self.processes.push(process);
        let at = self.processes.len() - 1;
        self.told(at, Got::Done);
        at
    }

    /// A process goes on to its next step.
    fn told(&mut self, at: usize, got: Got) {
        fn with<O>(step: Step<O>, end: impl Fn(O) -> Option<Outcome>) -> Next {
            match step {
                Step::Do(what) => Next::Do(what),
                Step::End(outcome) => Next::Ended(end(outcome)),
            }
        }
        let process = &mut self.processes[at];
        process.next = match &mut process.mind {
            Mind::Refresh(machine) => with(machine.next(got), Some),
            Mind::Keep(machine) => with(machine.next(got), |_| None),
            Mind::Forget(machine) => with(machine.next(got), |_| None),
            Mind::Stranger(step) => {
                *step += 1;
                match (*step, got) {
                    (1, _) => Next::Do(Do::Read),
                    (2, _) => Next::Do(Do::Post { scope: true }),
                    (3, Got::Answer(Answer::Tokens)) => Next::Do(Do::RenameRecord),
                    _ => Next::Ended(None),
                }
            }
        };
    }

    fn has_stranger(&self) -> bool {
        self.processes.iter().any(|process| matches!(process.mind, Mind::Stranger(_)))
    }

    fn issue(&mut self) -> Token {
        self.issued += 1;
        self.issued
    }

    /// The server takes a refresh token.
    fn take(&mut self, token: Token) -> Option<(Token, Option<Token>)> {
        let kind = self.kind;
        let at = self.families.iter().position(|family| family.members.contains(&token))?;
        let family = &mut self.families[at];
        let good = match kind {
            Kind::Strict => family.current == token,
            Kind::Grace => family.current == token || family.previous == Some(token),
            Kind::Fixed => true,
        };
        if kind == Kind::Strict && !good {
            family.alive = false;
        }
        if !good || !family.alive {
            return None;
        }
        let access = self.issue();
        if kind == Kind::Fixed {
            return Some((access, None));
        }
        let family = &mut self.families[at];
        family.previous = Some(token);
        family.current = access;
        family.members.push(access);
        Some((access, Some(access)))
    }

    fn unknown_of(&mut self, token: Token) -> &mut u8 {
        if let Some(at) = self.unknown.iter().position(|(known, _)| *known == token) {
            return &mut self.unknown[at].1;
        }
        self.unknown.push((token, 0));
        &mut self.unknown.last_mut().unwrap().1
    }

    /// Says which token it takes the knowledge about away with it.
    fn dies(&mut self, at: usize) -> Option<Token> {
        let stranger = matches!(self.processes[at].mind, Mind::Stranger(_));
        let spending = self.processes[at].spending.take().filter(|_| !stranger);
        self.processes[at].next = Next::Dead;
        self.processes[at].answer = None;
        if self.holder == Some(at) {
            self.holder = None;
        }
        spending
    }

    /// Nobody knows what became of this token, unless the disk does.
    fn forgets(&mut self, token: Option<Token>) {
        if let Some(token) = token.filter(|_| self.doubtful()) {
            *self.unknown_of(token) += 1;
        }
    }

    /// Does the disk say that the record's token is on its way?
    fn doubtful(&self) -> bool {
        match (self.seen.record, self.seen.journal) {
            (Some(record), Some(journal)) => {
                journal.open
                    && journal.generation == record.generation
                    && Some(journal.refresh) == record.refresh.map(print)
            }
            _ => false,
        }
    }

    /// All that can happen next.
    fn successors(&self, mutant: Mutant) -> Checked<Vec<Self>> {
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
    fn at_the_end(&self, clean: bool, mutant: Mutant) -> Checked<()> {
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

/// Goes everywhere; says how many states there are.
fn explore(kind: Kind, minds: &[Mind], faults: u8, mutant: Mutant) -> Checked<usize> {
    let mut known: HashSet<World> = HashSet::new();
    let mut waiting = vec![World::new(kind, minds, faults)];
    let refreshes = minds.iter().filter(|mind| matches!(mind, Mind::Refresh(_))).count();
    while let Some(world) = waiting.pop() {
        if !known.insert(world.clone()) {
            continue;
        }
        assert!(known.len() < 20_000_000, "the model grew out of hand");
        let next = world.successors(mutant)?;
        if next.is_empty() {
            let ended = world.processes.iter().all(|p| matches!(p.next, Next::Ended(_) | Next::Dead));
            require(ended, "somebody waits for ever")?;
            if faults == 0 && refreshes == minds.len() {
                require(world.posts == 1, "more than one request for one expiry")?;
                let used =
                    |p: &Process| matches!(p.next, Next::Ended(Some(Outcome::Renewed | Outcome::Adopted)));
                require(world.processes.iter().all(used), "somebody got no token")?;
            }
            world.at_the_end(faults == 0 && !world.has_stranger(), mutant)?;
        }
        waiting.extend(next);
    }
    Ok(known.len())
}

const EXPIRED: Mind = Mind::Refresh(Refresh::EXPIRED);
const REFUSED: Mind = Mind::Refresh(Refresh::REFUSED);

impl Refresh {
    const EXPIRED: Self = Self::at_start(Print::numbered(0), Need::Expiry);
    const REFUSED: Self = Self::at_start(Print::numbered(0), Need::Refused);
}

fn keep() -> Mind {
    Mind::Keep(Keep::default())
}

fn forget() -> Mind {
    Mind::Forget(Forget::default())
}

#[test_case(Kind::Strict)]
#[test_case(Kind::Grace)]
#[test_case(Kind::Fixed)]
fn a14_every_interleaving_and_every_fault(kind: Kind) {
    let casts: [(&[Mind], u8); 9] = [
        (&[EXPIRED], 4),
        (&[EXPIRED, EXPIRED, EXPIRED], 0),
        (&[EXPIRED, REFUSED], 3),
        (&[EXPIRED, REFUSED, EXPIRED], 1),
        (&[REFUSED, keep()], 2),
        (&[EXPIRED, forget()], 2),
        (&[EXPIRED, keep(), forget()], 1),
        (&[REFUSED, Mind::Stranger(0)], 2),
        (&[EXPIRED, REFUSED, Mind::Stranger(0)], 0),
    ];
    for (minds, faults) in casts {
        match explore(kind, minds, faults, Mutant::None) {
            Ok(states) => println!("{kind:?}, {minds:?}, {faults} faults: {states} states"),
            Err(broken) => panic!("{kind:?}, {minds:?}, {faults} faults: {broken:?}"),
        }
    }
}

/// What the check must find.
#[test_case(Mutant::NoLock, 0)]
#[test_case(Mutant::NoJournal, 1)]
#[test_case(Mutant::NoSync, 1)]
#[test_case(Mutant::NoAdoption, 0)]
fn a14_a_machine_that_leaves_something_out_is_found(mutant: Mutant, faults: u8) {
    let found = explore(Kind::Strict, &[EXPIRED, REFUSED], faults, mutant);
    assert!(found.is_err(), "{mutant:?} was not found in {found:?} states");
}
