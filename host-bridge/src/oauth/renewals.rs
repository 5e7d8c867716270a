//! The bridge's renewals: one flight per grant, whoever asks, and never one that a request can cancel.
//!
//! ```text
//! request ──► before: the token that is there is good ──► use it
//!                  ├─ about to expire ──► use it, and a flight starts beside it
//!                  └─ expired ──► wait for the flight, up to WAIT
//!         ◄── 401 ──► after_401: another token is there, or a flight brings one ──► once more
//! ```
//!
//! A flight belongs to [`Renewer`], a task of the bridge: an agent that goes away must not break a request off whose
//! answer would then be lost. The bridge waits for flights before it leaves. Failures that may pass are answered with a
//! backoff; a refusal for good is in the record, and is never tried again.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use moat_shared::grant::GrantName;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    http::Http,
    port::{Exchanged, Renewal},
    record::{Life, Record, key},
    refresh::{Class, Need, Outcome, Print, Refresh, drive},
};
use crate::{
    control::api::{GrantState, GrantStatus},
    credentials::Store,
    home::Profile,
};

/// How long a request waits for a new token.
const WAIT: Duration = Duration::from_secs(20);
/// The first pause after a failure, and the longest.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// After a server refused a token that was just renewed.
const QUIET: Duration = Duration::from_secs(60);
/// An `invalid_request` that comes again after this time is for good.
const ODD_AGAIN: Duration = Duration::from_secs(60);

/// A profile's grant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Which {
    pub(crate) profile: Option<Profile>,
    pub(crate) grant: GrantName,
}

impl Which {
    pub(crate) fn of(store: &Store, grant: &GrantName) -> Self {
        Self { profile: store.profile().cloned(), grant: grant.clone() }
    }
}

/// Why there is no token to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Only a person can help.
    NeedsGrant,
    /// It may work later.
    Unavailable { class: Class, next: Duration },
}

/// What became of a flight, for whoever waited for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Landed {
    pub(crate) outcome: Outcome,
    /// The request that it made, if it made one.
    pub(crate) exchanged: Option<Exchanged>,
    pub(crate) next: Duration,
}

/// What became of a flight, for everybody.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) which: Which,
    pub(crate) outcome: Outcome,
    /// The record as it is now, if it can be read.
    pub(crate) record: Option<Record>,
    /// There is another refresh token.
    pub(crate) rotated: bool,
    /// Until it may be tried again.
    pub(crate) next: Duration,
}

/// A grant, for `moat status`.
#[derive(Debug)]
pub(crate) struct Standing {
    which: Which,
    record: Option<Record>,
    failing: Option<(Class, Timestamp, Duration)>,
    /// The record's generation, and the scopes that a server asked for beyond it.
    wanted_scopes: Option<(u64, String)>,
}

impl Standing {
    pub(crate) fn into_status(self) -> GrantStatus {
        let Self { which, record, failing, wanted_scopes } = self;
        let rejected = record.as_ref().and_then(Record::rejected);
        let generation = record.as_ref().map(Record::generation);
        let more_scopes = wanted_scopes.filter(|(of, _)| Some(*of) == generation).map(|(_, scopes)| scopes);
        let failing = failing.filter(|_| rejected.is_none());
        let state = match (&record, rejected, &failing, &more_scopes) {
            (None, ..) => GrantState::Missing,
            (_, Some(_), ..) => GrantState::NeedsAuthorization,
            (_, None, Some(_), _) => GrantState::RefreshFailing,
            (_, None, None, Some(_)) => GrantState::MoreScopesAsked,
            (_, None, None, None) => GrantState::Ok,
        };
        let trouble =
            rejected.map(|(at, class)| (class, at)).or_else(|| failing.map(|(class, at, _)| (class, at)));
        GrantStatus {
            grant: which.grant,
            profile: which.profile.map(Into::into),
            state,
            failure: trouble.map(|(class, _)| class.words().to_owned()),
            since: trouble.map(|(_, at)| at),
            next_try_s: failing.map(|(_, _, next)| next.as_secs()),
            expires_at: record.as_ref().and_then(|record| record.credential().expires_at),
            refreshed_at: record.as_ref().and_then(|record| record.time(key::REFRESHED_AT)),
            auto_refresh: record.as_ref().is_some_and(|record| record.refresh_token().is_some()),
            more_scopes,
        }
    }
}

/// The handle that the pipeline has.
#[derive(Debug, Clone)]
pub(crate) struct Renewals {
    shared: Arc<Shared>,
    jobs: mpsc::UnboundedSender<Job>,
}

/// The task that owns the flights.
#[derive(Debug)]
pub(crate) struct Renewer {
    shared: Arc<Shared>,
    jobs: mpsc::UnboundedReceiver<Job>,
    news: mpsc::UnboundedSender<News>,
}

#[derive(Debug)]
struct Shared {
    http: Http,
    grants: Mutex<HashMap<Which, Known>>,
}

/// What is remembered of a grant.
#[derive(Debug, Default)]
struct Known {
    /// Where its record is.
    store: Option<Arc<Store>>,
    flight: Option<watch::Receiver<Option<Landed>>>,
    failures: u32,
    failing: Option<(Class, Timestamp)>,
    next: Option<Instant>,
    quiet_until: Option<Instant>,
    odd_since: Option<Instant>,
    wanted_scopes: Option<(u64, String)>,
}

#[derive(Debug)]
struct Job {
    which: Which,
    store: Arc<Store>,
    refresh: Refresh,
    landed: watch::Sender<Option<Landed>>,
}

/// The handle, the task, and what becomes of the flights.
pub(crate) fn renewals(http: Http) -> (Renewals, Renewer, mpsc::UnboundedReceiver<News>) {
    let shared = Arc::new(Shared { http, grants: Mutex::default() });
    let (sender, jobs) = mpsc::unbounded_channel();
    let (news, heard) = mpsc::unbounded_channel();
    (Renewals { shared: shared.clone(), jobs: sender }, Renewer { shared, jobs, news }, heard)
}

impl Renewals {
    /// Makes sure that the token in the store is worth sending. What [`Landed`] says is for the trace.
    pub(crate) async fn before(
        &self,
        store: &Arc<Store>,
        grant: &GrantName,
    ) -> Result<Option<Landed>, Trouble> {
        // What cannot be read is told by whoever injects it.
        self.shared
            .grants()
            .entry(Which::of(store, grant))
            .or_default()
            .store
            .get_or_insert_with(|| store.clone());
        let Ok(credential) = store.read(grant) else { return Ok(None) };
        let record = Record::of(credential);
        let life = record.life(Timestamp::now());
        let renewable = record.refresh_token().is_some();
        match life {
            Life::Fresh | Life::Unknown => Ok(None),
            Life::Ending => {
                if renewable && let Ok(_beside) = self.flight(store, &record, Need::Expiry) {
                    tracing::debug!(%grant, "a token is renewed beside its use");
                }
                Ok(None)
            }
            Life::Expired if record.rejected().is_some() => Err(Trouble::NeedsGrant),
            // Nothing better is to be had. The server decides.
            Life::Expired if !renewable => Ok(None),
            Life::Expired => self.landed(store, &record, Need::Expiry).await.map(Some),
        }
    }

    /// A server answered 401 to the token `sent`. `Ok`: another token is in the store.
    pub(crate) async fn after_401(
        &self,
        store: &Arc<Store>,
        grant: &GrantName,
        sent: Print,
    ) -> Result<Option<Landed>, Option<Trouble>> {
        let record = Record::of(store.read(grant).map_err(|_| None)?);
        if record.access() != sent {
            // Somebody renewed it meanwhile, and the server let the old one die.
            return Ok(None);
        }
        if record.rejected().is_some() {
            return Err(Some(Trouble::NeedsGrant));
        }
        let which = Which::of(store, grant);
        let quiet = self.shared.grants().get(&which).and_then(|known| known.quiet_until);
        if record.refresh_token().is_none() || quiet.is_some_and(|until| Instant::now() < until) {
            return Err(None);
        }
        self.landed(store, &record, Need::Refused).await.map(Some).map_err(Some)
    }

    /// A server refused a token that had just been renewed: another renewal would change nothing.
    pub(crate) fn refused_again(&self, store: &Store, grant: &GrantName) {
        let mut grants = self.shared.grants();
        let known = grants.entry(Which::of(store, grant)).or_default();
        known.quiet_until = Some(Instant::now() + QUIET);
    }

    /// A server asks for more scopes. `true`: that is news.
    pub(crate) fn wants_scopes(&self, store: &Store, record: &Record, scopes: &str) -> bool {
        let mut grants = self.shared.grants();
        let known = grants.entry(Which::of(store, &record.credential().grant)).or_default();
        let wanted = Some((record.generation(), scopes.to_owned()));
        let news = known.wanted_scopes != wanted;
        known.wanted_scopes = wanted;
        news
    }

    /// What is remembered of every grant that was used.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        let now = Instant::now();
        let mut all: Vec<Standing> = self
            .shared
            .grants()
            .iter()
            .map(|(which, known)| Standing {
                which: which.clone(),
                record: known.store.as_ref().and_then(|store| store.read(&which.grant).ok()).map(Record::of),
                failing: known.failing.map(|(class, since)| {
                    (class, since, known.next.map_or(Duration::ZERO, |next| next - now.min(next)))
                }),
                wanted_scopes: known.wanted_scopes.clone(),
            })
            .collect();
        all.sort_by(|a, b| a.which.cmp(&b.which));
        all
    }

    async fn landed(&self, store: &Arc<Store>, record: &Record, need: Need) -> Result<Landed, Trouble> {
        let mut flight = self.flight(store, record, need)?;
        let late = Trouble::Unavailable { class: Class::Timeout, next: BACKOFF_MIN };
        let landed = timeout(WAIT, flight.wait_for(Option::is_some)).await;
        let landed = landed.map_err(|_| late)?.map_err(|_| late)?.clone().ok_or(late)?;
        match landed.outcome {
            Outcome::Renewed | Outcome::Adopted | Outcome::NoRefreshToken | Outcome::Gone => Ok(landed),
            Outcome::NeedsGrant => Err(Trouble::NeedsGrant),
            Outcome::Later(class) => Err(Trouble::Unavailable { class, next: landed.next }),
        }
    }

    /// The flight of this grant: the one that is there, or a new one.
    fn flight(
        &self,
        store: &Arc<Store>,
        record: &Record,
        need: Need,
    ) -> Result<watch::Receiver<Option<Landed>>, Trouble> {
        let grant = &record.credential().grant;
        let which = Which::of(store, grant);
        let mut grants = self.shared.grants();
        let known = grants.entry(which.clone()).or_default();
        if let Some(flight) = &known.flight {
            return Ok(flight.clone());
        }
        let now = Instant::now();
        if let (Some(next), Some((class, _))) = (known.next.filter(|next| now < *next), known.failing) {
            return Err(Trouble::Unavailable { class, next: next - now });
        }
        let (landed, flight) = watch::channel(None);
        let scope = record.text(key::REQUESTED_SCOPE).is_some();
        let refresh = Refresh::new(record.access(), need, scope);
        let job = Job { which, store: store.clone(), refresh, landed };
        if self.jobs.send(job).is_err() {
            return Err(Trouble::Unavailable { class: Class::Timeout, next: BACKOFF_MIN });
        }
        known.flight = Some(flight.clone());
        Ok(flight)
    }
}

impl Shared {
    fn grants(&self) -> MutexGuard<'_, HashMap<Which, Known>> {
        // A panic elsewhere leaves the map as usable as it was.
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn fly(self: Arc<Self>, job: Job, news: mpsc::UnboundedSender<News>) {
        let Job { which, store, refresh, landed } = job;
        let odd_before = self.grants().get(&which).and_then(|known| known.odd_since);
        let odd_before = odd_before.is_some_and(|since| since.elapsed() >= ODD_AGAIN);
        let mut port = Renewal::new(&store, &which.grant, &self.http, odd_before);
        let outcome = drive(refresh, &mut port).await;
        let (exchanged, asked, rotated) = (port.last.take(), port.retry_after, port.rotated);
        drop(port);
        tracing::info!(grant = %which.grant, profile = which.profile.as_ref().map(Profile::as_str), ?outcome, "a token was to be renewed");
        let mut grants = self.grants();
        let known = grants.entry(which.clone()).or_default();
        known.flight = None;
        let next = known.note(outcome, asked);
        drop(grants);
        let record = store.read(&which.grant).ok().map(Record::of);
        // Nobody listens any more where the bridge is about to be gone.
        let _heard = news.send(News { which, outcome, record, rotated, next });
        landed.send_replace(Some(Landed { outcome, exchanged, next }));
    }
}

impl Known {
    /// Says how long to wait before the next attempt.
    fn note(&mut self, outcome: Outcome, asked: Option<Duration>) -> Duration {
        let Outcome::Later(class) = outcome else {
            let wanted_scopes = self.wanted_scopes.take();
            let store = self.store.take();
            *self = Self { store, quiet_until: self.quiet_until, wanted_scopes, ..Self::default() };
            return Duration::ZERO;
        };
        let now = Instant::now();
        self.odd_since = (class == Class::InvalidRequest).then(|| self.odd_since.unwrap_or(now));
        let ceiling = BACKOFF_MIN.saturating_mul(1 << self.failures.min(6)).min(BACKOFF_MAX);
        let pause = (BACKOFF_MIN / 2 + ceiling.mul_f64(fraction())).max(asked.unwrap_or_default());
        self.failures = self.failures.saturating_add(1);
        self.failing = Some((class, self.failing.map_or_else(Timestamp::now, |(_, since)| since)));
        self.next = Some(now + pause);
        pause
    }
}

/// A random number from 0 to 1.
fn fraction() -> f64 {
    let mut bytes = [0; 4];
    match ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}

impl Renewer {
    /// Flies until every handle is gone, then lands what is in the air.
    pub(crate) async fn run(mut self) {
        let mut flights = JoinSet::new();
        loop {
            tokio::select! {
                job = self.jobs.recv() => match job {
                    Some(job) => _ = flights.spawn(self.shared.clone().fly(job, self.news.clone())),
                    None => break,
                },
                Some(_) = flights.join_next() => {}
            }
        }
        while flights.join_next().await.is_some() {}
    }
}
