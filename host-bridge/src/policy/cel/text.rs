//! Case, character by character, as Go maps it: the length in characters never changes.

use std::borrow::Cow;

/// Lower case. `İ` becomes `i`, and `Σ` is `σ` also at the end of a word.
pub(crate) fn lower(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return if text.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(text.to_ascii_lowercase())
        } else {
            Cow::Borrowed(text)
        };
    }
    let mapped: String = text.chars().map(|c| c.to_lowercase().next().unwrap_or(c)).collect();
    if mapped == text { Cow::Borrowed(text) } else { Cow::Owned(mapped) }
}

/// Upper case; what has no single counterpart (`ß`) stays.
pub(crate) fn upper(text: &str) -> String {
    let single = |c: char| {
        let mut mapped = c.to_uppercase();
        match (mapped.next(), mapped.next()) {
            (Some(only), None) => only,
            _ => c,
        }
    };
    text.chars().map(single).collect()
}
