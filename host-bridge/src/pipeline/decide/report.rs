//! What a judgement leaves in the audit log, and what rules see as `context`.

use std::rc::Rc;

use jiff::Timestamp;

use crate::{
    pipeline::place::Placed,
    policy::{
        bound::Bound,
        cel::text,
        compile::Policy,
        engine::{Context, Judgement, Kind, Phase},
        glob::Operation,
        json::{Data, Node, Numbers, Text},
        secrets,
    },
    record::{AuditEvent, Judged, Recorder},
};

/// Characters of the arguments that a record keeps.
const SUMMARY: usize = 256;

/// What rules see beside the arguments (P14).
#[expect(clippy::too_many_arguments, reason = "each is another thing that rules may ask for")]
pub(in crate::pipeline) fn context(
    placed: &Placed,
    policy: &Policy,
    bound: &Bound,
    kind: Kind,
    operation: &Operation<'_>,
    phase: Phase,
    method: &str,
    now: Timestamp,
) -> Context {
    let run = placed.run();
    let case = |text: &str| {
        if policy.set.case_sensitive { text.to_owned() } else { text::lower(text).into_owned() }
    };
    let labels = policy.reads_labels().then(|| {
        let entry = |key: &str, value: &str| (key.to_owned(), Node::made(Data::Text(Text::new(case(value)))));
        let entries =
            [("run", run.id.as_str()), ("server", placed.server().name.as_str()), ("method", method)];
        Rc::new(Node::made(Data::Map(entries.map(|(key, value)| entry(key, value)).into())))
    });
    let annotations = (policy.reads_annotations() && kind == Kind::Tool)
        .then(|| bound.annotations(operation.own()))
        .flatten()
        .and_then(|text| Node::parse(text.as_bytes(), Numbers::Any).ok());
    Context {
        agent_id: run.agent.as_deref().map(case).unwrap_or_default(),
        user_id: run.user.as_deref().map(case).unwrap_or_default(),
        scope: policy.set.scope.clone(),
        direction: if phase == Phase::Request { "request" } else { "response" },
        operation: policy.seen(operation).to_owned(),
        timestamp: Some(now),
        labels,
        annotations: annotations.map(Rc::new),
    }
}

/// The start of the arguments; secrets are taken out before it is cut, of more than could be one.
pub(in crate::pipeline) fn summary(text: &str) -> String {
    const READ: usize = 64 * 1024;
    let clean = secrets::redacted(&text[..text.floor_char_boundary(READ)]);
    let mut summary: String = clean.chars().take(SUMMARY).collect();
    if summary.len() < clean.len() || text.len() > READ {
        summary.push_str("...");
    }
    summary
}

/// Writes down what a policy said.
#[derive(Debug)]
pub(in crate::pipeline) struct Reporter<'r> {
    pub(in crate::pipeline) placed: &'r Placed,
    pub(in crate::pipeline) policy: &'r Policy,
    pub(in crate::pipeline) recorder: &'r Recorder,
    pub(in crate::pipeline) operation: &'r str,
    pub(in crate::pipeline) phase: Phase,
}

impl Reporter<'_> {
    fn judged(&self, rule: &str, message: &str, summary: Option<String>) -> Box<Judged> {
        Box::new(Judged {
            scope: self.policy.set.scope.clone(),
            operation: self.operation.to_owned(),
            direction: if self.phase == Phase::Request { "request" } else { "response" }.to_owned(),
            rule: rule.to_owned(),
            message: message.to_owned(),
            enforced: self.policy.enforces(),
            policy: self.policy.hash.clone(),
            params_summary: summary,
        })
    }

    /// A line for each decision; nothing for a call that just passes.
    pub(in crate::pipeline) fn report(&self, judgement: &Judgement, summary: impl Fn() -> String) {
        let run = &self.placed.run().id;
        let server = || self.placed.server().name.clone();
        for (rule, target) in &judgement.redacted {
            let judged = self.judged(rule, target, None);
            self.recorder.audit(run, AuditEvent::PolicyRedacted { server: server(), judged });
        }
        for rule in &judgement.logged {
            let judged = self.judged(rule, "", Some(summary()));
            self.recorder.audit(run, AuditEvent::PolicyLogged { server: server(), judged });
        }
        for (rule, error) in &judgement.errors {
            let judged = self.judged(rule, error, None);
            self.recorder.audit(run, AuditEvent::PolicyError { server: server(), judged });
        }
        let Some(denial) = &judgement.denial else { return };
        let judged = self.judged(&denial.rule, &denial.message, Some(summary()));
        self.recorder.audit(
            run,
            if self.policy.enforces() {
                self.denied(judged)
            } else {
                AuditEvent::PolicyWouldDeny { server: server(), judged }
            },
        );
    }

    /// A redaction that would be needed and cannot be made.
    pub(in crate::pipeline) fn impossible(&self, rule: &str) {
        let judged = self.judged(rule, "the arguments would have to be redacted", None);
        self.recorder.audit(&self.placed.run().id, self.denied(judged));
    }

    fn denied(&self, judged: Box<Judged>) -> AuditEvent {
        AuditEvent::RequestDenied {
            server: Some(self.placed.server().name.clone()),
            reason: "policy".to_owned(),
            judged: Some(judged),
        }
    }
}
