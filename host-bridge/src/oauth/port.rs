//! What the machines' steps are in files and requests: the thin side of [`super::refresh`].
//!
//! | file beside `<grant>.enc` | |
//! |---|---|
//! | `<grant>.lock` | locked with `flock` by whoever changes the grant; never removed: that it is there means nothing |
//! | `<grant>.refresh` | the journal; holds a fingerprint, no token |
//! | `<grant>.enc.new` | the next record, not yet in its place |

use std::{
    fs::{self, File, TryLockError},
    io,
    path::PathBuf,
    time::Duration,
};

use jiff::Timestamp;
use moat_shared::grant::GrantName;
use tokio::time::{Instant, sleep};

use super::{
    http::{Http, Limits, NoAnswer},
    record::{Record, key},
    refresh::{Answer, Change, Class, Do, Got, Journal, Port},
    token::{self, Tokens},
};
use crate::{
    credentials::{ReadError, Store},
    disk,
};

/// How long another process may hold the lock.
const LOCK_WAIT: Duration = Duration::from_secs(20);
const LOCK_POLL: Duration = Duration::from_millis(20);
/// A server may ask to be left alone for this long.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// The files of one grant.
#[derive(Debug)]
pub(crate) struct Disk<'a> {
    store: &'a Store,
    grant: &'a GrantName,
    lock: Option<File>,
    /// As it was read last, under the lock.
    pub(crate) record: Option<Record>,
    /// The file that was made for the encryption key, which is news.
    pub(crate) new_key_file: Option<PathBuf>,
    /// What went wrong last, for people.
    pub(crate) trouble: Option<String>,
}

impl<'a> Disk<'a> {
    pub(crate) fn new(store: &'a Store, grant: &'a GrantName) -> Self {
        Self { store, grant, lock: None, record: None, new_key_file: None, trouble: None }
    }

    fn journal(&self) -> io::Result<PathBuf> {
        self.store.beside(self.grant, "refresh")
    }

    /// Everything but the requests, and what the next record is.
    pub(crate) async fn perform(&mut self, what: Do) -> Got {
        let result = match what {
            Do::Lock => self.lock().await,
            Do::Read => match self.read() {
                Ok(got) => return got,
                Err(error) => Err(error),
            },
            Do::PrepareJournal(journal) => self.prepare_journal(journal),
            Do::RenameJournal => self.journal().and_then(|path| disk::commit(&path)),
            Do::RenameRecord => disk::commit(&self.store.path(self.grant)),
            Do::RemoveRecord => removed(&self.store.path(self.grant)),
            Do::SyncDirectory => disk::sync_directory_of(&self.store.path(self.grant)),
            Do::RemoveJournal => self.journal().and_then(|path| removed(&path)),
            Do::Unlock => {
                self.lock = None;
                Ok(())
            }
            Do::Post { .. } | Do::PrepareRecord(_) => Err(io::Error::other("not a matter of files")),
        };
        match result {
            Ok(()) => Got::Done,
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &dyn std::error::Error) -> Got {
        let text = crate::cli::with_causes(error);
        tracing::error!(grant = %self.grant, error = %text, "an OAuth credential's files");
        self.trouble = Some(text);
        Got::Failed
    }

    pub(crate) fn prepare(&mut self, record: &Record) -> Got {
        match self.store.prepare(record.credential()) {
            Ok(saved) => {
                self.new_key_file = saved.new_key_file;
                Got::Done
            }
            Err(error) => self.failed(&error),
        }
    }

    async fn lock(&mut self) -> io::Result<()> {
        let file = disk::lock_file(&self.store.beside(self.grant, "lock")?)?;
        let until = Instant::now() + LOCK_WAIT;
        loop {
            match file.try_lock() {
                Ok(()) => {
                    self.lock = Some(file);
                    return Ok(());
                }
                Err(TryLockError::WouldBlock) if Instant::now() < until => sleep(LOCK_POLL).await,
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "another process holds the grant's lock",
                    ));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    fn read(&mut self) -> io::Result<Got> {
        let record = match self.store.read(self.grant) {
            Ok(credential) => Some(Record::of(credential)),
            Err(ReadError::NotConfigured { .. }) => None,
            Err(error) => return Err(io::Error::other(error)),
        };
        let seen = record.as_ref().map(|record| record.seen(Timestamp::now()));
        self.record = record;
        let journal = match fs::read(self.journal()?) {
            Ok(bytes) => Some(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Got::Read { record: seen, journal })
    }

    fn prepare_journal(&self, journal: Journal) -> io::Result<()> {
        disk::prepare(&self.journal()?, &serde_json::to_vec(&journal)?)
    }
}

fn removed(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The port of a refresh.
#[derive(Debug)]
pub(crate) struct Renewal<'a> {
    disk: Disk<'a>,
    http: &'a Http,
    /// The token endpoint called the request invalid a while ago: once more is for good.
    odd_before: bool,
    tokens: Option<(Tokens, Timestamp)>,
    /// The server gave another refresh token.
    pub(crate) rotated: bool,
    /// The last request and its status, for the trace.
    pub(crate) last: Option<Exchanged>,
    /// How long the server wants to be left alone.
    pub(crate) retry_after: Option<Duration>,
}

/// A request to a token endpoint, as the trace has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exchanged {
    pub(crate) at: Timestamp,
    pub(crate) url: String,
    pub(crate) status: Option<u16>,
    pub(crate) took: Duration,
}

impl<'a> Renewal<'a> {
    pub(crate) fn new(store: &'a Store, grant: &'a GrantName, http: &'a Http, odd_before: bool) -> Self {
        let disk = Disk::new(store, grant);
        Self { disk, http, odd_before, tokens: None, rotated: false, last: None, retry_after: None }
    }

    async fn post(&mut self, scope: bool) -> Answer {
        let Some(record) = self.disk.record.clone() else { return Answer::NotSent(Class::Storage) };
        let (Some(url), Some(refresh)) = (record.token_url(), record.refresh_token()) else {
            return Answer::NotSent(Class::ForbiddenAddress);
        };
        let mut fields = vec![("grant_type", "refresh_token"), ("refresh_token", refresh)];
        fields.extend(record.text(key::RESOURCE).map(|resource| ("resource", resource)));
        if scope {
            fields.extend(record.text(key::REQUESTED_SCOPE).map(|scope| ("scope", scope)));
        }
        let Ok(request) = token::request(&url, &record.client(), &fields) else {
            return Answer::NotSent(Class::ForbiddenAddress);
        };
        let (sent, started) = (Timestamp::now(), Instant::now());
        let answer = self.http.send(request, record.guard(), Limits::TOKENS).await;
        let status = answer.as_ref().ok().map(|answer| answer.status.as_u16());
        let shown = format!("{}{}", url.origin().ascii_serialization(), url.path());
        self.last = Some(Exchanged { at: sent, url: shown, status, took: started.elapsed() });
        let answer = match answer {
            Err(NoAnswer::NotSent(class)) => return Answer::NotSent(class),
            Err(NoAnswer::Lost(_)) => return Answer::Unknown(Class::AnswerLost),
            Ok(answer) => answer,
        };
        let wait =
            answer.headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        self.retry_after = wait.map(Duration::from_secs).map(|wait| wait.min(RETRY_AFTER_MAX));
        match token::judge(&answer) {
            Ok(tokens) => {
                self.tokens = Some((tokens, sent));
                Answer::Tokens
            }
            Err(refused) => match refused.answer() {
                Answer::Later(class @ Class::InvalidRequest) if self.odd_before => Answer::Terminal(class),
                answer => answer,
            },
        }
    }

    fn prepare(&mut self, change: Change) -> Got {
        let Some(record) = &self.disk.record else { return Got::Failed };
        let next = match (change, &self.tokens) {
            (Change::Renewed, Some((tokens, sent))) => {
                let next = record.renewed(tokens, *sent);
                self.rotated = next.refresh_token() != record.refresh_token();
                next
            }
            (Change::Rejected(class), _) => record.rejected_for(class, Timestamp::now()),
            _ => return Got::Failed,
        };
        self.disk.prepare(&next)
    }
}

impl Port for Renewal<'_> {
    async fn perform(&mut self, what: Do) -> Got {
        match what {
            Do::Post { scope } => Got::Answer(self.post(scope).await),
            Do::PrepareRecord(change) => self.prepare(change),
            what => self.disk.perform(what).await,
        }
    }
}
