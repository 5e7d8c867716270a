//! OAuth tokens on the way out: renewed before they are sent, and once more when a server refuses one.
//!
//! ```text
//! before ──► inject ──► forward ──► anything but 401 ──► back
//!                                   401 ──► another token is there, or a renewal brings one ──► the same bytes, once more
//! ```
//!
//! A 401 was not executed, so the request may be sent again: once, and only where all of its bytes are at hand.

use std::time::Duration;

use http::StatusCode;
use moat_shared::grant::{GrantKind, GrantName};

use super::{error::PipelineError, forward::Streaming, inject::Credentials, place::Placed, record::Trace};
use crate::{
    oauth::{
        challenge::Challenge,
        grant::union,
        record::{Record, key},
        refresh::Print,
        renewals::{Landed, Renewals, Trouble},
    },
    record::{AuditEvent, Recorder},
    server::Server,
};

/// What renewing needs of the pipeline.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renewing<'a> {
    pub(super) renewals: &'a Renewals,
    pub(super) credentials: &'a Credentials,
    pub(super) recorder: &'a Recorder,
}

/// The OAuth grant of a server, if that is what it uses.
pub(super) fn grant_of(server: &Server) -> Option<&GrantName> {
    let grant = &server.inject.as_ref()?.grant;
    matches!(grant.kind(), GrantKind::OAuth(_)).then_some(grant)
}

impl Renewing<'_> {
    /// Makes sure that the token which is about to be sent is worth it.
    pub(super) async fn before(&self, placed: &Placed, trace: &Trace) -> Result<(), PipelineError> {
        let Some(grant) = grant_of(placed.server()) else { return Ok(()) };
        let store = self.credentials.store(placed.run().profile.as_ref());
        match self.renewals.before(&store, grant).await {
            Ok(landed) => {
                Self::tell(landed.as_ref(), trace);
                Ok(())
            }
            Err(trouble) => Err(self.troubled(placed, grant, trouble)),
        }
    }

    /// Is there another token to send the request with, now that this one was refused?
    pub(super) async fn after(&self, answer: &Streaming, trace: &Trace) -> Result<bool, PipelineError> {
        let placed = &answer.placed;
        let (Some(grant), Some(credential)) = (grant_of(placed.server()), &answer.credential) else {
            return Ok(false);
        };
        if answer.response.status() != StatusCode::UNAUTHORIZED {
            return Ok(false);
        }
        let store = self.credentials.store(placed.run().profile.as_ref());
        let sent = Print::of(credential.token.token().expose());
        match self.renewals.after_401(&store, grant, sent).await {
            Ok(landed) => {
                Self::tell(landed.as_ref(), trace);
                let now = store.read(grant).map(|credential| Record::of(credential).access());
                Ok(now.is_ok_and(|now| now != sent))
            }
            Err(Some(trouble)) => Err(self.troubled(placed, grant, trouble)),
            Err(None) => Ok(false),
        }
    }

    /// The token that was just renewed was refused as well.
    pub(super) fn refused_again(&self, placed: &Placed) {
        if let Some(grant) = grant_of(placed.server()) {
            self.renewals.refused_again(&self.credentials.store(placed.run().profile.as_ref()), grant);
        }
    }

    /// Does a 403 ask for more scopes than the grant has?
    pub(super) fn more_scopes(&self, answer: &Streaming) -> Result<(), PipelineError> {
        let placed = &answer.placed;
        let Some(grant) = grant_of(placed.server()) else { return Ok(()) };
        if answer.response.status() != StatusCode::FORBIDDEN {
            return Ok(());
        }
        let Some(challenge) = Challenge::of(answer.response.headers())
            .filter(|challenge| challenge.error.as_deref() == Some("insufficient_scope"))
        else {
            return Ok(());
        };
        let store = self.credentials.store(placed.run().profile.as_ref());
        let asked = challenge.scope.filter(|scope| is_plain(scope)).unwrap_or_default();
        let needed = match store.read(grant).map(Record::of) {
            Ok(record) => {
                let needed = union(record.text(key::REQUESTED_SCOPE).unwrap_or_default(), &asked);
                if self.renewals.wants_scopes(&store, &record, &needed) {
                    let event = AuditEvent::CredentialScopeRequired {
                        grant: grant.clone(),
                        server: placed.server().name.clone(),
                        scopes: needed.clone(),
                    };
                    self.recorder.audit(&placed.run().id, event);
                }
                needed
            }
            Err(_) => asked,
        };
        Err(PipelineError::InsufficientScope {
            server: placed.server().name.to_string(),
            grant: grant.clone(),
            scopes: Some(needed).filter(|scopes| is_plain(scopes)),
        })
    }

    /// A renewal that this request waited for, in its run's trace.
    fn tell(landed: Option<&Landed>, trace: &Trace) {
        if let Some(exchanged) = landed.and_then(|landed| landed.exchanged.as_ref()) {
            trace.renewal(exchanged);
        }
    }

    fn troubled(&self, placed: &Placed, grant: &GrantName, trouble: Trouble) -> PipelineError {
        match trouble {
            Trouble::NeedsGrant => {
                let event = AuditEvent::CredentialRefused {
                    grant: grant.clone(),
                    host: placed.server().upstream.host().to_owned(),
                    server: placed.server().name.clone(),
                    reason: "needs a new authorization".to_owned(),
                };
                self.recorder.audit(&placed.run().id, event);
                PipelineError::NeedsGrant { grant: grant.clone() }
            }
            Trouble::Unavailable { class, next } => {
                let seconds = next.max(Duration::from_secs(1)).as_secs();
                PipelineError::RefreshUnavailable { grant: grant.clone(), class: class.words(), seconds }
            }
        }
    }
}

/// May these scopes stand inside a command line (O9)?
fn is_plain(scopes: &str) -> bool {
    let token = |scope: &str| {
        !scope.is_empty() && scope.bytes().all(|b| b.is_ascii_alphanumeric() || b":._/-".contains(&b))
    };
    !scopes.is_empty() && scopes.len() <= 1024 && scopes.split(' ').all(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("mcp:read files/write" => true)]
    #[test_case("a\"; rm -rf ~" => false; "a command")]
    #[test_case("$(x)" => false; "a substitution")]
    #[test_case("" => false; "nothing")]
    #[test_case("a  b" => false; "two spaces")]
    fn o9_scopes_in_a_command(scopes: &str) -> bool {
        is_plain(scopes)
    }
}
