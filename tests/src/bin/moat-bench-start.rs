//! `cargo bench-start [N]`: what moat adds to the start of a sandbox.
//!
//! `moat run -- true` with a warm bridge, against `unshare` with the same namespaces around the same `true`; taken in
//! turns, so that both meet the same machine. Prints medians, difference and ratio; fails above the budget.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::{
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use moat_tests::{Outcome, Trouble, rig::Rig, trouble::ensure, upstream::Upstream};

/// What moat may add to the median.
const BUDGET: Duration = Duration::from_millis(60);
/// Pairs of starts, unless the command line says otherwise.
const PAIRS: usize = 40;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            println!("the benchmark could not be carried out: {trouble}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<bool> {
    let pairs = std::env::args().nth(1).map_or(Ok(PAIRS), |text| text.parse())?;
    let rig = Rig::new()?;
    let server = Upstream::plain("local", None)?;
    rig.config(&format!("mcp:\n  - name: local\n    url: {}\n", server.url()))?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let moat = || rig.moat(&["run", &workspace, "--", "true"]);
    for _ in 0..3 {
        time(moat()?)?;
        time(bare())?;
    }
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        with.push(time(moat()?)?);
        without.push(time(bare())?);
    }
    let (with, without) = (Spread::of(with)?, Spread::of(without)?);
    let more = with.median.saturating_sub(without.median);
    println!(
        "start of `true` in its own user, mount, pid, ipc, uts and network namespaces, {pairs} pairs in turns"
    );
    println!("  moat run, warm bridge    {with}");
    println!("  unshare                  {without}");
    let ratio = with.median.as_secs_f64() / without.median.as_secs_f64();
    println!(
        "  moat adds                {:.1} ms (ratio {ratio:.1}; budget {} ms)",
        ms(more),
        BUDGET.as_millis()
    );
    Ok(more <= BUDGET)
}

/// The same namespaces without moat.
fn bare() -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--map-root-user",
        "--mount",
        "--pid",
        "--ipc",
        "--uts",
        "--net",
        "--fork",
        "--mount-proc",
        "true",
    ]);
    command
}

fn time(mut command: Command) -> Outcome<Duration> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let output = command.output()?;
    let took = start.elapsed();
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(took)
}

/// A median between its quartiles.
struct Spread {
    low: Duration,
    median: Duration,
    high: Duration,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Outcome<Self> {
        times.sort_unstable();
        let at = |quarter: usize| times.get(times.len() * quarter / 4).copied();
        match (at(1), at(2), at(3)) {
            (Some(low), Some(median), Some(high)) => Ok(Self { low, median, high }),
            _ => Err(Trouble::new("nothing was measured")),
        }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:7.1} ms  (quartiles {:.1} and {:.1})", ms(self.median), ms(self.low), ms(self.high))
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
