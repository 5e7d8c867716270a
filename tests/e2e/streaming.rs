//! Streams pass as they are: in time, both ways, without end, and with bounded memory.

use std::{collections::BTreeSet, fs, time::Duration};

use moat_tests::{
    Outcome,
    clock::{eventually, millis},
    console::{Event, http::Body},
    inside::{Inside, Pending, Request},
    parts::Part,
    rig::Rig,
    trouble::ensure,
};
use nix::unistd::Pid;
use serde_json::json;

use crate::{
    Test,
    stage::{FAULTS_HEADER, FAULTS_STUB, SOON, Stage},
};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("r14_events_arrive_when_they_are_sent", SANDBOX, events_arrive_when_they_are_sent),
    Test::new("r17_a_departure_reaches_the_upstream", SANDBOX, a_departure_reaches_the_upstream),
    Test::new(
        "r20_silence_brings_a_comment_after_15_seconds",
        SANDBOX,
        silence_brings_a_comment_after_15_seconds,
    ),
    Test::new("r13_r15_r16_sessions_and_event_ids_pass", SANDBOX, sessions_and_event_ids_pass),
    Test::new("sampling_and_elicitation_pass", SANDBOX, sampling_and_elicitation_pass),
    Test::new("large_bodies_pass_in_little_memory", SANDBOX, large_bodies_pass_in_little_memory),
    Test::new("r23_many_streams_at_once", SANDBOX, many_streams_at_once),
    Test::new(
        "r19_r20_minutes_of_silence_end_nothing",
        &[Part::Sandbox, Part::Time],
        minutes_of_silence_end_nothing,
    )
    .ahead(),
];

/// What is buffered is late each time; a busy machine delays now and then, so each target has three tries.
fn events_arrive_when_they_are_sent() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    for target in ["/mcp/faults/ticks?n=5&ms=300", "/mcp/open/ticks?n=5&ms=300"] {
        let in_time = || events_arrive(&inside, target);
        in_time().or_else(|_| in_time()).or_else(|_| in_time())?;
    }
    Ok(())
}

fn events_arrive(inside: &Inside, target: &str) -> Outcome {
    let answer = inside.answer(&Request::rpc(target, 7, "tools/call"))?;
    let times: Vec<u64> =
        answer.pieces.iter().filter(|(_, t)| t.contains("progress\"")).map(|(at, _)| *at).collect();
    ensure(times.len() == 5, || format!("{target}: {} pieces: {:?}", times.len(), answer.pieces))?;
    let gaps: Vec<f64> = times.windows(2).map(|pair| millis(pair[1] - pair[0])).collect();
    ensure(gaps.iter().all(|gap| (250.0..350.0).contains(gap)), || format!("{target}: gaps of {gaps:?} ms"))?;
    ensure(answer.json()["result"]["ticks"] == 5 && answer.clean, || format!("{answer:?}"))?;
    ensure(answer.value("content-type") == Some("text/event-stream"), || format!("{:?}", answer.headers))?;
    ensure(answer.value("x-accel-buffering") == Some("no"), || format!("{:?}", answer.headers))
}

fn a_departure_reaches_the_upstream() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let post = |path: &str| Request::rpc(&format!("/mcp/open/{path}"), 7, "tools/call");
    let cases = [
        ("a POST stream", post("hang-stream?1"), true),
        ("a GET stream", Request::get("/mcp/open/hang-stream?2"), true),
        ("before the head", post("hang?3"), false),
    ];
    for (number, (what, request, starts)) in (1..).zip(cases) {
        let call = inside.call(&request)?;
        let part = format!("?{number}");
        stage.open.seen.arrived(&part, SOON * 5)?;
        if starts {
            call.text("progress")?;
        }
        let left = call.abandon()?;
        let noticed = millis(stage.open.seen.gone(&part, SOON * 5)?.saturating_sub(left));
        ensure(noticed < 100.0, || format!("{what}: noticed after {noticed:.0} ms"))?;
    }
    Ok(())
}

/// Longer than a minute or two, at which clients, servers, proxies and pools commonly lose their patience. Hours are
/// shown with paused clocks, by the relay's pump and by the pipeline.
fn minutes_of_silence_end_nothing() -> Outcome {
    const SILENCE: Duration = Duration::from_secs(130);
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let path = |server: &str| format!("/mcp/{server}/ticks?n=2&ms={}", SILENCE.as_millis());
    let streams = [
        inside.call(&Request::get(&path("open")))?,
        inside.call(&Request::get(&path("faults")).header(FAULTS_HEADER, FAULTS_STUB))?,
        inside.call(&Request::rpc(&path("faults"), 7, "tools/call").header(FAULTS_HEADER, FAULTS_STUB))?,
    ];
    for stream in &streams {
        stream.text("progress")?;
    }
    // Nothing is asked of the relay, the tunnel or the upstreams meanwhile.
    for stream in streams {
        stream.until("the end of the silence", SILENCE + Duration::from_secs(30), |events| {
            matches!(events.last(), Some(Event::Done(_) | Event::Failed(_))).then_some(())
        })?;
        let answer = stream.answer()?;
        ensure(answer.clean && answer.json()["result"]["ticks"] == 2, || format!("{answer:?}"))?;
        let times: Vec<u64> =
            answer.pieces.iter().filter(|(_, text)| text.contains("progress\"")).map(|(at, _)| *at).collect();
        ensure(times.len() == 2, || format!("{:?}", answer.pieces))?;
        let waited = millis(times[1] - times[0]) / 1000.0;
        ensure((129.0..132.0).contains(&waited), || format!("the second event came after {waited:.1} s"))?;
        let comments = answer.pieces.iter().filter(|(_, text)| text == ":\n\n").count();
        ensure((7..=8).contains(&comments), || format!("{comments} comments: {:?}", answer.pieces))?;
    }
    ensure(inside.end()? == 0, || "the run's exit code".to_owned())
}

/// For how long silence may last: [`minutes_of_silence_end_nothing`].
fn silence_brings_a_comment_after_15_seconds() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let call = inside.call(&Request::get("/mcp/open/hang-stream"))?;
    call.text("progress")?;
    // R20: one comment after 15 s of silence, between events.
    let commented = call.text("\n\n:")?;
    let first = call.text("progress")?;
    let waited = millis(commented - first) / 1000.0;
    ensure((14.0..18.0).contains(&waited), || format!("the comment came after {waited:.1} s"))?;
    let ended = call.events().iter().any(|event| matches!(event, Event::End { .. }));
    ensure(!ended, || "the stream ended".to_owned())
}

fn sessions_and_event_ids_pass() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let hello = json!({"jsonrpc": "2.0", "id": 7, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "probe", "version": "1"}}});
    let answer = inside.answer(&Request::post("/mcp/local", &hello))?;
    let session = answer.value("mcp-session-id").unwrap_or_default().to_owned();
    ensure(answer.status == 200 && !session.is_empty(), || format!("{answer:?}"))?;
    let with_session = |request: Request, id: &str| {
        request.header("Mcp-Session-Id", id).header("MCP-Protocol-Version", "2025-11-25")
    };
    let initialized = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    let answer = inside.answer(&with_session(Request::post("/mcp/local", &initialized), &session))?;
    ensure(answer.status == 202 && answer.bytes == 0, || format!("R13: {answer:?}"))?;
    let list = Request::rpc("/mcp/local", 8, "tools/list");
    let answer = inside.answer(&with_session(list.clone(), &session))?;
    ensure(answer.body.contains("echo"), || format!("{answer:?}"))?;
    let answer = inside.answer(&with_session(list.clone(), "no-such-session"))?;
    ensure(answer.status == 404, || format!("a foreign session: {answer:?}"))?;
    let answer = inside.answer(&with_session(Request::new("DELETE", "/mcp/local"), &session))?;
    ensure((200..300).contains(&answer.status), || format!("DELETE: {answer:?}"))?;
    let answer = inside.answer(&with_session(list, &session))?;
    ensure(answer.status == 404, || format!("an ended session: {answer:?}"))?;

    let get = Request::get("/mcp/faults/resume").header(FAULTS_HEADER, FAULTS_STUB);
    let first = inside.answer(&get)?;
    // R16, R18: the priming event passes as it is; with an id in the stream the cut stays a cut.
    ensure(first.body.starts_with("id: first\nretry: 300\ndata: \n\n") && !first.clean, || {
        format!("{first:?}")
    })?;
    ensure(!first.body.contains("error"), || {
        format!("an error event where the client would resume: {first:?}")
    })?;
    let second = inside.answer(&get.header("Last-Event-ID", "first"))?;
    ensure(second.body.contains("\"resumed\":\"first\"") && second.body.contains("id: second"), || {
        format!("{second:?}")
    })
}

fn sampling_and_elicitation_pass() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let asks = [("ask_model", json!({"text": "?"})), ("ask_user", json!({"text": "name?"}))];
    let visit = inside.visit("local", false, &[], &asks)?;
    let answers = visit["results"].to_string();
    ensure(answers.contains("forty-two") && answers.contains("Ada"), || answers)
}

/// Resident kilobytes of the processes that carry bytes: the bridge, and what `moat run` started but for the client.
pub(crate) fn carriers(stage: &Stage, inside: &Inside) -> Vec<(i32, String, u64)> {
    let measured = family(&stage.rig, inside).into_iter().filter_map(|pid| {
        let resident = field(pid, "VmRSS")?.trim_end_matches(" kB").parse().ok()?;
        Some((pid, field(pid, "Name")?, resident))
    });
    measured.filter(|(_, name, _)| !name.starts_with("moat-fixture")).collect()
}

/// A field of a process's status.
fn field(pid: i32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_matches([':', '\t', ' ']).to_owned()))
}

/// The processes of a run, and the bridge.
pub(crate) fn family(rig: &Rig, inside: &Inside) -> BTreeSet<i32> {
    let mut family = BTreeSet::from([i32::try_from(inside.pid()).unwrap_or_default()]);
    family.extend(rig.bridge().map(nix::unistd::Pid::as_raw));
    // A container's PID 1 is nobody's child that we know.
    family.extend(rig.container_pids());
    let entries = || fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids: Vec<i32> = entries().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    let parents: Vec<(i32, i32)> =
        pids.iter().filter_map(|&pid| Some((pid, field(pid, "PPid")?.parse().ok()?))).collect();
    for _ in 0..6 {
        let children = parents.iter().filter(|(_, parent)| family.contains(parent)).map(|(pid, _)| *pid);
        family.extend(children.collect::<Vec<_>>());
    }
    family
}

/// The run's relay, where this machine's kernel runs it.
pub(crate) fn relay(rig: &Rig, inside: &Inside) -> Outcome<Pid> {
    let is_relay = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == b"relay")
    };
    let found = || family(rig, inside).into_iter().find(is_relay).map(Pid::from_raw);
    eventually("a relay runs", Duration::from_secs(10), found)
}

fn large_bodies_pass_in_little_memory() -> Outcome {
    const LARGE: usize = 64 << 20;
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let down = |server: &str, bytes: usize| {
        Request::rpc(&format!("/mcp/{server}/big?bytes={bytes}"), 1, "x").counted()
    };
    let up = |server: &str, fill: usize| {
        let before = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x\",\"params\":{\"pad\":\"".to_owned();
        let body = Body::Padded { before, fill, after: "\"}}".to_owned() };
        Request::post(&format!("/mcp/{server}/sink"), &json!(null)).body(body)
    };
    // What grows once, with the first streams, is no leak.
    for server in ["faults", "open"] {
        inside.answer(&down(server, 4 << 20))?;
        inside.answer(&up(server, 1 << 20))?;
    }
    let before = carriers(&stage, &inside);
    ensure(before.len() >= 3, || format!("bridge, PID 1 and relay are not all seen: {before:?}"))?;
    let mut peak = before.clone();
    for server in ["faults", "open"] {
        for request in [down(server, LARGE), up(server, LARGE)] {
            let call = inside.call(&request)?;
            eventually("a large body passes", Duration::from_secs(60), || {
                for (pid, _, resident) in carriers(&stage, &inside) {
                    if let Some(most) = peak.iter_mut().find(|(known, _, _)| *known == pid) {
                        most.2 = most.2.max(resident);
                    }
                }
                matches!(call.events().last(), Some(Event::Done(_) | Event::Failed(_))).then_some(())
            })?;
            let answer = call.answer()?;
            ensure(answer.status == 200 && answer.clean, || {
                format!("{server}: {} {}", answer.status, answer.body)
            })?;
        }
    }
    ensure(stage.faults.seen.requests_to("/sink").len() == 2, || "not every body arrived".to_owned())?;
    for ((_, name, first), (_, _, most)) in before.iter().zip(&peak) {
        let grown = most.saturating_sub(*first);
        ensure(grown <= 8 * 1024, || format!("{name} grew by {grown} KiB: {before:?} -> {peak:?}"))?;
    }
    Ok(())
}

fn many_streams_at_once() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let open = |number: usize| match number % 2 {
        0 => inside.call(&Request::get(&format!("/mcp/open/hang-stream?of={number}"))),
        _ => inside.call(&Request::rpc(&format!("/mcp/open/hang-stream?of={number}"), 7, "x")),
    };
    let streams: Vec<_> = (0..150).map(open).collect::<Outcome<_>>()?;
    // Each has begun while none has ended: no limit made one of them wait for another.
    for stream in &streams {
        stream.text("progress")?;
    }
    let answer = inside.answer(&Request::rpc("/mcp/open/ticks?n=3&ms=50", 7, "x"))?;
    ensure(answer.json()["result"]["ticks"] == 3, || format!("{answer:?}"))?;
    let ended = |stream: &&Pending<'_>| {
        stream.events().iter().any(|event| matches!(event, Event::End { .. } | Event::Failed(_)))
    };
    let ended = streams.iter().filter(ended).count();
    ensure(ended == 0, || format!("{ended} streams ended"))
}
