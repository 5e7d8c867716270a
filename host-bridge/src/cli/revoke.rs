//! `moat revoke`: removes a credential. A run that used it gets an error for the next request.

use moat_shared::{exit, grant::GrantName};

use super::{Context, Failure, Outcome, print};
use crate::credentials::Store;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moat revoke mcp-context7
  moat --profile work revoke mcp-context7")]
pub(crate) struct Args {
    /// The grant, like mcp-context7 (see 'moat grant list')
    grant: GrantName,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let grant = self.grant;
        let store = Store::open(&context.home, &context.env, context.global.profile.as_ref());
        if context.global.dry_run {
            if !store.has(&grant) {
                return Err(Failure::new(format!("no credential found for {grant}")));
            }
            print::note(&format!("Would remove the credential of '{grant}'"));
            return Ok(exit::OK);
        }
        store.remove(&grant).map_err(|error| Failure::from_error(&error))?;
        let profile = store.profile().map(|profile| format!(" (profile: {profile})")).unwrap_or_default();
        print::note(&format!("{grant} credential revoked{profile}"));
        Ok(exit::OK)
    }
}
