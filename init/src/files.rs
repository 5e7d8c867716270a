//! files
pub(crate) mod json;
