use test_case::test_case;

use super::*;

fn problems(yaml: &str) -> String {
    match read(yaml, "f.yaml", &Scopes::of_server("linear")) {
        Ok(loaded) => format!("loaded: {:?}", loaded.warnings),
        Err(broken) => broken.to_string(),
    }
}

const GOOD: &str = "scope: linear\nmode: enforce\nrules:\n- name: a\n  action: deny\n";

#[test_case("" => "f.yaml: parse rule file: empty input"; "empty")]
#[test_case("a: [" => "invalid YAML"; "no yaml")]
fn not_a_file(yaml: &str) -> String {
    let text = problems(yaml);
    if text.contains("invalid YAML") { "invalid YAML".to_owned() } else { text }
}

#[test_case("version: v2\n", "f.yaml:1: unsupported rule file version \"v2\" (supported: v1)"; "version")]
#[test_case("mode: on\n", "mode: invalid value \"on\" (must be \"enforce\" or \"audit_only\")"; "mode")]
#[test_case("on_error: x\n", "on_error: invalid value \"x\" (must be \"closed\" or \"open\")"; "on error")]
#[test_case("defs: {A: x}\n", "defs: name \"A\" is invalid (must match [a-z][a-z0-9_]*)"; "def name")]
#[test_case("defs: {size: x}\n", "defs: name \"size\" shadows a built-in variable or function"; "def shadows")]
#[test_case("defs: {a: }\n", "defs: value for \"a\" must not be empty"; "def empty")]
#[test_case("extends: x\n", "unknown key \"extends\""; "P1 unknown key")]
#[test_case("allow: [x]\n", "rules do not allow, they deny"; "P1 allow")]
#[test_case("packs: [{name: p}]\n", "pack \"p\" not found"; "P10 packs without a directory")]
fn top(extra: &str, expected: &str) {
    let text = problems(&format!("{extra}scope: linear\nrules:\n- name: a\n  action: deny\n"));
    assert!(text.contains(expected), "{text}");
}

#[test_case("- {action: deny}", "rules[0]: name is required"; "no name")]
#[test_case("- {name: a_b, action: deny}", "rules[0]: name \"a_b\" is invalid (must match [a-z][a-z0-9-]*)"; "bad name")]
#[test_case("- {name: a}", "rules[0]: action is required"; "no action")]
#[test_case("- {name: a, action: allow}", "rules[0]: action \"allow\" is invalid (must be \"deny\", \"log\", or \"redact\")"; "allow")]
#[test_case("- {name: a, action: judge}", "rules[0]: action \"judge\" is not supported"; "judge")]
#[test_case("- {name: a, action: deny}\n- {name: a, action: deny}", "rules[1]: duplicate rule name \"a\" within scope"; "twice")]
#[test_case("- {name: a, action: redact}", "action \"redact\" requires a redact block"; "no redact")]
#[test_case("- {name: a, action: redact, redact: {target: context.x, secrets: true}}", "redact target \"context.x\" must be a params.* path"; "target")]
#[test_case("- {name: a, action: redact, redact: {target: 'params.a[0]', secrets: true}}", "segment \"a[0]\": invalid character '['"; "indexed target")]
#[test_case("- {name: a, action: redact, redact: {target: params.a}}", "redact requires secrets: true or non-empty patterns"; "nothing to redact")]
#[test_case("- {name: a, action: redact, redact: {target: params.a, patterns: [{match: '('}]}}", "is not a valid RE2 pattern"; "pattern")]
#[test_case("- {name: a, action: deny, match: {operations: x}}", "rules[0].match: unknown key \"operations\" (did you mean \"operation\"?)"; "P1")]
#[test_case("- {name: a, action: deny, match: {operation: 'a['}}", "operation \"a[\" is not a valid pattern"; "P7")]
#[test_case("- {name: a, action: deny, match: {when: 'parms.x == 1'}}", "when: 1:1: undeclared reference to 'parms'"; "when")]
fn rules_are_checked(rules: &str, expected: &str) {
    let text = problems(&format!("scope: linear\nrules:\n{rules}\n"));
    assert!(text.contains(expected), "{text}");
}

#[test]
fn p3_all_problems_come_at_once() {
    let text = problems("version: v2\nscope: 9\nrules:\n- {action: x}\n- {name: A}\n");
    assert!(text.lines().count() >= 6, "{text}");
}

#[test]
fn keep_s_spellings_load() {
    for yaml in [
        GOOD.to_owned(),
        GOOD.replace("enforce", "audit"),
        GOOD.replace("scope: linear", "scope: mcp-linear"),
        format!("{GOOD}  x-owner: me\n  message: 5\n"),
        format!("version: v1\ncase_sensitive: 'yes'\n{GOOD}"),
        format!("{GOOD}  match:\n"),
    ] {
        assert_eq!(problems(&yaml), "loaded: []", "{yaml}");
    }
}

#[test]
fn p24_the_scope_is_the_server_s() {
    let text = problems(&GOOD.replace("linear", "slack"));
    assert!(
        text.contains(
            "scope \"slack\" does not belong to this server (expected \"linear\" or \"mcp-linear\")"
        ),
        "{text}"
    );
    assert_eq!(Scopes::of_server("My_Server.1").0, ["my-server-1", "mcp-my-server-1"]);
}

#[test]
fn p11_definitions_replace_names_and_nothing_else() {
    let words = Words {
        profile: [("who".to_owned(), "params.user.name".to_owned())].into(),
        defs: [("a".to_owned(), "1 + 2".to_owned())].into(),
    };
    assert_eq!(
        words.substitute("a * 3 == x.a || who == 'a' // a\n").unwrap(),
        "1 + 2 * 3 == x.a || params.user.name == 'a' // a\n"
    );
    let bomb = Words { profile: BTreeMap::new(), defs: [("a".to_owned(), "x".repeat(2048))].into() };
    assert!(bomb.substitute(&"a ".repeat(1000)).is_err());
}

#[test]
fn p10_packs_and_profiles_lie_beside_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "packs/p.yaml",
        "name: p\nprofile: q\nrules:\n- {name: one, action: deny, match: {when: who == 'x'}}\n- {name: two, action: deny}\n- {name: three, action: log}\n",
    );
    write("profiles/q.yaml", "name: q\naliases: {who: params.user.name}\n");
    write(
        "f.yaml",
        "scope: linear\nmode: enforce\nprofile: q\npacks:\n- name: p\n  overrides:\n    two: disabled\n    three: {action: deny, message: no}\nrules:\n- {name: own, action: deny, match: {when: who == 'y'}}\n",
    );
    let load = || load(&dir.path().join("f.yaml"), "f.yaml", &Scopes::of_server("linear"));
    let loaded = load().unwrap();
    let rules: Vec<_> =
        loaded.policy.set.rules.iter().map(|r| (r.name.as_str(), r.when.as_deref(), r.action)).collect();
    assert_eq!(
        rules,
        [
            ("one", Some("params.user.name == 'x'"), Action::Deny),
            ("three", None, Action::Deny),
            ("own", Some("params.user.name == 'y'"), Action::Deny),
        ]
    );
    assert!(loaded.files.len() >= 3, "{:?}", loaded.files);
    write("packs/p.yaml", "name: other\nrules: []\n");
    assert!(load().unwrap_err().to_string().contains("pack \"p\" not found (available: other)"));
    std::fs::remove_dir_all(dir.path().join("packs")).unwrap();
    assert!(load().unwrap_err().to_string().contains("packs/ beside it cannot be read"));
}

#[test]
fn the_stored_text_is_complete_and_checked() {
    use crate::policy::bound::{Bound, Source};
    let loaded = read(GOOD, "f.yaml", &Scopes::default()).unwrap();
    let bound = Bound::new(Source::Inline, &loaded.policy.set);
    let stored = serde_json::to_string(&bound).unwrap();
    let back: Bound = serde_json::from_str(&stored).unwrap();
    assert_eq!(back.rule_set().unwrap(), loaded.policy.set);
    assert!(back.state().accepted.is_ok());
    // P43: anything else closes.
    let changed: Bound = serde_json::from_str(&stored.replace("deny", "log")).unwrap();
    assert!(changed.state().accepted.as_ref().unwrap_err().contains("hash"));
    let broken: Bound = serde_json::from_str(&stored.replacen("{\\\"scope\\\"", "{\\\"scop\\\"", 1)).unwrap();
    assert!(broken.state().accepted.is_err());
}
