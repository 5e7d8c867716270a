//! What a command did to a grant, told to the bridge. The file is what counts, and every run sees it at once; this is for
//! the audit logs of the runs that use the grant.

use moat_shared::grant::GrantName;

use super::{print, with_causes};
use crate::{
    control::{
        api::{GrantChange, GrantNews},
        client::{Client, ClientError},
    },
    credentials::Store,
    home::Home,
    oauth::record::{Record, key},
};

/// Tells it. Without a bridge there are no runs.
pub(super) async fn tell(home: &Home, store: &Store, grant: &GrantName, change: GrantChange) {
    let news = GrantNews { grant: grant.clone(), profile: store.profile().cloned(), change };
    let told = async { Client::connect(home).await?.grant_changed(&news).await };
    match told.await {
        Ok(()) | Err(ClientError::NotRunning) => {}
        Err(error) => print::note(&format!(
            "Warning: the audit logs of the runs do not say so, since the bridge could not be told: {}",
            with_causes(&error)
        )),
    }
}

/// What is said of a record that a person granted.
pub(super) fn granted(record: &Record) -> GrantChange {
    GrantChange::Granted {
        issuer: record.text(key::TOKEN_SOURCE).map(|_| record.issuer()),
        generation: record.text(key::GENERATION).map(|_| record.generation()),
        expires_at: record.credential().expires_at,
    }
}
