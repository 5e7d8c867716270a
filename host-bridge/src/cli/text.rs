//! Text from a sandbox on its way to a terminal. A sandbox is hostile: its bytes must not move the cursor, retitle the
//! window, or answer the shell.

use std::{borrow::Cow, iter::Peekable, str::Chars};

/// One line in which every control character is visible as `\u{..}`.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_control) {
        text.chars()
            .map(|c| if is_control(c) { c.escape_unicode().to_string() } else { c.to_string() })
            .collect()
    } else {
        Cow::Borrowed(text)
    }
}

/// A program's output without control characters but tabs and, where `colour` is wanted, SGR sequences (colours and
/// weights), which are switched off again at its end.
pub(crate) fn harmless(text: &str, colour: bool) -> Cow<'_, str> {
    if !text.chars().any(is_control) {
        return Cow::Borrowed(text);
    }
    let mut kept = String::with_capacity(text.len());
    let mut coloured = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if let Some(sequence) = escape_sequence(&mut chars).filter(|_| colour) {
                    kept.push_str(&sequence);
                    coloured = true;
                }
            }
            c if is_control(c) => {}
            c => kept.push(c),
        }
    }
    if coloured {
        kept.push_str("\u{1b}[0m");
    }
    Cow::Owned(kept)
}

fn is_control(c: char) -> bool {
    c.is_control() && c != '\t'
}

/// Takes what belongs to an escape. Returns it whole if it is an SGR sequence: `ESC [ digits ; : m`.
fn escape_sequence(chars: &mut Peekable<Chars<'_>>) -> Option<String> {
    match chars.peek()? {
        '[' => {
            let mut sequence = String::from("\u{1b}");
            sequence.extend(chars.next());
            // ECMA-48: parameter and intermediate bytes, then one final byte.
            while let Some(c) = chars.next_if(|c| matches!(c, ' '..='?')) {
                sequence.push(c);
            }
            let last = chars.next_if(|c| matches!(c, '@'..='~'))?;
            sequence.push(last);
            let parameters = &sequence[2..sequence.len() - 1];
            let is_sgr = last == 'm' && parameters.chars().all(|c| matches!(c, '0'..=';'));
            is_sgr.then_some(sequence)
        }
        // A string (title, link, ...), up to BEL or ESC \.
        ']' | 'P' | '^' | '_' | 'X' => {
            while let Some(c) = chars.next_if(|c| !matches!(c, '\u{7}' | '\u{1b}')) {
                let _dropped: char = c;
            }
            if chars.next_if_eq(&'\u{1b}').is_some() {
                let _end: Option<char> = chars.next_if_eq(&'\\');
            }
            None
        }
        _ => {
            let _dropped: Option<char> = chars.next_if(|c| matches!(c, ' '..='~'));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_case::test_case;

    #[test_case("plain ü\ttab" => "plain ü\ttab")]
    #[test_case("a\u{1b}[31mred" => "a\u{1b}[31mred\u{1b}[0m"; "colour, switched off")]
    #[test_case("a\u{1b}[38;2;1;2;3mx" => "a\u{1b}[38;2;1;2;3mx\u{1b}[0m"; "true colour")]
    #[test_case("a\u{1b}[2Jb" => "ab"; "clear the screen")]
    #[test_case("a\u{1b}[?1049hb" => "ab"; "other screen")]
    #[test_case("a\u{1b}]0;title\u{7}b" => "ab"; "title ended by BEL")]
    #[test_case("a\u{1b}]8;;http://x\u{1b}\\b" => "ab"; "link ended by ST")]
    #[test_case("a\rb\u{8}c\u{9b}31m" => "abc31m"; "C0 and C1")]
    #[test_case("a\u{1b}" => "a"; "cut")]
    #[test_case("a\u{1b}[31" => "a"; "cut inside")]
    fn output(text: &str) -> String {
        harmless(text, true).into_owned()
    }

    #[test]
    fn without_colour_nothing_stays() {
        assert_eq!(harmless("\u{1b}[1mbold\u{1b}[0m", false), "bold");
    }

    #[test]
    fn control_characters_become_visible() {
        assert_eq!(visible("a\u{1b}[2J\nb"), "a\\u{1b}[2J\\u{a}b");
    }

    proptest! {
        #[test]
        fn no_control_survives(text in "[\u{1b}\\[\\]a-z0-9;?m\u{7}\\\\\r\u{9b}]{0,40}") {
            prop_assert!(!harmless(&text, false).chars().any(is_control));
            prop_assert!(!visible(&text).chars().any(is_control));
            // With colours, each escape that is left starts an SGR sequence.
            let kept = harmless(&text, true);
            for sequence in kept.split('\u{1b}').skip(1) {
                let parameters = sequence.strip_prefix('[').and_then(|s| s.split_once('m')).map(|(p, _)| p);
                prop_assert!(parameters.is_some_and(|p| p.chars().all(|c| matches!(c, '0'..=';'))), "{:?}", kept);
            }
        }
    }
}
