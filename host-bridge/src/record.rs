//! What happened, written down: the network trace and the audit log of each run.
//!
//! The pipeline hands records to a [`Recorder`]; one writer owns the files. The queue between them is bounded; a
//! record that does not fit is counted and the loss is written and shown, never silent.

use std::collections::BTreeMap;

use jiff::Timestamp;
use moat_shared::{
    grant::GrantName,
    id::{RunId, ServerName},
};
use serde::{Deserialize, Serialize};

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
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) server: ServerName,
    /// The JSON-RPC method, for a POST that was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rpc_method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Failure>,
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
    BadRequest,
    TooLarge,
    Denied,
    NotConfigured,
    Invalid,
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
    /// A request held something else than the stub, or was refused for another reason. Never a value.
    #[serde(rename = "request.denied")]
    RequestDenied { server: Option<ServerName>, reason: String },
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

/// A record on its way to the writer.
#[derive(Debug)]
pub(crate) enum Record {
    Exchange(RunId, Exchange),
    Audit(RunId, AuditLine),
}

/// Hands records to the writer. Never waits.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    queue: tokio::sync::mpsc::Sender<Record>,
    lost: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Recorder {
    /// A recorder and the writer's end of its queue.
    pub(crate) fn new(capacity: usize) -> (Self, tokio::sync::mpsc::Receiver<Record>) {
        let (queue, records) = tokio::sync::mpsc::channel(capacity);
        (Self { queue, lost: std::sync::Arc::default() }, records)
    }

    /// Writes a line of the network trace.
    pub(crate) fn exchange(&self, run: &RunId, exchange: Exchange) {
        self.send(Record::Exchange(run.clone(), exchange));
    }

    /// Writes a line of the audit log.
    pub(crate) fn audit(&self, run: &RunId, event: AuditEvent) {
        let line = AuditLine { event, timestamp: Timestamp::now() };
        self.send(Record::Audit(run.clone(), line));
    }

    /// Records lost so far.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn send(&self, record: Record) {
        if self.queue.try_send(record).is_err() {
            self.lost.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tracing::error!("a record was lost: the writer does not keep up");
        }
    }
}
