//! Requests that somebody could read differently from somebody else, made systematically: `tests/corpus/requests.jsonl`.
//!
//! Each is one way to be ugly. What the bridge does with each is in the file; a test compares it with what other
//! readers make of the same bytes ([`view`] is this one's, `tests/clients/read.mjs` and `read.py` are the others').

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// In what way it is ugly.
    pub name: String,
    /// Its bytes.
    pub body: Vec<u8>,
}

/// A line of the file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// In what way it is ugly.
    pub name: String,
    /// Its bytes, where they are a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Its bytes, where they are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    /// What the bridge does: `passes`, or why it refuses.
    pub verdict: String,
}

impl Line {
    /// Of a case and what became of it.
    #[must_use]
    pub fn new(case: &Case, verdict: String) -> Self {
        let text = String::from_utf8(case.body.clone()).ok();
        let base64 = text.is_none().then(|| STANDARD.encode(&case.body));
        Self { name: case.name.clone(), text, base64, verdict }
    }
}

/// What a reader makes of a text, in a form that readers in other languages can write as well: strings as UTF-16,
/// integers in full, other numbers as the bits of a double, keys in order.
#[must_use]
pub fn view(body: &[u8]) -> String {
    serde_json::from_slice::<Value>(body).map_or_else(|_| "unreadable".to_owned(), |value| shown(&value))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(word) => word.to_string(),
        Value::String(text) => units(text),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(integer), ..) => format!("i{integer}"),
            (_, Some(integer), _) => format!("i{integer}"),
            (.., Some(0.0)) => "i0".to_owned(),
            (.., Some(double)) if double.fract() == 0.0 => format!("i{double:.0}"),
            (.., double) => format!("f{:016x}", double.unwrap_or(f64::NAN).to_bits()),
        },
        Value::Array(values) => format!("[{}]", values.iter().map(shown).collect::<Vec<_>>().join(",")),
        Value::Object(members) => {
            let mut members: Vec<String> =
                members.iter().map(|(key, value)| format!("{}:{}", units(key), shown(value))).collect();
            members.sort_unstable();
            format!("{{{}}}", members.join(","))
        }
    }
}

fn units(text: &str) -> String {
    let units: String = text.encode_utf16().map(|unit| format!("{unit:04x}")).collect();
    format!("\"{units}\"")
}

/// A request with places for one more member: `<m` before the members of the message, `m>` behind them; `p` for
/// `params`, `a` for `arguments`, `t` for `_meta`.
const REQUEST: &str = concat!(
    r#"{<m"jsonrpc":"2.0","id":7,"method":"tools/call","params":{<p"name":"echo","arguments":{<a"text":"hi"a>},"#,
    r#""_meta":{<t"io.modelcontextprotocol/protocolVersion":"2025-06-18"t>}p>}m>}"#
);
const PLACES: [&str; 8] = ["<m", "m>", "<p", "p>", "<a", "a>", "<t", "t>"];

/// The request, with one more member at a place.
fn with(place: &str, member: &str) -> String {
    PLACES.iter().fold(REQUEST.to_owned(), |text, known| {
        let more = match (*known == place, known.starts_with('<')) {
            (false, _) => String::new(),
            (true, true) => format!("{member},"),
            (true, false) => format!(",{member}"),
        };
        text.replace(known, &more)
    })
}

fn plain() -> String {
    with("", "")
}

/// All cases.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: String, body: Vec<u8>| cases.push(Case { name, body });
    add("in order".to_owned(), plain().into_bytes());
    keys(&mut add);
    values(&mut add);
    encodings(&mut add);
    syntax(&mut add);
    shapes(&mut add);
    sizes(&mut add);
    cases
}

type Add<'a> = &'a mut dyn FnMut(String, Vec<u8>);

/// Keys that come twice, or look as if.
fn keys(add: Add<'_>) {
    const KEYS: [(char, &str, &str); 9] = [
        ('m', "jsonrpc", "\"1.0\""),
        ('m', "id", "8"),
        ('m', "method", "\"ping\""),
        ('m', "params", "{}"),
        ('p', "name", "\"delete\""),
        ('p', "arguments", "{\"text\":\"other\"}"),
        ('p', "_meta", "{}"),
        ('a', "text", "\"other\""),
        ('t', "io.modelcontextprotocol/protocolVersion", "\"2026-07-28\""),
    ];
    for (level, key, value) in KEYS {
        let first = key.chars().next().unwrap_or_default();
        let spellings = [
            ("twice", key.to_owned()),
            ("twice, escaped", format!("\\u{:04x}{}", u32::from(first), &key[1..])),
            ("twice, escaped in capitals", format!("\\u{:04X}{}", u32::from(first), &key[1..])),
            ("twice, in capitals", key.to_ascii_uppercase()),
            ("twice, with one capital", format!("{}{}", first.to_ascii_uppercase(), &key[1..])),
            ("twice, long s", key.replacen('s', "\u{17f}", 1)),
            ("twice, kelvin sign", key.replacen('k', "\u{212a}", 1)),
            ("twice, dotless i", key.replacen('i', "\u{131}", 1)),
            ("twice, with a NUL", format!("{key}\\u0000")),
            ("beside a Cyrillic look-alike", key.replacen(['e', 'a', 'o'], "\u{435}", 1)),
            ("beside one with a zero-width space", format!("\u{200b}{key}")),
            ("beside one with a space", format!("{key} ")),
            ("beside a full-width one", key.replacen('m', "\u{ff4d}", 1)),
        ];
        for (what, spelling) in spellings {
            // A key that has no such letter would be there twice, plainly.
            if what != "twice" && spelling == key {
                continue;
            }
            for place in [format!("<{level}"), format!("{level}>")] {
                let member = format!("\"{spelling}\":{value}");
                add(format!("{key} {what}, {place}"), with(&place, &member).into_bytes());
            }
        }
        let alone = plain().replace(&format!("\"{key}\""), &format!("\"{}\"", key.to_ascii_uppercase()));
        add(format!("{key} in capitals alone"), alone.into_bytes());
    }
    for (name, members) in [
        ("__proto__", r#""__proto__":{"name":"delete"}"#),
        ("constructor", r#""constructor":{"prototype":{}}"#),
        ("an empty key", r#""":1"#),
        ("an empty key twice", r#""":1,"":2"#),
        ("keys that are numbers", r#""1":1,"0":2"#),
        ("composed and decomposed", "\"\u{e9}\":1,\"e\u{301}\":2"),
        ("two keys but for an umlaut's case", "\"\u{e4}\":1,\"\u{c4}\":2"),
        ("half a pair as key", r#""\ud800":1"#),
        ("method, deeper", r#""method":"ping","x":{"method":"ping","id":9}"#),
    ] {
        for level in ['p', 'a', 't'] {
            add(format!("{name}, in {level}"), with(&format!("{level}>"), members).into_bytes());
        }
    }
}

/// Tokens at the places of values.
fn values(add: Add<'_>) {
    let digits = |count: usize| "1".repeat(count);
    let mut tokens: Vec<String> = [
        "0",
        "-1",
        "-0",
        "0.0",
        "-0.0",
        "1.0",
        "1e0",
        "1E+2",
        "1e-1",
        "1e400",
        "-1e400",
        "1e-400",
        "5e-324",
        "2.2250738585072011e-308",
        "1.7976931348623157e308",
        "1.7976931348623159e308",
        "0.1",
        "0.30000000000000004",
        "1e22",
        "1e23",
        "123456789.123456789",
        "0.1000000000000000055511151231257827021181583404541015625",
        "8.988465674311579e307",
        "6929495644600919.5",
        "3.518437208883201171875e13",
        "9007199254740991",
        "9007199254740992",
        "9007199254740993",
        "-9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "123456789012345678901234567890",
        "100000000000000000000000",
        "01",
        "-01",
        "+1",
        ".5",
        "1.",
        "0x10",
        "1_000",
        "1e",
        "1e+",
        "--1",
        "-",
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "undefined",
        "null",
        "true",
        "True",
        "TRUE",
        "nul",
        "truex",
        r#""""#,
        r#""a""#,
        r#""\u0000""#,
        r#""a\u0000b""#,
        r#""\ud800""#,
        r#""\udc00""#,
        r#""\udc00\ud800""#,
        r#""\ud800\ud800\udc00""#,
        r#""\ud83d\ude00""#,
        r#""\uD83D\uDE00""#,
        r#""\ud83dx""#,
        r#""\ud83d\n""#,
        r#""\ud83d\\ude00""#,
        r#""\uffff""#,
        r#""\ufdd0""#,
        r#""\/""#,
        r#""/""#,
        r#""\b\f\n\r\t\"\\""#,
        r#""\x41""#,
        r#""\u{41}""#,
        r#""\u004""#,
        r#""\u00zz""#,
        r#""\U0041""#,
        r#""\'""#,
        r#""\a""#,
        r#""\0""#,
        "'a'",
        "\"\u{1f600}\"",
        "\"\u{2028}\u{2029}\"",
        "\"\u{feff}\"",
        "\"\u{7f}\"",
        "\"\u{202e}gnp\"",
        "\"e\u{301}\"",
        "\"\u{e9}\"",
        "\"a\nb\"",
        "\"a\tb\"",
        "\"a\u{1}b\"",
        "\"a\rb\"",
        "\"a\u{0}b\"",
        "[1]",
        "[]",
        "{}",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{\"a\":1,}",
        "{a:1}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,\"a\":2}",
        "{\"a\":1,\"A\":2}",
        "/*x*/1",
        "1//x",
        "#1",
        "(1)",
        "1,2",
        "",
    ]
    .map(str::to_owned)
    .to_vec();
    tokens.extend([
        digits(310),
        digits(5000),
        format!("0.{}", digits(1100)),
        format!("1e{}", digits(30)),
        format!("\"{}\"", "y".repeat(1100)),
    ]);
    let places: [(&str, &str); 5] = [
        ("id", "\"id\":7"),
        ("method", "\"method\":\"tools/call\""),
        ("name", "\"name\":\"echo\""),
        ("arguments", "\"arguments\":{\"text\":\"hi\"}"),
        ("text", "\"text\":\"hi\""),
    ];
    for token in &tokens {
        let mut short: String = token.chars().take(60).collect::<String>().escape_debug().to_string();
        if token.len() > 60 {
            short.push_str(&format!(".. ({} bytes)", token.len()));
        }
        for (key, member) in places {
            let body = plain().replace(member, &format!("\"{key}\":{token}"));
            add(format!("{key} is {short}"), body.into_bytes());
        }
    }
}

/// Bytes that are not UTF-8, or not only.
fn encodings(add: Add<'_>) {
    let text = plain();
    let utf16 = |unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<u8>>();
    let utf32 = |scalar: fn(u32) -> [u8; 4]| text.chars().flat_map(|c| scalar(c.into())).collect::<Vec<u8>>();
    add("UTF-8 with a byte order mark".to_owned(), [b"\xef\xbb\xbf", text.as_bytes()].concat());
    add("UTF-16 LE".to_owned(), utf16(u16::to_le_bytes));
    add("UTF-16 BE".to_owned(), utf16(u16::to_be_bytes));
    add("UTF-16 LE with a byte order mark".to_owned(), [&b"\xff\xfe"[..], &utf16(u16::to_le_bytes)].concat());
    add("UTF-16 BE with a byte order mark".to_owned(), [&b"\xfe\xff"[..], &utf16(u16::to_be_bytes)].concat());
    add("UTF-32 LE".to_owned(), utf32(u32::to_le_bytes));
    add("UTF-32 BE".to_owned(), utf32(u32::to_be_bytes));
    add("UTF-7".to_owned(), text.replace('"', "+ACI-").into_bytes());
    let raw: [(&str, &[u8]); 12] = [
        ("Latin-1", b"\xe4"),
        ("an overlong slash", b"\xc0\xaf"),
        ("a longer overlong slash", b"\xe0\x80\xaf"),
        ("an overlong NUL", b"\xc0\x80"),
        ("half a pair in UTF-8", b"\xed\xa0\x80"),
        ("a pair in CESU-8", b"\xed\xa0\xbd\xed\xb8\x80"),
        ("beyond Unicode", b"\xf4\x90\x80\x80"),
        ("five bytes", b"\xf8\x88\x80\x80\x80"),
        ("a lone continuation", b"\x80"),
        ("a character cut short", b"\xe2\x82"),
        ("FF", b"\xff"),
        ("FE", b"\xfe"),
    ];
    for (what, bytes) in raw {
        for (place, marker) in [
            ("in the tool's name", "echo"),
            ("in an argument", "hi"),
            ("in the method", "tools/call"),
            ("in a key", "text"),
        ] {
            let (before, after) = text.split_once(marker).unwrap_or_default();
            add(
                format!("{what} {place}"),
                [before.as_bytes(), marker.as_bytes(), bytes, after.as_bytes()].concat(),
            );
        }
    }
}

/// What stands around and between.
fn syntax(add: Add<'_>) {
    let text = plain();
    let around: [(&str, &[u8]); 22] = [
        ("a space", b" "),
        ("a tab", b"\t"),
        ("line ends", b"\r\n\n"),
        ("a vertical tab", b"\x0b"),
        ("a form feed", b"\x0c"),
        ("NUL", b"\0"),
        ("a no-break space", b"\xc2\xa0"),
        ("a line separator", b"\xe2\x80\xa8"),
        ("a byte order mark", b"\xef\xbb\xbf"),
        ("a comma", b","),
        ("a semicolon", b";"),
        ("a letter", b"x"),
        ("a brace", b"}"),
        ("an object", b"{}"),
        ("a message", br#"{"jsonrpc":"2.0","id":8,"method":"ping"}"#),
        ("a record separator", b"\x1e"),
        ("a line comment", b"//x\n"),
        ("a block comment", b"/*x*/"),
        ("a shell comment", b"#x\n"),
        ("an XML comment", b"<!--x-->"),
        ("the prefix against hijacking", b")]}',\n"),
        ("an end of file", b"\x1a"),
    ];
    for (what, bytes) in around {
        add(format!("{what} before"), [bytes, text.as_bytes()].concat());
        add(format!("{what} behind"), [text.as_bytes(), bytes].concat());
        let between = text.replacen("\"method\":", "\"method\"#:", 1);
        let (left, right) = between.split_once('#').unwrap_or_default();
        add(format!("{what} between"), [left.as_bytes(), bytes, right.as_bytes()].concat());
    }
    for cut in (1..text.len()).step_by(7) {
        add(format!("cut after {cut} bytes"), text.as_bytes()[..cut].to_vec());
    }
    add("nothing".to_owned(), Vec::new());
    add("white space alone".to_owned(), b" \n ".to_vec());
    for (what, from, to) in [
        ("single quotes", "\"", "'"),
        ("no quotes around keys", "\"method\"", "method"),
        ("a semicolon for a colon", ":7", ";7"),
        ("an equals sign for a colon", ":7", "=7"),
        ("two colons", ":7", "::7"),
        ("two commas", ",\"method\"", ",,\"method\""),
        ("no comma", ",\"method\"", "\"method\""),
        ("a trailing comma", "\"hi\"", "\"hi\","),
        ("a key without a value", "\"id\":7", "\"id\""),
        ("a smart quote", "\"hi\"", "\u{201c}hi\u{201d}"),
    ] {
        add(what.to_owned(), text.replace(from, to).into_bytes());
    }
}

/// JSON that is no message, or two.
fn shapes(add: Add<'_>) {
    const NOTE: &str = r#"{"jsonrpc":"2.0","method":"notifications/cancelled"}"#;
    let text = plain();
    let other = text.replace("\"id\":7", "\"id\":8").replace("tools/call", "ping");
    let legacy = text.replace(r#","_meta":{"io.modelcontextprotocol/protocolVersion":"2025-06-18"}"#, "");
    let legacy_other = legacy.replace("\"id\":7", "\"id\":8");
    for body in ["1", "\"x\"", "null", "true", "[]", "{}", "[[]]", "[1]", "[null]", "[{}]"] {
        add(format!("the body is {body}"), body.as_bytes().to_vec());
    }
    let batches = [
        ("one", format!("[{legacy}]")),
        ("two", format!("[{legacy},{legacy_other}]")),
        ("one id twice", format!("[{legacy},{legacy}]")),
        ("of a stateless revision", format!("[{text},{other}]")),
        ("with a notification", format!("[{legacy},{NOTE}]")),
        ("inside a batch", format!("[[{legacy}]]")),
        ("with a number", format!("[{legacy},1]")),
        ("with null", format!("[{legacy},null]")),
        ("with a trailing comma", format!("[{legacy},]")),
        ("with a response", format!("[{legacy},{{\"jsonrpc\":\"2.0\",\"id\":3,\"result\":{{}}}}]")),
        (
            "that starts a session",
            r#"[{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}]"#.to_owned(),
        ),
    ];
    for (what, body) in batches {
        add(format!("a batch: {what}"), body.into_bytes());
    }
    for (what, body) in [
        ("a notification", NOTE),
        ("a response", r#"{"jsonrpc":"2.0","id":3,"result":{}}"#),
        ("an error", r#"{"jsonrpc":"2.0","id":3,"error":{"code":1,"message":"x"}}"#),
        ("an error for nobody", r#"{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}"#),
        ("two outcomes", r#"{"jsonrpc":"2.0","id":3,"result":{},"error":{"code":1,"message":"x"}}"#),
        (
            "a request with a result",
            r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"x"},"result":{}}"#,
        ),
        ("an id alone", r#"{"jsonrpc":"2.0","id":3}"#),
        ("params in order", r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":["echo",{}]}"#),
        ("params is null", r#"{"jsonrpc":"2.0","id":3,"method":"ping","params":null}"#),
        ("params is false", r#"{"jsonrpc":"2.0","id":3,"method":"ping","params":false}"#),
        ("no name", r#"{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{}}"#),
        (
            "a uri that is a list",
            r#"{"jsonrpc":"2.0","id":3,"method":"resources/read","params":{"uri":["a:b"]}}"#,
        ),
        ("a task that is a number", r#"{"jsonrpc":"2.0","id":3,"method":"tasks/get","params":{"taskId":1}}"#),
        (
            "a version that is a number",
            r#"{"jsonrpc":"2.0","id":3,"method":"ping","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":20260728}}}"#,
        ),
        ("_meta is a list", r#"{"jsonrpc":"2.0","id":3,"method":"ping","params":{"_meta":[]}}"#),
    ] {
        add(what.to_owned(), body.as_bytes().to_vec());
    }
}

/// Too much of something.
fn sizes(add: Add<'_>) {
    for depth in [40, 60, 61, 62, 100, 120, 128, 500, 900, 1200] {
        for (what, open, close) in [("lists", "[", "]"), ("objects", "{\"a\":", "}")] {
            let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            let body = plain().replace("\"hi\"", &nested);
            add(format!("{depth} {what} in each other"), body.into_bytes());
        }
        add(format!("{depth} lists that never end"), "[".repeat(depth).into_bytes());
    }
    for length in [4000, 5000] {
        add(
            format!("a key of {length} bytes"),
            with("a>", &format!("\"{}\":1", "k".repeat(length))).into_bytes(),
        );
    }
    for count in [1000, 1100] {
        let notes = vec![r#"{"jsonrpc":"2.0","method":"notifications/x"}"#; count].join(",");
        add(format!("a batch of {count}"), format!("[{notes}]").into_bytes());
    }
}
