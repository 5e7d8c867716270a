//! What two readers of a request could read differently never leaves the bridge (R8): the corpus of ugly requests,
//! sent through everything, against serde_json, Node and Python.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    process::{Command, Stdio},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use moat_tests::{
    Outcome, Trouble,
    console::http::Body,
    corpus::{self, Case, Line},
    inside::{Inside, Request},
    matrix::server::Broken,
    parts::Part,
    rig::Rig,
    trouble::ensure,
};

use crate::{
    Test,
    matrix::{Server, configure},
};

const READERS: &[Part] = &[Part::Sandbox, Part::Node, Part::AnyPython];

pub(crate) const TESTS: &[Test] = &[
    Test::new(
        "what_anybody_reads_differently_is_refused",
        READERS,
        what_anybody_reads_differently_is_refused,
    ),
    Test::new(
        "what_anybody_reads_as_a_denied_call_never_leaves",
        READERS,
        what_anybody_reads_as_a_denied_call_never_leaves,
    ),
];

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/requests.jsonl");
const PASSES: &str = "passes";

/// `MOAT_REWRITE=1` writes the file with the verdicts; a changed verdict is then a line in a diff.
fn what_anybody_reads_differently_is_refused() -> Outcome {
    let cases = corpus::cases();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    ensure(names.len() == cases.len() && cases.len() > 500, || {
        format!("{} names, {} cases", names.len(), cases.len())
    })?;
    let node = views("node", "read.mjs", &cases)?;
    let python = views("python3", "read.py", &cases)?;
    let verdicts = verdicts(&cases)?;
    let mut wrong = Vec::new();
    let (mut disagreements, mut passed) = (0, 0);
    for (index, case) in cases.iter().enumerate() {
        let serde = corpus::view(&case.body);
        let alike = serde == node[index] && serde == python[index] && serde != "unreadable";
        disagreements += usize::from(!alike);
        passed += usize::from(verdicts[index] == PASSES);
        if verdicts[index] == PASSES && !alike {
            wrong.push(format!(
                "{}: serde_json {serde}, Node {}, Python {}",
                case.name, node[index], python[index]
            ));
        }
    }
    ensure(wrong.is_empty(), || {
        format!("{} ambiguous requests were sent on:\n{}", wrong.len(), wrong.join("\n"))
    })?;
    // The comparison compares: there are readers that disagree, and requests that all of them read alike.
    ensure(disagreements > 100 && passed > 100, || {
        format!("{disagreements} disagreements, {passed} passed")
    })?;
    let lines =
        cases.iter().zip(verdicts).map(|(case, verdict)| serde_json::to_string(&Line::new(case, verdict)));
    let text = lines.collect::<Result<Vec<_>, _>>()?.join("\n") + "\n";
    if std::env::var_os("MOAT_REWRITE").is_some() {
        fs::write(FILE, &text)?;
    }
    let kept = fs::read_to_string(FILE).unwrap_or_default();
    let changed: Vec<&str> = text.lines().filter(|line| !kept.contains(line)).take(10).collect();
    ensure(kept == text, || {
        format!(
            "the corpus has changed; MOAT_REWRITE=1 writes it, for the diff to be read:\n{}",
            changed.join("\n")
        )
    })
}

/// The same corpus, to servers with a policy. Whatever passes is read alike by everybody, as what was judged; and what any
/// reader takes for a call of the denied tool is not sent.
fn what_anybody_reads_as_a_denied_call_never_leaves() -> Outcome {
    let cases = corpus::cases();
    let readers = [
        cases.iter().map(|case| corpus::view(&case.body)).collect(),
        views("node", "read.mjs", &cases)?,
        views("python3", "read.py", &cases)?,
    ];
    let (rig, upstream) = (Rig::new()?, Broken::plain()?);
    // The corpus is about a tool `echo`.
    let policies = [("denied", "{deny: [echo]}"), ("passing", "{deny: [wipe]}")];
    let entry = |(name, policy): &(&str, &str)| {
        format!("  - {{name: {name}, url: {}/status-200, policy: {policy}}}\n", upstream.url())
    };
    rig.config(&format!("mcp:\n{}", policies.iter().map(entry).collect::<String>()))?;
    let inside = rig.console()?;
    let (mut wrong, mut denied, mut passed) = (Vec::new(), 0, 0);
    for (number, case) in cases.iter().enumerate() {
        let seen: Vec<&str> = readers.iter().map(|views| views[number].as_str()).collect();
        let calls_it = seen.iter().any(|view| reads_call_of(view, "echo"));
        for (name, _) in policies {
            let mark = format!("{name}-{number}");
            let answer = inside.answer(&to(&format!("/mcp/{name}"), case).header("X-Case", &mark))?;
            let arrived =
                upstream.seen.requests().iter().any(|request| request.values("x-case") == [mark.as_str()]);
            let alike = seen[0] != "unreadable" && seen.iter().all(|view| *view == seen[0]);
            if arrived && (!alike || name == "denied" && calls_it) {
                wrong.push(format!("{name}: {}: {seen:?}: {answer:?}", case.name));
            }
            denied += usize::from(name == "denied" && calls_it && !arrived);
            passed += usize::from(name == "passing" && arrived);
        }
    }
    ensure(wrong.is_empty(), || format!("{} calls were sent on:\n{}", wrong.len(), wrong.join("\n")))?;
    ensure(denied > 100 && passed > 100, || format!("{denied} denied, {passed} passed"))
}

/// Does a view have these texts, as the values of `method` and `name`?
fn reads_call_of(view: &str, tool: &str) -> bool {
    let units = |text: &str| {
        let hex: String = text.encode_utf16().map(|unit| format!("{unit:04x}")).collect();
        format!("\"{hex}\"")
    };
    let has = |key: &str, value: &str| view.contains(&format!("{}:{}", units(key), units(value)));
    has("method", "tools/call") && has("name", tool)
}

/// What another language's reader makes of each body.
fn views(program: &str, script: &str, cases: &[Case]) -> Outcome<Vec<String>> {
    let mut child = Command::new(program)
        .arg(format!("{}/clients/{script}", env!("CARGO_MANIFEST_DIR")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().ok_or_else(|| Trouble::new("no stdin"))?;
    let lines: String = cases.iter().map(|case| STANDARD.encode(&case.body) + "\n").collect();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| Trouble::new("the writer died"))??;
    let views: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    ensure(output.status.success() && views.len() == cases.len(), || {
        format!("{program}: {} views\n{}", views.len(), String::from_utf8_lossy(&output.stderr))
    })?;
    Ok(views)
}

/// What the bridge does with each body; that what passes arrives as it was sent, and what is refused does not.
fn verdicts(cases: &[Case]) -> Outcome<Vec<String>> {
    const AT_ONCE: usize = 16;
    let (rig, upstream) = (Rig::new()?, Broken::plain()?);
    configure(&rig, &[Server::open("any", format!("{}/status-200", upstream.url()))])?;
    let inside = rig.console()?;
    let mut verdicts = Vec::new();
    for few in cases.chunks(AT_ONCE) {
        let first = verdicts.len();
        let calls: Vec<_> = few
            .iter()
            .zip(first..)
            .map(|(case, number)| inside.call(&post(case, number)))
            .collect::<Outcome<_>>()?;
        for ((call, case), number) in calls.iter().zip(few).zip(first..) {
            let answer = call.answer()?;
            let arrived = upstream.seen.requests_to(&format!("?case={number}&"));
            verdicts.push(match (answer.status, &arrived[..]) {
                (200, [request]) if request.body == case.body => PASSES.to_owned(),
                (400 | 413, []) => refusal(answer.json()["error"]["message"].as_str().unwrap_or_default()),
                _ => {
                    return Err(Trouble::new(format!(
                        "{}: {answer:?}, arrived {} times",
                        case.name,
                        arrived.len()
                    )));
                }
            });
        }
    }
    still_well(&inside)?;
    Ok(verdicts)
}

fn post(case: &Case, number: usize) -> Request {
    to(&format!("/mcp/any/call?case={number}&"), case)
}

fn to(target: &str, case: &Case) -> Request {
    let post = Request::new("POST", target).header("Content-Type", "application/json");
    post.header("Accept", "application/json, text/event-stream").body(Body::Raw(case.body.clone()))
}

/// The reason, without the words around it.
fn refusal(message: &str) -> String {
    let reason = message.split_once("refused: ").map_or(message, |(_, reason)| reason);
    format!("refused: {reason}")
}

fn still_well(inside: &Inside) -> Outcome {
    let answer = inside.answer(&Request::rpc("/mcp/any/call?well", 1, "ping"))?;
    ensure(answer.status == 200, || format!("after all this: {answer:?}"))
}
