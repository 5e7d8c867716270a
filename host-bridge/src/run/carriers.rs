//! Which carrier a run takes, and which one after it. Pure.
//!
//! ```text
//! the first ──no tunnel in time──► the next ──no tunnel in time──► none is left: one error that names each
//! ```
//!
//! One that the user chose has no next. What worked is not remembered: a trouble that passes would keep a run from the
//! better carrier for good, and the line that a start prints says how to take the other at once.

use std::collections::VecDeque;

use moat_shared::exit;

use crate::{
    cli::{Failure, text::visible},
    runtime::{Carriers, TunnelKind},
};

/// The carriers of one run: which one it is now, and what became of those before.
#[derive(Debug)]
pub(super) struct Trials {
    now: Option<TunnelKind>,
    left: VecDeque<TunnelKind>,
    /// All that there are for it.
    known: Vec<TunnelKind>,
    failed: Vec<(TunnelKind, String)>,
}

impl Trials {
    pub(super) fn new(chosen: Option<TunnelKind>, carriers: Carriers) -> Self {
        let Carriers { by_themselves, when_asked_for } = carriers;
        let mut left = VecDeque::from(if chosen.is_none() { by_themselves.clone() } else { Vec::new() });
        let now = chosen.or_else(|| left.pop_front());
        Self { now, left, known: [by_themselves, when_asked_for].concat(), failed: Vec::new() }
    }

    /// The one to take; `None` where there is nothing to choose.
    pub(super) const fn now(&self) -> Option<TunnelKind> {
        self.now
    }

    pub(super) fn has_next(&self) -> bool {
        !self.left.is_empty()
    }

    /// The one that was taken did not come up. What to tell before the next is, or that there is none.
    pub(super) fn failed(&mut self, why: String) -> Result<String, Failure> {
        let Some(failed) = self.now else { return Err(without(&why)) };
        self.now = self.left.pop_front();
        let next = self.now.map(|next| {
            let (failed, next) = (failed.name(), next.name());
            format!(
                "Warning: the tunnel '{failed}' did not come up ({why}); trying '{next}' (--tunnel {next} takes it at once)"
            )
        });
        self.failed.push((failed, why));
        next.ok_or_else(|| self.failure())
    }

    /// An error of another kind, after others have been tried in vain.
    pub(super) fn amend(&self, failure: Failure) -> Failure {
        if self.failed.is_empty() {
            return failure;
        }
        let text = format!("{}\nbefore that no tunnel came up{}", failure.text, self.told());
        Failure { text, ..failure }
    }

    fn failure(&self) -> Failure {
        let mut failure = match self.failed.as_slice() {
            [(one, why)] => without(&format!("the tunnel '{}' did not come up: {why}", one.name())),
            _ => without(&format!("no tunnel came up{}", self.told())),
        };
        let tried = |kind: &&TunnelKind| self.failed.iter().any(|(failed, _)| failed == *kind);
        let others = self.known.iter().filter(|kind| !tried(kind));
        let others = others.map(|kind| format!("--tunnel {}", kind.name())).collect::<Vec<_>>();
        if !others.is_empty() {
            failure.hint = Some(format!("another carrier may do: {}", others.join(", or ")));
        }
        failure
    }

    fn told(&self) -> String {
        self.failed.iter().map(|(kind, why)| format!("\n  {}: {why}", kind.name())).collect()
    }
}

fn without(text: &str) -> Failure {
    let failure = Failure::new(format!("nothing was started: {text}"));
    let hint = "'moat doctor' looks at bridge and engine; proxy/daemon.log in moat's directory has the bridge's side";
    Failure { code: exit::NO_TUNNEL, ..failure }.with_hint(hint)
}

/// What is wrong, from all that a sandbox said before its end: the relay's word, else that of PID 1.
pub(super) fn reason(said: &str) -> String {
    let after = |words: &str| said.lines().rev().find_map(|line| line.split_once(words)).map(|(_, why)| why);
    let why = after("the tunnel is down: ").or_else(|| after("cannot reach the bridge: "));
    let why = why.map(|why| why.split("; ").next().unwrap_or(why)).or_else(|| said.lines().next_back());
    let why = why.map(str::trim).filter(|why| !why.is_empty());
    visible(why.unwrap_or("the sandbox does not say why")).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use TunnelKind::{Gateway, Published, Unix};
    use test_case::test_case;

    fn carriers() -> Carriers {
        Carriers { by_themselves: vec![Unix, Published], when_asked_for: vec![Gateway] }
    }

    #[test]
    fn each_has_its_turn_and_the_error_names_all() {
        let mut trials = Trials::new(None, carriers());
        assert_eq!((trials.now(), trials.has_next()), (Some(Unix), true));
        let note = trials.failed("no socket".into()).unwrap();
        assert!(note.contains("'unix' did not come up (no socket); trying 'published'"), "{note}");
        assert!(!note.contains('\n'), "{note}");
        assert_eq!((trials.now(), trials.has_next()), (Some(Published), false));
        let other = trials.amend(Failure::new("no such image").with_hint("name one"));
        assert!(
            other.text.starts_with("no such image\n") && other.text.contains("unix: no socket"),
            "{other}"
        );
        assert_eq!((other.code, other.hint.as_deref()), (exit::FAILURE, Some("name one")));
        let failure = trials.failed("nobody dialled".into()).unwrap_err();
        assert_eq!(
            failure.text,
            "nothing was started: no tunnel came up\n  unix: no socket\n  published: nobody dialled"
        );
        assert_eq!(failure.code, exit::NO_TUNNEL);
        assert_eq!(failure.hint.as_deref(), Some("another carrier may do: --tunnel gateway"));
    }

    #[test]
    fn one_that_was_chosen_has_no_next() {
        let mut trials = Trials::new(Some(Unix), carriers());
        assert_eq!((trials.now(), trials.has_next()), (Some(Unix), false));
        let failure = trials.failed("no socket".into()).unwrap_err();
        assert_eq!(failure.text, "nothing was started: the tunnel 'unix' did not come up: no socket");
        let hint = failure.hint.unwrap();
        assert_eq!(hint, "another carrier may do: --tunnel published, or --tunnel gateway");
    }

    #[test]
    fn where_there_is_nothing_to_choose() {
        let mut trials = Trials::new(None, Carriers::default());
        assert_eq!((trials.now(), trials.has_next()), (None, false));
        assert!(trials.failed("no socket".into()).unwrap_err().hint.unwrap().contains("moat doctor"));
        assert_eq!(trials.amend(Failure::new("x")).text, "x");
    }

    #[test_case("moat-sidecar: the tunnel is down: refused; is the bridge running?\nmoat: cannot reach the bridge: no answer within 15 seconds; nothing was started\n" => "refused"; "the relay's word")]
    #[test_case("moat: cannot reach the bridge: version 9 is needed; nothing was started\r\n" => "version 9 is needed"; "that of PID 1")]
    #[test_case("something else\n" => "something else"; "some word")]
    #[test_case("" => "the sandbox does not say why"; "none")]
    #[test_case("the tunnel is down: \u{1b}[2J" => "\\u{1b}[2J"; "nothing that moves the cursor")]
    fn reasons(said: &str) -> String {
        reason(said)
    }
}
