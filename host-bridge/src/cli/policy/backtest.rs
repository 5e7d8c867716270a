//! `moat policy backtest RUN`: what other rules would have done with the calls of a run.
//!
//! A run's trace knows what was called, not with which arguments: where those decide, the answer is "depends".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{explain, json, rules};
use crate::{
    cli::{Context, Failure, Outcome, pick, print},
    jsonl::Lines,
    policy::{
        compile::Policy,
        engine::{Kind, Phase},
        glob,
    },
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A run's id, the beginning of one, or its name [default: the most recent run]
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// The rules to try: a rule file or a starter pack
    #[arg(long, value_name = "FILE|PACK")]
    rules: String,
    /// Only calls of this server
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
}

/// What the trace knows of a call.
#[derive(Debug, Deserialize)]
struct Recorded {
    server: Option<String>,
    rpc_method: Option<String>,
    operation: Option<String>,
    duration_ms: Option<u64>,
    error: Option<String>,
}

/// All calls of one kind.
#[derive(Debug, Default, Serialize)]
struct Replayed {
    calls: u64,
    /// How many were refused then.
    denied_then: u64,
    now: &'static str,
    rule: Option<String>,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let policy = explain::compiled(rules(&self.rules)?)?;
        let run = pick::one(context, self.run.as_deref())?;
        let lines =
            Lines::open(&context.home.network(&run.id)).map_err(|error| Failure::new(error.to_string()))?;
        let mut replayed: BTreeMap<String, Replayed> = BTreeMap::new();
        if let Some(mut lines) = lines {
            while let Some(call) =
                lines.next::<Recorded>().map_err(|error| Failure::new(error.to_string()))?
            {
                self.replay(&policy, &call, &mut replayed);
            }
        }
        if context.global.json {
            json(&replayed)?;
            return Ok(moat_shared::exit::OK);
        }
        for (name, calls) in &replayed {
            let rule = calls.rule.as_ref().map(|rule| format!(" (rule '{rule}')")).unwrap_or_default();
            let then = if calls.denied_then == 0 {
                "passed".to_owned()
            } else {
                format!("{} denied", calls.denied_then)
            };
            print::line(&format!(
                "{name}  calls: {}, then: {then}, with these rules: {}{rule}",
                calls.calls, calls.now
            ));
        }
        if replayed.is_empty() {
            print::line("No calls were recorded");
        }
        Ok(moat_shared::exit::OK)
    }

    fn replay(&self, policy: &Policy, call: &Recorded, replayed: &mut BTreeMap<String, Replayed>) {
        let Recorded { server: Some(server), rpc_method: Some(method), operation: Some(name), .. } = call
        else {
            return;
        };
        if call.duration_ms.is_none() || self.server.as_ref().is_some_and(|wanted| wanted != server) {
            return;
        }
        let (kind, name) = match method.as_str() {
            "tools/call" => (Kind::Tool, name.clone()),
            "prompts/get" | "resources/read" => (Kind::Method, format!("{method}:{name}")),
            _ => return,
        };
        let entry = replayed.entry(format!("{server} {name}")).or_default();
        entry.calls += 1;
        entry.denied_then += u64::from(call.error.as_deref() == Some("denied"));
        let operation = glob::Operation::new(&name);
        let seen = explain::seen(policy, &operation, Phase::Request);
        (entry.now, entry.rule) = match policy.foresee(kind, &operation, &seen) {
            Some((rule, true)) => ("denied", Some(rule.to_owned())),
            Some((rule, false)) => ("depends on the arguments", Some(rule.to_owned())),
            None => ("pass", None),
        };
    }
}
