//! `moat policy test RULES FIXTURES...`: Keep's fixtures, judged as live calls are: numbers are doubles, and the policy
//! enforces whatever its mode is.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{
    explain::{self, Explained},
    json, load,
};
use crate::{
    cli::{Context, Failure, Outcome, print},
    config::{
        self,
        yaml::{self, Node as Yaml, Value, as_bool},
    },
    policy::{
        compile::Policy,
        engine::{Arguments, Call, Phase, splice},
        glob,
        json::{Node, Numbers},
        model::{Mode, RuleSet},
        rate::{Counters, Turn},
    },
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A fixture file:
  scope: linear
  tests:
    - name: a deletion is denied
      call: {operation: delete_issue, params: {id: X-1}}
      expect: {decision: deny, rule: no-deletes, message: not allowed}

'decision' is allow, deny or redact; 'rule' and 'message' (a part of it) may be left out.")]
pub(super) struct Args {
    /// The rule file
    rules: PathBuf,
    /// Fixture files
    #[arg(required = true)]
    fixtures: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Tested {
    file: String,
    name: String,
    passed: bool,
    problem: Option<String>,
}

impl Args {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let set = load(&self.rules)?.policy.set;
        let policy = explain::compiled(RuleSet { mode: Mode::Enforce, ..set })?;
        let mut tested = Vec::new();
        for path in &self.fixtures {
            tested.extend(file(path, &policy)?);
        }
        let failed = tested.iter().filter(|test| !test.passed).count();
        if context.global.json {
            json(&tested)?;
        } else {
            for test in &tested {
                match &test.problem {
                    None => print::line(&format!("ok      {}: {}", test.file, test.name)),
                    Some(problem) => print::line(&format!("FAILED  {}: {}: {problem}", test.file, test.name)),
                }
            }
            print::line(&format!("{} passed, {failed} failed", tested.len() - failed));
        }
        if tested.is_empty() {
            return Err(Failure::new("the fixtures hold no tests"));
        }
        Ok(if failed == 0 { moat_shared::exit::OK } else { moat_shared::exit::FAILURE })
    }
}

fn file(path: &Path, policy: &Policy) -> Result<Vec<Tested>, Failure> {
    let shown = path.display().to_string();
    let text = config::read(path, &shown)
        .map_err(|error| Failure::from_error(&error))?
        .ok_or_else(|| Failure::new(format!("no such file: {shown}")))?;
    let root = yaml::parse(&text)
        .map_err(|error| Failure::new(format!("{shown}:{}: {}", error.line, error.text)))?;
    let root = root.ok_or_else(|| Failure::new(format!("{shown} is empty")))?;
    if let Some(scope) = get(&root, "scope").and_then(scalar)
        && scope != policy.set.scope
    {
        return Err(Failure::new(format!(
            "{shown}: scope {scope:?} is not that of the rules ({:?})",
            policy.set.scope
        )));
    }
    let Some(Value::List(tests)) = get(&root, "tests").map(|tests| &tests.value) else {
        return Err(Failure::new(format!("{shown}: 'tests' must be a list")));
    };
    tests.iter().map(|test| one(&shown, test, policy)).collect()
}

fn one(file: &str, test: &Yaml, policy: &Policy) -> Result<Tested, Failure> {
    let bad = |text: &str| Failure::new(format!("{file}:{}: {text}", test.line));
    let name = get(test, "name").and_then(scalar).unwrap_or("unnamed").to_owned();
    let call = get(test, "call").ok_or_else(|| bad("a test needs a 'call'"))?;
    let expect = get(test, "expect").ok_or_else(|| bad("a test needs an 'expect'"))?;
    let operation =
        get(call, "operation").and_then(scalar).ok_or_else(|| bad("a call needs an 'operation'"))?;
    let params = get(call, "params").map_or_else(|| "{}".to_owned(), |params| to_json(params).to_string());
    let judged = judge(policy, operation, &params, get(call, "context")).map_err(|text| bad(&text))?;
    let problem = differs(&judged, expect).or_else(|| unknown_key(test));
    Ok(Tested { file: file.to_owned(), name, passed: problem.is_none(), problem })
}

/// An expectation that nobody looks at would pass for ever.
fn unknown_key(test: &Yaml) -> Option<String> {
    let known: [(&str, &[&str]); 3] = [
        ("", &["name", "call", "expect", "description"]),
        ("call", &["operation", "params", "context"]),
        ("expect", &["decision", "rule", "message", "mutations"]),
    ];
    known.iter().find_map(|(at, keys)| {
        let node = if at.is_empty() { Some(test) } else { get(test, at) };
        let Value::Map(entries) = &node?.value else { return None };
        let wrong = entries.iter().find(|entry| !keys.contains(&entry.key.as_str()))?;
        Some(format!("unknown key {:?} (line {})", wrong.key, wrong.line))
    })
}

fn judge(
    policy: &Policy,
    operation: &str,
    params: &str,
    context: Option<&Yaml>,
) -> Result<Explained, String> {
    let mut node =
        Node::parse(params.as_bytes(), Numbers::Exact).map_err(|error| format!("params: {error}"))?;
    let operation = glob::Operation::new(operation);
    let given = |key: &str| context.and_then(|context| get(context, key)).and_then(scalar);
    let now = match given("timestamp") {
        Some(text) => text.parse().map_err(|_| "context.timestamp is no time".to_owned())?,
        None => jiff::Timestamp::now(),
    };
    let direction = given("direction").unwrap_or("request");
    let phase = if direction == "response" { Phase::Response } else { Phase::Request };
    let case = |text: &str| if policy.set.case_sensitive { text.to_owned() } else { text.to_lowercase() };
    let seen = crate::policy::engine::Context {
        timestamp: Some(now),
        agent_id: given("agent_id").map(case).unwrap_or_default(),
        user_id: given("user_id").map(case).unwrap_or_default(),
        ..explain::seen(policy, &operation, phase)
    };
    let counters = Counters::default();
    let turn = Turn::new(&counters);
    let kind = explain::kind_of(operation.own());
    let call = Call { kind, phase, operation: &operation, context: &seen, now, rates: &turn };
    let mut arguments = Arguments::new(&mut node);
    let judgement = policy.judge(&call, &mut arguments, true);
    let edits = arguments.edits;
    let sent =
        (!edits.is_empty()).then(|| String::from_utf8_lossy(&splice(params.as_bytes(), &edits)).into_owned());
    Ok(explain::explained(policy, judgement, sent, true))
}

fn differs(judged: &Explained, expect: &Yaml) -> Option<String> {
    let wanted = |key: &str| get(expect, key).and_then(scalar);
    let decision = wanted("decision").unwrap_or("allow");
    if decision != judged.decision {
        let by = judged.rule.as_ref().map(|rule| format!(" (rule '{rule}')")).unwrap_or_default();
        return Some(format!("expected {decision}, got {}{by}", judged.decision));
    }
    if let Some(rule) = wanted("rule")
        && judged.rule.as_deref() != Some(rule)
    {
        return Some(format!("expected rule '{rule}', got '{}'", judged.rule.as_deref().unwrap_or("none")));
    }
    if let Some(message) = wanted("message")
        && !judged.message.as_deref().unwrap_or_default().contains(message)
    {
        return Some(format!("expected a message with {message:?}, got {:?}", judged.message));
    }
    let mutations = get(expect, "mutations").map(|mutations| &mutations.value);
    if let Some(Value::List(mutations)) = mutations {
        for mutation in mutations {
            let replaced = get(mutation, "replaced").and_then(scalar).unwrap_or_default();
            if !judged.sent.as_deref().unwrap_or_default().contains(replaced) {
                return Some(format!("expected {replaced:?} in what is sent, got {:?}", judged.sent));
            }
        }
    }
    None
}

fn get<'y>(node: &'y Yaml, key: &str) -> Option<&'y Yaml> {
    match &node.value {
        Value::Map(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value),
        _ => None,
    }
}

fn scalar(node: &Yaml) -> Option<&str> {
    match &node.value {
        Value::Scalar { text, .. } if !node.is_null() => Some(text),
        _ => None,
    }
}

/// As YAML means it.
fn to_json(node: &Yaml) -> serde_json::Value {
    match &node.value {
        Value::List(items) => items.iter().map(to_json).collect(),
        Value::Map(entries) => {
            entries.iter().map(|entry| (entry.key.clone(), to_json(&entry.value))).collect()
        }
        Value::Scalar { .. } if node.is_null() => serde_json::Value::Null,
        Value::Scalar { text, plain: true } => {
            match (as_bool(text), text.parse::<i64>(), text.parse::<f64>()) {
                (Some(value), ..) => value.into(),
                (_, Ok(number), _) => number.into(),
                (_, _, Ok(number)) if number.is_finite() => number.into(),
                _ => text.clone().into(),
            }
        }
        Value::Scalar { text, .. } => text.clone().into(),
    }
}
