//! The doors for fuzzers: each takes any bytes and panics when something does not hold that must.
//!
//! `cargo fuzz` drives them from `tests/fuzz`; the tests below drive them with what proptest makes up and with the corpus
//! of ugly requests, so that a door that no longer holds is seen without a fuzzer. They are no part of a normal build.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use moat_shared::secret::Secret;

use crate::{
    config,
    pipeline::{bench::Served, fuzz},
    upstream::scan::{Forms, Scrubber},
};

/// The strict reader of requests.
pub fn request(data: &[u8]) {
    fuzz::request(data);
}

/// The reader of event streams.
pub fn answer(data: &[u8]) {
    fuzz::answer(data);
}

/// The confinement of paths and queries.
pub fn path(data: &[u8]) {
    fuzz::path(data);
}

/// moat.yaml: whatever is accepted is usable as it stands.
pub fn moat_yaml(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(config) = config::check(text) else { return };
    for server in &config.servers {
        let upstream = &server.upstream;
        let loopback = matches!(upstream.host(), "localhost" | "127.0.0.1" | "[::1]" | "::1");
        assert!(upstream.is_tls() || loopback, "{} is neither https nor here", upstream.as_str());
        assert!(upstream.path().starts_with('/'), "{:?}", upstream.path());
    }
    let mut names: Vec<&str> = config.servers.iter().map(|server| server.name.as_str()).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "two servers of one name");
}

/// A rule's condition, and behind a zero byte the arguments of the call that it judges: whatever is accepted comes to a
/// verdict. (That a panic is one as well is the engine's own care; libFuzzer ends at it all the same.)
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (condition, arguments) = text.split_once('\0').unwrap_or((text, "{}"));
    let condition = serde_json::Value::from(condition);
    let rules = format!(
        "mode: enforce\nrules:\n- name: r\n  action: deny\n  match: {{operation: '*', when: {condition}}}\n"
    );
    let Ok(served) = Served::by(Some(&rules)) else { return };
    let call = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"a","arguments":{arguments}}}}}"#
    );
    if let Err(why) = served.call(&Bytes::from(call)) {
        assert!(!why.is_empty() && why != "it waited", "no verdict: {why:?}");
    }
}

/// The search for the credential: no form of it passes, in whatever chunks it comes; nothing else is touched.
///
/// The first byte is the chunks' size; bytes below 32 stand for one of the credential's forms or for a part of one.
pub fn scan(data: &[u8]) {
    const SECRET: &str = "s3cr3t/k+y=\"value\"&more";
    static FORMS: OnceLock<Arc<Forms>> = OnceLock::new();
    let Some((&size, data)) = data.split_first() else { return };
    let make = || Forms::of_all(&[&Secret::new(SECRET.to_owned())], "moat-stub-mcp-x").expect("forms");
    let forms = FORMS.get_or_init(|| Arc::new(make()));
    let mut text = Vec::new();
    for byte in data {
        match byte {
            0..32 => {
                let pattern = forms.pattern(usize::from(*byte) * 7);
                text.extend_from_slice(if byte % 4 == 3 { &pattern[..pattern.len() / 2] } else { pattern });
            }
            _ => text.push(*byte),
        }
    }
    let through = |chunk: usize| {
        let (mut scrubber, mut out) = (Scrubber::new(Arc::clone(forms)), Vec::new());
        for bytes in text.chunks(chunk.max(1)) {
            out.extend_from_slice(&scrubber.push(Bytes::copy_from_slice(bytes)));
        }
        out.extend_from_slice(&scrubber.finish());
        out
    };
    let (whole, parts) = (through(text.len()), through(usize::from(size % 32) + 1));
    for out in [&whole, &parts] {
        assert!(forms.clean(out).is_none(), "a form passed: {}", String::from_utf8_lossy(out));
    }
    if forms.clean(&text).is_none() {
        assert_eq!(whole, text, "what holds no form was changed");
        assert_eq!(parts, text, "what holds no form was changed");
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use proptest::prelude::*;

    use super::*;

    /// Bytes as an attacker would choose them: mostly from what the grammar is made of.
    fn bytes_of(alphabet: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            8 => proptest::sample::select(alphabet).prop_map(|piece| piece.as_bytes().to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 1..3),
        ];
        proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    const JSON: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ":",
        ",",
        "\"",
        "\"id\":",
        "\"method\":",
        "\"params\":{",
        "\"name\":",
        "\"a\"",
        "1",
        "-0",
        "1.5",
        "9007199254740993",
        "null",
        "true",
        "\"result\":",
        "{\"id\":1,\"method\":\"x\"}",
        "\\u0061",
        "\\ud83d",
        "\\ude00",
        "\u{17f}",
        "\"_meta\":{",
        " ",
        "\n",
    ];
    const EVENTS: &[&str] = &[
        "data: ",
        "data:",
        "id: 7",
        "id",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        ": c",
        "event: message",
        "{\"id\":1,\"result\":{}}",
        "{\"id\":\"a\",\"error\":{}}",
        "\u{feff}",
        "{",
        "retry: 3",
    ];
    const PATHS: &[&str] = &[
        "/", ".", "..", "%2e", "%2f", "%5c", "%25", "%00", ";", "\\", "a", "?", "key=1", "&", "KEY", "=",
        "%6bey", "key[]", " ", "#", "@", ":",
    ];
    const YAML: &[&str] = &[
        "mcp:\n",
        "  - name: a\n",
        "  - name: b\n",
        "    url: https://h/mcp\n",
        "    url: http://localhost/x\n",
        "    url: http://h/\n",
        "    auth: {grant: mcp-a, header: X}\n",
        "    policy: x\n",
        "- ",
        ": ",
        "\n",
        "&a ",
        "*a",
        "<<: ",
        "!!str ",
        "'",
        "\"",
        "{",
        "}",
        "network:\n  mode: none\n",
        "name: x\n",
        "#",
        "\t",
    ];
    const CEL: &[&str] = &[
        "params.a",
        "params['a']",
        "context.operation",
        "context.",
        "has(params.a)",
        "==",
        "!=",
        "<",
        ">=",
        "&&",
        "||",
        "!",
        "(",
        ")",
        "[",
        "]",
        ".",
        "+",
        "-",
        "*",
        "/",
        "%",
        "?",
        ":",
        "1",
        "-9223372036854775808",
        "1.5",
        "1e308",
        "'a'",
        "\"b\"",
        "true",
        "null",
        "in",
        ".matches('a+')",
        ".startsWith('a')",
        ".exists(x, x == 1)",
        ".all(x, x)",
        ".map(x, x)",
        "size(params.a)",
        "int('1')",
        "double('x')",
        "timestamp('2026-01-01T00:00:00Z')",
        "\0",
        "{\"a\":1}",
        "{\"a\":\"a\"}",
        "{\"a\":[1,2]}",
        "{\"a\":null}",
    ];
    const SCAN: &[&str] = &[
        "s3cr3t", "/k+y", "\u{0}", "\u{3}", "\u{7}", "\u{b}", "\u{1f}", "\u{10}", "a", "\n", "%2F", "c3Nj",
        "\\u0073",
    ];

    proptest! {
        #[test]
        fn requests(data in bytes_of(JSON)) { request(&data); }
        #[test]
        fn answers(data in bytes_of(EVENTS)) { answer(&data); }
        #[test]
        fn paths(data in bytes_of(PATHS)) { path(&data); }
        #[test]
        fn moat_yamls(data in bytes_of(YAML)) { moat_yaml(&data); }
        #[test]
        fn scans(data in bytes_of(SCAN)) { scan(&data); }
        #[test]
        fn policies(data in bytes_of(CEL)) { policy(&data); }
    }

    /// Every ugly request of the corpus, in chunks of every size up to sixteen bytes; and the verdict is the file's.
    #[test]
    fn the_corpus() {
        let mut count = 0;
        for line in include_str!("../../tests/corpus/requests.jsonl").lines() {
            let case: serde_json::Value = serde_json::from_str(line).unwrap();
            let body = match (case["text"].as_str(), case["base64"].as_str()) {
                (Some(text), None) => text.as_bytes().to_vec(),
                (None, Some(text)) => base64::engine::general_purpose::STANDARD.decode(text).unwrap(),
                _ => panic!("{line}"),
            };
            for size in 0..if body.len() < 4096 { 16 } else { 1 } {
                request(&[&[size], body.as_slice()].concat());
            }
            count += 1;
        }
        assert!(count > 500, "{count}");
    }
}
