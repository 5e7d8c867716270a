//! Many exchanges at once that end badly harm only themselves: readers that stall, and agents that leave. With the real
//! relay, tunnel and bridge; with paused clocks and counted bytes the same is shown at either end alone.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use moat_tests::{
    Outcome,
    clock::eventually,
    console::{Event, crowd::Each},
    inside::{Inside, Request},
    measure,
    parts::Part,
    trouble::ensure,
};

use crate::{
    Test,
    stage::{FAULTS_HEADER, FAULTS_STUB, Stage},
    streaming::carriers,
};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("readers_that_stall_harm_only_themselves", SANDBOX, readers_that_stall),
    Test::new("ten_thousand_that_leave_do_not_cost_the_tunnel", SANDBOX, ten_thousand_that_leave),
];

/// How long a crowd may take, in a build that is not optimised.
const PATIENCE: Duration = Duration::from_secs(120);

/// To a server without a credential, and to one with.
fn both(path: &str) -> [Request; 2] {
    let to = |server: &str| Request::rpc(&format!("/mcp/{server}/{path}"), 7, "tools/call");
    [to("open"), to("faults").header(FAULTS_HEADER, FAULTS_STUB)]
}

/// Calls that are answered at once, while whatever else goes on.
fn others_are_served(inside: &Inside) -> Outcome {
    for request in both("ok") {
        for _ in 0..50 {
            let answer = inside.answer(&request)?;
            ensure(answer.status == 200 && answer.json()["result"]["ok"] == true, || format!("{answer:?}"))?;
        }
    }
    Ok(())
}

/// Tunnels that the bridge has seen open.
fn tunnels(stage: &Stage) -> usize {
    stage.rig.log().matches("tunnel open").count()
}

fn readers_that_stall() -> Outcome {
    const READERS: usize = 4;
    /// KiB, of both ends together, for each reader, of which the relay holds 512.
    const EACH: u64 = 1 << 10;
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    others_are_served(&inside)?;
    let before: u64 = carriers(&stage, &inside).iter().map(|(_, _, resident)| resident).sum();
    let crowds = both("burst?n=1000000")
        .iter()
        .map(|request| inside.crowd(request, READERS / 2, READERS, Each::Stalls))
        .collect::<Outcome<Vec<_>>>()?;
    for crowd in &crowds {
        crowd.text("stalled")?;
    }
    // Every buffer on the way is full, the system's as well, before any event is left unread in the tunnel.
    come_to_rest(&stage, &inside)?;
    for seen in [&stage.open.seen, &stage.faults.seen] {
        let taken = seen.stands_still(PATIENCE)?;
        ensure(taken < (READERS / 2) as u64 * 1_000_000, || "nobody stalls".to_owned())?;
    }
    others_are_served(&inside)?;
    let after: u64 = carriers(&stage, &inside).iter().map(|(_, _, resident)| resident).sum();
    let grown = after.saturating_sub(before);
    ensure(grown <= EACH * READERS as u64, || format!("{grown} KiB for {READERS} readers"))?;
    // One that reads gets all of it meanwhile.
    for request in both("burst?n=5000") {
        let answer = inside.call(&request.counted())?;
        answer.value_within(PATIENCE)?;
        let clean = answer.events().iter().any(|event| matches!(event, Event::End { clean: true, .. }));
        ensure(clean, || "the whole of it did not arrive".to_owned())?;
    }
    for crowd in crowds {
        crowd.abandon()?;
    }
    others_are_served(&inside)?;
    ensure(tunnels(&stage) == 1, || format!("{} tunnels: {}", tunnels(&stage), stage.rig.log()))
}

/// Waits until whoever carries bytes carries none: for a second they take next to no processor time.
fn come_to_rest(stage: &Stage, inside: &Inside) -> Outcome {
    const STILL: Duration = Duration::from_secs(1);
    const NOTHING: Duration = Duration::from_millis(20);
    let used = || -> Duration {
        let pids = carriers(stage, inside).into_iter().filter_map(|(pid, _, _)| u32::try_from(pid).ok());
        pids.filter_map(|pid| measure::processor_time(pid).ok()).sum()
    };
    let mut last = (used(), Instant::now());
    eventually("nothing more is carried", PATIENCE, || {
        let now = used();
        if now.saturating_sub(last.0) > NOTHING {
            last = (now, Instant::now());
        }
        (last.1.elapsed() >= STILL).then_some(())
    })
}

fn ten_thousand_that_leave() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    others_are_served(&inside)?;
    let before = descriptors(&stage, &inside);
    for (each, path) in [(Each::LeavesAtOnce, "hang"), (Each::LeavesAtHead, "hang-stream")] {
        for request in both(path) {
            let crowd = inside.crowd(&request, 2500, 100, each)?;
            crowd.value_within(PATIENCE)?;
            others_are_served(&inside)?;
        }
    }
    ensure(tunnels(&stage) == 1, || format!("{} tunnels: {}", tunnels(&stage), stage.rig.log()))?;
    // Nothing of them is kept: neither a connection to the agent nor one to a server.
    eventually("everything of the crowd is closed", Duration::from_secs(30), || {
        let now = descriptors(&stage, &inside);
        now.iter().all(|(pid, count)| before.get(pid).is_none_or(|first| *count <= first + 16)).then_some(())
    })
}

/// Open descriptors of each process that carries bytes.
fn descriptors(stage: &Stage, inside: &Inside) -> BTreeMap<i32, usize> {
    let count = |pid: i32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    carriers(stage, inside).into_iter().map(|(pid, _, _)| (pid, count(pid))).collect()
}
