//! Runs: what is known of them on disk, and how they are started, attached and stopped.

pub(crate) mod metadata;
pub(crate) mod preflight;
pub(crate) mod select;
