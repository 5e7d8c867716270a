//! Whether policy lets a request pass.
//!
//! ```text
//! whole body ──► strict tree ──► operation of each message ──► every policy that is in force ──► passes, perhaps redacted
//!                  │ unreadable      │ malformed                     │ denied
//!                  ▼ 400             ▼ 400                           ▼ a tool result, or an error
//! ```
//!
//! A batch is judged whole: one denial, and nothing of it is sent.

mod answer;
pub(super) mod report;

use http::HeaderMap;
use jiff::Timestamp;

pub(super) use self::answer::tool_result;
pub(crate) use self::answer::{Refusal, Unjudgeable};
use self::{
    answer::{Refused, Way},
    report::Reporter,
};
use super::{error::PipelineError, parse::Parsed, place::Placed};
use crate::{
    policy::{
        bound::Bound,
        engine::{Arguments, Call, Kind, Phase, splice},
        glob,
        json::{Data, Node, Numbers},
        operation::{self, Operation, Params},
        rate::Turn,
    },
    record::Recorder,
};

/// A request that may be sent.
#[derive(Debug)]
pub(super) struct Decided(Parsed);

impl Decided {
    pub(super) fn into_inner(self) -> Parsed {
        self.0
    }

    pub(super) fn placed(&self) -> &Placed {
        self.0.placed()
    }

    /// The same request again: the very bytes that were judged. `None`: they are not all at hand.
    pub(super) fn again(&self) -> Option<Self> {
        self.0.again().map(Self)
    }
}

/// From this revision on arguments are repeated in headers, so they are never rewritten (P31).
const NEVER_REWRITTEN: &str = "2026-07-28";

/// Judges a request. A server without a policy lets everything pass.
pub(super) fn decide(parsed: Parsed, recorder: &Recorder) -> Result<Decided, PipelineError> {
    let Some(bound) = parsed.placed().server().policy.clone() else { return Ok(Decided(parsed)) };
    // Also where nothing would be judged: a server whose policy is lost is closed whole.
    let name = || parsed.placed().server().name.to_string();
    let state = bound.state();
    if let Err(reason) = state.policies() {
        return Err(PipelineError::PolicyUnavailable { server: name(), reason: reason.to_owned() });
    }
    let Some(body) = parsed.whole() else { return Ok(Decided(parsed)) };
    let mut root =
        Node::parse(body, Numbers::Exact).map_err(|error| PipelineError::Unjudgeable(error.into()))?;
    let is_batch = matches!(root.data, Data::List(_));
    let modern = is_modern(parsed.headers(), &root);
    if modern {
        parsed.asked().mark_modern();
    }
    let judge = Judge { parsed: &parsed, bound: &bound, recorder, modern };
    let mut edits = Edits::new();
    let mut refused = Vec::new();
    let messages: &mut [Node] = match &mut root.data {
        Data::List(messages) => messages,
        _ => std::slice::from_mut(&mut root),
    };
    for message in messages.iter_mut() {
        if let Some(refusal) = judge.message(message, body, &mut edits)? {
            refused.push(refusal);
        }
    }
    if !refused.is_empty() {
        let legacy = parsed.placed().is_legacy_message();
        let refusal = Refusal::new(refused, messages, body, Way { is_batch, modern, legacy });
        return Err(PipelineError::Denied(Box::new(refusal)));
    }
    if edits.is_empty() {
        return Ok(Decided(parsed));
    }
    let rewritten = splice(body, &edits);
    Ok(Decided(parsed.with_body(rewritten)))
}

type Edits = std::collections::BTreeMap<usize, (std::ops::Range<usize>, String)>;

/// Does the request speak a revision that repeats arguments in headers?
fn is_modern(headers: &HeaderMap, root: &Node) -> bool {
    let version = headers.get("mcp-protocol-version").and_then(|version| version.to_str().ok());
    let named = headers.contains_key("mcp-method")
        || headers.keys().any(|name| name.as_str().starts_with("mcp-param-"));
    let in_body = root
        .get("params")
        .and_then(|params| params.get("_meta")?.get("io.modelcontextprotocol/protocolVersion")?.text());
    named || version.is_some_and(|v| v >= NEVER_REWRITTEN) || in_body.is_some_and(|v| v >= NEVER_REWRITTEN)
}

struct Judge<'p> {
    parsed: &'p Parsed,
    bound: &'p Bound,
    recorder: &'p Recorder,
    modern: bool,
}

impl Judge<'_> {
    /// Judges one message by all its operations.
    fn message(
        &self,
        message: &mut Node,
        body: &[u8],
        edits: &mut Edits,
    ) -> Result<Option<Refused>, PipelineError> {
        let operations =
            operation::of_message(message).map_err(|error| PipelineError::Unjudgeable(error.into()))?;
        let method = message.get("method").and_then(Node::text).unwrap_or_default().to_owned();
        if method == "tools/call" {
            self.check_parameter_headers(message)?;
        }
        if method == "subscriptions/listen" {
            let wanted = message.get("params").and_then(|params| params.get("notifications"));
            let wants = |key| wanted.and_then(|wanted| wanted.get(key)).is_some_and(Node::is_true);
            let lists = ["toolsListChanged", "promptsListChanged", "resourcesListChanged"];
            self.parsed.asked().mark_listening(lists.map(wants));
        }
        for operation in operations {
            let Operation { kind, name, params } = operation;
            let mut made;
            let params = match params {
                Params::Made(node) => {
                    made = node;
                    &mut made
                }
                Params::Own(below) => {
                    let own = message.get_mut("params");
                    let own = match below {
                        Some(key) => own.and_then(|params| params.get_mut(key)),
                        None => own,
                    };
                    match own {
                        Some(node) => node,
                        None => {
                            made = Node::made(Data::Map(Vec::new()));
                            &mut made
                        }
                    }
                }
            };
            let refused = self.operation(kind, &name, &method, params, body, edits)?;
            if let Some(refused) = refused {
                let id = message.get("id").map(|id| id.span.clone());
                return Ok(Some(Refused { id, ..refused }));
            }
        }
        Ok(None)
    }

    fn operation(
        &self,
        kind: Kind,
        name: &str,
        method: &str,
        params: &mut Node,
        body: &[u8],
        edits: &mut Edits,
    ) -> Result<Option<Refused>, PipelineError> {
        let placed = self.parsed.placed();
        let state = self.bound.state();
        let policies = state.policies().map_err(|reason| PipelineError::PolicyUnavailable {
            server: placed.server().name.to_string(),
            reason: reason.to_owned(),
        })?;
        let operation = glob::Operation::new(name);
        let now = Timestamp::now();
        let mut turn = Turn::new(self.bound.counters());
        for policy in policies {
            let context =
                report::context(placed, policy, self.bound, kind, &operation, Phase::Request, method, now);
            let call = Call {
                kind,
                phase: Phase::Request,
                operation: &operation,
                context: &context,
                now,
                rates: &turn,
            };
            if policy.misread(&call, params).is_some() {
                return Err(PipelineError::Unjudgeable(Unjudgeable::AnotherCase));
            }
            let mut arguments = Arguments::new(params);
            let judgement = policy.judge(&call, &mut arguments, false);
            let rewritten = std::mem::take(&mut arguments.edits);
            let reporter =
                Reporter { placed, policy, recorder: self.recorder, operation: name, phase: Phase::Request };
            reporter.report(&judgement, || report::summary(&body_of(params, body)));
            if let Some(denial) = judgement.denial.filter(|_| policy.enforces()) {
                return Ok(Some(Refused::denied(kind, name, denial)));
            }
            if self.modern && !rewritten.is_empty() {
                let (rule, target) = judgement.redacted.into_iter().next().unwrap_or_default();
                reporter.impossible(&rule);
                return Ok(Some(Refused::not_rewritten(kind, name, rule, &target)));
            }
            edits.extend(rewritten);
            turn.next();
        }
        Ok(None)
    }

    /// `Mcp-Param-*` repeats arguments: a value that is not among them would be another call to a server that reads
    /// the header.
    fn check_parameter_headers(&self, message: &Node) -> Result<(), PipelineError> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let headers = self.parsed.headers();
        let arguments = message.get("params").and_then(|params| params.get("arguments"));
        for (_, value) in headers.iter().filter(|(name, _)| name.as_str().starts_with("mcp-param-")) {
            let bytes = value.as_bytes();
            let decoded = match bytes.strip_prefix(b"=?base64?").and_then(|rest| rest.strip_suffix(b"?=")) {
                Some(text) => STANDARD.decode(text).ok(),
                None => Some(bytes.to_vec()),
            };
            let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
            let among = text.is_some_and(|text| arguments.is_some_and(|arguments| holds(arguments, &text)));
            if !among {
                return Err(PipelineError::HeaderMismatch { header: "Mcp-Param-*" });
            }
        }
        Ok(())
    }
}

/// Is the text one of the scalars?
fn holds(node: &Node, text: &str) -> bool {
    match &node.data {
        Data::Null => text == "null",
        Data::Bool(value) => text == value.to_string(),
        Data::Number(value) => text.parse::<f64>() == Ok(*value),
        Data::Text(own) => own.original().trim() == text.trim(),
        Data::List(items) => items.iter().any(|item| holds(item, text)),
        Data::Map(entries) => entries.iter().any(|(_, value)| holds(value, text)),
    }
}

/// The arguments as they were sent.
fn body_of(params: &Node, body: &[u8]) -> String {
    String::from_utf8_lossy(body.get(params.span.clone()).unwrap_or_default()).into_owned()
}
