//! Remedies as data: an error says what is wrong, its hint says what to do.

use std::borrow::Cow;

/// An error that may know its remedy.
pub trait Hint: std::error::Error {
    /// One sentence, or a command, that helps. `None` when the text of the error says it all.
    fn hint(&self) -> Option<Cow<'_, str>> {
        None
    }
}
