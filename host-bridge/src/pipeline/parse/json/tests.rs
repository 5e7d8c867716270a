//! The strict reader against tables and against serde_json.

use super::*;
use proptest::prelude::*;
use test_case::test_case;

/// Keeps what the visitor is told, as text.
#[derive(Default)]
struct Log(Vec<String>);

impl Visitor for Log {
    fn key(&mut self, depth: usize, key: &str) -> Result<(), Fault> {
        self.0.push(format!("{depth} key {key}"));
        Ok(())
    }
    fn begin(&mut self, _: usize, _: Kind) -> Result<usize, Fault> {
        Ok(64)
    }
    fn end(&mut self, depth: usize, kind: Kind, token: Option<&str>) -> Result<(), Fault> {
        self.0.push(format!("{depth} {kind:?} {}", token.unwrap_or("-")));
        Ok(())
    }
}

fn read(chunks: &[&[u8]]) -> Result<Vec<String>, Fault> {
    let mut log = Log::default();
    let mut reader = Reader::new(Rigour::Strict);
    for chunk in chunks {
        reader.push(chunk, &mut log)?;
    }
    reader.finish(&mut log)?;
    Ok(log.0)
}

#[test_case(br#"{"a":1,"a":2}"# => Fault::DuplicateKey; "duplicate key")]
#[test_case(br#"{"a":1,"\u0061":2}"# => Fault::DuplicateKey; "duplicate key, escaped")]
#[test_case(br#"[{"x":{"a":1,"a":2}}]"# => Fault::DuplicateKey; "duplicate key, deep")]
#[test_case(br#"{"\ud800":1}"# => Fault::Ambiguous; "half a surrogate pair as key")]
#[test_case(br#"{"a":1,"A":2}"# => Fault::KeyCase; "a key in two cases")]
#[test_case(br#"["\ud83d"]"# => Fault::Ambiguous; "first half of a pair")]
#[test_case(br#"["\ude00"]"# => Fault::Ambiguous; "second half of a pair")]
#[test_case(br#"["\ud83dx"]"# => Fault::Ambiguous; "first half and a letter")]
#[test_case(br#"["\ud83d\n"]"# => Fault::Ambiguous; "first half and another escape")]
#[test_case(br#"["\ud83d\ud83d\ude00"]"# => Fault::Ambiguous; "first half and a pair")]
#[test_case(b"9007199254740993" => Fault::Number; "an integer between two doubles")]
#[test_case(b"-12345678901234567890123" => Fault::Number; "a longer one")]
#[test_case(b"{\"a\":\"\xff\"}" => Fault::Utf8; "not utf8")]
#[test_case(b"\"\xc3" => Fault::Utf8; "cut inside a character")]
#[test_case(b"\xef\xbb\xbf{}" => Fault::Syntax; "byte order mark")]
#[test_case(b"1e999" => Fault::Number; "beyond a double")]
#[test_case(b"01" => Fault::Trailing; "leading zero")]
#[test_case(b"[01]" => Fault::Syntax; "leading zero inside")]
#[test_case(b"[+1]" => Fault::Syntax; "plus")]
#[test_case(b"[1.]" => Fault::Syntax; "no fraction")]
#[test_case(b"[.5]" => Fault::Syntax; "no integer")]
#[test_case(b"[NaN]" => Fault::Syntax; "nan")]
#[test_case(b"[-Infinity]" => Fault::Syntax; "infinity")]
#[test_case(b"{}{}" => Fault::Trailing; "two values")]
#[test_case(b"{} x" => Fault::Trailing; "trailing bytes")]
#[test_case(b"{}\0" => Fault::Trailing; "trailing nul")]
#[test_case(b"{" => Fault::Truncated; "open")]
#[test_case(b"" => Fault::Truncated; "empty")]
#[test_case(b"[1,]" => Fault::Syntax; "trailing comma")]
#[test_case(b"{\"a\":1,}" => Fault::Syntax; "trailing comma in an object")]
#[test_case(b"[1}" => Fault::Syntax; "wrong end")]
#[test_case(b"{'a':1}" => Fault::Syntax; "single quotes")]
#[test_case(b"[1 // x\n]" => Fault::Syntax; "comment")]
#[test_case(b"\"a\nb\"" => Fault::Syntax; "raw line break")]
#[test_case(br#""\x41""# => Fault::Syntax; "unknown escape")]
#[test_case(br#""\u00g0""# => Fault::Syntax; "bad hex")]
fn refused(text: &[u8]) -> Fault {
    read(&[text]).unwrap_err()
}

#[test]
fn nesting_is_bounded() {
    let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
    assert!(read(&[deep(limits::RPC_DEPTH).as_bytes()]).is_ok());
    assert_eq!(read(&[deep(limits::RPC_DEPTH + 1).as_bytes()]), Err(Fault::Depth));
}

#[test]
fn keys_and_numbers_are_bounded() {
    let long = format!("{{\"{}\":1}}", "k".repeat(KEY_MAX));
    assert_eq!(read(&[long.as_bytes()]), Err(Fault::TooLong));
    assert_eq!(read(&["1".repeat(NUMBER_MAX + 1).as_bytes()]), Err(Fault::TooLong));
    let many: Vec<String> = (0..=LIVE_KEYS).map(|n| format!("\"{n}\":0")).collect();
    assert_eq!(read(&[format!("{{{}}}", many.join(",")).as_bytes()]), Err(Fault::TooLong));
}

#[test_case("9007199254740992"; "two to the 53")]
#[test_case("-9223372036854775808"; "the least i64")]
#[test_case("0.1000000000000000055511151231257827021181583404541015625"; "many digits")]
#[test_case("-0"; "minus zero")]
#[test_case(r#""\ud83d\ude00 \uD83D\uDE00""#; "whole pairs")]
fn passes(text: &str) {
    read(&[text.as_bytes()]).unwrap();
}

/// An answer is not ours to judge: it is read if it can be.
#[test_case(r#"{"a":1,"A":2,"a":3,"\ud800":"\udc00"}"#; "keys and halves")]
#[test_case("[1e999,9007199254740993]"; "numbers")]
fn lenient(text: &str) {
    let (mut log, mut reader) = (Log::default(), Reader::new(Rigour::Lenient));
    reader.push(text.as_bytes(), &mut log).and_then(|()| reader.finish(&mut log)).unwrap();
}

#[test]
fn the_same_key_in_two_objects_is_fine() {
    assert!(read(&[br#"[{"a":1},{"a":2,"b":{"a":3}}]"#]).is_ok());
}

#[test]
fn says_where_it_is() {
    let log = read(&[br#"{"id":-1.5e3,"p":["\u00e4",null]}"#]).unwrap();
    assert_eq!(
        log,
        [
            "1 key id",
            "1 Number -1.5e3",
            "1 key p",
            r#"2 String "\u00e4""#,
            "2 Word null",
            "1 Array -",
            "0 Object -"
        ]
    );
}

fn json_text() -> impl Strategy<Value = String> {
    "[\\[\\]{}:, \"0-9a-f.eE+\\-\\\\utrnl\u{e4}\u{20ac}]{0,24}"
}

fn value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_filter("exact in a double", |i| is_one_number(&i.to_string())).prop_map(Into::into),
        any::<i32>().prop_map(Into::into),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Into::into),
        ".{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            proptest::collection::hash_map("[a-z0-9 \u{e4}\u{20ac}\"]{0,4}", inner, 0..5)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// What passes here, serde_json reads as well.
    #[test]
    fn never_laxer_than_serde(text in json_text()) {
        if read(&[text.as_bytes()]).is_ok() {
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{}", text);
        }
    }

    /// What serde_json writes passes here, however it is cut.
    #[test]
    fn every_value_passes_in_any_chunks(value in value(), cuts in proptest::collection::vec(0usize..200, 0..4)) {
        let text = value.to_string();
        let bytes = text.as_bytes();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
        cuts.sort_unstable();
        cuts.push(bytes.len());
        let mut start = 0;
        let chunks: Vec<&[u8]> = cuts.iter().map(|&end| { let c = &bytes[start..end]; start = end; c }).collect();
        let whole = read(&[bytes]);
        prop_assert!(whole.is_ok(), "{} {:?}", text, whole);
        prop_assert_eq!(whole, read(&chunks));
    }
}
