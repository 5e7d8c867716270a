//! A policy as it belongs to a server of a run: where it came from, its whole text, and what became of it since.
//!
//! The text is a rule set in JSON, complete: a restart of the bridge compiles it and never looks at the workspace (P43).
//! Text that cannot be compiled, or is not what its hash says, closes the server.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    compile::Policy,
    model::RuleSet,
    rate::{Counters, Store},
};

/// Where a policy came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Source {
    Pack {
        name: String,
    },
    /// On the host; `shown` is how moat.yaml names it.
    File {
        path: PathBuf,
        shown: String,
    },
    Inline,
}

impl Source {
    /// For people.
    pub(crate) fn shown(&self) -> &str {
        match self {
            Self::Pack { name } => name,
            Self::File { shown, .. } => shown,
            Self::Inline => "inline rules",
        }
    }

    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::File { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// A server's policy. Clones share what became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bound {
    pub(crate) source: Source,
    /// Of the rule set.
    pub(crate) sha256: String,
    /// The rule set in JSON.
    text: String,
    #[serde(skip)]
    live: Arc<Live>,
}

impl PartialEq for Bound {
    fn eq(&self, other: &Self) -> bool {
        (&self.source, &self.sha256, &self.text) == (&other.source, &other.sha256, &other.text)
    }
}
impl Eq for Bound {}

/// What is judged by now.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// What the person at the host accepted; or why nothing of this server may pass.
    pub(crate) accepted: Result<Arc<Policy>, String>,
    /// What the file says since: judged as well, so that it can only be stricter (P41).
    pub(crate) pending: Option<Arc<Policy>>,
    /// Why the file as it is now is not used.
    pub(crate) broken: Option<String>,
}

impl State {
    /// The policies that a call must pass. `Err`: nothing may pass.
    pub(crate) fn policies(&self) -> Result<impl Iterator<Item = &Arc<Policy>>, &str> {
        let accepted = self.accepted.as_ref().map_err(String::as_str)?;
        Ok(std::iter::once(accepted).chain(&self.pending))
    }
}

/// What became of a policy while its run lives.
#[derive(Debug, Default)]
struct Live {
    state: Mutex<Option<Arc<State>>>,
    counters: Counters,
    tools: Mutex<Tools>,
    /// How often the state was changed.
    changes: watch::Sender<u64>,
}

/// What the server said of its tools.
#[derive(Debug, Default)]
struct Tools {
    annotations: HashMap<String, String>,
    /// Of which lists it announces changes: in the order of [`super::operation::LISTS`].
    announced: [bool; 3],
    changed: bool,
}

/// Tools whose annotations are kept, and the bytes of each one's name and annotations.
const TOOLS: usize = 10_000;
const NAME: usize = 1024;
const ANNOTATIONS: usize = 4096;

/// What must survive a restart of the bridge, so that it refills no budget and forgets no tool.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) rates: Store,
    pub(crate) tools: HashMap<String, String>,
    #[serde(default)]
    pub(crate) announced: [bool; 3],
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bound {
    pub(crate) fn new(source: Source, set: &RuleSet) -> Self {
        let text = serde_json::to_string(set).unwrap_or_default();
        Self { source, sha256: set.hash(), text, live: Arc::default() }
    }

    /// The rule set, if the text is what its hash says.
    pub(crate) fn rule_set(&self) -> Result<RuleSet, String> {
        let set: RuleSet = serde_json::from_str(&self.text)
            .map_err(|error| format!("the stored policy cannot be read: {error}"))?;
        if set.hash() == self.sha256 {
            Ok(set)
        } else {
            Err("the stored policy is not what its hash says".to_owned())
        }
    }

    fn compiled(&self) -> Result<Arc<Policy>, String> {
        Policy::compile(self.rule_set()?).map(Arc::new).map_err(|problems| {
            let first = problems.first().map_or("", |problem| problem.text.as_str());
            format!("the stored policy does not compile: {}", first.lines().next().unwrap_or_default())
        })
    }

    /// What is judged by now.
    pub(crate) fn state(&self) -> Arc<State> {
        let mut state = locked(&self.live.state);
        Arc::clone(state.get_or_insert_with(|| {
            Arc::new(State { accepted: self.compiled(), pending: None, broken: None })
        }))
    }

    /// What the file says now: judged beside what was accepted, from the next call on.
    pub(crate) fn suggest(&self, policy: Option<Arc<Policy>>, broken: Option<String>) {
        let mut state = locked(&self.live.state);
        let accepted = state.as_ref().map_or_else(|| self.compiled(), |state| state.accepted.clone());
        *state = Some(Arc::new(State { accepted, pending: policy, broken }));
        self.tell();
    }

    /// Nothing of this server passes any more, until somebody accepts its policy anew.
    pub(crate) fn close(&self, reason: String) {
        *locked(&self.live.state) =
            Some(Arc::new(State { accepted: Err(reason), pending: None, broken: None }));
        self.tell();
    }

    /// The same server's policy with what the file says, once somebody accepted it. It takes effect with
    /// [`Self::take_effect`].
    pub(crate) fn with(&self, policy: &Policy) -> Self {
        let text = serde_json::to_string(&policy.set).unwrap_or_default();
        Self { source: self.source.clone(), sha256: policy.hash.clone(), text, live: Arc::clone(&self.live) }
    }

    /// This is what is accepted, for all who share it.
    pub(crate) fn take_effect(&self) {
        let accepted = self.compiled();
        let mut state = locked(&self.live.state);
        // What the file said since then is still judged beside it.
        let is_new = |policy: &Arc<Policy>| !accepted.as_ref().is_ok_and(|now| now.hash == policy.hash);
        let pending = state.as_ref().and_then(|state| state.pending.clone()).filter(is_new);
        *state = Some(Arc::new(State { accepted, pending, broken: None }));
        self.tell();
    }

    fn tell(&self) {
        self.live.changes.send_modify(|times| *times += 1);
    }

    /// Wakes whoever waits each time that another state is in force.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.live.changes.subscribe()
    }

    /// Of these lists the server announces changes.
    pub(crate) fn announces(&self, lists: [bool; 3]) {
        let mut tools = locked(&self.live.tools);
        tools.changed |= tools.announced != lists;
        tools.announced = lists;
    }

    pub(crate) fn announced(&self) -> [bool; 3] {
        locked(&self.live.tools).announced
    }

    /// The names of all tools that the server listed.
    pub(crate) fn tools(&self) -> Vec<String> {
        locked(&self.live.tools).annotations.keys().cloned().collect()
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.live.counters
    }

    /// The server said this of a tool.
    pub(crate) fn learn(&self, tool: &str, annotations: &str) {
        let mut tools = locked(&self.live.tools);
        let known = tools.annotations.get(tool);
        let too_much = tool.len() > NAME
            || annotations.len() > ANNOTATIONS
            || (known.is_none() && tools.annotations.len() >= TOOLS);
        if too_much {
            // Not known is not trusted.
            tools.changed |= tools.annotations.remove(tool).is_some();
        } else if known.is_none_or(|known| **known != *annotations) {
            tools.annotations.insert(tool.to_owned(), annotations.to_owned());
            tools.changed = true;
        }
    }

    /// What the server said of a tool last.
    pub(crate) fn annotations(&self, tool: &str) -> Option<String> {
        locked(&self.live.tools).annotations.get(tool).cloned()
    }

    /// What is to be written down, if something changed.
    pub(crate) fn memory(&self) -> Option<Memory> {
        let rates = self.live.counters.changed();
        let mut tools = locked(&self.live.tools);
        if rates.is_none() && !std::mem::take(&mut tools.changed) {
            return None;
        }
        tools.changed = false;
        let rates = rates.unwrap_or_else(|| self.live.counters.snapshot());
        Some(Memory { rates, tools: tools.annotations.clone(), announced: tools.announced })
    }

    /// What [`Self::memory`] gave could not be written down: it is asked for again.
    pub(crate) fn not_written(&self) {
        locked(&self.live.tools).changed = true;
    }

    /// Takes back what was written down.
    pub(crate) fn remember(&self, memory: Memory) {
        self.live.counters.restore(memory.rates);
        let mut tools = locked(&self.live.tools);
        (tools.annotations, tools.announced) = (memory.tools, memory.announced);
    }
}
