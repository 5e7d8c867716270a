//! Lists show what may be called (P35, P36): items are cut out of the bytes, everything else stays as it is.

use std::sync::Arc;

use super::{Edit, Reviewer};
use crate::{
    policy::{
        compile::Policy,
        engine::{Context, Phase},
        glob,
        json::Node,
        operation::of_item,
    },
    record::AuditEvent,
};

impl Reviewer {
    /// Cuts out of a list what could never be called.
    pub(super) fn list(
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
        let mut contexts: Vec<Option<Context>> = vec![None; policies.len()];
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
}
