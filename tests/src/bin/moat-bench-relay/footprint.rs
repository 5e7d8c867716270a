//! `footprint`: what each end takes when nothing happens, how fast it is there, and what a thousand runs cost.

use std::time::{Duration, Instant};

use moat_tests::{
    Outcome,
    listen::runtime,
    measure::{Spread, memory, ms},
};

use crate::{
    options::Options,
    ours::Home,
    report::{Bound, Report},
    target::Process,
    upstream::Upstream,
};

/// Starts of each end.
const STARTS: usize = 15;
const RUNS: usize = 1000;
/// Registrations that are timed, after all others.
const MORE: usize = 20;
const SETTLE: Duration = Duration::from_millis(300);
const MIB: f64 = 1024.0 * 1024.0;

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn run(options: &Options, home: &Home, upstream: &Upstream, report: &mut Report) -> Outcome {
    let size = std::fs::metadata(home.sidecar())?.len();
    report.one("footprint.sidecar.size", "MiB", size as f64 / MIB, Some(Bound::AtMost(3.5)));
    let starts = if options.brief { 3 } else { STARTS };
    let (mut spawned, mut ready, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    let mut idle = Vec::new();
    for _ in 0..starts {
        let (bridge, took) = home.bridge()?;
        spawned.push(ms(took));
        let run = bridge.register(&upstream.url(false))?;
        let (target, took) = bridge.relay(&run, &[])?;
        ready.push(ms(took));
        // One call, so that what idles is what has worked.
        runtime()?.block_on(target.initialize())?;
        std::thread::sleep(SETTLE);
        let relay = target.processes.first().map(Process::pid).unwrap_or_default();
        resident.push(memory(relay, "VmRSS")? as f64 / MIB);
        idle.push(memory(bridge.pid(), "VmRSS")? as f64 / MIB);
    }
    report.add("footprint.sidecar.resident", "MiB", Spread::of(resident)?, Some(Bound::AtMost(4.0)));
    report.add("footprint.sidecar.ready", "ms", Spread::of(ready)?, Some(Bound::AtMost(10.0)));
    report.add("footprint.bridge.resident", "MiB", Spread::of(idle)?, Some(Bound::AtMost(16.0)));
    report.add("footprint.bridge.first_byte", "ms", Spread::of(spawned)?, Some(Bound::AtMost(50.0)));

    let (bridge, _) = home.bridge()?;
    let runs = if options.brief { 50 } else { RUNS };
    for _ in 0..runs {
        bridge.register(&upstream.url(false))?;
    }
    let resident = memory(bridge.pid(), "VmRSS")? as f64 / MIB;
    report.one(format!("footprint.bridge.resident.{runs}_runs"), "MiB", resident, Some(Bound::AtMost(64.0)));
    let mut took = Vec::new();
    for _ in 0..MORE {
        let asked = Instant::now();
        bridge.register(&upstream.url(false))?;
        took.push(ms(asked.elapsed()));
    }
    report.add("footprint.bridge.register", "ms", Spread::of(took)?, Some(Bound::AtMost(5.0)));
    Ok(())
}
