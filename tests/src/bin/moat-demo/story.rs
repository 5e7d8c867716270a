//! What the demo does, and what it holds against what happened.

use moat_tests::{
    Outcome, Trouble,
    console::{Task, search::Search},
    inside::{Inside, Request},
    rig::Rig,
    seen::Seen,
    upstream::{Demand, Upstream},
};
use serde_json::{Value, json};

use crate::page::{self, Check};

const HEADER: &str = "X-Vault-Key";
const STUB: &str = "moat-stub-mcp-vault";

/// The two servers, and the credential that one of them demands.
struct Stage {
    vault: Upstream,
    notes: Upstream,
    secret: String,
}

/// Tells the story; returns what must be so.
pub(crate) fn tell(rig: &Rig) -> Outcome<Vec<Check>> {
    let secret = format!("sk-demo-{}", rig.mark().trim_start_matches("mt-"));
    let vault = Upstream::tls("vault", &rig.authority, true, Some(Demand::new(HEADER, &secret)))?;
    let notes = Upstream::plain("notes", None)?;
    let stage = Stage { vault, notes, secret };
    rig.config(&format!(
        "mcp:\n  - name: vault\n    url: {}\n    auth: {{grant: mcp-vault, header: {HEADER}}}\n  - name: notes\n    \
         url: {}\n",
        stage.vault.url(),
        stage.notes.url()
    ))?;
    rig.grant("vault", &stage.secret, &stage.vault.url())?;
    let inside = rig.console()?;
    let visits = agent_works(&inside)?;
    let refusal = agent_tries_another_key(&inside, &stage)?;
    let held = look_inside(&inside, &stage)?;
    side_by_side(&stage, &held);
    show_calls(&visits);
    let answers = format!("{visits:?}{refusal}");
    inside.end()?;
    let audit = show_records(rig)?;
    Ok(checks(&stage, &held, &visits, &answers, &refusal, &audit))
}

/// What an agent does: list the tools of both servers and call some, with the official Rust client.
fn agent_works(inside: &Inside) -> Outcome<Vec<(&'static str, Value)>> {
    let calls = [("add", json!({"a": 40, "b": 2})), ("echo", json!({"text": "hello"}))];
    let vault = inside.visit("vault", false, &[(HEADER, STUB)], &calls)?;
    let notes = inside.visit("notes", true, &[], &calls)?;
    Ok(vec![("vault", vault), ("notes", notes)])
}

/// What a hostile agent does: it puts something of its own into the credential's header.
fn agent_tries_another_key(inside: &Inside, stage: &Stage) -> Outcome<String> {
    let before = stage.vault.seen.requests().len();
    let request = Request::rpc("/mcp/vault", 1, "tools/list").header(HEADER, "a-key-of-its-own");
    let answer = inside.answer(&request)?;
    let reached = stage.vault.seen.requests().len() > before;
    let kind = answer.kind();
    Ok(if kind == "foreign_credential" && !reached { kind } else { format!("not refused: {}", answer.body) })
}

/// What the sandbox holds.
struct Held {
    url: String,
    header: String,
    devices: String,
    uid: String,
    found: Value,
}

fn look_inside(inside: &Inside, stage: &Stage) -> Outcome<Held> {
    let said = |script: &str| Ok::<_, Trouble>(inside.exec(&["sh", "-c", script], &[])?.expect_code(0)?.out);
    let claude: Value = serde_json::from_str(&said("cat \"$HOME/.claude.json\"")?)?;
    let vault = &claude["mcpServers"]["vault"];
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let devices = said("cut -d: -sf1 /proc/net/dev")?.split_whitespace().collect::<Vec<_>>().join(" ");
    let home = said("printf %s \"$HOME\"")?;
    let search = Search {
        secrets: vec![stage.secret.clone()],
        control: STUB.to_owned(),
        roots: vec![home, said("pwd")?.trim().to_owned(), "/tmp".to_owned(), "/run".to_owned()],
        skip: vec![".fixtures".to_owned()],
    };
    Ok(Held {
        url: text(&vault["url"]),
        header: text(&vault["headers"][HEADER]),
        devices,
        uid: said("id -u")?.trim().to_owned(),
        found: inside.order(Task::Search(search))?.value()?,
    })
}

/// How many requests carried the credential, and whether each did so once.
fn carried(seen: &Seen, secret: &str) -> (usize, bool) {
    let requests = seen.requests();
    let once = requests.iter().all(|r| r.values(HEADER) == [secret] && r.mentions(secret) == 1);
    (requests.len(), once && !requests.is_empty())
}

fn side_by_side(stage: &Stage, held: &Held) {
    let (count, _) = carried(&stage.vault.seen, &stage.secret);
    let first = stage.vault.seen.requests().into_iter().next();
    let got = first.map_or_else(String::new, |r| r.values(HEADER).join(", "));
    page::headings("The sandbox holds", "The server received");
    page::row(&format!("url      {}", held.url), &format!("url      {}", stage.vault.url()));
    page::row(&format!("header   {HEADER}: {}", held.header), &format!("header   {HEADER}: {got}"));
    page::row(
        &format!("network  {} and nothing else", held.devices),
        &format!("in each  of {count} requests, once"),
    );
    let looked = format!("{} files, {} processes", held.found["files"], processes(&held.found));
    page::row(&format!("search   {looked}:"), "");
    page::row(&format!("         {} places with the credential", hits(&held.found)), "");
}

fn processes(found: &Value) -> usize {
    found["processes"].as_array().map_or(0, Vec::len)
}

fn hits(found: &Value) -> usize {
    found["hits"].as_array().map_or(usize::MAX, Vec::len)
}

fn show_calls(visits: &[(&str, Value)]) {
    page::heading("The agent (an MCP client made with rmcp) listed and called");
    for (server, visit) in visits {
        let tools = visit["tools"].as_array().map_or(0, Vec::len);
        let texts: Vec<&str> = (0..2).filter_map(|n| text_of(visit, n)).collect();
        page::line(&format!(
            "{server}  {tools} tools; add(40, 2) = {}; echo(hello) = {}",
            texts.first().unwrap_or(&"?"),
            texts.get(1).unwrap_or(&"?")
        ));
    }
}

/// The text of a call's result.
fn text_of(visit: &Value, number: usize) -> Option<&str> {
    visit["results"][number]["result"]["content"][0]["text"].as_str()
}

/// Shows what moat itself wrote down, as its own commands print it.
fn show_records(rig: &Rig) -> Outcome<String> {
    let trace = rig.run(&["trace", "--network"])?.expect_code(0)?.out;
    let audit = rig.run(&["audit"])?.expect_code(0)?.out;
    page::heading("moat trace --network");
    let ended: Vec<&str> = trace.lines().filter(|line| !line.ends_with("(streaming)")).collect();
    excerpt(&ended, 4);
    page::heading("moat audit");
    let kinds = ["run.registered", "credential.injected", "request.denied", "run.unregistered"];
    for kind in kinds {
        let lines: Vec<&str> = audit.lines().filter(|line| line.contains(kind)).collect();
        if let Some(first) = lines.first() {
            let more =
                if lines.len() > 1 { format!("  (and {} more)", lines.len() - 1) } else { String::new() };
            page::line(&format!("{first}{more}"));
        }
    }
    Ok(audit)
}

fn excerpt(lines: &[&str], most: usize) {
    for line in lines.iter().take(most) {
        page::line(line);
    }
    if lines.len() > most {
        page::line(&format!("... {} more", lines.len() - most));
    }
}

fn checks(
    stage: &Stage,
    held: &Held,
    visits: &[(&str, Value)],
    answers: &str,
    refusal: &str,
    audit: &str,
) -> Vec<Check> {
    let (count, once) = carried(&stage.vault.seen, &stage.secret);
    let injected = audit.lines().filter(|line| line.contains("credential.injected")).count();
    let strayed = stage.notes.seen.requests().iter().filter(|r| r.mentions(&stage.secret) > 0).count();
    let searched = held.found["controls"].as_u64() > Some(0);
    let told = |holds: bool, against: String| (!holds).then_some(against);
    let works = visits.iter().all(|(_, visit)| text_of(visit, 0) == Some("42"));
    let quiet = hits(&held.found) == 0 && searched && !answers.contains(&stage.secret);
    vec![
        Check {
            claim: "the agent used the tools of both servers",
            against: told(works, format!("{visits:?}")),
        },
        Check {
            claim: "the credential is nowhere in the sandbox: files, environment, /proc, answers",
            against: told(quiet, held.found.to_string()),
        },
        Check {
            claim: "the sandbox has no network but its own loopback, and the agent is not root",
            against: told(
                held.devices == "lo" && held.uid != "0",
                format!("{}, uid {}", held.devices, held.uid),
            ),
        },
        Check {
            claim: "the server received the credential once per request; the other server never",
            against: told(once && strayed == 0, format!("{:?}", stage.vault.seen.requests())),
        },
        Check {
            claim: "a request with a key of the agent's own was refused",
            against: told(refusal == "foreign_credential", refusal.to_owned()),
        },
        Check {
            claim: "every injection is in the audit log",
            against: told(injected == count, format!("{injected} lines for {count} requests")),
        },
    ]
}
