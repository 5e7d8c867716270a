//! Edits JSON as text: the user's bytes outside our entries stay as they are, comments and blanks included.
//!
//! [`parse`] finds where things are, [`edit`] splices. Removing what was inserted gives back the text from before,
//! byte for byte; a property test holds that.

pub(crate) mod edit;
pub(crate) mod parse;
