//! Errors with their causes.

use std::{error::Error, iter::successors};

/// An error and everything that it says of its cause.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |error| <dyn Error>::source(*error))
}

/// All of it on one line; a cause that its error has already told is not told again.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).map(ToString::to_string).fold(String::new(), |mut text, next| {
        if text.is_empty() {
            return next;
        }
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    #[error("outside")]
    struct Outside(#[source] io::Error);

    #[test]
    fn one_line() {
        assert_eq!(chain(&Outside(io::Error::other("inside"))), "outside: inside");
        assert_eq!(chain(&io::Error::other("alone")), "alone");
    }
}
