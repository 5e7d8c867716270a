//! What the agent gets instead of an answer, where policy refused its request (P38): a tool result that says so, or an
//! error. No values of arguments, no expressions, no paths.

use std::ops::Range;

use moat_shared::{
    rpc::{OwnError, RawId},
    wire::ErrorKind,
};

use crate::policy::{
    engine::{Denial, Kind},
    json::{Node, Unreadable},
    operation::Malformed,
};

/// Characters of a rule's message that the agent gets to see.
const MESSAGE: usize = 500;

/// Why a body cannot be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unjudgeable {
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("an argument's name differs only by case from one that a rule reads")]
    AnotherCase,
}

/// What was refused of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    /// Where its id stands.
    pub(super) id: Option<Range<usize>>,
    pub(super) kind: Kind,
    pub(super) text: String,
    pub(super) rule: String,
    /// A rule that could not be evaluated: an error, not a result.
    pub(super) broken: bool,
}

impl Refused {
    pub(super) fn denied(kind: Kind, operation: &str, denial: Denial) -> Self {
        let broken = denial.error.is_some();
        let text = if broken {
            "Moat: MCP tool call blocked — policy evaluation error.".to_owned()
        } else {
            let message: String = denial.message.chars().take(MESSAGE).collect();
            blocked(kind, &message, operation, &denial.rule, &denial.allowed)
        };
        Self { id: None, kind, text, rule: denial.rule, broken }
    }

    pub(super) fn not_rewritten(kind: Kind, operation: &str, rule: String, target: &str) -> Self {
        let message =
            format!("{target} would have to be redacted, which this protocol version does not allow.");
        let text = blocked(kind, &message, operation, &rule, &[]);
        Self { id: None, kind, text, rule, broken: false }
    }

    fn answer(&self, id: &str, server: Option<&str>, modern: bool) -> String {
        if self.kind != Kind::Tool || self.broken {
            let data = serde_json::json!({
                "source": "moat", "kind": ErrorKind::Denied, "server": server, "rule": self.rule
            });
            let error = serde_json::json!({"code": OwnError::CODE, "message": self.text, "data": data});
            return format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#);
        }
        tool_result(id, &self.text, &self.rule, server, modern)
    }
}

/// A result that is an error, as a tool's own would be.
pub(in crate::pipeline) fn tool_result(
    id: &str,
    text: &str,
    rule: &str,
    server: Option<&str>,
    modern: bool,
) -> String {
    let mut result = serde_json::json!({
        "content": [{"type": "text", "text": text}],
        "isError": true,
        "_meta": {"moat/denied": {"rule": rule, "server": server}},
    });
    if modern {
        result["resultType"] = "complete".into();
    }
    format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#)
}

/// What was refused, by which rule, and what is allowed instead.
fn blocked(kind: Kind, message: &str, operation: &str, rule: &str, allowed: &[String]) -> String {
    let what = if kind == Kind::Tool { "tool call" } else { "request" };
    let space = if message.is_empty() { "" } else { " " };
    let instead = if allowed.is_empty() {
        "What the server's lists show may be used.".to_owned()
    } else {
        let shown: Vec<&str> = allowed.iter().take(32).map(String::as_str).collect();
        format!("Allowed: {}.", shown.join(", "))
    };
    let operation: String =
        operation.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect();
    format!(
        "Moat: MCP {what} blocked by policy.{space}{message}\nRefused: {operation} (rule '{rule}'). {instead} Do not \
         try another way to the same end; tell the user if it is needed."
    )
}

/// How the answer is to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) is_batch: bool,
    pub(super) modern: bool,
    pub(super) legacy: bool,
}

/// A request that policy refuses, as it will be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// An id for each request of the body, and why it is refused; none: it was not, but others of its batch were.
    answers: Vec<(String, Option<Refused>)>,
    is_batch: bool,
    modern: bool,
    /// It came over the old transport.
    pub(crate) legacy: bool,
}

impl Refusal {
    pub(super) fn new(refused: Vec<Refused>, messages: &[Node], body: &[u8], way: Way) -> Self {
        let token = |span: &Range<usize>| {
            let text = std::str::from_utf8(body.get(span.clone()).unwrap_or_default()).unwrap_or_default();
            RawId::parse(text).map_or_else(|| "null".to_owned(), |id| id.as_str().to_owned())
        };
        let mut answers: Vec<(String, Option<Refused>)> = Vec::new();
        for message in messages.iter().filter(|message| message.get("method").is_some()) {
            let Some(id) = message.get("id").map(|id| id.span.clone()) else { continue };
            let why = refused.iter().find(|refused| refused.id.as_ref() == Some(&id)).cloned();
            answers.push((token(&id), why));
        }
        if answers.iter().all(|(_, why)| why.is_none()) {
            // A message without an id was refused: nobody waits, but it was not sent either.
            answers.extend(refused.into_iter().map(|refused| ("null".to_owned(), Some(refused))));
        }
        Self { answers, is_batch: way.is_batch, modern: way.modern, legacy: way.legacy }
    }

    /// The JSON-RPC answer.
    pub(crate) fn body(&self, server: Option<&str>) -> String {
        let answers: Vec<String> = self
            .answers
            .iter()
            .map(|(id, why)| match why {
                Some(refused) => refused.answer(id, server, self.modern),
                None => {
                    let text =
                        "Moat: nothing of this batch was sent, since policy refuses another call in it.";
                    let data =
                        serde_json::json!({"source": "moat", "kind": ErrorKind::Denied, "server": server});
                    let error = serde_json::json!({"code": OwnError::CODE, "message": text, "data": data});
                    format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{error}}}"#)
                }
            })
            .collect();
        match answers.as_slice() {
            [only] if !self.is_batch => only.clone(),
            _ => format!("[{}]", answers.join(",")),
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let first = self.answers.iter().find_map(|(_, why)| why.as_ref());
        write!(f, "policy refuses it (rule '{}')", first.map_or("?", |refused| refused.rule.as_str()))
    }
}
