//! Judges answers by policy: lists are cut to what may be called, results are withheld or redacted (P32-P36).
//!
//! ```text
//! one JSON-RPC message, or a batch ──► whose answer? ──► list: items cut out of the bytes
//!                                                  └──► result: rules for responses ──► as it is, redacted, withheld
//! ```
//!
//! What is not touched stays byte for byte. An unreadable list passes: the call is judged all the same. An unreadable
//! result does not, where there are rules for results.

use std::{ops::Range, sync::Arc};

use jiff::Timestamp;
use moat_shared::rpc::RawId;

use crate::{
    pipeline::{
        decide::report::{self, Reporter},
        decide::tool_result,
        parse::{Asked, envelope::Message},
        place::Placed,
    },
    policy::{
        bound::Bound,
        compile::Policy,
        engine::{Call, Kind, Phase, ResultTexts, Subject},
        glob,
        json::{Data, Node, Numbers, quoted},
        operation::{LISTS, of_item},
        rate::Turn,
    },
    record::{AuditEvent, Recorder},
};

/// The largest answer that is held back to be judged.
pub(super) const ANSWER_MAX: usize = 16 << 20;

/// Judges the answers of one exchange.
#[derive(Debug)]
pub(in crate::pipeline) struct Reviewer {
    placed: Placed,
    bound: Bound,
    recorder: Recorder,
    /// The requests that are answered; none: nobody knows what is answered here.
    asked: Vec<Message>,
    modern: bool,
}

/// What may go to the agent.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::pipeline) enum Reviewed {
    AsItIs,
    Changed(Vec<u8>),
    /// Nothing of it.
    Withheld,
}

/// A piece of a message and what stands there instead.
type Edit = (Range<usize>, String);

impl Reviewer {
    /// If anything of what is answered has to be judged.
    pub(in crate::pipeline) fn new(
        placed: &Placed,
        asked: Option<&Asked>,
        modern: bool,
        recorder: &Recorder,
    ) -> Option<Self> {
        let bound = placed.server().policy.clone()?;
        let asked = asked.map(Asked::requests).unwrap_or_default();
        let this = Self { placed: placed.clone(), bound, recorder: recorder.clone(), asked, modern };
        let lists =
            |message: &Message| LISTS.iter().any(|(method, ..)| message.method.as_deref() == Some(*method));
        // A stream that nobody asked for can carry anything again.
        (this.asked.is_empty() || this.asked.iter().any(lists) || this.judges_results()).then_some(this)
    }

    /// Are there rules for results?
    pub(super) fn judges_results(&self) -> bool {
        self.policies().is_none_or(|policies| policies.iter().any(|policy| policy.judges_results()))
    }

    /// What is in force; `None`: nothing may pass.
    fn policies(&self) -> Option<Vec<Arc<Policy>>> {
        self.bound.state().policies().ok().map(|policies| policies.cloned().collect())
    }

    /// Judges one JSON text.
    pub(in crate::pipeline) fn review(&self, bytes: &[u8]) -> Reviewed {
        let Some(policies) = self.policies() else { return Reviewed::Withheld };
        let Ok(root) = Node::parse(bytes, Numbers::Any) else { return self.unreadable() };
        let messages = match &root.data {
            Data::List(messages) => messages.as_slice(),
            Data::Map(_) => std::slice::from_ref(&root),
            _ => return self.unreadable(),
        };
        let mut edits: Vec<Edit> = Vec::new();
        for message in messages {
            match self.message(message, bytes, &policies) {
                Some(more) => edits.extend(more),
                None => return Reviewed::Withheld,
            }
        }
        if edits.is_empty() {
            return Reviewed::AsItIs;
        }
        edits.sort_by_key(|(span, _)| span.start);
        let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
        for (span, text) in edits {
            out.extend_from_slice(bytes.get(at..span.start).unwrap_or_default());
            out.extend_from_slice(text.as_bytes());
            at = span.end;
        }
        out.extend_from_slice(bytes.get(at..).unwrap_or_default());
        Reviewed::Changed(out)
    }

    /// An answer that cannot be read, or not be held.
    pub(super) fn unreadable(&self) -> Reviewed {
        if self.judges_results() {
            tracing::warn!(server = %self.placed.server().name, "an answer that policy cannot judge is withheld");
            Reviewed::Withheld
        } else {
            tracing::info!(server = %self.placed.server().name, "an answer that cannot be read passes; calls are judged");
            Reviewed::AsItIs
        }
    }

    /// The edits of one message. `None`: it is withheld.
    fn message(&self, message: &Node, bytes: &[u8], policies: &[Arc<Policy>]) -> Option<Vec<Edit>> {
        let judges = policies.iter().any(|policy| policy.judges_results());
        let (given, failed) = (message.get("result"), message.get("error"));
        if judges && given.is_some() && failed.is_some() {
            // Who reads it decides which of the two it is.
            return None;
        }
        if let (Some(method), None) = (message.get("method"), given.or(failed)) {
            let method = method.text().unwrap_or_default();
            return Some(self.unasked(message, method, policies));
        }
        let asked = self.asked_for(message, bytes);
        let method = asked.and_then(|asked| asked.method.as_deref());
        let Some(result) = given.or(failed) else { return Some(Vec::new()) };
        let list = LISTS.iter().find(|(name, key, _)| match method {
            Some(method) => method == *name,
            // By its shape: nothing else has such a list of things with names.
            None => result.get(key).is_some_and(|list| matches!(list.data, Data::List(_))),
        });
        if let Some((_, key, name)) = list {
            if judges && method.is_none() {
                // It only looks like a list.
                let edits = self.result(message, result, asked, bytes, policies)?;
                if !edits.is_empty() {
                    return Some(edits);
                }
            }
            return Some(self.list(result, key, name, method.is_some(), bytes, policies));
        }
        if !judges {
            return Some(Vec::new());
        }
        self.result(message, result, asked, bytes, policies)
    }

    /// The request that a response answers. An id that was not asked with here, in whatever spelling, is nobody's: what it
    /// brings is judged by every rule for results, so that no server answers one call where another one's rules are asked.
    fn asked_for(&self, message: &Node, bytes: &[u8]) -> Option<&Message> {
        let span = message.get("id")?.span.clone();
        let id = RawId::parse(std::str::from_utf8(bytes.get(span)?).ok()?)?;
        self.asked.iter().find(|asked| asked.id.as_ref() == Some(&id))
    }

    /// Cuts out of a list what could never be called.
    fn list(
        &self,
        result: &Node,
        key: &str,
        name: &str,
        was_asked_for: bool,
        bytes: &[u8],
        policies: &[Arc<Policy>],
    ) -> Vec<Edit> {
        let Some(list) = result.get(key) else { return Vec::new() };
        let (mut kept, mut hidden, mut would) = (Vec::new(), 0_usize, 0_usize);
        // The same for all items but for the operation, unless rules ask what the server says of each tool.
        let mut contexts: Vec<Option<crate::policy::engine::Context>> = vec![None; policies.len()];
        for item in list.items() {
            let Some(item_name) = item.get(name).and_then(Node::text) else {
                // Nobody can call what has no name.
                continue;
            };
            if key == "tools" && was_asked_for {
                self.learn(item_name, item, bytes);
            }
            let (kind, operation) = of_item(key, item_name);
            let operation = glob::Operation::new(&operation);
            let mut gone = false;
            for (policy, context) in policies.iter().zip(&mut contexts) {
                match context {
                    Some(context) if !policy.reads_annotations() => {
                        policy.seen(&operation).clone_into(&mut context.operation);
                    }
                    _ => *context = Some(self.context(policy, kind, &operation, Phase::Request, "", None)),
                }
                let Some(context) = context else { continue };
                if policy.hides(kind, &operation, context).is_some() {
                    if policy.enforces() {
                        gone = true;
                    } else {
                        would += 1;
                    }
                }
            }
            if gone {
                hidden += 1;
            } else {
                kept.push(item.span.clone());
            }
        }
        for (count, enforced) in [(hidden, true), (would, false)] {
            if count > 0 {
                let event = AuditEvent::PolicyHidden {
                    server: self.placed.server().name.clone(),
                    list: key.to_owned(),
                    count,
                    enforced,
                };
                self.recorder.audit(&self.placed.run().id, event);
            }
        }
        if kept.len() == list.items().len() {
            return Vec::new();
        }
        let mut text = String::from("[");
        for (index, span) in kept.into_iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            text.push_str(std::str::from_utf8(bytes.get(span).unwrap_or_default()).unwrap_or("null"));
        }
        text.push(']');
        vec![(list.span.clone(), text)]
    }

    /// What the server says of a tool, for rules on it.
    fn learn(&self, tool: &str, item: &Node, bytes: &[u8]) {
        let annotations = item.get("annotations").map_or("{}", |annotations| {
            std::str::from_utf8(bytes.get(annotations.span.clone()).unwrap_or_default()).unwrap_or("{}")
        });
        self.bound.learn(tool, annotations);
    }

    fn context(
        &self,
        policy: &Policy,
        kind: Kind,
        operation: &glob::Operation<'_>,
        phase: Phase,
        method: &str,
        now: Option<Timestamp>,
    ) -> crate::policy::engine::Context {
        let at = now.unwrap_or(Timestamp::UNIX_EPOCH);
        let context = report::context(&self.placed, policy, &self.bound, kind, operation, phase, method, at);
        crate::policy::engine::Context { timestamp: now, ..context }
    }

    /// Judges a result, or an error: its texts are what rules see as `params.content`.
    fn result(
        &self,
        message: &Node,
        result: &Node,
        asked: Option<&Message>,
        bytes: &[u8],
        policies: &[Arc<Policy>],
    ) -> Option<Vec<Edit>> {
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
            ("initialize" | "ping" | "logging/setLevel" | "server/discover", _) => return Some(Vec::new()),
            (method, _) => (Kind::Method, method.to_owned()),
        };
        let operation = glob::Operation::new(&name);
        let mut texts = ResultTexts::new(texts(result, kind));
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
                operation: &name,
                phase: Phase::Response,
            };
            reporter.report(&judgement, || {
                report::summary(texts.params().get("content").and_then(Node::text).unwrap_or_default())
            });
            if let Some(denial) = judgement.denial.filter(|_| policy.enforces()) {
                let message_of_rule = if denial.error.is_some() { String::new() } else { denial.message };
                return Some(self.withheld(message, kind, &denial.rule, &message_of_rule, bytes));
            }
            turn.next();
        }
        Some(texts.edits.into_values().map(|(span, text)| (span, quoted(&text))).collect())
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

    /// A notification or a request of the server: nothing is denied there, but redactions hold (P34).
    fn unasked(&self, message: &Node, method: &str, policies: &[Arc<Policy>]) -> Vec<Edit> {
        let Some(params) =
            message.get("params").filter(|_| policies.iter().any(|policy| policy.judges_results()))
        else {
            return Vec::new();
        };
        let operation = glob::Operation::new(method);
        let mut texts = ResultTexts::new(strings(params));
        let now = Timestamp::now();
        let turn = Turn::new(self.bound.counters());
        for policy in policies {
            let context = self.context(policy, Kind::Unknown, &operation, Phase::Response, method, Some(now));
            let call = Call {
                kind: Kind::Unknown,
                phase: Phase::Response,
                operation: &operation,
                context: &context,
                now,
                rates: &turn,
            };
            policy.judge(&call, &mut texts, false);
        }
        texts.edits.into_values().map(|(span, text)| (span, quoted(&text))).collect()
    }

    /// Does a request wait for an answer here?
    pub(super) fn waits(&self) -> bool {
        !self.asked.is_empty()
    }

    /// What the agent gets where nothing of an answer may pass: for each request that waits, that it is withheld.
    pub(super) fn instead(&self) -> Vec<u8> {
        let answers: Vec<String> = self
            .asked
            .iter()
            .map(|asked| {
                let id = asked.id.as_ref().map_or("null", RawId::as_str);
                let text = "Moat: MCP result withheld by policy. It cannot be judged. The call itself was carried out.";
                let server = self.placed.server().name.as_str();
                if asked.method.as_deref() == Some("tools/call") {
                    return tool_result(id, text, "", Some(server), self.modern);
                }
                let data = serde_json::json!({"source": "moat", "kind": "denied", "server": server});
                let error = serde_json::json!({"code": -32603, "message": text, "data": data});
                format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
            })
            .collect();
        match answers.as_slice() {
            [only] => only.clone().into_bytes(),
            many => format!("[{}]", many.join(",")).into_bytes(),
        }
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
