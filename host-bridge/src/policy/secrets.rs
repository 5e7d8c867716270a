//! Finds credentials in texts by their published forms, for `hasSecrets` and for redaction.
//!
//! ```text
//! text ──► any keyword in it? (one pass for all) ──► those patterns ──► entropy, no placeholder ──► findings
//! ```
//!
//! Findings are ordered: the longest first, then in the order of the table (P23). Nothing in a text turns this off (P22). The
//! run's own credentials are not its business: those are known exactly, and taken out of every answer anyway.

mod table;

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use regex::{Regex, RegexBuilder};

use self::table::{Form, TABLE};

/// A secret that was found: which kind, and the whole of what is to be hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) id: &'static str,
    pub(crate) text: String,
}

struct Scanner {
    keywords: AhoCorasick,
    /// Which form each keyword belongs to.
    owners: Vec<usize>,
    forms: Vec<(&'static Form, Regex)>,
}

static SCANNER: LazyLock<Option<Scanner>> = LazyLock::new(Scanner::new);

impl Scanner {
    fn new() -> Option<Self> {
        let (mut keywords, mut owners, mut forms) = (Vec::new(), Vec::new(), Vec::new());
        for (index, form) in TABLE.iter().enumerate() {
            let regex = RegexBuilder::new(form.pattern).unicode(false).size_limit(8 << 20).build().ok()?;
            forms.push((form, regex));
            for keyword in form.keywords {
                keywords.push(*keyword);
                owners.push(index);
            }
        }
        let keywords = AhoCorasick::builder().ascii_case_insensitive(true).build(&keywords).ok()?;
        Some(Self { keywords, owners, forms })
    }

    fn each(&self, text: &str, mut found: impl FnMut(&'static Form, &str) -> bool) {
        let mut candidates = [false; TABLE.len()];
        for keyword in self.keywords.find_overlapping_iter(text) {
            candidates[self.owners[keyword.pattern().as_usize()]] = true;
        }
        for ((form, regex), _) in self.forms.iter().zip(candidates).filter(|(_, candidate)| *candidate) {
            for captures in regex.captures_iter(text) {
                let whole = captures.get(0).map_or("", |whole| whole.as_str());
                let secret = captures.name("secret").map_or(whole, |secret| secret.as_str());
                if form.entropy.is_some_and(|bound| entropy(secret) <= bound) || is_placeholder(secret) {
                    continue;
                }
                if found(form, whole) {
                    return;
                }
            }
        }
    }
}

/// Is there a secret in a text? If the table cannot be used, there may be.
pub(crate) fn has(text: &str) -> bool {
    let Some(scanner) = &*SCANNER else { return true };
    let mut any = false;
    scanner.each(text, |_, _| {
        any = true;
        true
    });
    any
}

/// More different secrets than a person has in one text: somebody wants the search to be long.
const MOST: usize = 64;

/// Every secret of a text, longest first. `Err`: the table cannot be used, or there are more than [`MOST`].
pub(crate) fn find(text: &str) -> Result<Vec<Finding>, ()> {
    let scanner = SCANNER.as_ref().ok_or(())?;
    let mut findings: Vec<Finding> = Vec::new();
    scanner.each(text, |form, whole| {
        if !findings.iter().any(|known| known.text == whole) {
            findings.push(Finding { id: form.id, text: whole.to_owned() });
        }
        findings.len() > MOST
    });
    if findings.len() > MOST {
        return Err(());
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.text.len()));
    Ok(findings)
}

/// A text without its secrets: `[REDACTED:<id>]` in their places.
pub(crate) fn redacted(text: &str) -> String {
    let Ok(findings) = find(text) else { return "[REDACTED]".to_owned() };
    let mut text = text.to_owned();
    for finding in findings {
        text = text.replace(&finding.text, &format!("[REDACTED:{}]", finding.id));
    }
    text
}

/// Shannon's, in bits per byte.
fn entropy(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        counts[usize::from(byte)] += 1;
    }
    #[expect(clippy::cast_precision_loss, reason = "lengths of tokens")]
    let length = text.len() as f64;
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| {
            let share = f64::from(*count) / length;
            -share * share.log2()
        })
        .sum()
}

/// What documentation writes where a secret belongs.
fn is_placeholder(secret: &str) -> bool {
    let upper = secret.to_ascii_uppercase();
    upper.ends_with("EXAMPLE") || secret.chars().all(|c| matches!(c, 'x' | 'X' | '*' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test]
    fn every_form_compiles_and_finds_its_sample() {
        let scanner = SCANNER.as_ref().unwrap();
        assert_eq!(scanner.forms.len(), TABLE.len());
        for (index, form) in TABLE.iter().enumerate() {
            let text = format!("before {} after", form.sample.concat());
            let found = find(&text).unwrap();
            assert!(found.iter().any(|finding| finding.id == form.id), "{}: {found:?}", form.id);
            assert!(TABLE[..index].iter().all(|other| other.id != form.id), "{} twice", form.id);
        }
    }

    #[test_case("AKIAIOSFODNN7EXAMPLE" => false; "documentation's own key")]
    #[test_case("key = xxxxxxxxxxxxxxxxxxxxxxxx" => false; "placeholder")]
    #[test_case("the weather is fine, and the ghost of a token is not one" => false; "prose")]
    fn not_secrets(text: &str) -> bool {
        has(text)
    }

    #[test]
    fn a_text_of_nothing_but_secrets_is_not_searched_for_ever() {
        let many: String = (b'A'..=b'Z')
            .flat_map(|a| {
                (b'A'..=b'Z').map(move |b| format!("AKIAQ7XMPLTZ{}{}KDJHWE ", a as char, b as char))
            })
            .collect();
        assert!(find(&many).is_err());
        assert_eq!(redacted(&many), "[REDACTED]");
    }

    #[test]
    fn p22_no_text_turns_it_off() {
        let token = ["ghp_", "a8Kx0QmZ3vT7nB2cR5yW9eL1uS4dF6gH0jPq"].concat();
        assert!(has(&format!("gitleaks:allow {token}")));
    }

    #[test]
    fn p23_the_longest_is_replaced_first_and_everywhere() {
        let token = ["ghp_", "a8Kx0QmZ3vT7nB2cR5yW9eL1uS4dF6gH0jPq"].concat();
        let text = redacted(&format!("{token}, again {token}!"));
        assert_eq!(text, "[REDACTED:github-pat], again [REDACTED:github-pat]!");
    }
}
