//! `streams`: how late the first event of an answer is. The upstream sends one at once and another a little later.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use moat_tests::{Outcome, Trouble, listen::runtime, measure::Spread, trouble::ensure};
use tokio::time::timeout;

use crate::{
    options::Options,
    report::{Bound, Report},
    target::Target,
    upstream::EVENTS,
};

/// Calls of a round, after a few that nobody counts.
const CALLS: usize = 40;
const WARM_UP: usize = 5;
/// Of these, answers that may come in one piece, because the machine slept.
const TOGETHER: usize = CALLS / 4;
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures all targets.
pub(crate) fn run(options: &Options, targets: &[Target], report: &mut Report) -> Outcome {
    // mcp-proxy answers with the final result alone: it has no first event.
    let targets: Vec<&Target> = targets.iter().filter(|target| target.name != "mcp-proxy").collect();
    let mut medians: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for _ in 0..options.rounds {
        for target in &targets {
            let times = runtime()?.block_on(measure(target))?;
            medians.entry(target.name).or_default().push(Spread::of(times)?.median);
        }
    }
    for target in &targets {
        if let Some(values) = medians.get(target.name) {
            report.add(
                format!("streams.first_event.{}", target.name),
                "us",
                Spread::of(values.clone())?,
                None,
            );
        }
    }
    if let (Some(ours), Some(direct), Some(nginx)) =
        (medians.get("moat"), medians.get("direct"), medians.get("nginx"))
    {
        let added = ours
            .iter()
            .zip(direct)
            .zip(nginx)
            .map(|((ours, direct), nginx)| (ours - direct) / (nginx - direct));
        report.add("streams.added_first_event.moat:nginx", "", Spread::of(added)?, Some(Bound::AtMost(1.0)));
    }
    Ok(())
}

/// Microseconds from the request to the first byte of an event.
async fn measure(target: &Target) -> Outcome<Vec<f64>> {
    let session = target.initialize().await?;
    let request = target.call(session.as_deref(), EVENTS);
    let mut connection = target.connect().await?;
    let (mut times, mut together) = (Vec::with_capacity(CALLS), 0);
    for call in 0..WARM_UP + CALLS {
        let exchange = async {
            let sent = Instant::now();
            connection.send(&request).await?;
            let mut head = connection.head().await?;
            ensure(head.status == 200, || format!("{}: status {}", target.name, head.status))?;
            let first = connection.data(&mut head.body).await?.unwrap_or_default();
            let took = sent.elapsed();
            let both = memchr::memmem::find(&first, b"\"result\"").is_some();
            ensure(first.starts_with(b"event: message"), || format!("{}: {first:?}", target.name))?;
            together += usize::from(both);
            connection.skip(&mut head.body).await?;
            Ok::<_, Trouble>(took)
        };
        let took = timeout(PATIENCE, exchange).await??;
        if call >= WARM_UP {
            times.push(took.as_secs_f64() * 1e6);
        }
    }
    ensure(together <= TOGETHER, || {
        format!(
            "{} does not send the first event alone: {together} of {CALLS} came with the last",
            target.name
        )
    })?;
    Ok(times)
}
