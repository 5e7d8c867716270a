//! The one door: nothing reaches an upstream, with a credential or without, but through here.
//!
//! ```text
//! accept ──► who ──► place ──► parse ──► decide ──► inject ──► forward ──► back ──► record
//!          (the run  Placed    Parsed    Decided    Ready      Streaming   Response  Trace
//!           is given)
//! ```
//!
//! Each stage is a file and a type; a later one holds the earlier, and only [`inject`] makes what [`forward`] takes.
//! A stage that refuses returns a [`PipelineError`]; [`error`] alone turns one into an answer. Nothing is spawned here:
//! dropping the future or the answer's body aborts the request at the upstream.

mod back;
pub(crate) mod bench;
mod confine;
pub(crate) mod decide;
pub(crate) mod error;
mod forward;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod headers;
mod hold;
mod inject;
mod parse;
mod place;
mod record;
mod renew;
mod session;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use http_body_util::combinators::UnsyncBoxBody;
use moat_shared::{
    id::{RunId, ServerName},
    secret::Secret,
};
use rustls::RootCertStore;
use tokio::sync::mpsc;

pub(crate) use self::{back::Incomplete, parse::RequestBody};
use self::{
    back::Way,
    decide::Decided,
    error::PipelineError,
    forward::Streaming,
    hold::{Allowance, Allowances},
    inject::Credentials,
    parse::Asked,
    place::Placed,
    record::Trace,
    renew::Renewing,
    session::Sessions,
};
use crate::{
    env::Environment,
    home::Home,
    oauth::renewals::Renewals,
    record::{AuditEvent, Recorder},
    registry::Run,
    server::Server,
    upstream::{Patience, Upstreams, legacy::Handles},
};

/// An answer's body. Its error means that the stream has to be reset (T3).
pub(crate) type Body = UnsyncBoxBody<Bytes, Incomplete>;

/// What the pipeline is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Where the credentials are.
    pub(crate) home: Home,
    pub(crate) env: Environment,
    pub(crate) recorder: Recorder,
    /// For the terminals that hold runs, and `moat status`.
    pub(crate) notices: mpsc::Sender<Notice>,
    /// Tags session ids (R15); the same after a restart.
    pub(crate) session_key: Secret<[u8; 32]>,
    /// Whose certificates upstreams may have: [`crate::upstream::platform_roots`].
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) patience: Patience,
    /// OAuth tokens are renewed by these.
    pub(crate) renewals: Renewals,
}

/// Something that the person at the terminal should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Notice {
    pub(crate) run: RunId,
    pub(crate) server: ServerName,
    pub(crate) news: News,
}

/// What happened to a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    Trouble(String),
    /// It answered, after trouble.
    Mended,
}

/// The pipeline, for all runs. Each thread that serves tunnels has its own; they differ in nothing but their connections.
#[derive(Debug)]
pub(crate) struct Pipeline {
    credentials: Arc<Credentials>,
    renewals: Renewals,
    sessions: Sessions,
    handles: Handles,
    upstreams: Upstreams,
    recorder: Recorder,
    notices: mpsc::Sender<Notice>,
    troubled: Arc<Troubled>,
    allowances: Allowances,
}

impl Pipeline {
    /// # Errors
    /// When the TLS configuration cannot be made.
    pub(crate) fn new(parts: Parts) -> Result<Self, rustls::Error> {
        Ok(Self {
            credentials: Arc::new(Credentials::new(parts.home, parts.env)),
            renewals: parts.renewals,
            sessions: Sessions::new(&parts.session_key),
            handles: Handles::default(),
            upstreams: Upstreams::new(parts.roots, parts.patience)?,
            recorder: parts.recorder,
            notices: parts.notices,
            troubled: Arc::default(),
            allowances: Allowances::default(),
        })
    }

    /// The same, with connections of its own.
    pub(crate) fn beside(&self) -> Self {
        Self {
            credentials: Arc::clone(&self.credentials),
            renewals: self.renewals.clone(),
            sessions: self.sessions.clone(),
            handles: self.handles.clone(),
            upstreams: self.upstreams.beside(),
            recorder: self.recorder.clone(),
            notices: self.notices.clone(),
            troubled: Arc::clone(&self.troubled),
            allowances: self.allowances.clone(),
        }
    }

    /// Answers one request of a run. The run is the tunnel's; nothing in the request can name another (T5).
    pub(crate) async fn handle<B>(&self, run: &Arc<Run>, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    {
        let asked = Asked::default();
        let placed = match place::place(run, request.method(), request.uri(), &self.handles) {
            Ok(placed) => placed,
            Err(error) => {
                parse::peek(request.into_body(), &asked).await;
                tracing::info!(run = %run.id, %error, "request refused");
                self.deny(&run.id, None, &error);
                return error.response(asked.id().as_ref(), None);
            }
        };
        let mut trace = Trace::begin(self.recorder.clone(), &placed, request.method(), asked.clone());
        let allowance = self.allowances.of(&run.id);
        let streaming = match self.send(placed.clone(), request, &asked, &allowance, &mut trace).await {
            Ok(streaming) => streaming,
            Err(error) => return self.refuse(&error, &placed, &asked, trace),
        };
        let way = Way {
            sessions: &self.sessions,
            handles: &self.handles,
            recorder: &self.recorder,
            allowance: &allowance,
        };
        match back::back(streaming, way, trace).await {
            Ok(response) => {
                self.mended(&placed);
                response
            }
            Err((error, trace)) => self.refuse(&error, &placed, &asked, trace),
        }
    }

    /// All stages up to the head of the upstream's answer.
    async fn send<B>(
        &self,
        placed: Placed,
        request: Request<B>,
        asked: &Asked,
        allowance: &Allowance,
        trace: &mut Trace,
    ) -> Result<Streaming, PipelineError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    {
        let parsed = parse::parse(placed, request, asked, allowance).await?;
        let decided = decide::decide(parsed, &self.recorder)?;
        let renewing =
            Renewing { renewals: &self.renewals, credentials: &self.credentials, recorder: &self.recorder };
        renewing.before(decided.placed(), trace).await?;
        let again = decided.again();
        let streaming = self.forward(decided, trace).await?;
        if !renewing.after(&streaming, trace).await? {
            renewing.more_scopes(&streaming)?;
            return Ok(streaming);
        }
        let Some(again) = again else {
            return Err(PipelineError::TooLongToRepeat {
                server: streaming.placed.server().name.to_string(),
            });
        };
        let streaming = self.forward(again, trace).await?;
        if streaming.response.status() == http::StatusCode::UNAUTHORIZED {
            renewing.refused_again(&streaming.placed);
        }
        renewing.more_scopes(&streaming)?;
        Ok(streaming)
    }

    async fn forward(&self, decided: Decided, trace: &mut Trace) -> Result<Streaming, PipelineError> {
        let ready = inject::inject(decided, &self.credentials, &self.sessions, &self.recorder)?;
        trace.sending(ready.placed().server(), ready.headers());
        forward::forward(ready, &self.upstreams).await
    }

    /// Answers instead of the upstream, and tells everybody who should know.
    fn refuse(
        &self,
        error: &PipelineError,
        placed: &Placed,
        asked: &Asked,
        mut trace: Trace,
    ) -> Response<Body> {
        let server = placed.server();
        tracing::warn!(run = %placed.run().id, server = %server.name, %error, "request failed");
        trace.end(Some(error.failure()));
        self.deny(&placed.run().id, Some(&server.name), error);
        if let Some(text) = notice(error, server) {
            self.troubled.note(placed);
            self.tell(placed, News::Trouble(text));
        }
        error.response(asked.id().as_ref(), Some(server.name.as_str()))
    }

    /// A server answers: what was said of it before no longer holds.
    fn mended(&self, placed: &Placed) {
        if self.troubled.forget(placed) {
            self.tell(placed, News::Mended);
        }
    }

    fn tell(&self, placed: &Placed, news: News) {
        let notice = Notice { run: placed.run().id.clone(), server: placed.server().name.clone(), news };
        // The terminal is a convenience: what does not fit is in the log and the trace.
        if self.notices.try_send(notice).is_err() {
            tracing::debug!("nobody takes the notices");
        }
    }

    /// Audits a request that was refused for what it is.
    fn deny(&self, run: &RunId, server: Option<&ServerName>, error: &PipelineError) {
        // What a rule refused is recorded where it was judged.
        if error.is_denial() && !matches!(error, PipelineError::Denied(_)) {
            let event = AuditEvent::RequestDenied {
                server: server.cloned(),
                reason: error.to_string(),
                judged: None,
            };
            self.recorder.audit(run, event);
        }
    }
}

/// Servers whose last news were bad: only they have something to mend.
#[derive(Debug, Default)]
struct Troubled(Mutex<BTreeSet<(RunId, ServerName)>>);

impl Troubled {
    /// More are not remembered: their trouble is shown until their run ends.
    const MOST: usize = 4096;

    fn note(&self, placed: &Placed) {
        let mut servers = self.servers();
        if servers.len() < Self::MOST {
            servers.insert(Self::key(placed));
        }
    }

    fn forget(&self, placed: &Placed) -> bool {
        let mut servers = self.servers();
        !servers.is_empty() && servers.remove(&Self::key(placed))
    }

    fn key(placed: &Placed) -> (RunId, ServerName) {
        (placed.run().id.clone(), placed.server().name.clone())
    }

    fn servers(&self) -> MutexGuard<'_, BTreeSet<(RunId, ServerName)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to tell the person at the terminal, where it is theirs to mend.
fn notice(error: &PipelineError, server: &Server) -> Option<String> {
    match error {
        PipelineError::Rejected { grant, .. } => Some(format!(
            "Warning: MCP authentication failed for '{}'\nThis usually means the credential is invalid or \
             expired.\n\nTo update:\n  moat revoke {grant}\n  {}",
            server.name,
            grant.command()
        )),
        PipelineError::Connect { cause, .. } => Some(format!(
            "Error: Could not connect to MCP server '{}' ({cause})\nCheck that the URL in moat.yaml is correct:\n  \
             url: {}{}",
            server.name,
            server.upstream.origin(),
            server.upstream.path()
        )),
        PipelineError::NoCredential { .. }
        | PipelineError::NeedsGrant { .. }
        | PipelineError::RefreshUnavailable { .. }
        | PipelineError::InsufficientScope { .. }
        | PipelineError::FirstByte { .. }
        | PipelineError::Redirect { .. }
        | PipelineError::ForeignCredential { .. }
        | PipelineError::PolicyUnavailable { .. }
        | PipelineError::Invalid { .. } => Some(format!("Warning: {error}")),
        _ => None,
    }
}
