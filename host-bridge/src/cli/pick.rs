//! The run that a verb's argument means; when it is not clear which, the candidates are shown.

use super::{Context, Failure, list, print};
use crate::run::{
    metadata::Record,
    select::{self, SelectError},
};

/// The one run that the argument means; the most recent without one.
pub(crate) fn one(context: &Context, argument: Option<&str>) -> Result<Record, Failure> {
    select::one(&context.home, argument).map_err(|error| failure(&error))
}

/// The failure for a selection that came to nothing; shows the candidates if there are several.
pub(crate) fn failure(error: &SelectError) -> Failure {
    if let SelectError::Several { runs, .. } = error {
        print::note(&list::table(runs, jiff::Timestamp::now()));
    }
    Failure::from_error(error)
}

/// Asks on the terminal. Anything but yes is no.
pub(crate) fn confirm(question: &str) -> bool {
    print::prompt(question);
    let mut answer = String::new();
    // No answer to be had is no.
    let read = std::io::stdin().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}
