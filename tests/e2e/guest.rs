//! What only a guest can show: no network device at all, either side dialling, and what happens to a device, a listener, a
//! machine that stands still.

use std::{thread::sleep, time::Duration};

use moat_tests::{
    Outcome, Trouble,
    clock::{eventually, millis, now},
    console::{Event, http::Body},
    guest::{Guest, Settings, host},
    inside::{Answer, Inside, Request},
    parts::Part,
    rig::Rig,
    trouble::ensure,
};
use serde_json::json;

use crate::{
    Test,
    stage::{Stage, VAULT_HEADER, VAULT_STUB, discover, fault},
};

const GUEST: &[Part] = &[Part::Sandbox];
/// From something that mends the way to a run that works: pings that nobody answers (10 s), a call that waits for that, a
/// dial that times out (2 s), a pause between attempts.
const BACK: Duration = Duration::from_secs(30);
/// How long the device stands still: as long as the pings' patience.
const STILL: Duration = Duration::from_secs(30);
/// How long nobody listens.
const AWAY: Duration = Duration::from_secs(10);

pub(crate) const TESTS: &[Test] = &[
    Test::new("without_a_network_device_it_does_all_of_it", GUEST, without_a_network_device),
    Test::new("the_bridge_dials_as_well", GUEST, the_bridge_dials_as_well),
    Test::new("a_device_that_dies_and_nobody_who_listens", GUEST, a_device_that_dies),
    Test::new("a_machine_that_was_restored", GUEST, a_machine_that_was_restored),
    Test::new("without_a_vsock_device_it_says_so_at_once", GUEST, without_a_vsock_device),
    Test::new("a_host_s_own_vsock", GUEST, a_host_s_own_vsock),
    Test::new("a_device_that_stands_still_for_30_seconds", GUEST, a_device_that_stands_still).ahead(),
];

fn call(inside: &Inside) -> Outcome<Answer> {
    inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB))
}

/// Asks until the credential's server answers; how long that took, in milliseconds.
fn comes_back(inside: &Inside) -> Outcome<f64> {
    let start = now();
    let answers = || call(inside).ok().filter(|answer| answer.status == 200).map(|_| ());
    eventually("the tunnel comes back", BACK, answers)?;
    Ok(millis(now() - start))
}

fn is_shown(stage: &Stage, how: &str) -> Outcome {
    let shown = stage.rig.tunnel()?;
    ensure(shown.starts_with(how), || format!("moat status: {shown}"))
}

fn without_a_network_device() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let devices = inside.exec(&["ls", "/sys/class/net"], &[])?;
    ensure(devices.out.trim() == "lo", || format!("the guest has {devices:?}"))?;
    let pci = inside.exec(&["sh", "-c", "cat /sys/bus/pci/devices/*/class"], &[])?;
    ensure(pci.code == 0 && !pci.out.contains("0x02"), || {
        format!("a network device on the bus: {}", pci.out)
    })?;
    is_shown(&stage, "open (hybrid vsock, sidecar")?;
    two_hundred_calls(&stage, &inside)?;
    large_bodies(&stage, &inside)?;
    let visit =
        inside.visit("vault", false, &[(VAULT_HEADER, VAULT_STUB)], &[("echo", json!({"text": "x"}))])?;
    ensure(visit["results"].to_string().contains("vault: x"), || visit.to_string())?;
    ensure(inside.end()? == 0, || "exit code".to_owned())
}

/// All at the same time: none has its answer before all have arrived.
fn two_hundred_calls(stage: &Stage, inside: &Inside) -> Outcome {
    let calls: Vec<_> = (0..200)
        .map(|number| {
            inside.call(&Request::rpc(
                &format!("/mcp/open/ticks?n=1&ms=500&of={number}"),
                number,
                "tools/call",
            ))
        })
        .collect::<Outcome<_>>()?;
    for (number, call) in (0_u64..).zip(calls) {
        let answer = call.answer()?;
        ensure(answer.status == 200 && answer.clean && answer.json()["id"] == number, || {
            format!("call {number}: {answer:?}")
        })?;
    }
    let arrived = stage.open.seen.requests().iter().filter(|request| request.target.contains("&of=")).count();
    ensure(arrived == 200, || format!("{arrived} of 200 calls arrived"))
}

/// Kilobytes of the sidecar's processes, as the guest's kernel counts them.
fn resident(inside: &Inside) -> Outcome<u64> {
    let script = "cat /proc/[0-9]*/status 2>/dev/null";
    let said = inside.exec(&["sh", "-c", script], &[])?.out;
    let mut sidecar = false;
    let mut sum = 0;
    for line in said.lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        match name {
            "Name" => sidecar = value.trim() == "moat-sidecar",
            "VmRSS" if sidecar => sum += value.trim().trim_end_matches(" kB").parse::<u64>()?,
            _ => {}
        }
    }
    ensure(sum > 1000, || format!("PID 1 and relay are not seen: {said}"))?;
    Ok(sum)
}

fn large_bodies(stage: &Stage, inside: &Inside) -> Outcome {
    const LARGE: usize = 64 << 20;
    let down = |bytes: usize| Request::rpc(&format!("/mcp/open/big?bytes={bytes}"), 1, "x").counted();
    let up = |fill: usize| {
        let before = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x\",\"params\":{\"pad\":\"".to_owned();
        let body = Body::Padded { before, fill, after: "\"}}".to_owned() };
        Request::post("/mcp/open/sink", &json!(null)).body(body)
    };
    // What grows once, with the first streams, is no leak.
    inside.answer(&down(4 << 20))?;
    inside.answer(&up(1 << 20))?;
    let before = resident(inside)?;
    for request in [down(LARGE), up(LARGE)] {
        let call = inside.call(&request)?;
        call.until("a large body passes", Duration::from_secs(90), |events| {
            matches!(events.last(), Some(Event::Done(_) | Event::Failed(_))).then_some(())
        })?;
        let answer = call.answer()?;
        ensure(answer.status == 200 && answer.clean, || format!("{} {}", answer.status, answer.body))?;
    }
    ensure(stage.open.seen.requests_to("/sink").len() == 2, || "not every body arrived".to_owned())?;
    let grown = resident(inside)?.saturating_sub(before);
    ensure(grown <= 8 * 1024, || format!("the sidecar grew by {grown} KiB"))
}

/// Also the next bridge.
fn the_bridge_dials_as_well() -> Outcome {
    let stage = Stage::new()?;
    let guest = Guest::start(&stage.rig, &Settings { listens: true, ..Settings::default() })?;
    let inside = &guest.inside;
    ensure(call(inside)?.status == 200, || "the tunnel does not work".to_owned())?;
    is_shown(&stage, "open (hybrid vsock, dialled, sidecar")?;
    stage.rig.kill_bridge()?;
    comes_back(inside)?;
    is_shown(&stage, "open (hybrid vsock, dialled, sidecar")?;
    // A device that accepts and finds nobody in its guest is asked again.
    let streams: Vec<_> = (0..20)
        .map(|n| inside.call(&Request::get(&format!("/mcp/open/hang-stream?{n}"))))
        .collect::<Outcome<_>>()?;
    for stream in streams {
        stream.text("progress")?;
    }
    Ok(())
}

/// Nothing tells the guest that its device is dead: its place is taken by another, as after a restart of the machine's
/// monitor. Where nobody listens, one device resets and this one lets a dial time out.
fn a_device_that_dies() -> Outcome {
    let stage = Stage::new()?;
    let mut guest = Guest::start(&stage.rig, &Settings::default())?;
    let lost = guest.inside.call(&fault("hang-stream?lost"))?;
    lost.text("progress")?;
    let vanished = guest.machine.vanish()?;
    guest.machine.replace_device()?;
    let since = now();
    let told = lost.answer()?;
    ensure(told.kind() == "tunnel_lost", || format!("a call in flight: {told:?}"))?;
    // The host's end knows at once: the call's upstream is free.
    stage.faults.seen.gone("lost", Duration::from_secs(5))?;
    eventually("moat status says it", Duration::from_secs(5), || {
        stage.rig.tunnel().ok()?.starts_with("none (to come: hybrid vsock at vsock:/").then_some(())
    })?;
    let waiting = call(&guest.inside)?;
    ensure(waiting.kind() == "tunnel_down", || format!("a call that waits in vain: {waiting:?}"))?;
    let message = waiting.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    ensure(message.contains("vsock:2:5000") && message.contains("nobody listens there"), || message.clone())?;
    sleep(AWAY.saturating_sub(Duration::from_micros(now() - since)));
    drop(vanished);
    comes_back(&guest.inside)?;
    let times = stage.faults.seen.requests().iter().filter(|r| r.target.contains("lost")).count();
    ensure(times == 1, || format!("a call was sent {times} times"))
}

/// The machine stands still, its connection is gone when it goes on, and its clock says 1970.
fn a_machine_that_was_restored() -> Outcome {
    let stage = Stage::new()?;
    let settings = Settings { clock: Some("1970-01-01T00:00:10"), ..Settings::default() };
    let mut guest = Guest::start(&stage.rig, &settings)?;
    let year = guest.inside.exec(&["date", "+%Y"], &[])?;
    ensure(year.out.trim() == "1970", || format!("the guest's clock: {year:?}"))?;
    ensure(call(&guest.inside)?.status == 200, || "the tunnel does not work".to_owned())?;
    let lost = guest.inside.call(&fault("hang-stream?lost"))?;
    lost.text("progress")?;
    let paused = guest.machine.pause()?;
    sleep(Duration::from_secs(3));
    guest.machine.kill_device()?;
    stage.faults.seen.gone("lost", Duration::from_secs(5))?;
    drop(paused);
    guest.machine.replace_device()?;
    let told = lost.answer()?;
    ensure(told.kind() == "tunnel_lost", || format!("a call in flight: {told:?}"))?;
    comes_back(&guest.inside)?;
    is_shown(&stage, "open (hybrid vsock, sidecar")
}

/// CID 2 would be the guest itself: the loopback driver is there.
fn without_a_vsock_device() -> Outcome {
    let stage = Stage::new()?;
    for listens in [false, true] {
        let settings = Settings { device: false, listens, ..Settings::default() };
        let said = Guest::fail(&stage.rig, &settings)?;
        ensure(said.contains("this machine has no vsock device (its own CID is 1"), || said.clone())?;
        ensure(said.contains("vmw_vsock_virtio_transport") && !said.contains("the tunnel is down"), || {
            said.clone()
        })?;
    }
    Ok(())
}

/// The guest is the host here, and the bridge is in it.
fn a_host_s_own_vsock() -> Outcome {
    host::run(&Rig::new()?)
}

/// As long as the pings' patience: the tunnel may or may not survive it. No call is sent twice or lost without a word.
fn a_device_that_stands_still() -> Outcome {
    let stage = Stage::new()?;
    let guest = Guest::start(&stage.rig, &Settings::default())?;
    let inside = &guest.inside;
    let before = inside.call(&fault("ticks?n=2&ms=5000&of=before"))?;
    before.text("progress")?;
    let device = guest.machine.device.as_ref().ok_or_else(|| Trouble::new("no device"))?;
    let stopped = device.stop()?;
    let since = now();
    // Sent into it.
    let during = inside.call(&fault("ok?of=during"))?;
    sleep(STILL.saturating_sub(Duration::from_micros(now() - since)));
    drop(stopped);
    comes_back(inside)?;
    for (name, call) in [("before", before), ("during", during)] {
        let answer = call.answer()?;
        let told = ["", "tunnel_lost", "tunnel_down"].contains(&answer.kind().as_str());
        ensure(told && answer.clean && !answer.body.is_empty(), || format!("{name}: {answer:?}"))?;
        let of = format!("of={name}");
        let times = stage.faults.seen.requests().iter().filter(|r| r.target.contains(&of)).count();
        ensure(times <= 1, || format!("{name} was sent {times} times"))?;
    }
    Ok(())
}
