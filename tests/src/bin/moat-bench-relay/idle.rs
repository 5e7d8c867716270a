//! `idle`: thousands of streams on which nothing happens, through one tunnel: what one costs in memory at either end,
//! and what the comments that keep them alive cost in processor time.

use std::time::{Duration, Instant};

use moat_tests::{
    Outcome, Trouble,
    listen::runtime,
    measure::{memory, processor_time},
    trouble::ensure,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    options::Options,
    ours::Home,
    report::{Bound, Report},
    target::Target,
    upstream::Upstream,
};

/// Streams opened at the same time; more would only wait for each other.
const AT_ONCE: usize = 64;
/// All streams have to be open by then.
const PATIENCE: Duration = Duration::from_secs(120);
/// Two comments on each stream.
const WATCHED: Duration = Duration::from_secs(31);
const KIB: f64 = 1024.0;
/// The shares of a processor are not counted finer.
const SETTLE: Duration = Duration::from_millis(500);

/// Both kinds of upstream, each with a bridge and a relay of its own.
pub(crate) fn run(options: &Options, home: &Home, upstream: &Upstream, report: &mut Report) -> Outcome {
    for (http2, name, bound) in [(false, "http1", 32.0), (true, "http2", 12.0)] {
        let (bridge, _) = home.bridge()?;
        let run = bridge.register(&upstream.url(http2))?;
        let (target, _) = bridge.relay(&run, &[])?;
        let relay = target.processes.first().map(crate::target::Process::pid).unwrap_or_default();
        let pids = [("sidecar", relay, 12.0), ("bridge", bridge.pid(), bound)];
        // The first call fills the pools and caches.
        runtime()?.block_on(target.initialize())?;
        let resident = |pid| memory(pid, "VmRSS");
        let before = pids.iter().map(|(_, pid, _)| resident(*pid)).collect::<Outcome<Vec<u64>>>()?;
        let started = Instant::now();
        let mut open = runtime()?.block_on(open(&target, options.streams))?;
        report.one(format!("idle.{name}.open"), "ms", started.elapsed().as_secs_f64() * 1000.0, None);
        std::thread::sleep(SETTLE);
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        for ((who, pid, bound), before) in pids.iter().zip(before) {
            let each = (resident(*pid)?.saturating_sub(before)) as f64 / KIB / options.streams as f64;
            report.one(format!("idle.{name}.memory.{who}"), "KiB", each, Some(Bound::AtMost(*bound)));
        }
        if !options.brief {
            let used =
                pids.iter().map(|(_, pid, _)| processor_time(*pid)).collect::<Outcome<Vec<Duration>>>()?;
            let watched = Instant::now();
            let comments = runtime()?.block_on(comments(&mut open, options.streams));
            let wanted = 2 * options.streams;
            ensure(comments + options.streams >= wanted, || {
                format!("{comments} comments came on {} streams in {WATCHED:?}", options.streams)
            })?;
            let mut all = 0.0;
            for ((who, pid, _), before) in pids.iter().zip(used) {
                let share = (processor_time(*pid)?.saturating_sub(before)).as_secs_f64()
                    / watched.elapsed().as_secs_f64()
                    * 100.0;
                report.one(format!("idle.{name}.heartbeats.{who}"), "% core", share, None);
                all += share;
            }
            report.one(format!("idle.{name}.heartbeats"), "% core", all, Some(Bound::AtMost(2.0)));
        }
        runtime()?.block_on(open.tasks.shutdown());
    }
    report.one("idle.streams", "", f64::from(u32::try_from(options.streams)?), None);
    Ok(())
}

/// The streams, each read by its own task.
struct Open {
    tasks: JoinSet<()>,
    heard: tokio::sync::mpsc::UnboundedReceiver<usize>,
}

async fn open(target: &Target, streams: usize) -> Outcome<Open> {
    let session = target.initialize().await?;
    let request: std::sync::Arc<[u8]> = target.get(session.as_deref()).into();
    let (hear, heard) = tokio::sync::mpsc::unbounded_channel();
    let (opened, mut ready) = tokio::sync::mpsc::channel::<Outcome>(AT_ONCE);
    let mut open = Open { tasks: JoinSet::new(), heard };
    let mut waiting = 0;
    for _ in 0..streams {
        if waiting == AT_ONCE {
            done(&mut ready).await?;
            waiting -= 1;
        }
        let mut connection = target.connect().await?;
        let (request, hear, opened) = (request.clone(), hear.clone(), opened.clone());
        open.tasks.spawn(async move {
            let begin = async {
                connection.send(&request).await?;
                let head = connection.head().await?;
                ensure(head.status == 200, || format!("a stream is answered with {}", head.status))?;
                Ok::<_, Trouble>(head.body)
            };
            let (begun, mut body) = match begin.await {
                Ok(body) => (Ok(()), Some(body)),
                Err(trouble) => (Err(trouble), None),
            };
            if opened.send(begun).await.is_err() {
                return;
            }
            drop(opened);
            let Some(body) = &mut body else { return };
            while let Ok(Some(piece)) = connection.data(body).await {
                if hear.send(piece.len()).is_err() {
                    return;
                }
            }
        });
        waiting += 1;
    }
    for _ in 0..waiting {
        done(&mut ready).await?;
    }
    Ok(open)
}

async fn done(ready: &mut tokio::sync::mpsc::Receiver<Outcome>) -> Outcome {
    let said = timeout(PATIENCE, ready.recv()).await?;
    said.unwrap_or_else(|| Err(Trouble::new("the streams are gone")))
}

/// Counts what comes for [`WATCHED`].
async fn comments(open: &mut Open, streams: usize) -> usize {
    let mut count = 0;
    let watching = async {
        while open.heard.recv().await.is_some() {
            count += 1;
        }
    };
    tokio::select! {
        () = watching => {}
        () = sleep(WATCHED) => {}
    }
    count.min(3 * streams)
}
