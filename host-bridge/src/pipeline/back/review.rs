//! Judges answers by policy: lists are cut to what may be called, results are withheld or redacted (P32-P36).
//!
//! ```text
//! one JSON-RPC message, or a batch ──► whose answer? ──► list: items cut out of the bytes
//!                                                  ├──► result: rules for responses ──► as it is, redacted, withheld
//!                                                  └──► unasked: the same rules ──► as it is, redacted, dropped
//! ```
//!
//! What is not touched stays byte for byte. An unreadable list passes: the call is judged all the same. An unreadable
//! result does not, where there are rules for results.

mod lists;
mod results;

use std::{ops::Range, sync::Arc};

use jiff::Timestamp;
use moat_shared::rpc::RawId;

use crate::{
    pipeline::{
        decide::{report, tool_result},
        parse::{Asked, envelope::Message},
        place::Placed,
    },
    policy::{
        bound::Bound,
        compile::Policy,
        engine::{Context, Kind, Phase},
        glob,
        json::{Data, Node, Numbers, Unreadable},
        operation::LISTS,
    },
    record::Recorder,
};

/// Whose answers say of which lists the server announces changes.
const SAYS_WHAT_IT_CAN: [&str; 2] = ["initialize", "server/discover"];

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
    /// Nothing of it, and who waits for it is told.
    Withheld,
    /// Nothing of it, and nobody waits for it.
    Dropped,
}

/// What becomes of one message.
enum Said {
    /// It passes with these edits; none: as it is.
    Edited(Vec<Edit>),
    /// A notification or a request of the server that is left out.
    Dropped,
    /// Nothing of what came with it passes.
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
        let lists = |message: &Message| {
            let method = message.method.as_deref().unwrap_or_default();
            LISTS.iter().any(|(list, ..)| method == *list) || SAYS_WHAT_IT_CAN.contains(&method)
        };
        // A stream that nobody asked for can carry anything again.
        (this.asked.is_empty() || this.asked.iter().any(lists) || this.judges_results()).then_some(this)
    }

    /// Are there rules for results?
    pub(super) fn judges_results(&self) -> bool {
        self.policies().is_none_or(|policies| policies.iter().any(|policy| policy.judges_results()))
    }

    /// Whose policy it is.
    pub(super) fn bound(&self) -> &Bound {
        &self.bound
    }

    /// What is in force; `None`: nothing may pass.
    fn policies(&self) -> Option<Vec<Arc<Policy>>> {
        self.bound.state().policies().ok().map(|policies| policies.cloned().collect())
    }

    /// Judges one JSON text.
    pub(in crate::pipeline) fn review(&self, bytes: &[u8]) -> Reviewed {
        let Some(policies) = self.policies() else { return Reviewed::Withheld };
        let Ok(root) = read(bytes, &policies) else { return self.unreadable() };
        let messages = match &root.data {
            Data::List(messages) => messages.as_slice(),
            Data::Map(_) => std::slice::from_ref(&root),
            _ => return self.unreadable(),
        };
        let (mut kept, mut changed) = (Vec::new(), false);
        for message in messages {
            match self.message(message, bytes, &policies) {
                Said::Edited(edits) => {
                    changed |= !edits.is_empty();
                    kept.push((message, edits));
                }
                Said::Dropped => {}
                Said::Withheld => return Reviewed::Withheld,
            }
        }
        if kept.len() == messages.len() {
            let edits = kept.into_iter().flat_map(|(_, edits)| edits).collect();
            return if changed {
                Reviewed::Changed(spliced(bytes, 0..bytes.len(), edits))
            } else {
                Reviewed::AsItIs
            };
        }
        if kept.is_empty() {
            return Reviewed::Dropped;
        }
        let kept = kept.into_iter().map(|(message, edits)| spliced(bytes, message.span.clone(), edits));
        let kept = kept.collect::<Vec<_>>().join(&b","[..]);
        Reviewed::Changed([b"[", &kept[..], b"]"].concat())
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

    fn message(&self, message: &Node, bytes: &[u8], policies: &[Arc<Policy>]) -> Said {
        let judges = policies.iter().any(|policy| policy.judges_results());
        let (given, failed) = (message.get("result"), message.get("error"));
        if judges && given.is_some() && failed.is_some() {
            // Who reads it decides which of the two it is.
            return Said::Withheld;
        }
        if let (Some(method), None) = (message.get("method"), given.or(failed)) {
            let method = method.text().unwrap_or_default();
            return if judges { self.unasked(message, method, policies) } else { Said::Edited(Vec::new()) };
        }
        let asked = self.asked_for(message, bytes);
        let method = asked.and_then(|asked| asked.method.as_deref());
        let Some(result) = given.or(failed) else { return Said::Edited(Vec::new()) };
        if method.is_none_or(|method| SAYS_WHAT_IT_CAN.contains(&method)) {
            self.hear(result);
        }
        let list = LISTS.iter().find(|(name, key, _)| match method {
            Some(method) => method == *name,
            // By its shape: nothing else has such a list of things with names.
            None => result.get(key).is_some_and(|list| matches!(list.data, Data::List(_))),
        });
        Said::Edited(match list {
            Some((_, key, name)) => {
                // It may only look like a list.
                let judged = (judges && method.is_none())
                    .then(|| self.result(message, result, asked, bytes, policies));
                match judged {
                    Some(edits) if !edits.is_empty() => edits,
                    _ => self.list(result, key, name, method.is_some(), bytes, policies),
                }
            }
            None if judges => self.result(message, result, asked, bytes, policies),
            None => Vec::new(),
        })
    }

    /// The request that a response answers. An id that was not asked with here, in whatever spelling, is nobody's: what it
    /// brings is judged by every rule for results, so that no server answers one call where another one's rules are asked.
    fn asked_for(&self, message: &Node, bytes: &[u8]) -> Option<&Message> {
        let span = message.get("id")?.span.clone();
        let id = RawId::parse(std::str::from_utf8(bytes.get(span)?).ok()?)?;
        self.asked.iter().find(|asked| asked.id.as_ref() == Some(&id))
    }

    fn context(
        &self,
        policy: &Policy,
        kind: Kind,
        operation: &glob::Operation<'_>,
        phase: Phase,
        method: &str,
        now: Option<Timestamp>,
    ) -> Context {
        let at = now.unwrap_or(Timestamp::UNIX_EPOCH);
        let context = report::context(&self.placed, policy, &self.bound, kind, operation, phase, method, at);
        Context { timestamp: now, ..context }
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

/// A JSON text, as far as it is asked for: where no rule judges results, of a list only what its items are called.
fn read(bytes: &[u8], policies: &[Arc<Policy>]) -> Result<Node, Unreadable> {
    if policies.iter().any(|policy| policy.judges_results()) {
        return Node::parse(bytes, Numbers::Any);
    }
    // message, result, list, item, what is in it; and one more in a batch.
    let is_batch = bytes.trim_ascii_start().first() == Some(&b'[');
    Node::outline(bytes, Numbers::Any, 4 + usize::from(is_batch))
}

/// A piece of the bytes, with its edits.
fn spliced(bytes: &[u8], piece: Range<usize>, mut edits: Vec<Edit>) -> Vec<u8> {
    edits.sort_by_key(|(span, _)| span.start);
    let (mut out, mut at) = (Vec::with_capacity(piece.len()), piece.start);
    for (span, text) in edits {
        out.extend_from_slice(bytes.get(at..span.start).unwrap_or_default());
        out.extend_from_slice(text.as_bytes());
        at = span.end;
    }
    out.extend_from_slice(bytes.get(at..piece.end).unwrap_or_default());
    out
}
