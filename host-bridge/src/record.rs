//! What happened, written down: the network trace and the audit log of each run.
//!
//! The pipeline hands records to a [`Recorder`]; one writer owns the files. The queue between them is bounded; a
//! record that does not fit is counted and the loss is written and shown, never silent.

mod bell;
mod headers;
mod writer;

use self::bell::Bell;
pub(crate) use self::{headers::Headers, writer::Writer};

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use moat_shared::{
    grant::GrantName,
    id::{RunId, ServerName},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// One exchange with an upstream: a line of `network.jsonl`. A stream has two: one when it starts, without
/// `duration_ms`, and one when it ends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Exchange {
    pub(crate) timestamp: Timestamp,
    pub(crate) method: String,
    /// The upstream's, without its query.
    pub(crate) url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) duration_ms: Option<u64>,
    /// Request headers as sent upstream; credentials, session ids and cookies are `[REDACTED]`.
    pub(crate) headers: Headers,
    pub(crate) server: ServerName,
    /// The JSON-RPC method, for a POST that was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rpc_method: Option<String>,
    /// What was called: the tool's name, the prompt's, the resource's URI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) operation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Failure>,
    /// `refresh`: a request to a token endpoint that one of the run's requests waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) oauth: Option<String>,
}

/// Why an exchange failed, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Failure {
    Timeout,
    Refused,
    Dns,
    Tls,
    Lost,
    Cancelled,
    Redirect,
    RejectedCredential,
    ForeignCredential,
    NoCredential,
    NeedsGrant,
    RefreshUnavailable,
    InsufficientScope,
    BadRequest,
    TooLarge,
    Denied,
    NotConfigured,
    Invalid,
}

/// Does the issuer of a revoked credential know?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Remote {
    Ok,
    /// It could not be told.
    Failed,
    /// It has no place for that, or was not to be asked.
    None,
}

/// One line of `audit.jsonl`, with its time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct AuditLine {
    #[serde(flatten)]
    pub(crate) event: AuditEvent,
    pub(crate) timestamp: Timestamp,
}

/// What the audit log knows. The field order is that of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type")]
pub(crate) enum AuditEvent {
    #[serde(rename = "run.registered")]
    RunRegistered { servers: Vec<ServerName> },
    #[serde(rename = "run.unregistered")]
    RunUnregistered { reason: String },
    /// A request got a credential.
    #[serde(rename = "credential.injected")]
    CredentialInjected { grant: GrantName, host: String, header: String, server: ServerName },
    /// A credential could not be had, or may not go to this host.
    #[serde(rename = "credential.refused")]
    CredentialRefused { grant: GrantName, host: String, server: ServerName, reason: String },
    /// The upstream answered 401 or 403 to an injected credential.
    #[serde(rename = "credential.rejected")]
    CredentialRejected { grant: GrantName, host: String, server: ServerName, status: u16 },
    /// A person granted it, or granted it anew.
    #[serde(rename = "credential.granted")]
    CredentialGranted {
        grant: GrantName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        issuer: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<Timestamp>,
    },
    /// A person removed it.
    #[serde(rename = "credential.revoked")]
    CredentialRevoked { grant: GrantName, remote: Remote },
    /// An OAuth token that the run uses was renewed.
    #[serde(rename = "credential.refreshed")]
    CredentialRefreshed {
        grant: GrantName,
        issuer: String,
        /// The token endpoint's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        generation: u64,
        /// There is another refresh token as well.
        #[serde(default)]
        rotated: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<Timestamp>,
    },
    /// An OAuth token could not be renewed, in one word.
    #[serde(rename = "credential.refresh_failed")]
    CredentialRefreshFailed {
        grant: GrantName,
        class: String,
        /// Seconds until it may be tried again; none where only a new grant helps.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_s: Option<u64>,
    },
    /// A server asks for scopes that the grant does not have.
    #[serde(rename = "credential.scope_required")]
    CredentialScopeRequired { grant: GrantName, server: ServerName, scopes: String },
    /// A request held something else than the stub, or was refused for another reason. Never a value.
    #[serde(rename = "request.denied")]
    RequestDenied {
        server: Option<ServerName>,
        reason: String,
        /// A policy's rule refused it.
        #[serde(flatten)]
        judged: Option<Box<Judged>>,
    },
    /// A policy that only audits would have denied it.
    #[serde(rename = "policy.would_deny")]
    PolicyWouldDeny {
        server: ServerName,
        #[serde(flatten)]
        judged: Box<Judged>,
    },
    /// A policy rewrote arguments or a result. Never a value.
    #[serde(rename = "policy.redacted")]
    PolicyRedacted {
        server: ServerName,
        #[serde(flatten)]
        judged: Box<Judged>,
    },
    /// A rule that only notes things matched.
    #[serde(rename = "policy.logged")]
    PolicyLogged {
        server: ServerName,
        #[serde(flatten)]
        judged: Box<Judged>,
    },
    /// A rule could not be evaluated, where that does not deny.
    #[serde(rename = "policy.error")]
    PolicyError {
        server: ServerName,
        #[serde(flatten)]
        judged: Box<Judged>,
    },
    /// Items of a list were not shown, or would not be.
    #[serde(rename = "policy.hidden")]
    PolicyHidden { server: ServerName, list: String, count: usize, enforced: bool },
    /// A policy came into force.
    #[serde(rename = "policy.loaded")]
    PolicyLoaded { server: ServerName, policy: String },
    /// A changed policy file is not used.
    #[serde(rename = "policy.reload_failed")]
    PolicyReloadFailed { server: ServerName, reason: String },
    /// A changed policy file waits for somebody to accept where it is looser.
    #[serde(rename = "policy.reload_pending")]
    PolicyReloadPending { server: ServerName, policy: String, changes: String },
    /// Headers that never travel upstream were dropped (R7).
    #[serde(rename = "header.dropped")]
    HeaderDropped { server: ServerName, header: String },
    /// The upstream echoed the credential; the stub went to the container instead.
    #[serde(rename = "secret.reflected")]
    SecretReflected { grant: GrantName, host: String, server: ServerName, place: String },
    /// Records were lost because the writer could not keep up or could not write.
    #[serde(rename = "records.lost")]
    RecordsLost { count: u64 },
}

/// What a policy said of a call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Judged {
    pub(crate) scope: String,
    /// The tool's name, or as in `resources/read:<uri>`.
    pub(crate) operation: String,
    /// `request` or `response`.
    pub(crate) direction: String,
    pub(crate) rule: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    pub(crate) enforced: bool,
    /// The policy's hash.
    pub(crate) policy: String,
    /// The start of the arguments, without secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) params_summary: Option<String>,
}

/// A record on its way to the writer.
#[derive(Debug)]
pub(crate) enum Record {
    Exchange(RunId, Exchange),
    Audit(RunId, AuditLine),
    /// No line: whoever waits is told when all lines before it are written.
    Mark(oneshot::Sender<()>),
}

/// Hands records to the writer. To record something never waits, and wakes nobody: a request is on its way meanwhile, and
/// what it costs to wake a thread is more than what a line costs.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Record>,
    losses: Arc<Losses>,
    // Dropped after the queue's end: the writer that is woken then finds it closed.
    bell: Arc<Bell>,
}

/// Records that were not written: how many since the start, and whose audit log has yet to say so.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    total: AtomicU64,
    owed: Mutex<BTreeMap<RunId, u64>>,
}

impl Losses {
    fn add(&self, run: &RunId, count: u64) {
        self.total.fetch_add(count, Ordering::Relaxed);
        *self.owed.lock().unwrap_or_else(PoisonError::into_inner).entry(run.clone()).or_default() += count;
    }

    fn take_owed(&self) -> BTreeMap<RunId, u64> {
        std::mem::take(&mut self.owed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// It could not be written down; it stays owed, and was counted before.
    fn still_owed(&self, run: RunId, count: u64) {
        *self.owed.lock().unwrap_or_else(PoisonError::into_inner).entry(run).or_default() += count;
    }
}

impl Recorder {
    /// A recorder and the writer's end of its queue.
    pub(crate) fn new(capacity: usize) -> (Self, mpsc::Receiver<Record>) {
        let (queue, records) = mpsc::channel(capacity);
        (Self { queue, losses: Arc::default(), bell: Arc::default() }, records)
    }

    /// A recorder and the task that writes for it. The task ends when the last recorder is dropped.
    pub(crate) fn with_writer(home: crate::home::Home) -> (Self, writer::Writer) {
        let (recorder, records) = Self::new(QUEUE);
        let (losses, rings) = (Arc::clone(&recorder.losses), recorder.bell.rings());
        let writer = writer::Writer::new(home, records, losses, rings);
        (recorder, writer)
    }

    /// Writes a line of the network trace.
    pub(crate) fn exchange(&self, run: &RunId, exchange: Exchange) {
        self.send(run, Record::Exchange(run.clone(), exchange));
    }

    /// Writes a line of the audit log.
    pub(crate) fn audit(&self, run: &RunId, event: AuditEvent) {
        let line = AuditLine { event, timestamp: Timestamp::now() };
        self.send(run, Record::Audit(run.clone(), line));
    }

    /// Waits until what was recorded so far is in its files. A disk that takes its time keeps nobody waiting beyond
    /// [`PATIENCE`]: it is written all the same.
    pub(crate) async fn written(&self) {
        let (mark, written) = oneshot::channel();
        let told = async {
            // Without a writer nothing is written, which was logged.
            if self.queue.send(Record::Mark(mark)).await.is_ok() {
                self.bell.ring();
                drop(written.await);
            }
        };
        if timeout(PATIENCE, told).await.is_err() {
            tracing::warn!("the records are late: the disk is slow");
        }
    }

    /// Records lost so far.
    pub(crate) fn lost(&self) -> u64 {
        self.losses.total.load(Ordering::Relaxed)
    }

    fn send(&self, run: &RunId, record: Record) {
        if self.queue.try_send(record).is_err() {
            self.losses.add(run, 1);
            tracing::error!(%run, "a record was lost: the writer does not keep up");
        }
        self.bell.ring_soon();
    }
}

/// Records that may wait for the writer; at a few hundred bytes each.
const QUEUE: usize = 8192;
/// How long the end of a run waits for its records.
const PATIENCE: Duration = Duration::from_secs(2);
