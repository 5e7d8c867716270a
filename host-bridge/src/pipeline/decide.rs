//! Whether policy lets a request pass.
//!
//! No policy can be configured yet: a server with one is refused when moat.yaml is read, and runs.json has no place
//! for it. The stage stands here so that nothing can be made ready that did not pass it.

use super::{parse::Parsed, place::Placed};

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

/// Judges a request. Every server that is served has no policy, so every request passes.
pub(super) fn decide(parsed: Parsed) -> Decided {
    Decided(parsed)
}
