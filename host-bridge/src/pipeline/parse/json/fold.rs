//! What two spellings of a key have in common for the laxest of readers.
//!
//! Go decodes into structures by Unicode's simple folding, so `ſ` (U+017F) is an `s` and the Kelvin sign a `k`; Java's
//! `equalsIgnoreCase` takes the two Turkish letters for an `i`; what is written in C ends a text at its first NUL.

/// The characters that count.
fn folded(key: &str) -> impl Iterator<Item = char> {
    key.chars().take_while(|c| *c != '\0').map(fold)
}

/// Does the key count as one of these names of ours, which are plain ASCII, without being it? For most keys the answer
/// is had without folding.
pub(in crate::pipeline::parse) fn is_variant(key: &str, names: &[&str]) -> bool {
    if key.is_ascii() && !key.contains('\0') {
        return names.iter().any(|name| *name != key && key.eq_ignore_ascii_case(name));
    }
    names.iter().any(|name| folded(key).eq(folded(name)))
}

/// The characters that count, in the place of what is in `out`.
pub(super) fn fold_into(key: &str, out: &mut String) {
    out.clear();
    if key.is_ascii() {
        out.push_str(key.split('\0').next().unwrap_or_default());
        out.make_ascii_lowercase();
    } else {
        out.extend(folded(key));
    }
}

fn fold(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_lowercase();
    }
    if c == '\u{130}' {
        return 'i';
    }
    let one = |mut chars: std::char::ToUppercase| chars.next().filter(|_| chars.next().is_none());
    let upper = one(c.to_uppercase()).unwrap_or(c);
    let mut lower = upper.to_lowercase();
    lower.next().filter(|_| lower.next().is_none()).unwrap_or(upper)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("method", "METHOD" => true; "ascii")]
    #[test_case("params", "param\u{17f}" => true; "long s")]
    #[test_case("taskId", "tas\u{212a}\u{131}d" => true; "kelvin and dotless i")]
    #[test_case("id", "\u{130}d" => true; "dotted capital i")]
    #[test_case("method", "method\0x" => true; "nul")]
    #[test_case("\u{e4}", "\u{c4}" => true; "umlaut")]
    #[test_case("\u{3c2}", "\u{3c3}" => true; "final sigma")]
    #[test_case("ss", "\u{df}" => false; "sharp s")]
    #[test_case("method", "m\u{435}thod" => false; "a Cyrillic letter is another one to everybody")]
    fn the_same(a: &str, b: &str) -> bool {
        let same = folded(a).eq(folded(b));
        assert!(!a.is_ascii() || is_variant(b, &[a]) == same, "the short way is another one");
        let [mut one, mut other] = [String::new(), "x".to_owned()];
        fold_into(a, &mut one);
        fold_into(b, &mut other);
        assert_eq!(one == other, same, "the short way is another one");
        same
    }
}
