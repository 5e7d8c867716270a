use proptest::prelude::*;
use test_case::test_case;

use super::{Context, Env, Facts, Mistake, Verdict, check, evaluate, parse};
use crate::policy::{
    json::{Node, Numbers},
    rate::{Counters, Turn},
};

fn checked(expression: &str) -> Result<(super::Code, Facts), Mistake> {
    check(&parse(expression)?, expression, false)
}

fn run(expression: &str, params: &str, lowered: bool) -> Verdict {
    let (code, _) = checked(expression).unwrap_or_else(|m| panic!("{}", m.shown(expression)));
    let params = Node::parse(params.as_bytes(), Numbers::Exact).unwrap();
    let now = "2026-01-25T10:23:44Z".parse().unwrap();
    let counters = Counters::default();
    let turn = Turn::new(&counters);
    let context = Context {
        direction: "request",
        operation: "delete_issue".to_owned(),
        scope: "linear".to_owned(),
        timestamp: Some(now),
        ..Context::default()
    };
    let env = Env { params: Some(&params), context: &context, now: Some(now), rates: Some(&turn), lowered };
    evaluate(&code, &env)
}

const T: Verdict = Verdict::True;
const F: Verdict = Verdict::False { missing: false };
const MISSING: Verdict = Verdict::False { missing: true };

const PARAMS: &str = r#"{"title":"Fix It","size":5,"half":2.5,"tags":["A","b"],"who":{"name":"Ann","mail":"ann@Example.com"},
    "none":null,"yes":true,"url":"https://x.test/a","deep":[{"k":1},{"k":2}],"text":"12345678"}"#;

#[test_case("params.title == 'fix it'" => T; "lowered")]
#[test_case("params.title == 'Fix It'" => F; "literals are not")]
#[test_case("_originalParams.title == 'Fix It'" => T; "the original")]
#[test_case("params.size == 5 && params.size == 5u && params.size == 5.0" => T; "numbers across types")]
#[test_case("params.size < 6 && params.size >= 5 && 4.5 < params.size" => T; "orders across types")]
#[test_case("params.size in [1, 5]" => T; "in a list")]
#[test_case("'name' in params.who && !('x' in params.who)" => T; "in a map")]
#[test_case("params.size + 1.0 == 6.0" => T; "doubles")]
#[test_case("int(params.size) % 2 == 1" => T; "int conversion")]
#[test_case("params.title == 5" => F; "equality across types is no error")]
#[test_case("params.none == null && params.yes" => T; "null and bool")]
#[test_case("'a' in params.tags && params.tags.exists(t, t == 'b')" => T; "exists")]
#[test_case("params.tags.all(t, size(t) == 1) && params.tags.size() == 2" => T; "all and size")]
#[test_case("params.deep.exists_one(d, d.k == 2)" => T; "exists_one")]
#[test_case("params.deep.filter(d, d.k > 1).size() == 1 && params.deep.map(d, d.k)[1] == 2" => T; "filter and map")]
#[test_case("params.deep.map(d, d.k > 1, d.k) == [2.0]" => T; "map with a filter")]
#[test_case("params.who.exists(k, k == 'mail')" => T; "over keys")]
#[test_case("params.url.startsWith('https://') && params.url.endsWith('/a') && params.url.contains('x.test')" => T; "strings")]
#[test_case("params.url.matches('^https?://[a-z.]+/') && matches(params.url, 'x')" => T; "matches")]
#[test_case("containsAny(params.title, ['NOPE', 'FIX'])" => T; "containsAny folds")]
#[test_case("containsAny(params.title, [])" => F; "containsAny of nothing")]
#[test_case("estimateTokens(params.text) == 2" => T; "tokens")]
#[test_case("matchesDomain(params.who.mail, ['example.com'])" => T; "domain")]
#[test_case("matchesDomain('a@b.example.com', ['example.com']) && !matchesDomain('a@badexample.com', ['example.com'])" => T; "domain below")]
#[test_case("matchesDomain('a@', ['']) || matchesDomain('a', ['a'])" => F; "no domain")]
#[test_case("inTimeWindow(now, '09:00', '18:00', 'Europe/Zurich')" => T; "window in a zone")]
#[test_case("inTimeWindow(now, '18:00', '09:00', 'UTC')" => F; "no wrap over midnight")]
#[test_case("dayOfWeek(now) == 'sunday' && now.getHours() == 10 && now.getHours('Europe/Zurich') == 11" => T; "times")]
#[test_case("now - timestamp('2026-01-25T10:23:00Z') == duration('44s')" => T; "arithmetic of times")]
#[test_case("now.getFullYear() == 2026 && now.getMonth() == 0 && now.getDate() == 25 && now.getDayOfWeek() == 0" => T; "parts of a time")]
#[test_case("lower('ÀB') == 'àb' && upper('aß') == 'Aß'" => T; "case functions")]
#[test_case("type(params.size) == double && type('a') == string && type(1) == int" => T; "types")]
#[test_case("string(params.size) == '5' && string(1) == '1' && double('1.5') == 1.5" => T; "conversions")]
#[test_case("r'a\\d' == 'a\\\\d' && '''it's''' == \"it's\" && '\\u0041' == 'A' && b'a' == bytes('a')" => T; "literals")]
#[test_case("1 + 2 * 3 == 7 && -7 / 2 == -3 && 7 % -2 == 1 && 0x10 == 16 && 1e1 == 10.0" => T; "arithmetic")]
#[test_case("(params.size > 3 ? 'a' : 'b') == 'a'" => T; "conditional")]
#[test_case("{'a': 1}.a == 1 && [1, 2] + [3] == [1, 2, 3]" => T; "maps and lists")]
#[test_case("context.operation.startsWith('delete_') && context.direction == 'request'" => T; "context")]
#[test_case("has(params.who.name) && !has(params.who.age) && !has(params.title.x)" => T; "has")]
#[test_case("// a comment\n true" => T; "comments")]
#[test_case("params.tags[0] == 'a' && params['title'] == 'fix it' && params.tags[params.size - 4.0] == 'b'" => T; "index")]
#[test_case("9007199254740993 > 9007199254740992.0" => T; "integers are not rounded")]
#[test_case("rateCount('k', '1m') + rateCount('k', '1m') == 3" => T; "every count counts")]
fn evaluates(expression: &str) -> Verdict {
    run(expression, PARAMS, true)
}

// Section 3.2: what decides where keys are missing.
#[test_case("params.gone == 'x'" => MISSING)]
#[test_case("!(params.gone in ['x'])" => MISSING; "also under a negation")]
#[test_case("has(params.gone.x)" => MISSING; "has below it")]
#[test_case("!has(params.gone.x)" => MISSING; "not has below it")]
#[test_case("params.title.x == 1" => MISSING; "of a string")]
#[test_case("params.size['k'] == 1" => MISSING; "of a number")]
#[test_case("params.none[0] == 1" => MISSING; "of null")]
#[test_case("params.gone == 'x' || true" => T; "absorbed by true")]
#[test_case("params.gone == 'x' && false" => F; "absorbed by false")]
#[test_case("params.gone == 'x' && params.size.contains('3')" => MISSING; "E8 the first error decides")]
#[test_case("params.gone == 'x' || params.title == 'fix it'" => T; "E9")]
#[test_case("[1, 2].exists(x, x == 2 || params.gone)" => T; "absorbed in a macro")]
fn p16_missing_keys(expression: &str) -> Verdict {
    run(expression, PARAMS, true)
}

#[test_case("params.size.contains('3') && params.gone == 'x'"; "E8 the other way round")]
#[test_case("params.size + 1 > 5"; "E7 a double and an integer")]
#[test_case("params.tags.x == 1"; "a field of a list")]
#[test_case("params.tags['k'] == 1"; "a name into a list")]
#[test_case("params.tags[9] == 'a'"; "out of bounds")]
#[test_case("size(params.none) == 0"; "size of null")]
#[test_case("1 / int(params.size - 5.0) == 1"; "division by zero")]
#[test_case("params.title"; "no bool")]
#[test_case("params.title.matches(params.url + '(')"; "a pattern made at run time")]
#[test_case("9223372036854775807 + 1 == 0"; "overflow")]
#[test_case("has(params.tags.x)"; "has of a list")]
fn errors(expression: &str) {
    assert!(matches!(run(expression, PARAMS, true), Verdict::Error(_)), "{expression}");
}

#[test]
fn an_error_on_the_left_does_not_keep_the_right_from_counting() {
    let verdict =
        run("(params.gone == 1 && rateCount('k', '1m') > 0) || rateCount('k', '1m') == 2", PARAMS, true);
    assert_eq!(verdict, T);
    assert_eq!(run("(false && rateCount('k', '1m') > 0) || rateCount('k', '1m') == 1", PARAMS, true), T);
}

#[test_case("'a' == 1", "no matching overload"; "types that do not fit")]
#[test_case("1 + 'a' == 2", "no matching overload"; "a sum")]
#[test_case("params.s in 'hello'", "no matching overload"; "in a string")]
#[test_case("1 + 1", "must be true or false"; "no bool")]
#[test_case("parms.x == 1", "did you mean \"params\""; "a name")]
#[test_case("params.x.startswith('a')", "did you mean \"startsWith\""; "a function")]
#[test_case("rateCount('k', '1d') > 1", "unknown unit 'd'"; "P15 a window")]
#[test_case("rateCount('k', '25h') > 1", "exceeds maximum 24h"; "P15 too long")]
#[test_case("inTimeWindow(now, '24:00', '25:00', 'UTC')", "no time of day"; "P15 a clock")]
#[test_case("dayOfWeek(now, 'Local') == 'monday'", "no time zone"; "P15 a zone")]
#[test_case("params.x.matches('(')", "regexp"; "P15 a pattern")]
#[test_case("params.?x == 1", "optional"; "optionals")]
#[test_case("[1].all(x, [1].all(y, [1].all(z, [1].all(w, true))))", "macros"; "P19 too many macros")]
#[test_case("params.x ==", "unexpected the end"; "syntax")]
#[test_case("has(params)", "has() takes"; "has of nothing")]
#[test_case("optional.of(1) == 1", "undeclared"; "optional functions")]
fn p18_load_errors(expression: &str, expected: &str) {
    let text = checked(expression).err().unwrap().text;
    assert!(text.contains(expected), "{text}");
}

#[test]
fn p3_a_mistake_has_its_place() {
    let mistake = checked("params.a == 1 &&\n  parms.b == 2").err().unwrap();
    let shown = mistake.shown("params.a == 1 &&\n  parms.b == 2");
    assert!(shown.starts_with("2:3: undeclared reference to 'parms'"), "{shown}");
    assert!(shown.ends_with("|   parms.b == 2\n  |   ^"), "{shown}");
}

#[test_case("params.name == 'Bash'" => vec!["uppercase"]; "upper case")]
#[test_case("!(params.team in ['a'])" => vec!["does not fire when params.team is absent"]; "E5 negation")]
#[test_case("params.owner != 'bot'" => vec!["does not fire when params.owner is absent"]; "E5 unequal")]
#[test_case("!has(params.owner) || params.owner != 'bot'" => Vec::<&str>::new(); "E5 guarded")]
#[test_case("params.size + 1 > 5" => vec!["denies every call; write 1.0"]; "E7")]
#[test_case("context.direction == 'outgoing'" => vec!["never 'outgoing'"]; "direction")]
#[test_case("rateCount('k', '1h') > 200000" => vec!["never passed"]; "threshold")]
#[test_case("inTimeWindow(now, '22:00', '06:00', 'Europe/Zurich')" => vec!["never true"]; "window")]
#[test_case("params.x.matches('^\\\\W+$')" => Vec::<&str>::new(); "capitals of a pattern")]
fn warnings(expression: &str) -> Vec<&'static str> {
    let known = [
        "uppercase",
        "does not fire when params.team is absent",
        "does not fire when params.owner is absent",
        "denies every call; write 1.0",
        "never 'outgoing'",
        "never passed",
        "never true",
    ];
    let (_, facts) = checked(expression).unwrap();
    let of = |text: &String| known.into_iter().find(|known| text.contains(known)).unwrap_or("?");
    facts.warnings.iter().map(of).collect()
}

#[test]
fn p18_what_is_read_is_known() {
    let (_, facts) =
        checked("params.a.b == 1 && params['c'] == 2 && context.direction == 'request'").unwrap();
    assert_eq!(facts.fields, [vec!["a".to_owned(), "b".to_owned()], vec!["c".to_owned()]].into());
    assert!(!facts.whole && facts.context.contains("direction"));
    assert!(checked("params.exists(k, k == 'a')").unwrap().1.whole);
}

#[test]
fn p19_cost_is_bounded() {
    let items: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let params = format!("{{\"a\":[{}]}}", items.join(","));
    let nested = "params.a.all(x, params.a.all(y, params.a.all(z, x + y + z >= 0.0)))";
    assert!(matches!(run(nested, &params, true), Verdict::Error(text) if text.contains("cost limit")));
    assert_eq!(run("params.a.all(x, params.a.all(y, x + y >= 0.0))", &params, true), T);
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20));
    let costly = (0..40).map(|_| "params.a.contains('y')").collect::<Vec<_>>().join(" || ");
    assert!(matches!(run(&costly, &long, true), Verdict::Error(text) if text.contains("cost limit")));
    // Not even absorbed.
    assert!(matches!(run(&format!("{nested} || true"), &params, true), Verdict::Error(_)));
}

#[test]
fn p20_secrets_are_looked_for_in_their_own_case() {
    let key = ["AKIA", "Q3EGRZ7XJ2LWNB4T"].concat();
    let params = format!("{{\"a\":{{\"b\":[\"x {key}\"]}}}}");
    for expression in ["hasSecrets(params)", "hasSecrets(params.a)", "hasSecrets(params.a.b[0] + '.')"] {
        assert_eq!(run(expression, &params, true), T, "{expression}");
    }
    assert_eq!(run("hasSecrets(params)", "{\"a\":\"nothing\"}", true), F);
}

#[test_case("context.operation == 'delete_issue' || params.y == 1" => Verdict::True; "true whatever the arguments")]
#[test_case("context.operation == 'other' && params.y == 1" => Verdict::False { missing: false }; "false whatever the arguments")]
#[test_case("params.y == 1" => Verdict::Unknown; "depends")]
#[test_case("rateCount('k', '1m') > 3" => Verdict::Unknown; "counts nothing")]
#[test_case("inTimeWindow(now, '00:00', '23:59', 'UTC')" => Verdict::Unknown; "depends on the time")]
#[test_case("!(params.x == 1)" => Verdict::Unknown; "a negation")]
fn p35_with_nothing_bound(expression: &str) -> Verdict {
    let (code, _) = checked(expression).unwrap();
    let context = Context { operation: "delete_issue".to_owned(), ..Context::default() };
    evaluate(&code, &Env { params: None, context: &context, now: None, rates: None, lowered: true })
}

#[test]
fn depth_is_bounded() {
    assert!(parse(&"(".repeat(100_000)).is_err());
    assert!(parse(&"!".repeat(100_000)).is_err());
    assert!(parse(&format!("{}1", "[".repeat(5000))).is_err());
    assert!(parse(&vec!["1"; 5000].join(" + ")).is_err());
    assert!(parse(&vec!["true"; 5000].join(" && ")).is_ok(), "a chain is not deep");
    assert!(parse(&"a.b".to_string().replace(".b", &".b".repeat(5000))).is_err());
}

proptest! {
    /// Whatever the text and the arguments: an answer, soon, and no panic.
    #[test]
    fn never_panics(
        expression in r#"((params|context|now|x|1|2\.5|'a'|\[1, 2\]|true|null)(\.[a-c]|\[0\]|\.size\(\)|\.exists\(x, x == 1\))?( (==|!=|<|\+|-|\*|/|%|in|&&|\|\|) )?){1,6}"#,
        params in r#"\{"a":(1|"b"|\[1,2\]|\{"b":null\}|true),"b":(-0\.5|""|\[\])\}"#,
    ) {
        if let Ok((code, _)) = checked(&expression) {
            let params = Node::parse(params.as_bytes(), Numbers::Exact).unwrap();
            let context = Context::default();
            let env = Env { params: Some(&params), context: &context, now: None, rates: None, lowered: true };
            evaluate(&code, &env);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,60}") {
        if let Ok(tree) = parse(&text) {
            let _refused = check(&tree, &text, false).is_err();
        }
    }

    #[test]
    fn numbers_compare_by_value(a in -1000_i64..1000, b in -1000_i64..1000) {
        let params = format!("{{\"a\":{a},\"b\":{b}.0}}");
        let expected = if a < b { T } else { F };
        prop_assert_eq!(run("params.a < params.b", &params, true), expected.clone());
        prop_assert_eq!(run(&format!("params.a < {b}"), &params, true), expected.clone());
        prop_assert_eq!(run(&format!("{a} < params.b"), &params, true), expected);
    }
}
