//! The harness itself: the servers fail as they say, the client reports what it saw, the search finds what is there.

use std::{collections::BTreeMap, time::Duration};

use moat_tests::{
    Outcome,
    clock::millis,
    faults::Faults,
    inside::{Inside, Request},
    listen::Listening,
    rig,
    trouble::{Trouble, ensure},
    upstream::{Demand, Upstream},
};
use serde_json::json;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::new("server_speaks_both_eras", &[], server_speaks_both_eras),
    Test::new("server_demands_its_header", &[], server_demands_its_header),
    Test::new("faults_are_faults", &[], faults_are_faults),
    Test::new("client_times_events", &[], client_times_events),
    Test::new("server_notices_departure", &[], server_notices_departure),
];

/// The client without a sandbox, with this URL as the relay's.
fn bare(url: &str) -> Outcome<Inside> {
    let mut command = std::process::Command::new(rig::binary("moat-fixture-client")?);
    command.env("MOAT_RELAY_URL", url);
    Inside::start(command)
}

fn server_speaks_both_eras() -> Outcome {
    let server = Upstream::plain("demo", None)?;
    let client = bare(server.url().trim_end_matches("/mcp"))?;
    let calls = [("echo", json!({"text": "hello"})), ("add", json!({"a": 2, "b": 3}))];
    for modern in [false, true] {
        let visit = client.visit("", modern, &[], &calls)?;
        ensure(visit["results"][0]["result"]["content"][0]["text"] == "demo: hello", || visit.to_string())?;
        ensure(visit["results"][1]["result"]["content"][0]["text"] == "5", || visit.to_string())?;
    }
    let asks = [("ask_model", json!({"text": "?"})), ("ask_user", json!({"text": "name?"}))];
    let visit = client.visit("", false, &[], &asks)?;
    let answers = visit["results"].to_string();
    ensure(answers.contains("forty-two") && answers.contains("Ada"), || answers)?;
    client.end().map(|_| ())
}

fn server_demands_its_header() -> Outcome {
    let server = Upstream::plain("demo", Some(Demand::new("X-Key", "right")))?;
    let client = bare(server.url().trim_end_matches("/mcp"))?;
    for (value, status) in [("right", 200), ("wrong", 401)] {
        let ping = Request::rpc("/mcp", 1, "server/discover").header("X-Key", value);
        let answer = client.answer(&ping.header("MCP-Protocol-Version", "2026-07-28"))?;
        let admitted = answer.status != 401;
        ensure(admitted == (status == 200), || format!("{value}: {}", answer.status))?;
    }
    ensure(server.seen.requests().len() == 2, || "not all requests were recorded".to_owned())
}

fn faults_are_faults() -> Outcome {
    let faults = Faults::plain()?;
    let client = bare(&faults.url())?;
    let expected: BTreeMap<&str, (u16, bool)> = BTreeMap::from([
        ("/ok", (200, true)),
        ("/cut", (200, false)),
        ("/cut-inside", (200, false)),
        ("/eof", (200, true)),
        ("/status/429", (429, true)),
        ("/status/500/empty", (500, true)),
        ("/redirect?to=http://elsewhere/", (307, true)),
        ("/big?bytes=1048576", (200, true)),
    ]);
    for (path, (status, clean)) in expected {
        let answer = client.answer(&Request::rpc(path, 7, "ping"))?;
        ensure((answer.status, answer.clean) == (status, clean), || format!("{path}: {answer:?}"))?;
    }
    for form in ["plain", "json", "split", "events"] {
        let echo = Request::rpc(&format!("/echo/{form}?header=x-key"), 7, "ping").header("X-Key", "s3cret");
        let answer = client.answer(&echo)?;
        ensure(answer.body.contains("s3cret"), || format!("{form}: {answer:?}"))?;
    }
    client.end().map(|_| ())
}

/// Once in five is enough: a client that does not time them never does, and a busy machine delays now and then.
fn client_times_events() -> Outcome {
    let faults = Faults::plain()?;
    let client = bare(&faults.url())?;
    let mut seen = Vec::new();
    for _ in 0..5 {
        let answer = client.answer(&Request::rpc("/ticks?n=3&ms=100", 7, "ping"))?;
        let times: Vec<u64> = answer.pieces.iter().map(|(at, _)| *at).collect();
        let gaps: Vec<f64> = times.windows(2).take(2).map(|pair| millis(pair[1] - pair[0])).collect();
        if gaps.len() == 2 && gaps.iter().all(|gap| (60.0..160.0).contains(gap)) {
            return Ok(());
        }
        seen.push(gaps);
    }
    Err(Trouble::new(format!("{seen:?}")))
}

fn server_notices_departure() -> Outcome {
    let faults = Faults::plain()?;
    let client = bare(&faults.url())?;
    let call = client.call(&Request::rpc("/hang-stream", 7, "ping"))?;
    call.text("progress")?;
    let left = call.abandon()?;
    let noticed = faults.seen.gone("/hang-stream", Duration::from_secs(5))?;
    ensure(millis(noticed.saturating_sub(left)) < 100.0, || "the server was slow to notice".to_owned())?;
    let refused = Listening::tcp(|stream| async move { drop(stream) })?;
    ensure(refused.port() > 0, || "no port".to_owned())
}
