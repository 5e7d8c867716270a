//! The task that owns the runs.
//!
//! Registrations that arrive while the file is being written go to disk together with the next write (group commit);
//! each is answered after the write that holds it. A run ends when it is unregistered, or when the process that holds it is
//! gone and nobody else holds it; that is looked at when a hold ends, and every second.

mod entry;

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use moat_shared::{
    endpoint::Endpoint,
    grant::GrantName,
    id::{RunId, ServerName},
};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use self::entry::Entry;
use super::{
    Ask, Hold, LoadError, Registry, RegistryError, Reply, Run,
    durable::{self, Unreadable},
};
use crate::{
    control::api::{HoldEvent, Register},
    home::{Home, Profile},
    pipeline::Notice,
    policy::{bound::Bound, follow},
    record::{AuditEvent, Recorder},
    server::Server,
    tunnel::{Asks, Dial},
};

const QUEUE: usize = 1024;
const NOTICES: usize = 256;
const HOLD_QUEUE: usize = 16;
const CHECK_HOLDERS: Duration = Duration::from_secs(1);
/// A process that dies closes its sockets a moment before it counts as dead.
const CHECK_AGAIN: Duration = Duration::from_millis(50);

/// Owns the runs.
#[derive(Debug)]
pub(crate) struct Owner {
    path: PathBuf,
    recorder: Recorder,
    asks: mpsc::Receiver<Ask>,
    notices: mpsc::Receiver<Notice>,
    /// How many there are, those about to be among them.
    count: watch::Sender<usize>,
    runs: BTreeMap<RunId, Entry>,
    unreadable: Arc<Vec<Unreadable>>,
    /// Who waits for the next write.
    next: Vec<Waiting>,
    /// Who waits for the write that is going on, if one is.
    current: Vec<Waiting>,
    writes: JoinSet<io::Result<()>>,
    /// The file is to be written though nobody waits for it.
    due: bool,
    /// A write failed: it is due again at the next check, not at once.
    failed: bool,
    /// Each task waits for the end of one hold.
    holds: JoinSet<()>,
    leaving: bool,
    /// The engines where runs may have left a sandbox behind.
    left_behind: mpsc::UnboundedSender<PathBuf>,
    /// The sandboxes that are to be dialled, and the ports where others come to.
    tunnels: Asks,
}

#[derive(Debug)]
enum Waiting {
    Registered(Arc<Run>, Reply<Arc<Run>>),
    Gone(Reply<()>),
    Left(oneshot::Sender<bool>),
    /// It is known where a run's sandbox is dialled.
    Dialled {
        run: RunId,
        before: Arc<Run>,
        reply: Reply<()>,
    },
    /// A run's server got another policy.
    Accepted {
        run: RunId,
        before: Arc<Run>,
        policy: Bound,
        server: ServerName,
        reply: Reply<()>,
    },
}

enum Event {
    Ask(Ask),
    Notice(Notice),
    Written(Result<io::Result<()>, JoinError>),
    HoldEnded,
    Check,
    Closed,
}

impl Owner {
    /// Reads runs.json. Nothing is served before this is complete.
    pub(crate) fn restore(
        home: &Home,
        recorder: Recorder,
        left_behind: mpsc::UnboundedSender<PathBuf>,
        tunnels: Asks,
    ) -> Result<(Registry, mpsc::Sender<Notice>, Self), LoadError> {
        let path = home.runs_file();
        let loaded = durable::load(&path)?;
        for entry in &loaded.unreadable {
            tracing::error!(
                file = %path.display(), line = entry.line, run = entry.id.as_deref().unwrap_or("?"),
                reason = %entry.reason, "a run cannot be read and is not served; it stays in the file"
            );
        }
        for run in &loaded.runs {
            for (server, bound) in
                run.servers.iter().filter_map(|s| s.policy.as_ref().map(|bound| (s, bound)))
            {
                follow::restore(home, &run.id, &server.name, bound);
                if let Err(reason) = &bound.state().accepted {
                    tracing::error!(run = %run.id, server = %server.name, reason, "nothing of this server passes");
                }
            }
        }
        let runs: BTreeMap<_, _> =
            loaded.runs.into_iter().map(|run| (run.id.clone(), Entry::new(Arc::new(run)))).collect();
        let (owner, asks) = mpsc::channel(QUEUE);
        let (notify, notices) = mpsc::channel(NOTICES);
        let this = Self {
            path,
            recorder,
            asks,
            notices,
            count: watch::Sender::new(runs.len()),
            runs,
            unreadable: Arc::new(loaded.unreadable),
            next: Vec::new(),
            current: Vec::new(),
            writes: JoinSet::new(),
            due: false,
            failed: false,
            holds: JoinSet::new(),
            leaving: false,
            left_behind,
            tunnels,
        };
        this.runs.values().for_each(|entry| this.meet(&entry.run));
        Ok((Registry { owner }, notify, this))
    }

    /// The number of runs, as it changes.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Entries of runs.json that are not served.
    pub(crate) fn unreadable(&self) -> Vec<String> {
        let name = |entry: &Unreadable| {
            let run = entry.id.as_deref().unwrap_or("a run");
            format!("{run} in {}:{}: {}", self.path.display(), entry.line, entry.reason)
        };
        self.unreadable.iter().map(name).collect()
    }

    /// Serves until every handle is gone.
    pub(crate) async fn run(mut self) {
        let mut check_at = Instant::now();
        loop {
            let event = tokio::select! {
                Some(written) = self.writes.join_next() => Event::Written(written),
                ask = self.asks.recv() => ask.map_or(Event::Closed, Event::Ask),
                Some(notice) = self.notices.recv() => Event::Notice(notice),
                Some(_) = self.holds.join_next() => Event::HoldEnded,
                () = sleep_until(check_at) => Event::Check,
            };
            match event {
                Event::Ask(ask) => self.answer(ask),
                Event::Notice(notice) => self.note(notice),
                Event::Written(written) => self.written(written),
                Event::HoldEnded => {
                    self.check_holders();
                    check_at = check_at.min(Instant::now() + CHECK_AGAIN);
                }
                Event::Check => {
                    self.check_holders();
                    self.due |= std::mem::take(&mut self.failed);
                    check_at = Instant::now() + CHECK_HOLDERS;
                }
                Event::Closed => break,
            }
            self.write();
            self.tell_count();
        }
        while let Some(written) = self.writes.join_next().await {
            self.written(written);
            self.write();
        }
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Register(wish, listen, reply) => self.register(*wish, listen, reply),
            Ask::Unregister(run, reason, reply) => {
                let known = self.end(&run, &reason);
                if known {
                    self.next.push(Waiting::Gone(reply));
                } else {
                    send(reply, Err(RegistryError::Unknown(run)));
                }
            }
            Ask::Admit(run, reply) => send(reply, self.entry(&run).map(|entry| entry.ticket())),
            Ask::Attach(run, status, reply) => {
                send(reply, self.entry(&run).map(|entry| entry.attach(status)))
            }
            Ask::Hold(run, reply) => self.hold(&run, reply),
            Ask::Stop(run, reply) => send(reply, self.entry(&run).map(Entry::ask_to_stop)),
            Ask::Runs(answer) => {
                let mut runs: Vec<_> = self.runs.values().map(Entry::status).collect();
                runs.sort_by_key(|run| run.registered);
                send(answer, runs);
            }
            Ask::Users(grant, profile, answer) => send(answer, self.users(&grant, profile.as_ref())),
            Ask::Policies(answer) => send(answer, self.policies()),
            Ask::Dial(run, endpoint, reply) => self.dial_from_now_on(run, endpoint, reply),
            Ask::Accept(run, server, sha256, reply) => self.accept(run, server, &sha256, reply),
            Ask::Leave { only_if_idle: true, answer } if self.occupied() > 0 => send(answer, false),
            Ask::Leave { answer, .. } => {
                self.leaving = true;
                self.next.push(Waiting::Left(answer));
            }
        }
    }

    fn register(&mut self, wish: Register, listen: Option<Endpoint>, reply: Reply<Arc<Run>>) {
        if self.leaving {
            return send(reply, Err(RegistryError::Leaving));
        }
        for (index, server) in wish.servers.iter().enumerate() {
            if wish.servers[..index].iter().any(|other| other.name == server.name) {
                return send(reply, Err(RegistryError::Duplicate(server.name.clone())));
            }
        }
        let run = Run {
            id: self.unused_id(),
            name: wish.name,
            runtime: wish.runtime,
            engine: wish.engine,
            workspace: wish.workspace,
            servers: wish.servers,
            profile: wish.profile,
            agent: wish.agent,
            user: wish.user,
            listen,
            dial: None,
            holder: wish.holder,
            registered: Timestamp::now(),
        };
        self.next.push(Waiting::Registered(Arc::new(run), reply));
    }

    /// In force once it is on disk.
    fn dial_from_now_on(&mut self, run: RunId, endpoint: Endpoint, reply: Reply<()>) {
        let entry = match self.entry(&run) {
            Ok(entry) => entry,
            Err(error) => return send(reply, Err(error)),
        };
        let mut changed = Run::clone(&entry.run);
        changed.dial = Some(endpoint);
        let before = std::mem::replace(&mut entry.run, Arc::new(changed));
        self.next.push(Waiting::Dialled { run, before, reply });
    }

    /// Where it cannot come to the unix socket.
    fn meet(&self, run: &Run) {
        if let Some(at) = run.listen.clone() {
            self.tunnels.ports.keep(run.id.clone(), at);
        }
        if let Some(endpoint) = run.dial.clone() {
            // Nobody dials any more: the bridge is leaving, and the next one finds it on disk.
            let _next_time = self.tunnels.dials.send(Dial { run: run.id.clone(), endpoint });
        }
    }

    fn users(&self, grant: &GrantName, profile: Option<&Profile>) -> Vec<RunId> {
        let uses = |server: &Server| server.inject.as_ref().is_some_and(|inject| inject.grant == *grant);
        let runs = self
            .runs
            .iter()
            .filter(|(_, entry)| entry.run.profile.as_ref() == profile && entry.run.servers.iter().any(uses));
        runs.map(|(id, _)| id.clone()).collect()
    }

    fn policies(&self) -> Vec<(RunId, Server)> {
        let servers = self.runs.iter().flat_map(|(id, entry)| {
            entry
                .run
                .servers
                .iter()
                .filter(|server| server.policy.is_some())
                .map(|server| (id.clone(), server.clone()))
        });
        servers.collect()
    }

    /// Puts the policy that waits in the place of the accepted one; in force once it is on disk.
    fn accept(&mut self, run: RunId, server: ServerName, sha256: &str, reply: Reply<()>) {
        let entry = match self.entry(&run) {
            Ok(entry) => entry,
            Err(error) => return send(reply, Err(error)),
        };
        let mut changed = Run::clone(&entry.run);
        let bound =
            changed.servers.iter_mut().find(|other| other.name == server).and_then(|s| s.policy.as_mut());
        let waiting = bound.and_then(|bound| {
            let pending = bound.state().pending.clone().filter(|pending| pending.hash == sha256)?;
            *bound = bound.with(&pending);
            Some(bound.clone())
        });
        let Some(policy) = waiting else { return send(reply, Err(RegistryError::NothingToAccept(server))) };
        let before = std::mem::replace(&mut entry.run, Arc::new(changed));
        self.next.push(Waiting::Accepted { run, before, policy, server, reply });
    }

    fn unused_id(&self) -> RunId {
        let joining = |id: &RunId| {
            self.next
                .iter()
                .chain(&self.current)
                .any(|w| matches!(w, Waiting::Registered(run, _) if run.id == *id))
        };
        loop {
            let mut bytes = [0; 6];
            // The system's generator does not fail once it has been seeded, which the CA's key needed long ago.
            if SystemRandom::new().fill(&mut bytes).is_err() {
                continue;
            }
            let id = RunId::from_random(bytes);
            let kept = self.unreadable.iter().any(|entry| entry.id.as_deref() == Some(id.as_str()));
            if !kept && !self.runs.contains_key(&id) && !joining(&id) {
                return id;
            }
        }
    }

    fn hold(&mut self, run: &RunId, reply: Reply<Hold>) {
        let Some(entry) = self.runs.get_mut(run) else {
            return send(reply, Err(RegistryError::Unknown(run.clone())));
        };
        let (to_holder, events) = mpsc::channel(HOLD_QUEUE);
        entry.tell(&to_holder, HoldEvent::Held);
        if entry.had_a_tunnel() {
            entry.tell(&to_holder, HoldEvent::Tunnel);
        }
        if entry.stop_asked {
            entry.tell(&to_holder, HoldEvent::Stop);
        }
        entry.holds.push(to_holder);
        let (alive, ended) = oneshot::channel();
        self.holds.spawn(async move { drop(ended.await) });
        send(reply, Ok(Hold { events, _alive: alive }));
    }

    fn entry(&mut self, run: &RunId) -> Result<&mut Entry, RegistryError> {
        self.runs.get_mut(run).ok_or_else(|| RegistryError::Unknown(run.clone()))
    }

    /// Revokes at once; the next write takes it off the disk.
    fn end(&mut self, run: &RunId, reason: &str) -> bool {
        let Some(entry) = self.runs.remove(run) else { return false };
        for hold in &entry.holds {
            entry.tell(hold, HoldEvent::Ended { reason: reason.to_owned() });
        }
        drop(entry);
        tracing::info!(%run, reason, "run unregistered");
        self.recorder.audit(run, AuditEvent::RunUnregistered { reason: reason.to_owned() });
        true
    }

    fn check_holders(&mut self) {
        if self.leaving {
            return;
        }
        let over: Vec<_> = self
            .runs
            .values_mut()
            .filter_map(|entry| entry.is_over().then(|| entry.run.id.clone()))
            .collect();
        for run in over {
            if let Some(entry) = self.runs.get(&run) {
                self.look_for_left_behind(&entry.run);
            }
            self.end(&run, "the process that held it is gone");
            self.due = true;
        }
    }

    /// Whoever held the run may have left its container.
    fn look_for_left_behind(&self, run: &Run) {
        if let Some(engine) = &run.engine {
            // Nobody sweeps: the bridge is leaving. The next run on that engine has it looked through again.
            let _next_time = self.left_behind.send(engine.clone());
        }
    }

    fn note(&mut self, notice: Notice) {
        if let Some(entry) = self.runs.get_mut(&notice.run) {
            entry.note(notice);
        }
    }

    /// Starts a write when one is due and none is going on.
    fn write(&mut self) {
        if !self.writes.is_empty() || (self.next.is_empty() && !self.due) {
            return;
        }
        self.due = false;
        self.current = std::mem::take(&mut self.next);
        let joining = self.current.iter().filter_map(|waiting| match waiting {
            Waiting::Registered(run, _) => Some(run),
            Waiting::Gone(_) | Waiting::Left(_) | Waiting::Accepted { .. } | Waiting::Dialled { .. } => None,
        });
        let runs: Vec<Arc<Run>> =
            self.runs.values().map(|entry| &entry.run).chain(joining).cloned().collect();
        let (path, unreadable) = (self.path.clone(), Arc::clone(&self.unreadable));
        self.writes.spawn_blocking(move || durable::save(&path, runs.iter(), &unreadable));
    }

    fn written(&mut self, written: Result<io::Result<()>, JoinError>) {
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        let failure = written.err().map(|error| {
            tracing::error!(%error, file = %self.path.display(), "the runs could not be written");
            self.failed = true;
            Arc::new(error)
        });
        let failed =
            || failure.clone().map(|source| RegistryError::Write { path: self.path.clone(), source });
        let mut abandoned = Vec::new();
        for waiting in std::mem::take(&mut self.current) {
            match (waiting, failed()) {
                (Waiting::Registered(run, reply), None) => {
                    tracing::info!(run = %run.id, name = %run.name, runtime = %run.runtime, servers = run.servers.len(), "run registered");
                    let servers = run.servers.iter().map(|server| server.name.clone()).collect();
                    self.recorder.audit(&run.id, AuditEvent::RunRegistered { servers });
                    // There may be containers of commands that died before they registered.
                    self.look_for_left_behind(&run);
                    self.meet(&run);
                    self.runs.insert(run.id.clone(), Entry::new(Arc::clone(&run)));
                    if let Err(Ok(run)) = reply.send(Ok(run)) {
                        abandoned.push(run.id.clone());
                    }
                }
                (Waiting::Registered(_, reply), Some(error)) => send(reply, Err(error)),
                (Waiting::Gone(reply), error) => send(reply, error.map_or(Ok(()), Err)),
                (Waiting::Left(answer), _) => send(answer, true),
                (Waiting::Accepted { run, policy, server, reply, .. }, None) => {
                    policy.take_effect();
                    tracing::info!(%run, %server, policy = policy.sha256, "a changed policy was accepted");
                    self.recorder
                        .audit(&run, AuditEvent::PolicyLoaded { server, policy: policy.sha256.clone() });
                    send(reply, Ok(()));
                }
                (Waiting::Dialled { run, reply, .. }, None) => {
                    if let Some(entry) = self.runs.get(&run) {
                        self.meet(&entry.run);
                    }
                    send(reply, Ok(()));
                }
                (
                    Waiting::Accepted { run, before, reply, .. } | Waiting::Dialled { run, before, reply },
                    Some(error),
                ) => {
                    if let Some(entry) = self.runs.get_mut(&run) {
                        entry.run = before;
                    }
                    send(reply, Err(error));
                }
            }
        }
        for run in abandoned {
            if let Some(entry) = self.runs.get(&run) {
                self.look_for_left_behind(&entry.run);
            }
            self.end(&run, "whoever registered it did not wait for the answer");
            self.due = true;
        }
    }

    fn occupied(&self) -> usize {
        let joining = |waiting: &&Waiting| matches!(waiting, Waiting::Registered(..));
        self.runs.len() + self.next.iter().chain(&self.current).filter(joining).count()
    }

    fn tell_count(&self) {
        let now = self.occupied();
        self.count.send_if_modified(|count| std::mem::replace(count, now) != now);
    }
}

/// Whoever asked may have left; that is its own affair.
fn send<T>(answer: oneshot::Sender<T>, value: T) {
    drop(answer.send(value));
}

#[cfg(test)]
mod tests;
