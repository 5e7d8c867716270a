//! `cargo bench-policy`: what a policy costs a call, and a list.
//!
//! Each figure goes through the steps of the bridge's pipeline, from the body to the verdict, in turns with the same call
//! to a server without a policy and with `serde_json` reading the same bytes, so that all meet the same machine. What
//! counts is the median of the turns; the ratio to `serde_json` is what two machines can compare.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::{hint::black_box, process::ExitCode, time::Instant};

use bytes::Bytes;
use moat_host_bridge::bench::Served;
use moat_tests::{
    Outcome, Trouble,
    measure::{Machine, Others, Spread},
    trouble::ensure,
};
use serde_json::{Value, json};

/// Fifty rules with conditions on a call of 1 KiB, in microseconds.
const CALL_US: f64 = 20.0;
/// A list of a thousand tools, in microseconds.
const LIST_US: f64 = 2000.0;
/// Turns, and what is done in one.
const TURNS: usize = 60;
const CALLS: usize = 200;
const LISTS: usize = 4;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            println!("the benchmark could not be carried out: {trouble}");
            ExitCode::FAILURE
        }
    }
}

/// One thing that is measured.
struct Row {
    name: &'static str,
    goal: Option<f64>,
    work: Box<dyn Fn() -> Outcome>,
}

impl Row {
    fn call(name: &'static str, rules: Option<&str>, body: &Bytes, goal: Option<f64>) -> Outcome<Self> {
        let (served, body) = (Served::by(rules).map_err(Trouble::new)?, body.clone());
        let work = move || served.call(black_box(&body)).map_err(Trouble::new);
        Ok(Self { name, goal, work: Box::new(work) })
    }

    fn list(name: &'static str, rules: &str, answer: &Bytes) -> Outcome<Self> {
        let (served, answer) = (Served::by(Some(rules)).map_err(Trouble::new)?, answer.clone());
        let shown = served.list(&answer).map_err(Trouble::new)?;
        ensure(shown < answer.len(), || format!("{name}: nothing is hidden"))?;
        let work = move || served.list(black_box(&answer)).map(|_| ()).map_err(Trouble::new);
        Ok(Self { name, goal: Some(LIST_US), work: Box::new(work) })
    }

    fn reference(body: &Bytes) -> Self {
        let body = body.clone();
        let work = move || {
            let value: Value = serde_json::from_slice(black_box(&body))?;
            black_box(value);
            Ok(())
        };
        Self { name: "serde_json alone", goal: None, work: Box::new(work) }
    }
}

fn run() -> Outcome<bool> {
    let body = call();
    println!("A tools/call of {} bytes, {TURNS} turns of {CALLS}:\n", body.len());
    let calls = [
        Row::reference(&body),
        Row::call("no policy", None, &body, None)?,
        Row::call("one rule, of another tool", Some(&rules(1, |_| "other_tool".to_owned())), &body, None)?,
        Row::call(
            "50 rules with conditions, 10 of them on this tool",
            Some(&rules(
                50,
                |rule| if rule % 5 == 0 { "create_*".to_owned() } else { format!("tool_{rule}_*") },
            )),
            &body,
            Some(CALL_US),
        )?,
        Row::call(
            "50 rules with conditions, all on every tool",
            Some(&rules(50, |_| "*".to_owned())),
            &body,
            None,
        )?,
    ];
    let machine = Machine::now(&[])?;
    let mut kept = table(&calls, CALLS, true)?;
    let answer = list();
    println!(
        "\nThe answer to a tools/list with 1,000 tools, {} bytes, {TURNS} turns of {LISTS}:\n",
        answer.len()
    );
    let lists = [
        Row::reference(&answer),
        Row::list("an allow list of 20 names", &allow(), &answer)?,
        Row::list("50 rules with conditions on the operation", &hiding(), &answer)?,
    ];
    kept &= table(&lists, LISTS, false)?;
    let Others { used, processors } = machine.others(&[])?;
    println!("\nOthers used {used:.1} of {processors} processors meanwhile.");
    Ok(kept)
}

/// Measures the rows in turns and prints them. Are the goals reached? A policy's cost is what it adds to the row without.
fn table(rows: &[Row], times: usize, adds: bool) -> Outcome<bool> {
    for row in rows {
        (row.work)()?;
    }
    let mut measured = vec![Vec::new(); rows.len()];
    for turn in 0..TURNS {
        for place in 0..rows.len() {
            let index = (turn + place) % rows.len();
            let begun = Instant::now();
            for _ in 0..times {
                (rows[index].work)()?;
            }
            measured[index].push(begun.elapsed().as_secs_f64() * 1e6 / f64::from(u32::try_from(times)?));
        }
    }
    let spreads: Vec<Spread> = measured.into_iter().map(Spread::of).collect::<Outcome<_>>()?;
    let mut kept = true;
    for (index, (row, spread)) in rows.iter().zip(&spreads).enumerate() {
        let allocations = allocation_counter::measure(|| {
            let _measured_above = (row.work)();
        });
        let ratio = spread.median / spreads[0].median;
        let added = if adds && index > 1 { spread.median - spreads[1].median } else { spread.median };
        let verdict = match row.goal {
            None => String::new(),
            Some(goal) if added <= goal => format!("  goal {goal} us: reached ({added:.1})"),
            Some(goal) => {
                kept = false;
                format!("  goal {goal} us: NOT reached ({added:.1})")
            }
        };
        println!(
            "{:<52} {:>8.1} us ({:.1} to {:.1})  {ratio:>5.1} x serde_json  {:>6} allocations{verdict}",
            row.name, spread.median, spread.low, spread.high, allocations.count_total
        );
    }
    Ok(kept)
}

/// A call of about 1 KiB, as an agent sends it.
fn call() -> Bytes {
    let text = "The board shows yesterday's numbers until the cache is cleared. ".repeat(11);
    let arguments = json!({
        "team": "Ops", "title": "The board is late", "description": text, "priority": 2, "estimate": 1.5,
        "labels": ["bug", "board", "cache"], "assignee": {"email": "kim@example.com", "name": "Kim"},
        "due": "2026-12-01", "draft": false,
    });
    let message = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call",
        "params": {"name": "create_issue", "arguments": arguments}});
    Bytes::from(message.to_string())
}

/// Rules with conditions that this call does not meet, each looking at something else of it.
fn rules(count: usize, operation: impl Fn(usize) -> String) -> String {
    const CONDITIONS: [&str; 10] = [
        "params.team in ['finance', 'legal', 'people']",
        "params.title.startsWith('urgent') && params.priority > 3.0",
        "has(params.parent) && params.parent != ''",
        "params.labels.exists(l, l == 'secret')",
        "size(params.description) > 4000",
        "params.assignee.email.endsWith('@rival.example') || params.draft",
        "params.due < '2020-01-01'",
        "params.title.matches('^(drop|delete) ')",
        "params.estimate * 2.0 > 100.0",
        "containsAny(params.title, ['password', 'token'])",
    ];
    let rule = |index: usize| {
        format!(
            "- {{name: r{index}, action: deny, match: {{operation: '{}', when: \"{}\"}}}}\n",
            operation(index),
            CONDITIONS[index % CONDITIONS.len()]
        )
    };
    format!("mode: enforce\nrules:\n{}", (0..count).map(rule).collect::<String>())
}

fn list() -> Bytes {
    let tool = |index: usize| {
        json!({"name": format!("{}_{index}", ["get", "list", "create", "delete"][index % 4]),
            "description": "Does what its name says, for the board with this number.",
            "inputSchema": {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}})
    };
    let tools: Vec<Value> = (0..1000).map(tool).collect();
    Bytes::from(json!({"jsonrpc": "2.0", "id": 7, "result": {"tools": tools}}).to_string())
}

/// One rule, as a list of what is allowed makes it: everything but twenty names.
fn allow() -> String {
    let names: Vec<String> =
        (0..20).map(|index| format!("context.operation == 'get_{}'", index * 4)).collect();
    format!(
        "mode: enforce\nrules:\n- name: r\n  action: deny\n  match: {{operation: '*', when: \"!({})\"}}\n",
        names.join(" || ")
    )
}

fn hiding() -> String {
    let rule = |index: usize| {
        format!(
            "- {{name: r{index}, action: deny, match: {{operation: 'delete_{index}*', when: \"context.operation.endsWith('{index}')\"}}}}\n"
        )
    };
    format!("mode: enforce\nrules:\n{}", (0..50).map(rule).collect::<String>())
}
