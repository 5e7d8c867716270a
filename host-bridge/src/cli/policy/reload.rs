//! `moat policy reload RUN`: shows what changed in the rule files of a run that is going, and accepts it.
//!
//! Only somebody on the host can: the agent can usually write the file, so that an edit alone never loosens a policy.

use serde::Serialize;

use super::json;
use crate::{
    cli::{Context, Failure, Outcome, pick, print, proxy::block_on, text::visible},
    control::{
        api::{Accept, PolicyState},
        client::Client,
    },
    policy::difference::Difference,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A run's id, the beginning of one, or its name [default: the most recent run]
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Only this server's policy
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// Accept without asking
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Serialize)]
struct Shown {
    server: String,
    source: String,
    changes: Option<Difference>,
    broken: Option<String>,
    accepted: bool,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let run = pick::one(context, self.run.as_deref())?;
        block_on(async {
            let client = Client::connect(&context.home).await.map_err(|error| Failure::from_error(&error))?;
            let policies = client.policies(&run.id).await.map_err(|error| Failure::from_error(&error))?;
            let mut all = Vec::new();
            let wanted = |policy: &&PolicyState| {
                self.server.as_ref().is_none_or(|name| policy.server.as_str() == name)
            };
            for policy in policies.iter().filter(wanted) {
                let mut shown = show(policy, context.global.json);
                let go = shown.changes.is_some()
                    && !context.global.dry_run
                    && (self.yes || context.global.json || confirmed(policy));
                if let (true, Some(pending)) = (go, &policy.pending) {
                    let wish = Accept { server: policy.server.clone(), sha256: pending.hash() };
                    client.accept(&run.id, &wish).await.map_err(|error| Failure::from_error(&error))?;
                    shown.accepted = true;
                    print::note(&format!(
                        "Accepted; in force for '{}' from the next call on.",
                        policy.server
                    ));
                }
                all.push(shown);
            }
            if context.global.json {
                json(&all)?;
            } else if all.is_empty() {
                print::line("No server of this run has a policy");
            }
            Ok(moat_shared::exit::OK)
        })
    }
}

fn confirmed(policy: &PolicyState) -> bool {
    if !print::can_ask() {
        print::note("Nothing was accepted: there is no terminal to ask at. Accept with: --yes");
        return false;
    }
    pick::confirm(&format!("Accept this for '{}'? [y/N]: ", policy.server))
}

fn show(policy: &PolicyState, quiet: bool) -> Shown {
    let changes = match (&policy.accepted, &policy.pending) {
        (Some(old), Some(new)) => Some(Difference::between(old, new)),
        _ => None,
    };
    if !quiet {
        print::line(&format!("{}: {}", policy.server, visible(&policy.line())));
        for line in changes.iter().flat_map(Difference::lines) {
            print::line(&format!("  {}", visible(&line)));
        }
        if changes.is_none() && policy.broken.is_none() {
            print::line("  nothing changed");
        }
    }
    Shown {
        server: policy.server.to_string(),
        source: policy.source.clone(),
        changes,
        broken: policy.broken.clone(),
        accepted: false,
    }
}
