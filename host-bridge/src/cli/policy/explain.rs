//! `moat policy explain SERVER TOOL`: how each rule fares for one call. Counters start at nothing.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use super::{json, rules};
use crate::{
    cli::{Context, Failure, Outcome, print},
    config,
    policy::{
        compile::Policy,
        engine::{Arguments, Call, Context as Seen, Judgement, Kind, Phase, ResultTexts, Step, splice},
        glob,
        json::{Node, Numbers},
        model::RuleSet,
        rate::{Counters, Turn},
    },
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A server of moat.yaml
    server: String,
    /// The tool; or as in 'resources/read:file:///x' and 'prompts/get:name'
    tool: String,
    /// The arguments
    #[arg(long, value_name = "JSON", default_value = "{}")]
    args: String,
    /// Judge this text as the tool's result instead of the call
    #[arg(long, value_name = "TEXT", conflicts_with = "args")]
    result: Option<String>,
    /// Where moat.yaml is
    #[arg(long, value_name = "DIR", default_value = ".")]
    workspace: PathBuf,
    /// Other rules than moat.yaml's: a rule file or a starter pack
    #[arg(long, value_name = "FILE|PACK")]
    rules: Option<String>,
}

/// What comes of a call.
#[derive(Debug, Serialize)]
pub(super) struct Explained {
    pub(super) decision: &'static str,
    /// Would the decision be carried out?
    pub(super) enforced: bool,
    pub(super) rule: Option<String>,
    pub(super) message: Option<String>,
    pub(super) error: Option<String>,
    /// The arguments as they would be sent.
    pub(super) sent: Option<String>,
    pub(super) listed: bool,
    pub(super) rules: Vec<Fared>,
}

#[derive(Debug, Serialize)]
pub(super) struct Fared {
    rule: String,
    action: &'static str,
    outcome: String,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let set = match &self.rules {
            Some(given) => rules(given)?,
            None => self.configured()?,
        };
        let policy = compiled(set)?;
        let explained = explain(&policy, &self.server, &self.tool, &self.args, self.result.as_deref())?;
        if context.global.json {
            json(&explained)?;
            return Ok(moat_shared::exit::OK);
        }
        let by = explained.rule.as_ref().map(|rule| format!(" by rule '{rule}'")).unwrap_or_default();
        let audit = if explained.enforced { "" } else { " (the policy only audits, so it passes)" };
        print::line(&format!("{}: {}{by}{audit}", self.tool, explained.decision));
        for (title, text) in
            [("Message", &explained.message), ("Error", &explained.error), ("Sent", &explained.sent)]
        {
            if let Some(text) = text {
                print::line(&format!("  {title}: {text}"));
            }
        }
        print::line(&format!("  Shown in lists: {}", if explained.listed { "yes" } else { "no" }));
        for rule in &explained.rules {
            print::line(&format!("  {} ({}): {}", rule.rule, rule.action, rule.outcome));
        }
        Ok(moat_shared::exit::OK)
    }

    fn configured(&self) -> Result<RuleSet, Failure> {
        let config = config::load(&self.workspace).map_err(|error| Failure::from_error(&error))?;
        let names: Vec<&str> = config.servers.iter().map(|server| server.name.as_str()).collect();
        let server =
            config.servers.iter().find(|server| server.name.as_str() == self.server).ok_or_else(|| {
                Failure::new(format!("moat.yaml has no MCP server {:?}", self.server))
                    .with_hint(format!("it has: {}", names.join(", ")))
            })?;
        let bound = server.policy.as_ref().ok_or_else(|| {
            Failure::new(format!("MCP server '{}' has no policy: every call passes", self.server))
                .with_hint("give it one in moat.yaml, or try rules with --rules FILE")
        })?;
        bound.rule_set().map_err(Failure::new)
    }
}

pub(super) fn compiled(set: RuleSet) -> Result<Policy, Failure> {
    Policy::compile(set).map_err(|problems| {
        let texts: Vec<String> = problems.into_iter().map(|problem| problem.text).collect();
        Failure::new(texts.join("\n"))
    })
}

/// What a tool's name is to the engine.
pub(super) fn kind_of(operation: &str) -> Kind {
    let methods = ["prompts/get:", "resources/read:", "tasks/", "completion/"];
    if methods.iter().any(|method| operation.starts_with(method)) { Kind::Method } else { Kind::Tool }
}

/// What rules see, for a call that is only thought of.
pub(super) fn seen(policy: &Policy, operation: &glob::Operation<'_>, phase: Phase) -> Seen {
    Seen {
        scope: policy.set.scope.clone(),
        direction: if phase == Phase::Request { "request" } else { "response" },
        operation: if policy.set.case_sensitive { operation.own() } else { operation.lower() }.to_owned(),
        ..Seen::default()
    }
}

fn explain(
    policy: &Policy,
    server: &str,
    tool: &str,
    args: &str,
    result: Option<&str>,
) -> Result<Explained, Failure> {
    let operation = glob::Operation::new(tool);
    let counters = Counters::default();
    let turn = Turn::new(&counters);
    let now = Timestamp::now();
    let phase = if result.is_some() { Phase::Response } else { Phase::Request };
    let kind = kind_of(tool);
    let context = Seen { timestamp: Some(now), ..seen(policy, &operation, phase) };
    let call = Call { kind, phase, operation: &operation, context: &context, now, rates: &turn };
    let _named_for_messages = server;
    let (judgement, sent) = match result {
        Some(text) => {
            let mut texts = ResultTexts::new(vec![(0..0, text.to_owned())]);
            let judgement = policy.judge(&call, &mut texts, true);
            (judgement, texts.edits.into_values().next().map(|(_, text)| text))
        }
        None => {
            let mut params = Node::parse(args.as_bytes(), Numbers::Exact)
                .map_err(|error| Failure::new(format!("--args: {error}")))?;
            if !params.is_map() {
                return Err(Failure::new("--args: must be a JSON object"));
            }
            let mut arguments = Arguments::new(&mut params);
            let judgement = policy.judge(&call, &mut arguments, true);
            let edits = arguments.edits;
            let sent = (!edits.is_empty())
                .then(|| String::from_utf8_lossy(&splice(args.as_bytes(), &edits)).into_owned());
            (judgement, sent)
        }
    };
    let request = seen(policy, &operation, Phase::Request);
    let listed = !policy.enforces() || policy.hides(kind, &operation, &request).is_none();
    Ok(explained(policy, judgement, sent, listed))
}

pub(super) fn explained(
    policy: &Policy,
    judgement: Judgement,
    sent: Option<String>,
    listed: bool,
) -> Explained {
    let fared = judgement.steps.iter().map(|(index, step)| {
        let rule = &policy.set.rules[*index];
        let outcome = match step {
            Step::Skipped => "not for this operation".to_owned(),
            Step::NotMatched => format!("does not match: {}", rule.when.as_deref().unwrap_or("")),
            Step::Missing => format!(
                "does not match, since a field that it reads is absent: {}",
                rule.when.as_deref().unwrap_or("")
            ),
            Step::Matched => match &rule.when {
                Some(when) => format!("matches: {when}"),
                None => "matches every call".to_owned(),
            },
            Step::Error(text) => format!("cannot be evaluated: {text}"),
        };
        Fared { rule: rule.name.clone(), action: rule.action.as_str(), outcome }
    });
    let rules = fared.collect();
    let decision = match (&judgement.denial, judgement.redacted.is_empty()) {
        (Some(_), _) => "deny",
        (None, false) => "redact",
        (None, true) => "allow",
    };
    let rule = judgement.denial.as_ref().map(|denial| denial.rule.clone());
    let rule = rule.or_else(|| judgement.redacted.first().map(|(rule, _)| rule.clone()));
    let message =
        judgement.denial.as_ref().map(|denial| denial.message.clone()).filter(|text| !text.is_empty());
    let error = judgement.denial.and_then(|denial| denial.error);
    Explained { decision, enforced: policy.enforces(), rule, message, error, sent, listed, rules }
}
