//! Lists show what may be called (P35, P36): items are cut out of the bytes, everything else stays as it is.

use std::sync::Arc;

use super::{Edit, Reviewer};
use crate::{
    policy::{
        compile::Policy,
        engine::{Context, Kind, Phase},
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

    /// What hides things now, for each of [`LISTS`]: while it is the same, so are the lists. Of tools the names are known, of
    /// prompts and resources only the rules.
    pub(in crate::pipeline::back) fn hiding(&self) -> [Vec<String>; 3] {
        let Some(policies) = self.policies() else {
            return std::array::from_fn(|_| vec!["all".to_owned()]);
        };
        let enforcing = || policies.iter().filter(|policy| policy.enforces());
        let hidden = |tool: &String| {
            let operation = glob::Operation::new(tool);
            enforcing().any(|policy| {
                let context = self.context(policy, Kind::Tool, &operation, Phase::Request, "", None);
                policy.hides(Kind::Tool, &operation, &context).is_some()
            })
        };
        let sorted = |mut words: Vec<String>| {
            words.sort_unstable();
            words.dedup();
            words
        };
        let by_rules = |start| sorted(enforcing().flat_map(|policy| policy.hiding(start)).collect());
        let tools = self.bound.tools().into_iter().filter(hidden).collect();
        [sorted(tools), by_rules("prompts/get:"), by_rules("resources/read:")]
    }

    /// Of which lists the server announces changes, where it says so.
    pub(super) fn hear(&self, result: &Node) {
        let Some(capabilities) = result.get("capabilities") else { return };
        let announces =
            |key| capabilities.get(key).and_then(|of| of.get("listChanged")).is_some_and(Node::is_true);
        self.bound.announces(["tools", "prompts", "resources"].map(announces));
    }

    /// What the server says of a tool, for rules on it.
    fn learn(&self, tool: &str, item: &Node, bytes: &[u8]) {
        let annotations = item.get("annotations").map_or("{}", |annotations| {
            std::str::from_utf8(bytes.get(annotations.span.clone()).unwrap_or_default()).unwrap_or("{}")
        });
        self.bound.learn(tool, annotations);
    }
}
