//! `calls`: many short `tools/call`, from 1, 32 and 200 clients, each on its own kept connection and one call at a time.
//!
//! Every round visits every target in turn, so that all meet the same machine; a ratio is taken within its round.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use moat_tests::{Outcome, Trouble, listen::runtime, measure::Spread, trouble::ensure};
use tokio::{sync::Barrier, task::JoinSet, time::timeout};

use crate::{
    options::Options,
    peers::{KEPT_FEW, NGINX_FEW},
    report::{Bound, Report},
    target::Target,
    upstream::ECHO,
};

const CLIENTS: [usize; 3] = [1, 32, 200];
/// Calls that nobody counts, by time.
const WARM_UP: Duration = Duration::from_millis(150);
/// No call takes so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one round of one target gave.
#[derive(Debug, Clone, Copy)]
struct Sample {
    p50_us: f64,
    p99_us: f64,
    /// Calls per second.
    rate: f64,
    /// Processor time of one call, of all that stands between client and upstream.
    cost_us: f64,
}

/// Measures all targets; how many calls ours answered.
pub(crate) fn run(options: &Options, targets: &[Target], report: &mut Report) -> Outcome<usize> {
    let mut calls = 0;
    for clients in options.clients.map_or_else(|| CLIENTS.to_vec(), |only| vec![only]) {
        let mut samples: BTreeMap<&str, Vec<Sample>> = BTreeMap::new();
        for round in 0..options.rounds {
            // The one differs from the other only once there are more clients than it keeps connections.
            for target in targets.iter().filter(|t| t.name != NGINX_FEW || clients > KEPT_FEW) {
                let (sample, count) = runtime()?.block_on(measure(target, clients, options.time))?;
                samples.entry(target.name).or_default().push(sample);
                calls += if target.name == "moat" { count } else { 0 };
                tracing(options, &format!("{clients} clients, round {round}, {}: {sample:?}", target.name));
            }
        }
        tell(clients, targets, &samples, report)?;
    }
    Ok(calls)
}

fn tracing(options: &Options, text: &str) {
    if options.verbose {
        options.say(text);
    }
}

fn tell(
    clients: usize,
    targets: &[Target],
    samples: &BTreeMap<&str, Vec<Sample>>,
    report: &mut Report,
) -> Outcome {
    type Of = fn(&Sample) -> f64;
    let of = |name: &str, what: Of| samples.get(name).map(|all| all.iter().map(what).collect::<Vec<f64>>());
    let measured: [(&str, &str, Of); 4] = [
        ("p50", "us", |s| s.p50_us),
        ("p99", "us", |s| s.p99_us),
        ("rate", "1/s", |s| s.rate),
        ("processor", "us", |s| s.cost_us),
    ];
    for (what, unit, get) in measured {
        for Target { name, .. } in targets {
            if let Some(values) = of(name, get).filter(|_| what != "processor" || *name != "direct") {
                report.add(format!("calls.{clients}.{what}.{name}"), unit, Spread::of(values)?, None);
            }
        }
    }
    let ratio = |over: &str, what: Of, less: bool| {
        let (ours, theirs) = (of("moat", what)?, of(over, what)?);
        let base = if less { of("direct", what)? } else { vec![0.0; ours.len()] };
        let ratios =
            ours.iter().zip(&theirs).zip(&base).map(|((ours, theirs), base)| (ours - base) / (theirs - base));
        Spread::of(ratios).ok()
    };
    let goals: &[(&str, &str, Of, bool, Bound)] = match clients {
        1 => &[("nginx", "added_p50", |s| s.p50_us, true, Bound::AtMost(1.0))],
        32 => &[
            ("nginx", "rate", |s| s.rate, false, Bound::AtLeast(1.0)),
            ("envoy", "rate", |s| s.rate, false, Bound::AtLeast(2.0)),
        ],
        200 => &[
            ("nginx", "rate", |s| s.rate, false, Bound::AtLeast(1.5)),
            ("nginx", "p99", |s| s.p99_us, false, Bound::AtMost(0.5)),
            (NGINX_FEW, "rate", |s| s.rate, false, Bound::AtLeast(1.5)),
            (NGINX_FEW, "p99", |s| s.p99_us, false, Bound::AtMost(0.5)),
        ],
        _ => &[("nginx", "rate", |s| s.rate, false, Bound::AtLeast(1.0))],
    };
    for over in ["nginx", NGINX_FEW, "envoy", "mcp-proxy"] {
        if let Some(spread) = ratio(over, |s| s.cost_us, false) {
            report.add(format!("calls.{clients}.processor.moat:{over}"), "", spread, None);
        }
    }
    for (over, what, get, less, bound) in goals {
        if let Some(spread) = ratio(over, *get, *less) {
            report.add(format!("calls.{clients}.{what}.moat:{over}"), "", spread, Some(*bound));
        }
    }
    Ok(())
}

/// So many clients for so long.
async fn measure(target: &Target, clients: usize, time: Duration) -> Outcome<(Sample, usize)> {
    let session = target.initialize().await?;
    let request: Arc<[u8]> = target.call(session.as_deref(), ECHO).into();
    let start = Arc::new(Barrier::new(clients));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        let mut connection = target.connect().await?;
        let (request, start) = (request.clone(), start.clone());
        let name = target.name;
        tasks.spawn(async move {
            start.wait().await;
            let warm = Instant::now() + WARM_UP;
            let end = warm + time;
            let (mut took, mut all) = (Vec::with_capacity(16 * 1024), 0);
            loop {
                let sent = Instant::now();
                if sent >= end {
                    return Ok::<_, Trouble>((took, all));
                }
                let exchange = async {
                    connection.send(&request).await?;
                    let mut head = connection.head().await?;
                    let length = connection.skip(&mut head.body).await?;
                    Ok::<_, Trouble>((head.status, length))
                };
                let (status, length) = timeout(PATIENCE, exchange).await??;
                ensure(status == 200 && length > 100, || format!("{name}: status {status}, {length} bytes"))?;
                all += 1;
                if sent >= warm {
                    took.push(sent.elapsed());
                }
            }
        });
    }
    let used = target.processor_time()?;
    let (mut took, mut all) = (Vec::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (more, count) = done??;
        took.extend(more);
        all += count;
    }
    let used = target.processor_time()?.saturating_sub(used);
    let cost_us = used.as_secs_f64() * 1e6 / f64::from(u32::try_from(all)?);
    took.sort_unstable();
    let at = |part: usize| took.get(took.len() * part / 100).map(|time| time.as_secs_f64() * 1e6);
    let none = || Trouble::new("nothing was answered in time");
    let rate = f64::from(u32::try_from(took.len())?) / time.as_secs_f64();
    Ok((Sample { p50_us: at(50).ok_or_else(none)?, p99_us: at(99).ok_or_else(none)?, rate, cost_us }, all))
}
