//! What became of a renewal, in the audit log of each run that uses the grant, whoever's request it was made for.
//! (That nothing was renewed because the last attempt is too fresh is not said again for each request.)

use tokio::sync::mpsc;

use crate::{
    oauth::{refresh::Outcome, renewals::News},
    record::{AuditEvent, Recorder},
    registry::Registry,
};

/// Writes until the last flight has landed.
pub(super) async fn tell(mut news: mpsc::UnboundedReceiver<News>, registry: Registry, recorder: Recorder) {
    while let Some(news) = news.recv().await {
        let Some(event) = event(&news) else { continue };
        let grant = news.which.grant.clone();
        match registry.users(grant.clone(), news.which.profile.clone()).await {
            Ok(runs) => runs.iter().for_each(|run| recorder.audit(run, event.clone())),
            Err(error) => tracing::warn!(%grant, %error, "a renewal is in no run's audit log"),
        }
    }
}

fn event(news: &News) -> Option<AuditEvent> {
    let grant = news.which.grant.clone();
    match (news.outcome, &news.record) {
        (Outcome::Renewed, Some(record)) => Some(AuditEvent::CredentialRefreshed {
            grant,
            issuer: record.issuer(),
            host: record.token_url().and_then(|url| url.host_str().map(str::to_owned)),
            generation: record.generation(),
            rotated: news.rotated,
            expires_at: record.credential().expires_at,
        }),
        (Outcome::Later(class), _) => Some(AuditEvent::CredentialRefreshFailed {
            grant,
            class: class.words().to_owned(),
            next_s: Some(news.next.as_secs().max(1)),
        }),
        (Outcome::NeedsGrant, _) => {
            Some(AuditEvent::CredentialRefreshFailed { grant, class: "needs_grant".to_owned(), next_s: None })
        }
        _ => None,
    }
}
