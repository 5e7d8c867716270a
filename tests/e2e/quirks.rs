//! Both ends of the tunnel, real, over a vsock device that is an imitation: what devices do that is not at hand, and that one
//! which is at hand does not do. No machine is started; the relay is a process of this one.

use std::{
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use moat_tests::{
    Outcome, Trouble,
    clock::eventually,
    console::http::Body,
    guest::{PORT, register::Registration},
    inside::Request,
    quirks::{Device, Ends, Full},
    relay::Relay,
    rig::{PATIENCE, Rig},
    trouble::ensure,
};
use serde_json::json;

use crate::{
    Test,
    stage::{Stage, VAULT_HEADER, VAULT_STUB, discover, fault},
};

pub(crate) const TESTS: &[Test] = &[
    Test::new("half_an_end_is_not_carried", &[], half_an_end_is_not_carried),
    Test::new("a_port_that_no_run_came_to_need_is_closed", &[], a_port_that_no_run_came_to_need),
    Test::new("room_for_one_connection", &[], room_for_one_connection).ahead(),
];

/// Long before a ping would tell.
const AT_ONCE: Duration = Duration::from_secs(5);
const MANY: usize = 1024;
/// More than one attempt's deadline, and a pause.
const AGAIN: Duration = Duration::from_secs(25);

/// A relay behind a device, and somebody who asks it.
struct Guest(Relay);

impl Guest {
    /// `listens`: the bridge dials.
    fn start(stage: &Stage, run: &Registration, device: &Device, listens: bool) -> Outcome<Self> {
        let at = if listens { device.listens() } else { device.guest() };
        Relay::start(&stage.rig, run, &format!("unix:{}", at.display()), listens).map(Self)
    }

    fn asks(&self) -> Outcome<bool> {
        let answer = self.0.inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB))?;
        Ok(answer.status == 200)
    }

    /// A call, events, a mebibyte each way.
    fn works(&self) -> Outcome {
        const MEBIBYTE: usize = 1 << 20;
        ensure(self.asks()?, || "no answer".to_owned())?;
        let stream = self.0.inside.call(&fault("hang-stream?open"))?;
        stream.text("progress")?;
        let before = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"x\",\"params\":{\"pad\":\"".to_owned();
        let up = Body::Padded { before, fill: MEBIBYTE, after: "\"}}".to_owned() };
        let up = Request::post("/mcp/open/sink", &json!(null)).body(up);
        let down = Request::rpc(&format!("/mcp/open/big?bytes={MEBIBYTE}"), 1, "x").counted();
        for request in [up, down] {
            let answer = self.0.inside.answer(&request)?;
            ensure(answer.status == 200 && answer.clean, || format!("{} {}", answer.status, answer.body))?;
        }
        stream.abandon().map(drop)
    }

    fn comes_back(&self, within: Duration) -> Outcome {
        eventually("the tunnel comes back", within, || self.asks().ok().filter(|is| *is).map(|_| ()))
    }
}

fn is_open(stage: &Stage) -> Outcome<bool> {
    Ok(stage.rig.tunnel()?.starts_with("open"))
}

/// Whichever way the device treats half of an end, and whichever side dials: a whole session works, each side's end is the
/// other's, and neither ends one direction to go on with the other.
fn half_an_end_is_not_carried() -> Outcome {
    let stage = Stage::new()?;
    for (number, (ends, listens)) in
        [(Ends::Absorbed, false), (Ends::Both, false), (Ends::Absorbed, true), (Ends::Both, true)]
            .into_iter()
            .enumerate()
    {
        let what = format!("{ends:?}, listens: {listens}");
        let told = |trouble: Trouble| Trouble::new(format!("{what}: {trouble}"));
        let directory = stage.rig.user_home().join(format!("d{number}"));
        let device = Device::start(&directory, ends, MANY, Full::Closes)?;
        session(&stage, &device, listens).map_err(told)?;
        ensure(device.halves() == 0, || format!("{what}: {} half-closed connections", device.halves()))?;
    }
    Ok(())
}

fn session(stage: &Stage, device: &Device, listens: bool) -> Outcome {
    let run = Registration::of(&stage.rig, device.host().display(), listens)?;
    let guest = Guest::start(stage, &run, device, listens)?;
    guest.works()?;
    // The bridge says goodbye and leaves; whoever holds the run starts the next.
    stage.rig.run(&["proxy", "stop"])?.expect_code(0)?;
    guest.comes_back(PATIENCE)?;
    guest.works()?;
    // The sidecar says goodbye: the bridge knows at once, and nothing of it stays on the device.
    ensure(guest.0.end()? == Some(0), || "the relay's exit code".to_owned())?;
    eventually("the bridge sees it", Duration::from_secs(5), || {
        is_open(stage).ok().filter(|is| !is).map(|_| ())
    })?;
    if !listens {
        eventually("the device is free", AT_ONCE, || (device.open() == 0).then_some(()))?;
    }
    // The bridge ends the run with streams open: the sidecar knows at once.
    let guest = Guest::start(stage, &run, device, listens)?;
    let stream = guest.0.inside.call(&fault("hang-stream?cut"))?;
    stream.text("progress")?;
    drop(run);
    let ended = Instant::now();
    let told = stream.answer()?;
    ensure(told.kind() == "tunnel_lost", || format!("{told:?}"))?;
    // And not by pings that nobody answers.
    ensure(ended.elapsed() < AT_ONCE, || format!("the sidecar knows after {:?}", ended.elapsed()))?;
    guest.0.end().map(drop)
}

/// A device that takes one connection, and keeps its place for a while when it has ended: the tunnel is one connection. The next
/// one waits in vain with a deadline of its own, harms nobody, and is tried again until there is room.
fn room_for_one_connection() -> Outcome {
    let cases = [(Full::Hangs, false), (Full::Closes, false), (Full::Hangs, true), (Full::Closes, true)];
    // They mostly wait.
    let outcomes: Vec<_> = thread::scope(|scope| {
        let running = cases.map(|(full, listens)| scope.spawn(move || without_room(full, listens)));
        running.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    for ((full, listens), outcome) in cases.into_iter().zip(outcomes) {
        let outcome = outcome.unwrap_or_else(|_| Err(Trouble::new("it panicked")));
        outcome.map_err(|trouble| Trouble::new(format!("{full:?}, listens: {listens}: {trouble}")))?;
    }
    Ok(())
}

fn without_room(full: Full, listens: bool) -> Outcome {
    let stage = Stage::new()?;
    let device = Device::start(&stage.rig.user_home().join("d"), Ends::Absorbed, 1, full)?;
    let run = Registration::of(&stage.rig, device.host().display(), listens)?;
    let guest = Guest::start(&stage, &run, &device, listens)?;
    guest.works()?;
    ensure((device.peak(), device.turned_away()) == (1, 0), || format!("{device:?}"))?;
    device.keep_places(true);
    stage.rig.kill_bridge()?;
    eventually("somebody asks for a place", AGAIN, || (device.turned_away() > 0).then_some(()))?;
    let waiting = guest.0.inside.answer(&discover("vault").header(VAULT_HEADER, VAULT_STUB))?;
    ensure(waiting.kind() == "tunnel_down", || format!("a call that waits in vain: {waiting:?}"))?;
    device.keep_places(false);
    guest.comes_back(AGAIN)?;
    guest.works()?;
    ensure(device.peak() == 1, || format!("{} connections at a time", device.peak()))?;
    guest.0.end().map(drop)
}

/// It was opened before the registration was refused.
fn a_port_that_no_run_came_to_need() -> Outcome {
    let rig = Rig::new()?;
    let server = "  - name: open\n    url: http://127.0.0.1:1/\n";
    rig.config(&format!("mcp:\n{server}{server}"))?;
    let device = rig.user_home().join("v");
    let refused = Registration::of(&rig, device.display(), false).err().map(|trouble| trouble.to_string());
    ensure(refused.as_ref().is_some_and(|text| text.contains("listed twice")), || format!("{refused:?}"))?;
    ensure(rig.log().contains("sandboxes may come here"), || format!("it was not opened: {}", rig.log()))?;
    let socket = PathBuf::from(format!("{}_{PORT}", device.display()));
    eventually("the port is closed", AT_ONCE, || (!socket.exists()).then_some(()))
}
