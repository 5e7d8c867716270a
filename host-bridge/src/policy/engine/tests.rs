//! The worked examples, by their names, and what holds for every set of rules.

use proptest::prelude::*;
use test_case::test_case;

use super::*;
use crate::policy::{
    file::{self, Scopes},
    glob,
    json::Numbers,
    rate::{Counters, Turn},
};

fn policy(yaml: &str) -> Policy {
    file::read(&format!("scope: x\n{yaml}"), "x.yaml", &Scopes::default()).unwrap().policy
}

/// Denied by which rule, and the arguments as they would be sent.
fn judged_with(policy: &Policy, tool: &str, args: &str, counters: &Counters) -> (Option<String>, String) {
    let mut params = Node::parse(args.as_bytes(), Numbers::Exact).unwrap();
    let operation = glob::Operation::new(tool);
    let now = "2026-01-25T10:23:44Z".parse().unwrap();
    let turn = Turn::new(counters);
    let context = Context {
        operation: if policy.set.case_sensitive { tool.to_owned() } else { operation.lower().to_owned() },
        direction: "request",
        timestamp: Some(now),
        ..Context::default()
    };
    let call = Call {
        kind: Kind::Tool,
        phase: Phase::Request,
        operation: &operation,
        context: &context,
        now,
        rates: &turn,
    };
    let mut arguments = Arguments::new(&mut params);
    let judgement = policy.judge(&call, &mut arguments, false);
    let sent = splice(args.as_bytes(), &arguments.edits);
    let denial = judgement.denial.filter(|_| policy.enforces());
    (denial.map(|denial| denial.rule), String::from_utf8(sent).unwrap())
}

fn judged(policy: &Policy, tool: &str, args: &str) -> (Option<String>, String) {
    judged_with(policy, tool, args, &Counters::default())
}

fn denied(yaml: &str, tool: &str, args: &str) -> Option<String> {
    judged(&policy(&format!("mode: enforce\n{yaml}")), tool, args).0
}

const WIPE: &str =
    "rules:\n- {name: w, action: deny, match: {operation: wipe_board}, message: Boards stay.}\n";

#[test_case("wipe_board" => Some("w".to_owned()); "E1")]
#[test_case("WIPE_Board" => Some("w".to_owned()); "in capitals")]
#[test_case("wipe_boards" => None; "another")]
fn e1(tool: &str) -> Option<String> {
    denied(WIPE, tool, "{}")
}

#[test]
fn e2_the_exact_tier_runs_first() {
    let yaml = "rules:\n- {name: a, action: deny, match: {when: params.count > 10}}\n- {name: b, action: deny, match: {operation: move_card}}\n";
    assert_eq!(denied(yaml, "move_card", "{\"count\":20}").as_deref(), Some("b"));
    assert_eq!(denied(yaml, "other", "{\"count\":20}").as_deref(), Some("a"));
    assert_eq!(denied(yaml, "other", "{}"), None);
}

#[test_case("", "archiveBoard" => Some("a".to_owned()); "E3")]
#[test_case("case_sensitive: true\n", "ARCHIVEBOARD" => None; "E3 sensitive")]
fn e3(extra: &str, tool: &str) -> Option<String> {
    denied(
        &format!("{extra}rules:\n- {{name: a, action: deny, match: {{operation: archiveBoard}}}}\n"),
        tool,
        "{}",
    )
}

fn when(expression: &str, action: &str, args: &str) -> Option<String> {
    denied(
        &format!("rules:\n- name: r\n  action: {action}\n  match:\n    when: >-\n      {expression}\n"),
        "t",
        args,
    )
}

#[test_case("params.status == 'Done'", "{\"status\":\"Done\"}" => false; "E4 a capital never matches")]
#[test_case("params.status == 'done'", "{\"status\":\"DONE\"}" => true; "E4 lower case does")]
#[test_case("params.owner != 'bot'", "{}" => false; "E5")]
#[test_case("!has(params.owner) || params.owner != 'bot'", "{}" => true; "E5 guarded")]
#[test_case("params.size + 1 > 5", "{\"size\":1}" => true; "E7 by its error")]
#[test_case("params.size + 1.0 > 5.0", "{\"size\":1}" => false; "E7 with a double")]
#[test_case("params.gone == 'x' && params.size.contains('3')", "{\"size\":3}" => false; "E8")]
#[test_case("params.gone == 'x' || params.team == 'ops'", "{\"team\":\"Ops\"}" => true; "E9")]
fn e4_to_e9(expression: &str, args: &str) -> bool {
    when(expression, "deny", args).is_some()
}

#[test]
fn e6_an_error_denies_even_for_a_log_rule_unless_open() {
    assert_eq!(when("params.size.startsWith('x')", "log", "{\"size\":3}").as_deref(), Some("r"));
    let rules = "rules:\n- {name: r, action: log, match: {when: \"params.size.startsWith('x')\"}}\n";
    for head in ["mode: enforce\non_error: open\n", "mode: audit\n", ""] {
        let policy = policy(&format!("{head}{rules}"));
        assert_eq!(judged(&policy, "t", "{\"size\":3}").0, None, "{head}");
    }
}

#[test]
fn e10_the_fourth_and_fifth_are_denied_and_count() {
    let policy = policy(
        "mode: enforce\nrules:\n- {name: r, action: deny, match: {operation: 'send_*', when: \"rateCount('mail', '10m') > 3\"}}\n",
    );
    let counters = Counters::default();
    let denials: Vec<bool> =
        (0..5).map(|_| judged_with(&policy, "send_note", "{}", &counters).0.is_some()).collect();
    assert_eq!(denials, [false, false, false, true, true]);
}

#[test]
fn e11_definitions() {
    let yaml = "defs: {closed: \"['done', 'dropped']\"}\nrules:\n- {name: r, action: deny, match: {when: params.state in closed}}\n";
    assert_eq!(denied(yaml, "t", "{\"state\":\"Dropped\"}").as_deref(), Some("r"));
}

const REDACT: &str = "mode: enforce\nrules:\n- name: r\n  action: redact\n  match: {operation: '*_note'}\n  redact:\n    target: params.note\n    patterns: [{match: '\\bT-(\\d{3})\\b', replace: 'T-***'}]\n";

#[test]
fn e12_only_the_bytes_of_the_string_change() {
    let args = "{ \"n\": 1.0, \"note\" : \"see T-123 and T-9 \\u00e9\\n\", \"z\":[9007199254740991]}";
    let (denied, sent) = judged(&policy(REDACT), "add_note", args);
    assert_eq!(denied, None);
    assert_eq!(sent, "{ \"n\": 1.0, \"note\" : \"see T-*** and T-9 é\\n\", \"z\":[9007199254740991]}");
    assert_eq!(judged(&policy(REDACT), "add_note", "{\"note\":\"T-9\"}").1, "{\"note\":\"T-9\"}");
}

#[test_case("'t-***'" => None; "not lowered again")]
#[test_case("'T-***'" => Some("later".to_owned()); "as it was written")]
fn e13_a_later_rule_sees_what_a_redaction_wrote(literal: &str) -> Option<String> {
    let yaml = format!(
        "{REDACT}- {{name: later, action: deny, match: {{when: \"params.note.contains({literal})\"}}}}\n"
    );
    judged(&policy(&yaml), "add_note", "{\"note\":\"T-123\"}").0
}

#[test]
fn p12_everything_below_the_target_is_redacted() {
    let (_, sent) = judged(&policy(REDACT), "a_note", "{\"note\":[\"T-123\",{\"x\":\"T-456\"},7]}");
    assert_eq!(sent, "{\"note\":[\"T-***\",{\"x\":\"T-***\"},7]}");
}

#[test]
fn e14_secrets() {
    let token = ["ghp_", "a8Kx0QmZ3vT7nB2cR5yW9eL1uS4dF6gH0jPq"].concat();
    let args = format!("{{\"body\":\"gitleaks:allow {token}\"}}");
    assert_eq!(when("hasSecrets(params.body)", "deny", &args).as_deref(), Some("r"));
    let yaml =
        "mode: enforce\nrules:\n- {name: r, action: redact, redact: {target: params.body, secrets: true}}\n";
    assert_eq!(judged(&policy(yaml), "t", &args).1, "{\"body\":\"gitleaks:allow [REDACTED:github-pat]\"}");
}

#[test]
fn e16_an_audit_denies_nothing_and_rewrites_nothing() {
    let audit = REDACT.replace("enforce", "audit_only");
    assert_eq!(judged(&policy(&audit), "a_note", "{\"note\":\"T-123\"}").1, "{\"note\":\"T-123\"}");
    assert_eq!(judged(&policy(WIPE), "wipe_board", "{}").0, None, "without a mode");
}

#[test]
fn e18_only_rules_that_name_a_method_judge_what_is_no_tool() {
    let policy = policy(
        "mode: enforce\nrules:\n- {name: f, action: deny, match: {operation: 'resources/read:file:///*'}}\n- {name: all, action: deny}\n",
    );
    let hidden = |name: &str, kind: Kind| {
        policy.hides(kind, &glob::Operation::new(name), &Context::default()).map(str::to_owned)
    };
    assert_eq!(hidden("resources/read:file:///etc/hosts", Kind::Method).as_deref(), Some("f"));
    assert_eq!(hidden("resources/read:note://1", Kind::Method), None);
    assert_eq!(hidden("anything", Kind::Tool).as_deref(), Some("all"));
}

#[test]
fn e19_keys_that_some_take_for_one_that_is_read() {
    let policy = policy(
        "mode: enforce\nrules:\n- {name: r, action: deny, match: {when: \"params.path.startsWith('/etc') || params.a.b == 1\"}}\n",
    );
    let operation = glob::Operation::new("t");
    let (context, counters) = (Context::default(), Counters::default());
    let turn = Turn::new(&counters);
    let now = jiff::Timestamp::UNIX_EPOCH;
    let call = Call {
        kind: Kind::Tool,
        phase: Phase::Request,
        operation: &operation,
        context: &context,
        now,
        rates: &turn,
    };
    let misread = |args: &str| {
        let node = Node::parse(args.as_bytes(), Numbers::Exact).unwrap();
        policy.misread(&call, &node).map(str::to_owned)
    };
    assert_eq!(misread("{\"PATH\":\"/etc/passwd\"}").as_deref(), Some("PATH"));
    assert_eq!(misread("{\"a\":{\"B\":1}}").as_deref(), Some("B"));
    assert_eq!(misread("{\"path\":\"/x\",\"A\":1}").as_deref(), Some("A"));
    assert_eq!(misread("{\"path\":\"/x\",\"Other\":1}"), None);
}

#[test]
fn a_redaction_before_a_denial_leaves_no_trace_of_itself() {
    let yaml = format!("{REDACT}- {{name: no, action: deny}}\n");
    assert_eq!(judged(&policy(&yaml), "a_note", "{\"note\":\"T-123\"}").0.as_deref(), Some("no"));
}

#[test]
fn an_allow_list_denies_what_it_does_not_name() {
    use crate::policy::form::{Inline, inline};
    let bound = inline(&Inline { allow: vec!["get_*".into(), "prompts/*".into()], ..Inline::default() }, "x");
    let policy = Policy::compile(bound.rule_set().unwrap()).unwrap();
    assert_eq!(judged(&policy, "get_issue", "{}").0, None);
    assert_eq!(judged(&policy, "delete_issue", "{}").0.as_deref(), Some("allow-list"));
    let hidden =
        |name: &str| policy.hides(Kind::Method, &glob::Operation::new(name), &Context::default()).is_some();
    assert!(hidden("resources/read:a") && !hidden("prompts/get:a") && hidden("get_x"));
}

#[test]
fn p33_what_matches_across_two_strings_is_joined() {
    let redactor = |text: &str| {
        let new = text.replace("a\nb", "-");
        (new != text).then_some(new)
    };
    let mut texts = ResultTexts::new(vec![(0..3, "xa".to_owned()), (5..8, "by".to_owned())]);
    assert_eq!(texts.redact(&redactor, &["content".to_owned()], false), 2);
    let new: Vec<&str> = texts.edits.values().map(|(_, text)| text.as_str()).collect();
    assert_eq!(new, ["x-y", ""]);
}

#[test]
fn p32_only_rules_about_results_judge_results() {
    let policy = policy(
        "mode: enforce\nrules:\n- {name: any, action: deny}\n- {name: res, action: deny, match: {when: \"context.direction == 'response' && params.content.contains('bad')\"}}\n",
    );
    let operation = glob::Operation::new("t");
    let counters = Counters::default();
    let turn = Turn::new(&counters);
    let now = jiff::Timestamp::UNIX_EPOCH;
    let context = Context { direction: "response", ..Context::default() };
    let call = Call {
        kind: Kind::Tool,
        phase: Phase::Response,
        operation: &operation,
        context: &context,
        now,
        rates: &turn,
    };
    let judge = |text: &str| {
        policy
            .judge(&call, &mut ResultTexts::new(vec![(0..1, text.to_owned())]), false)
            .denial
            .map(|d| d.rule)
    };
    assert_eq!((judge("good"), judge("so Bad").as_deref()), (None, Some("res")));
}

/// Counters that are lost in one way or another.
struct Lost(bool);

impl Rates for Lost {
    fn count(&self, _: &str, _: jiff::SignedDuration, _: Timestamp) -> Result<i64, String> {
        assert!(self.0, "a defect of ours");
        Err("rate: too many keys".to_owned())
    }
}

/// Whatever keeps a rule from being evaluated denies, unless the file says `on_error: open`.
#[test]
fn what_cannot_be_evaluated_denies() {
    let operation = glob::Operation::new("t");
    let now = Timestamp::UNIX_EPOCH;
    let long = format!("{{\"a\":[{}]}}", vec!["[1]"; 2000].join(","));
    let cases = [
        ("rateCount('k', '1h') > 3", true, "{}", "too many keys"),
        ("rateCount('k', '1h') > 3", false, "{}", "broke off"),
        ("params.a.all(x, params.a.all(y, x == y))", true, long.as_str(), "cost"),
        ("params.a.startsWith('x')", true, "{\"a\":1}", "no such overload"),
    ];
    for (when, full, args, reason) in cases {
        let judge = |on_error: &str| {
            let policy = policy(&format!(
                "mode: enforce\non_error: {on_error}\nrules:\n- {{name: r, action: log, match: {{when: \"{when}\"}}}}\n"
            ));
            let call = Call {
                kind: Kind::Tool,
                phase: Phase::Request,
                operation: &operation,
                context: &Context::default(),
                now,
                rates: &Lost(full),
            };
            let mut params = Node::parse(args.as_bytes(), Numbers::Exact).unwrap();
            policy.judge(&call, &mut Arguments::new(&mut params), false)
        };
        let error = judge("closed").denial.and_then(|denial| denial.error).unwrap_or_default();
        assert!(error.contains(reason), "{when}: {error:?}");
        let open = judge("open");
        assert!(open.denial.is_none() && open.errors[0].1.contains(reason), "{when}: {:?}", open.errors);
    }
}

proptest! {
    /// Order within a tier is the file's; whatever the order, the same calls are denied.
    #[test]
    fn order_decides_who_denies_never_whether(
        operations in proptest::collection::vec(prop_oneof![Just("a"), Just("a*"), Just("?"), Just(""), Just("b")], 1..6),
        tool in "[ab]{1,2}",
    ) {
        let yaml = |operations: &[&str]| {
            let rules: String = operations
                .iter()
                .enumerate()
                .map(|(n, operation)| format!("- {{name: r{n}, action: deny, match: {{operation: '{operation}'}}}}\n"))
                .collect();
            format!("rules:\n{rules}")
        };
        let mut reversed = operations.clone();
        reversed.reverse();
        let forward = denied(&yaml(&operations), &tool, "{}");
        prop_assert_eq!(forward.is_some(), denied(&yaml(&reversed), &tool, "{}").is_some());
        if let Some(rule) = forward {
            let index: usize = rule[1..].parse().unwrap();
            let tier = |operation: &str| match operation { "" => 2, o if o.contains(['*', '?']) => 1, _ => 0 };
            let matches = |operation: &str| operation.is_empty() || glob::Glob::new(operation, false).unwrap().matches(&glob::Operation::new(&tool));
            let first = (0..operations.len()).filter(|n| matches(operations[*n])).min_by_key(|n| (tier(operations[*n]), *n));
            prop_assert_eq!(Some(index), first);
        }
    }

    /// The case of names and strings changes nothing, unless the file says so.
    #[test]
    fn case_changes_nothing(tool in "[a-z]{1,6}", value in "[a-z]{0,6}", upper in any::<bool>()) {
        let yaml = format!("rules:\n- {{name: r, action: deny, match: {{operation: '{}', when: \"params.v == '{value}'\"}}}}\n", tool.to_uppercase());
        let case = |text: &str| if upper { text.to_uppercase() } else { text.to_owned() };
        let args = format!("{{\"v\":\"{}\"}}", case(&value));
        prop_assert_eq!(denied(&yaml, &case(&tool), &args), Some("r".to_owned()));
    }
}
