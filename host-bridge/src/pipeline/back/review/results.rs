//! Results, and what a server sends unasked, by the rules for results (P32-P34).

use std::{ops::Range, sync::Arc};

use jiff::Timestamp;

use super::{Edit, Reviewer, Said};
use crate::{
    pipeline::{
        decide::{
            report::{self, Reporter},
            tool_result,
        },
        parse::envelope::Message,
    },
    policy::{
        compile::Policy,
        engine::{Call, Denial, Kind, Phase, ResultTexts, Subject},
        glob,
        json::{Data, Node, quoted},
        rate::Turn,
    },
};

impl Reviewer {
    /// Judges a result, or an error: its texts are what rules see as `params.content`. What a server says of itself
    /// (`initialize`, `server/discover`) and bare acknowledgements are no results of a call: asking is not judged, nor is
    /// the answer.
    pub(super) fn result(
        &self,
        message: &Node,
        result: &Node,
        asked: Option<&Message>,
        bytes: &[u8],
        policies: &[Arc<Policy>],
    ) -> Vec<Edit> {
        let method = asked.and_then(|asked| asked.method.as_deref()).unwrap_or_default();
        let (kind, name) = match (method, asked) {
            ("tools/call", Some(asked)) => (Kind::Tool, asked.name.clone().unwrap_or_default()),
            ("prompts/get", Some(asked)) => {
                (Kind::Method, format!("prompts/get:{}", asked.name.as_deref().unwrap_or_default()))
            }
            ("resources/read", Some(asked)) => {
                (Kind::Method, format!("resources/read:{}", asked.uri.as_deref().unwrap_or_default()))
            }
            ("" | "tasks/get" | "tasks/result" | "tasks/list" | "subscriptions/listen", _) => {
                (Kind::Unknown, String::new())
            }
            ("initialize" | "ping" | "logging/setLevel" | "server/discover", _) => return Vec::new(),
            (method, _) => (Kind::Method, method.to_owned()),
        };
        match self.judged(kind, &name, method, texts(result, kind), policies) {
            Ok(edits) => edits,
            Err(denial) => {
                let of_rule = if denial.error.is_some() { String::new() } else { denial.message };
                self.withheld(message, kind, &denial.rule, &of_rule, bytes)
            }
        }
    }

    /// A notification or a request of the server. Nobody knows what it belongs to, so every rule for results judges it
    /// (P34). A denial, or a rule that cannot be evaluated, leaves it out: nothing in the agent waits for it, and a server
    /// that asked something waits until its own patience ends. What holds no text passes: progress is not held up.
    pub(super) fn unasked(&self, message: &Node, method: &str, policies: &[Arc<Policy>]) -> Said {
        let texts = message.get("params").map(strings).unwrap_or_default();
        if texts.is_empty() {
            return Said::Edited(Vec::new());
        }
        self.judged(Kind::Unknown, method, method, texts, policies).map_or(Said::Dropped, Said::Edited)
    }

    /// Judges texts by all rules for results, and writes down what they say.
    fn judged(
        &self,
        kind: Kind,
        name: &str,
        method: &str,
        texts: Vec<(Range<usize>, String)>,
        policies: &[Arc<Policy>],
    ) -> Result<Vec<Edit>, Denial> {
        let operation = glob::Operation::new(name);
        let mut texts = ResultTexts::new(texts);
        let now = Timestamp::now();
        let mut turn = Turn::new(self.bound.counters());
        for policy in policies.iter().filter(|policy| policy.judges_results()) {
            let context = self.context(policy, kind, &operation, Phase::Response, method, Some(now));
            let call = Call {
                kind,
                phase: Phase::Response,
                operation: &operation,
                context: &context,
                now,
                rates: &turn,
            };
            let judgement = policy.judge(&call, &mut texts, false);
            let reporter = Reporter {
                placed: &self.placed,
                policy,
                recorder: &self.recorder,
                operation: name,
                phase: Phase::Response,
            };
            reporter.report(&judgement, || {
                report::summary(texts.params().get("content").and_then(Node::text).unwrap_or_default())
            });
            if let Some(denial) = judgement.denial.filter(|_| policy.enforces()) {
                return Err(denial);
            }
            turn.next();
        }
        Ok(texts.edits.into_values().map(|(span, text)| (span, quoted(&text))).collect())
    }

    /// In the place of the whole message: that its result is withheld.
    fn withheld(&self, message: &Node, kind: Kind, rule: &str, text: &str, bytes: &[u8]) -> Vec<Edit> {
        let span = message.get("id").map(|id| id.span.clone()).unwrap_or_default();
        let id = std::str::from_utf8(bytes.get(span).unwrap_or_default()).unwrap_or_default();
        let id = if id.is_empty() { "null" } else { id };
        let text: String = text.chars().take(500).collect();
        let space = if text.is_empty() { "" } else { " " };
        let server = self.placed.server().name.as_str();
        let answer = if kind == Kind::Method {
            let text = format!(
                "Moat: MCP result withheld by policy.{space}{text} The request itself was carried out."
            );
            let data =
                serde_json::json!({"source": "moat", "kind": "denied", "server": server, "rule": rule});
            let error = serde_json::json!({"code": -32603, "message": text, "data": data});
            format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
        } else {
            let text = format!(
                "Moat: MCP tool result withheld by policy.{space}{text} The call itself was carried out."
            );
            tool_result(id, &text, rule, Some(server), self.modern)
        };
        vec![(message.span.clone(), answer)]
    }
}

/// The texts of a result: text blocks, embedded resources, then what is in `structuredContent` and not said already; of
/// results of another shape every string (P33).
fn texts(result: &Node, kind: Kind) -> Vec<(Range<usize>, String)> {
    let content = result.get("content").filter(|content| matches!(content.data, Data::List(_)));
    let Some(content) = content.filter(|_| kind != Kind::Method) else { return strings(result) };
    let mut found = Vec::new();
    for block in content.items() {
        for path in [&["text"][..], &["resource", "text"]] {
            let mut node = Some(block);
            for key in path {
                node = node.and_then(|node| node.get(key));
            }
            if let Some((node, text)) = node.and_then(|node| Some((node, node.text()?))) {
                found.push((node.span.clone(), text.to_owned()));
            }
        }
    }
    for key in ["structuredContent", "error", "message"] {
        if let Some(structured) = result.get(key) {
            found.extend(strings(structured));
        }
    }
    found
}

fn strings(node: &Node) -> Vec<(Range<usize>, String)> {
    let mut found = Vec::new();
    node.strings(&mut |node, text| found.push((node.span.clone(), text.original().to_owned())));
    found
}
