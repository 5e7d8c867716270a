//! Sandboxes: what starts them, attaches to them and ends them.

pub(crate) mod embed;
