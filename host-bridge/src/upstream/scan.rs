//! The credential on its way back: whatever an upstream echoes, the container gets the stub instead.
//!
//! ```text
//! chunk ──► tail of the last one + chunk ──► every form of the secret replaced ──► all but what may be the start of
//!                                                                                  a form that the next chunk ends
//! ```
//!
//! Forms: plain, in upper and lower case, JSON-escaped once and twice, `\u` escaped, percent-encoded, hexadecimal,
//! base64 (both alphabets, every alignment), UTF-16. A secret shorter than [`SHORT`] bytes is looked for in plain and JSON form
//! only: its other forms are too short to mean anything. An upstream that *wants* to leak has other ways, such as one
//! character per answer; this is for those that echo.
//!
//! No form contains a line break, so nothing is ever held back across the end of an event.

use std::{collections::BTreeSet, sync::Arc};

use aho_corasick::{AhoCorasick, MatchKind};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use bytes::{Bytes, BytesMut};
use moat_shared::secret::Secret;

/// A secret shorter than this is hardly one.
const SHORT: usize = 8;

/// All forms of one credential, and what stands for it.
pub(crate) struct Forms {
    automaton: AhoCorasick,
    patterns: Vec<Vec<u8>>,
    /// What a form can start with.
    first: [bool; 256],
    longest: usize,
    stub: Bytes,
}

impl std::fmt::Debug for Forms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forms").field("patterns", &self.patterns.len()).finish_non_exhaustive()
    }
}

/// The forms make no automaton: too many or too long.
#[derive(Debug, thiserror::Error)]
#[error("the credential cannot be looked for")]
pub(crate) struct NoForms;

impl Forms {
    /// The forms of a stored credential: of its bare part where it starts with a scheme, as in `Basic dXNlcjpwdw==`.
    #[cfg(test)]
    pub(crate) fn new(token: &Secret<String>, stub: &str) -> Result<Self, NoForms> {
        Self::of_all(&[token], stub)
    }

    /// The forms of all that belongs to a grant: its credential, what renews it, what it was before.
    pub(crate) fn of_all(tokens: &[&Secret<String>], stub: &str) -> Result<Self, NoForms> {
        let mut patterns = BTreeSet::new();
        for secret in tokens.iter().flat_map(|token| secrets_in(token.expose())) {
            add_forms(&secret, &mut patterns);
        }
        let patterns: Vec<Vec<u8>> = patterns.into_iter().filter(|pattern| !pattern.is_empty()).collect();
        let mut first = [false; 256];
        for pattern in &patterns {
            first[usize::from(pattern[0])] = true;
        }
        let longest = patterns.iter().map(Vec::len).max().ok_or(NoForms)?;
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&patterns)
            .map_err(|_| NoForms)?;
        Ok(Self { automaton, patterns, first, longest, stub: Bytes::copy_from_slice(stub.as_bytes()) })
    }

    /// One of the forms.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn pattern(&self, number: usize) -> &[u8] {
        &self.patterns[number % self.patterns.len()]
    }

    /// A whole text, cleaned; `None` when there is nothing to clean.
    pub(crate) fn clean(&self, text: &[u8]) -> Option<Vec<u8>> {
        self.automaton.is_match(text).then(|| {
            let mut clean = Vec::with_capacity(text.len());
            self.automaton.replace_all_with_bytes(text, &mut clean, |_, _, out| {
                out.extend_from_slice(&self.stub);
                true
            });
            clean
        })
    }

    /// Where, from `from` on, the start of a form begins that the end of `text` cuts off.
    fn cut_off(&self, text: &[u8], from: usize) -> usize {
        // No form holds a line break.
        let line = memchr::memrchr(b'\n', text).map_or(0, |at| at + 1);
        let from = from.max(line).max((text.len() + 1).saturating_sub(self.longest));
        let starts = |at: usize| {
            let rest = &text[at..];
            self.patterns.iter().any(|pattern| pattern.len() > rest.len() && pattern.starts_with(rest))
        };
        (from..text.len()).find(|&at| self.first[usize::from(text[at])] && starts(at)).unwrap_or(text.len())
    }
}

/// Replaces the forms in a stream.
#[derive(Debug)]
pub(crate) struct Scrubber {
    forms: Arc<Forms>,
    tail: BytesMut,
    found: u64,
}

impl Scrubber {
    pub(crate) fn new(forms: Arc<Forms>) -> Self {
        Self { forms, tail: BytesMut::new(), found: 0 }
    }

    /// How many were replaced so far.
    pub(crate) fn found(&self) -> u64 {
        self.found
    }

    /// The next chunk, cleaned, without what may be the start of a form.
    pub(crate) fn push(&mut self, chunk: Bytes) -> Bytes {
        let text = if self.tail.is_empty() {
            chunk
        } else {
            self.tail.extend_from_slice(&chunk);
            self.tail.split().freeze()
        };
        let forms = self.forms.clone();
        let mut hold = forms.cut_off(&text, 0);
        let mut clean: Option<BytesMut> = None;
        let mut done = 0;
        for found in forms.automaton.find_iter(&text[..]) {
            if found.start() >= hold {
                break;
            }
            let out = clean.get_or_insert_with(|| BytesMut::with_capacity(text.len()));
            out.extend_from_slice(&text[done..found.start()]);
            out.extend_from_slice(&forms.stub);
            done = found.end();
            self.found += 1;
            if done > hold {
                hold = forms.cut_off(&text, done);
            }
        }
        self.tail.extend_from_slice(&text[hold..]);
        match clean {
            None => text.slice(..hold),
            Some(mut out) => {
                out.extend_from_slice(&text[done..hold]);
                out.freeze()
            }
        }
    }

    /// What was held back: nothing follows that could complete it.
    pub(crate) fn finish(&mut self) -> Bytes {
        let tail = self.tail.split().freeze();
        match self.forms.clean(&tail) {
            Some(clean) => {
                self.found += 1;
                clean.into()
            }
            None => tail,
        }
    }
}

/// What is secret in a header's value.
fn secrets_in(token: &str) -> Vec<Vec<u8>> {
    let bare = match token.split_once(' ') {
        Some((scheme, rest))
            if rest.len() >= SHORT && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') =>
        {
            rest
        }
        _ => token,
    };
    let mut secrets = vec![bare.as_bytes().to_vec()];
    if token.len() > 6 && token[..6].eq_ignore_ascii_case("basic ") {
        let decoded = STANDARD.decode(bare).or_else(|_| STANDARD_NO_PAD.decode(bare)).unwrap_or_default();
        if let Some(colon) = decoded.iter().position(|b| *b == b':') {
            let password = &decoded[colon + 1..];
            if password.len() >= SHORT {
                secrets.push(password.to_vec());
            }
            secrets.push(decoded);
        }
    }
    secrets
}

/// Adds every form of a secret.
fn add_forms(secret: &[u8], forms: &mut BTreeSet<Vec<u8>>) {
    forms.insert(secret.to_vec());
    let Ok(text) = std::str::from_utf8(secret) else { return };
    let once = json(text);
    forms.insert(once.replace('/', "\\/").into_bytes());
    forms.insert(json(&once).into_bytes());
    forms.insert(json(&once.replace('/', "\\/")).into_bytes());
    forms.insert(once.clone().into_bytes());
    if secret.len() < SHORT {
        return;
    }
    // As encoders do that keep JSON safe in HTML.
    let html = ['<', '>', '&', '\'', '=', '+'];
    for upper in [false, true] {
        let unit = |c: char| {
            if upper { format!("\\u{:04X}", u32::from(c)) } else { format!("\\u{:04x}", u32::from(c)) }
        };
        forms.insert(
            once.chars()
                .map(|c| if html.contains(&c) { unit(c) } else { c.to_string() })
                .collect::<String>()
                .into_bytes(),
        );
        forms.insert(
            text.encode_utf16()
                .map(|u| if upper { format!("\\u{u:04X}") } else { format!("\\u{u:04x}") })
                .collect::<String>()
                .into_bytes(),
        );
        let hex = |b: &u8| if upper { format!("{b:02X}") } else { format!("{b:02x}") };
        forms.insert(secret.iter().map(hex).collect::<String>().into_bytes());
        forms.insert(secret.iter().map(|b| format!("%{}", hex(b))).collect::<String>().into_bytes());
        // As RFC 3986, encodeURIComponent, HTML forms, Python, encodeURI, and the most careful have it.
        for kept in ["-_.~", "-_.!~*'()", "-_.*", "-_.~/", "-_.!~*'();/?:@&=+$,#", ""] {
            let percent = |b: &u8| {
                let plain = b.is_ascii_alphanumeric() || kept.as_bytes().contains(b);
                if plain { char::from(*b).to_string() } else { format!("%{}", hex(b)) }
            };
            let encoded: String = secret.iter().map(percent).collect();
            forms.insert(encoded.replace("%20", "+").into_bytes());
            forms.insert(encoded.into_bytes());
        }
    }
    forms.insert(text.to_ascii_lowercase().into_bytes());
    forms.insert(text.to_ascii_uppercase().into_bytes());
    for unit in [u16::to_le_bytes, u16::to_be_bytes] {
        forms.insert(text.encode_utf16().flat_map(unit).collect());
    }
    for shift in 0..3 {
        add_base64(secret, shift, forms);
    }
}

/// The characters of a base64 text that this secret alone decides when `shift` bytes stand before it.
fn add_base64(secret: &[u8], shift: usize, forms: &mut BTreeSet<Vec<u8>>) {
    let mut bytes = vec![0; shift];
    bytes.extend_from_slice(secret);
    let start = (shift * 8).div_ceil(6);
    let end = bytes.len() * 8 / 6;
    for encoded in [STANDARD_NO_PAD.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes)] {
        let inner = &encoded[start..end];
        // A slash is often escaped where base64 stands in JSON.
        forms.insert(inner.replace('/', "\\/").into_bytes());
        forms.insert(inner.replace('+', "%2B").replace('/', "%2F").into_bytes());
        forms.insert(inner.as_bytes().to_vec());
    }
}

fn json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

#[cfg(test)]
mod tests;
