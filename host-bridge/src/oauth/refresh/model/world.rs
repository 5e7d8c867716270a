//! The world around the machines: files, lock, processes, requests under way, and the server.

use super::super::{Answer, Do, Forget, Got, Journal, Keep, Machine, Outcome, Print, Refresh, Seen, Step};

/// Tokens are numbers; 0 is the one that everybody starts with.
pub(super) type Token = u8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Rotates; a token that comes twice kills the family.
    Strict,
    /// Rotates; the token before the current one is taken as well.
    Grace,
    /// Does not rotate.
    Fixed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Family {
    pub(super) current: Token,
    pub(super) previous: Option<Token>,
    pub(super) members: Vec<Token>,
    pub(super) alive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub(super) generation: u64,
    pub(super) access: Token,
    pub(super) refresh: Option<Token>,
    pub(super) rejected: bool,
    pub(super) fresh: bool,
}

/// The files of the grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Files {
    pub(super) record: Option<Record>,
    pub(super) journal: Option<Journal>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Mind {
    Refresh(Refresh),
    Keep(Keep),
    Forget(Forget),
    /// Another program that shares the directory and knows neither lock nor journal.
    Stranger(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Next {
    Do(Do),
    /// Sent; the answer is not here.
    Waiting,
    Ended(Option<Outcome>),
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) mind: Mind,
    pub(super) next: Next,
    pub(super) read: Option<Record>,
    /// The refresh token that it sent and whose outcome the disk does not know yet.
    pub(super) spending: Option<Token>,
    /// What the server gave: access and, if it rotates, refresh token.
    pub(super) tokens: Option<(Token, Option<Token>)>,
    pub(super) answer: Option<Answer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flight {
    pub(super) from: usize,
    pub(super) token: Token,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) seen: Files,
    pub(super) durable: Files,
    pub(super) prepared_record: Option<Record>,
    pub(super) prepared_journal: Option<Journal>,
    pub(super) holder: Option<usize>,
    pub(super) processes: Vec<Process>,
    pub(super) flights: Vec<Flight>,
    pub(super) kind: Kind,
    pub(super) families: Vec<Family>,
    pub(super) issued: Token,
    /// For each refresh token, how often it was sent without anybody learning what became of it.
    pub(super) unknown: Vec<(Token, u8)>,
    /// How often nobody was left who knew whether a token is on its way.
    pub(super) doubts: u8,
    pub(super) posts: u8,
    pub(super) faults: u8,
    /// A request was taken after its sender had gone or given up.
    pub(super) late: bool,
    pub(super) forgotten: bool,
}

pub(super) fn print(token: Token) -> Print {
    Print::numbered(token)
}

pub(super) fn seen(record: Record) -> Seen {
    Seen {
        generation: record.generation,
        access: print(record.access),
        refresh: record.refresh.map(print),
        rejected: record.rejected,
        fresh: record.fresh,
    }
}

impl World {
    pub(super) fn new(kind: Kind, minds: &[Mind], faults: u8) -> Self {
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

    pub(super) fn start(&mut self, mind: Mind) -> usize {
        let process =
            Process { mind, next: Next::Dead, read: None, spending: None, tokens: None, answer: None };
        self.processes.push(process);
        let at = self.processes.len() - 1;
        self.told(at, Got::Done);
        at
    }

    /// A process goes on to its next step.
    pub(super) fn told(&mut self, at: usize, got: Got) {
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

    pub(super) fn has_stranger(&self) -> bool {
        self.processes.iter().any(|process| matches!(process.mind, Mind::Stranger(_)))
    }

    pub(super) fn issue(&mut self) -> Token {
        self.issued += 1;
        self.issued
    }

    /// The server takes a refresh token.
    pub(super) fn take(&mut self, token: Token) -> Option<(Token, Option<Token>)> {
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

    pub(super) fn unknown_of(&mut self, token: Token) -> &mut u8 {
        if let Some(at) = self.unknown.iter().position(|(known, _)| *known == token) {
            return &mut self.unknown[at].1;
        }
        self.unknown.push((token, 0));
        &mut self.unknown.last_mut().unwrap().1
    }

    /// Says which token it takes the knowledge about away with it.
    pub(super) fn dies(&mut self, at: usize) -> Option<Token> {
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
    pub(super) fn forgets(&mut self, token: Option<Token>) {
        if let Some(token) = token.filter(|_| self.doubtful()) {
            *self.unknown_of(token) += 1;
        }
    }

    /// Does the disk say that the record's token is on its way?
    pub(super) fn doubtful(&self) -> bool {
        match (self.seen.record, self.seen.journal) {
            (Some(record), Some(journal)) => {
                journal.open
                    && journal.generation == record.generation
                    && Some(journal.refresh) == record.refresh.map(print)
            }
            _ => false,
        }
    }
}
