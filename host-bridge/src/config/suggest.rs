//! Did you mean ...?

/// The known word that a misspelt one is nearest to, if any is near.
pub(crate) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    // Bounded: the word is somebody's input.
    let word: String = word.to_ascii_lowercase().chars().take(64).collect();
    known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), *candidate))
        .filter(|(distance, candidate)| {
            let cut_short = word.len() >= 3 && candidate.starts_with(&word);
            cut_short || *distance <= 1 + candidate.len() / 4
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("polcy" => Some("policy"))]
    #[test_case("URL" => Some("url"); "case")]
    #[test_case("pol" => Some("policy"); "cut short")]
    #[test_case("nmae" => Some("name"); "swapped")]
    #[test_case("authorization" => None; "far")]
    #[test_case("" => None; "empty")]
    fn suggestions(word: &str) -> Option<&'static str> {
        nearest(word, &["name", "url", "auth", "policy"])
    }
}
