//! The forms in which a secret might leave: as it is, percent-encoded, JSON-escaped, base64 at each offset, hex.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE},
};

/// All forms of a secret, each with its name.
#[must_use]
pub fn of(secret: &str) -> Vec<(String, Vec<u8>)> {
    let bytes = secret.as_bytes();
    let hex = |upper: bool| -> String {
        bytes.iter().map(|b| if upper { format!("{b:02X}") } else { format!("{b:02x}") }).collect()
    };
    let unicode: String = secret.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
    let all_percent: String = bytes.iter().map(|b| format!("%{b:02X}")).collect();
    let mut forms = vec![
        ("as it is".to_owned(), bytes.to_vec()),
        ("reversed".to_owned(), bytes.iter().rev().copied().collect()),
        ("percent".to_owned(), percent(secret).into_bytes()),
        ("all percent".to_owned(), all_percent.into_bytes()),
        (
            "JSON".to_owned(),
            serde_json::Value::from(secret).to_string().trim_matches('"').as_bytes().to_vec(),
        ),
        ("JSON escapes".to_owned(), unicode.into_bytes()),
        ("hex".to_owned(), hex(false).into_bytes()),
        ("HEX".to_owned(), hex(true).into_bytes()),
    ];
    for offset in 0..3 {
        forms.push((format!("base64 at {offset}"), base64_at(&STANDARD, bytes, offset)));
        forms.push((format!("base64url at {offset}"), base64_at(&URL_SAFE, bytes, offset)));
    }
    forms
}

/// The secret with what URLs reserve percent-encoded.
#[must_use]
pub fn percent(secret: &str) -> String {
    let encode = |b: u8| match b {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    secret.bytes().map(encode).collect()
}

/// The characters of a base64 text that depend on the secret alone when it starts `offset` bytes into a group.
fn base64_at(engine: &impl Engine, secret: &[u8], offset: usize) -> Vec<u8> {
    let padded: Vec<u8> = std::iter::repeat_n(0, offset).chain(secret.iter().copied()).collect();
    let text = engine.encode(&padded);
    let first = (offset * 8).div_ceil(6);
    let last = padded.len() * 8 / 6;
    text.as_bytes()[first..last].to_vec()
}

/// The forms that occur in `bytes`.
#[must_use]
pub fn found(forms: &[(String, Vec<u8>)], bytes: &[u8]) -> Vec<String> {
    let occurs = |needle: &[u8]| memchr::memmem::find(bytes, needle).is_some();
    forms.iter().filter(|(_, needle)| occurs(needle)).map(|(name, _)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_found_in_a_text_that_holds_it() {
        let secret = "s3cret/with+odd=chars 42";
        let forms = of(secret);
        let texts = [
            secret.to_owned(),
            percent(secret),
            STANDARD.encode(secret),
            STANDARD.encode(format!("x{secret}y")),
            URL_SAFE.encode(format!("xy{secret}")),
        ];
        for text in texts {
            assert!(!found(&forms, text.as_bytes()).is_empty(), "{text}");
        }
        assert_eq!(found(&forms, b"s3cret/with+odd=chars 4"), Vec::<String>::new());
    }
}
