//! `cargo bench-start [N]`: what moat adds to the start of a sandbox.
//!
//! `moat run -- true` with a warm bridge, against `unshare` with the same namespaces around the same `true`, in pairs
//! whose order changes, so that both meet the same machine. What counts is the median of the pairs' differences. Whether
//! the budget is kept can only be said of a machine that has time for it: when others use much of it, the output says
//! so, and the exit code is that of success.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::{
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use moat_tests::{
    Outcome,
    measure::{Machine, Others, Spread, ms, processor_ms},
    rig::Rig,
    trouble::ensure,
    upstream::Upstream,
};
use nix::sys::resource::{UsageWho, getrusage};

/// What moat may add to the median.
const BUDGET_MS: f64 = 60.0;
/// The share of the processors that others may use before the benchmark says nothing about the budget.
const OTHERS: f64 = 0.25;
/// Pairs of starts, unless the command line says otherwise.
const PAIRS: usize = 40;
const WARM_UP: usize = 3;

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
    for _ in 0..WARM_UP {
        time(moat()?)?;
        time(bare())?;
    }
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let machine = Machine::now(&[])?;
    for pair in 0..pairs {
        if pair % 2 == 0 {
            with.push(time(moat()?)?);
            without.push(time(bare())?);
        } else {
            without.push(time(bare())?);
            with.push(time(moat()?)?);
        }
    }
    let others = machine.others(&[])?;
    report(&with, &without, others)
}

fn report(with: &[Took], without: &[Took], others: Others) -> Outcome<bool> {
    let more = Spread::of(with.iter().zip(without).map(|(with, without)| with.wall - without.wall))?;
    let wall = |took: &[Took]| Spread::of(took.iter().map(|took| took.wall));
    let processor = |took: &[Took]| Spread::of(took.iter().map(|took| took.processor));
    let (wall_with, wall_without) = (wall(with)?, wall(without)?);
    let (processor_with, processor_without) = (processor(with)?, processor(without)?);
    println!(
        "start of `true` in its own user, mount, pid, ipc, uts and network namespaces with a /proc of its own; {} pairs",
        with.len()
    );
    println!("                             median   (quartiles)");
    println!("  moat run, warm bridge   {}   processor {:.1} ms", shown(wall_with), processor_with.median);
    println!(
        "  unshare                 {}   processor {:.1} ms",
        shown(wall_without),
        processor_without.median
    );
    println!("  moat adds               {}   budget {BUDGET_MS} ms", shown(more));
    println!(
        "  ratio                   {:6.1} of the time, {:.1} of the processor's",
        wall_with.median / wall_without.median,
        processor_with.median / processor_without.median
    );
    println!("  others used             {:6.2} of {} processors meanwhile", others.used, others.processors);
    let kept = more.median <= BUDGET_MS;
    let busy = others.used > OTHERS * others.processors;
    let verdict = match (kept, busy) {
        (true, false) => "kept",
        (true, true) => "kept, on a busy machine",
        (false, false) => "exceeded",
        (false, true) => {
            "not judged: the machine was busy with something else. Run this again when it is not"
        }
    };
    println!("the budget is {verdict}");
    Ok(kept || busy)
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

/// What one start took, in milliseconds: on the clock, and of the processors, by all of its processes.
struct Took {
    wall: f64,
    processor: f64,
}

fn time(mut command: Command) -> Outcome<Took> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let (before, start) = (getrusage(UsageWho::RUSAGE_CHILDREN)?, Instant::now());
    let output = command.output()?;
    let wall = ms(start.elapsed());
    let processor = processor_ms(&getrusage(UsageWho::RUSAGE_CHILDREN)?) - processor_ms(&before);
    ensure(output.status.success(), || String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(Took { wall, processor })
}

/// A spread in milliseconds, for people.
fn shown(Spread { low, median, high }: Spread) -> String {
    format!("{median:6.1} ms  ({low:.1} to {high:.1})")
}
