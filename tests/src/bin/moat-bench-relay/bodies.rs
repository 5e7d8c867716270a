//! `bodies`: large answers, as JSON and as events, through the credential scan and back into the tunnel.
//!
//! What counts is bytes per second of the bridge's processor time, which a busy machine changes least, and that the
//! memory of both ends does not grow with the answer.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use moat_tests::{
    Outcome, Trouble,
    listen::runtime,
    measure::{Spread, memory, processor_time},
    trouble::ensure,
};
use tokio::time::timeout;

use crate::{
    options::Options,
    report::{Bound, Report},
    target::Target,
    upstream::{BIG, LARGE, LARGE_EVENTS},
};

const PATIENCE: Duration = Duration::from_secs(120);
/// Large answers are few: each is a round of its own.
const ROUNDS: usize = 3;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
const MIB: f64 = 1024.0 * 1024.0;
/// How much the memory of an end may grow while answers a hundred times as large pass.
const GROWTH: f64 = 16.0;

/// Measures all targets. `ends` are ours: their names and pids.
pub(crate) fn run(
    options: &Options,
    targets: &[Target],
    ends: &[(&str, u32)],
    report: &mut Report,
) -> Outcome {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let gib = BIG as f64 / GIB;
    // mcp-proxy reads a whole answer before it sends any of it.
    let targets: Vec<&Target> = targets.iter().filter(|target| target.name != "mcp-proxy").collect();
    for (kind, tool) in [("json", LARGE), ("events", LARGE_EVENTS)] {
        let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut costs: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for round in 0..ROUNDS.min(options.rounds) {
            for target in &targets {
                let ours = target.name == "moat";
                let before = times(ends, ours)?;
                let grown = grown(ends, ours && round > 0)?;
                let took = runtime()?.block_on(read(target, tool))?;
                rates.entry(target.name).or_default().push(gib / took.as_secs_f64());
                for ((name, pid), before) in ends.iter().zip(before) {
                    let used = processor_time(*pid)?.saturating_sub(before).as_secs_f64();
                    costs.entry(name).or_default().push(gib / used.max(0.001));
                }
                for (name, pid, before) in grown {
                    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
                    let more = (memory(pid, "VmHWM")?.saturating_sub(before)) as f64 / MIB;
                    report.one(
                        format!("bodies.{kind}.growth.{name}"),
                        "MiB",
                        more,
                        Some(Bound::AtMost(GROWTH)),
                    );
                }
            }
        }
        for (name, values) in &rates {
            report.add(format!("bodies.{kind}.wall.{name}"), "GiB/s", Spread::of(values.clone())?, None);
        }
        if let (Some(ours), Some(nginx)) = (rates.get("moat"), rates.get("nginx")) {
            let ratio = ours.iter().zip(nginx).map(|(ours, nginx)| ours / nginx);
            report.add(format!("bodies.{kind}.wall.moat:nginx"), "", Spread::of(ratio)?, None);
        }
        for (name, values) in &costs {
            let bound = (*name == "bridge").then_some(Bound::AtLeast(1.0));
            report.add(format!("bodies.{kind}.per_core.{name}"), "GiB/s", Spread::of(values.clone())?, bound);
        }
    }
    Ok(())
}

fn times(ends: &[(&str, u32)], ours: bool) -> Outcome<Vec<Duration>> {
    ends.iter().filter(|_| ours).map(|(_, pid)| processor_time(*pid)).collect()
}

fn grown<'a>(ends: &[(&'a str, u32)], asked: bool) -> Outcome<Vec<(&'a str, u32, u64)>> {
    ends.iter().filter(|_| asked).map(|(name, pid)| Ok((*name, *pid, memory(*pid, "VmHWM")?))).collect()
}

async fn read(target: &Target, tool: &str) -> Outcome<Duration> {
    let session = target.initialize().await?;
    let request = target.call(session.as_deref(), tool);
    let mut connection = target.connect().await?;
    let exchange = async {
        let sent = Instant::now();
        connection.send(&request).await?;
        let mut head = connection.head().await?;
        ensure(head.status == 200, || format!("{}: status {}", target.name, head.status))?;
        let length = connection.skip(&mut head.body).await?;
        ensure(length >= BIG, || format!("{}: {length} bytes", target.name))?;
        Ok::<_, Trouble>(sent.elapsed())
    };
    timeout(PATIENCE, exchange).await?
}
