//! No form of the secret gets through, wherever it stands and however the stream is cut; everything else does.

use super::*;
use proptest::prelude::*;
use test_case::test_case;

const STUB: &str = "moat-stub-mcp-x";

fn forms(token: &str) -> Arc<Forms> {
    Arc::new(Forms::new(&Secret::new(token.to_owned()), STUB).unwrap())
}

fn scrub(token: &str, chunks: &[&[u8]]) -> (String, u64) {
    let mut scrubber = Scrubber::new(forms(token));
    let mut out = Vec::new();
    for chunk in chunks {
        out.extend_from_slice(&scrubber.push(Bytes::copy_from_slice(chunk)));
    }
    out.extend_from_slice(&scrubber.finish());
    (String::from_utf8(out).unwrap(), scrubber.found())
}

const TOKEN: &str = "sk/live+4\"2<=tok en";

#[test_case(TOKEN; "plain")]
#[test_case("sk/live+4\\\"2<=tok en"; "json")]
#[test_case("sk\\/live+4\\\"2<=tok en"; "json with escaped slash")]
#[test_case("sk/live+4\\\\\\\"2<=tok en"; "json in json")]
#[test_case("sk/live\\u002b4\\\"2\\u003c\\u003dtok en"; "json safe in html")]
#[test_case("sk%2Flive%2B4%222%3C%3Dtok%20en"; "percent")]
#[test_case("sk%2flive%2b4%222%3c%3dtok%20en"; "percent, lower case")]
#[test_case("sk%2Flive%2B4%222%3C%3Dtok+en"; "form")]
#[test_case("736b2f6c6976652b3422323c3d746f6b20656e"; "hex")]
#[test_case("736B2F6C6976652B3422323C3D746F6B20656E"; "hex, upper case")]
#[test_case("SK/LIVE+4\"2<=TOK EN"; "upper case")]
fn every_form_is_replaced(form: &str) {
    let text = format!("before {form} after");
    assert_eq!(scrub(TOKEN, &[text.as_bytes()]), (format!("before {STUB} after"), 1));
}

#[test_case(u16::to_le_bytes; "little endian")]
#[test_case(u16::to_be_bytes; "big endian")]
fn utf_16_is_replaced(unit: fn(u16) -> [u8; 2]) {
    let text: Vec<u8> = TOKEN.encode_utf16().flat_map(unit).collect();
    let (left, right) = text.split_at(7);
    assert_eq!(scrub(TOKEN, &[left, right]), (STUB.to_owned(), 1));
}

#[test_case("Bearer abcdefghijklmnop", "abcdefghijklmnop"; "the bare token")]
#[test_case("Basic dXNlcjpwYXNzd29yZDE=", "user:password1"; "user and password")]
#[test_case("Basic dXNlcjpwYXNzd29yZDE=", "password1"; "the password alone")]
#[test_case("short", "short"; "a short one")]
fn what_is_secret_in_a_value(token: &str, echoed: &str) {
    assert_eq!(scrub(token, &[echoed.as_bytes()]), (STUB.to_owned(), 1));
}

#[test]
fn nothing_is_held_back_over_a_line_s_end() {
    let mut scrubber = Scrubber::new(forms(TOKEN));
    assert_eq!(scrubber.push(Bytes::from_static(b"data: sk/live\n\n")), "data: sk/live\n\n");
    assert_eq!(
        scrubber.push(Bytes::from_static(b"data: sk/li")),
        "data: ",
        "only the start of a form is held"
    );
}

#[test]
fn a_chunk_without_a_secret_is_not_copied() {
    let chunk = Bytes::from(vec![b'x'; 4096]);
    let out = Scrubber::new(forms(TOKEN)).push(chunk.clone());
    assert_eq!(out.as_ptr(), chunk.as_ptr());
}

/// Cuts a text at the given places.
fn cut<'a>(text: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|c| c % (text.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(text.len());
    let mut start = 0;
    cuts.into_iter()
        .map(|end| {
            let chunk = &text[start..end];
            start = end;
            chunk
        })
        .collect()
}

proptest! {
    #[test]
    fn in_any_chunks_and_places(
        token in "[!-~]{8,40}",
        before in "[#$ ]{0,9}",
        after in "[#$ ]{0,9}",
        form in 0usize..4,
        cuts in proptest::collection::vec(any::<usize>(), 0..6),
    ) {
        prop_assume!(!token.contains(['#', '$']));
        let echoed = match form {
            0 => token.clone(),
            1 => json(&token),
            2 => token.bytes().map(|b| format!("%{b:02X}")).collect(),
            _ => token.bytes().map(|b| format!("{b:02x}")).collect(),
        };
        let text = format!("{before}{echoed}{after}");
        let (out, found) = scrub(&token, &cut(text.as_bytes(), &cuts));
        prop_assert_eq!(out, format!("{before}{STUB}{after}"));
        prop_assert_eq!(found, 1);
    }

    #[test]
    fn base64_at_any_alignment(
        token in "[!-~]{8,40}",
        before in proptest::collection::vec(any::<u8>(), 0..8),
        after in proptest::collection::vec(any::<u8>(), 0..8),
        url_safe in any::<bool>(),
        cuts in proptest::collection::vec(any::<usize>(), 0..6),
    ) {
        let mut bytes = before.clone();
        bytes.extend_from_slice(token.as_bytes());
        bytes.extend_from_slice(&after);
        let text = if url_safe { URL_SAFE_NO_PAD.encode(&bytes) } else { STANDARD.encode(&bytes) };
        let (out, _) = scrub(&token, &cut(text.as_bytes(), &cuts));
        prop_assert!(out.contains(STUB), "{} in {}", out, text);
        // At most the bytes at the secret's two ends, which share a character with a neighbour, are left.
        prop_assert!(out.len() <= text.len() - (token.len() - 2) * 8 / 6 + STUB.len() + 1, "{} {}", out, text);
    }

    #[test]
    fn what_is_no_secret_passes_as_it_is(
        text in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'\n'), any::<u8>()], 0..200),
        cuts in proptest::collection::vec(any::<usize>(), 0..6),
    ) {
        let forms = forms("aaaaabbbbbaaaaabbbbb!");
        prop_assume!(!forms.automaton.is_match(&text));
        let mut scrubber = Scrubber::new(forms);
        let mut out = Vec::new();
        for chunk in cut(&text, &cuts) {
            out.extend_from_slice(&scrubber.push(Bytes::copy_from_slice(chunk)));
        }
        out.extend_from_slice(&scrubber.finish());
        prop_assert_eq!(out, text);
    }
}
