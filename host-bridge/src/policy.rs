//! What an agent may do with a server: rules over its calls and results, in the format of Keep's rule files.
//!
//! ```text
//! moat.yaml: pack, file or inline ──form──► rule set ──compile──► policy ──┐
//!                                            │ stored with the run        ▼
//!                                            └─────────────────► bound ──► live ──► judge (engine)
//! ```
//!
//! The engine is pure: policy, call, time and counters in, judgement out. Bodies, events and answers are the pipeline's
//! ([`crate::pipeline`]), files and reloads are [`follow`]'s.

pub(crate) mod bound;
pub(crate) mod cel;
pub(crate) mod compile;
pub(crate) mod difference;
pub(crate) mod engine;
pub(crate) mod file;
pub(crate) mod follow;
pub(crate) mod form;
pub(crate) mod glob;
pub(crate) mod json;
pub(crate) mod model;
pub(crate) mod operation;
pub(crate) mod packs;
pub(crate) mod rate;
pub(crate) mod regexp;
pub(crate) mod secrets;
