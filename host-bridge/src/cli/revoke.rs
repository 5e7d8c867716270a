//! `moat revoke`: removes a credential. A run that used it gets an error for the next request. The tokens of an OAuth
//! grant are given back to their issuer as well.

use jiff::tz::TimeZone;
use moat_shared::{
    exit,
    grant::{GrantKind, GrantName},
};

use super::{Context, Failure, Outcome, news, print, proxy::block_on, text::visible, when};
use crate::{
    control::api::GrantChange,
    credentials::Store,
    oauth::{
        http::Http,
        port::Disk,
        record::Record,
        refresh::{Do, Forget, Got, Port, drive},
        revoke::{self, Told},
    },
    record::Remote,
    upstream,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moat revoke mcp-context7
  moat revoke oauth:linear                  # tells the issuer as well
  moat revoke oauth:linear --local          # removes it here alone
  moat --profile work revoke mcp-context7")]
pub(crate) struct Args {
    /// The grant, like mcp-context7 (see 'moat grant list')
    grant: GrantName,
    /// Do not tell the issuer of an OAuth grant
    #[arg(long)]
    local: bool,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let grant = self.grant.clone();
        let store = Store::open(&context.home, &context.env, context.global.profile.as_ref());
        if context.global.dry_run {
            if !store.has(&grant) {
                return Err(Failure::new(format!("no credential found for {grant}")));
            }
            print::note(&format!("Would remove the credential of '{grant}'"));
            return Ok(exit::OK);
        }
        if matches!(grant.kind(), GrantKind::OAuth(_)) && store.has(&grant) {
            return block_on(async {
                let remote = forget(&store, &grant, self.local).await?;
                news::tell(&context.home, &store, &grant, GrantChange::Revoked { remote }).await;
                Ok(exit::OK)
            });
        }
        store.remove(&grant).map_err(|error| Failure::from_error(&error))?;
        print::note(&revoked(&store, &grant));
        block_on(async {
            let change = GrantChange::Revoked { remote: Remote::None };
            news::tell(&context.home, &store, &grant, change).await;
            Ok(exit::OK)
        })
    }
}

fn revoked(store: &Store, grant: &GrantName) -> String {
    let profile = store.profile().map(|profile| format!(" (profile: {profile})")).unwrap_or_default();
    format!("{grant} credential revoked{profile}")
}

/// Under the grant's lock: no refresh brings back what is removed.
async fn forget(store: &Store, grant: &GrantName, local: bool) -> Result<Remote, Failure> {
    let http = match local {
        true => None,
        false => Some(
            Http::new(upstream::platform_roots())
                .map_err(|error| Failure::new(format!("preparing TLS: {error}")))?,
        ),
    };
    let mut port = Forgetting { disk: Disk::new(store, grant), http, told: None };
    let forgotten = drive(Forget::default(), &mut port).await;
    let Forgetting { disk, told, .. } = port;
    forgotten
        .map_err(|class| Failure::new(disk.trouble.clone().unwrap_or_else(|| class.words().to_owned())))?;
    let mut remote = Remote::None;
    if let Some((record, told)) = told {
        let until = record.credential().expires_at.map(|at| when::date(at, &TimeZone::system()));
        let until = until.unwrap_or_else(|| "it expires".to_owned());
        let issuer = record.issuer();
        let issuer = visible(&issuer);
        match told {
            Told::Revoked => remote = Remote::Ok,
            Told::NoEndpoint => print::note(&format!(
                "Warning: {issuer} has no way to revoke a token; it stays valid there until {until}"
            )),
            Told::Failed(class) => {
                remote = Remote::Failed;
                print::note(&format!(
                    "Warning: {issuer} could not be told ({}); the token stays valid there until {until}",
                    class.words()
                ));
            }
        }
    }
    print::note(&revoked(store, grant));
    Ok(remote)
}

/// The port of a removal: the issuer is told between the look and the removal.
struct Forgetting<'a> {
    disk: Disk<'a>,
    http: Option<Http>,
    told: Option<(Record, Told)>,
}

impl Port for Forgetting<'_> {
    async fn perform(&mut self, what: Do) -> Got {
        if let (Do::RemoveRecord, Some(http), Some(record)) = (what, &self.http, &self.disk.record) {
            let record = record.clone();
            let told = revoke::tell(http, &record).await;
            self.told = Some((record, told));
        }
        self.disk.perform(what).await
    }
}
