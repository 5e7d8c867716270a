//! `cargo bench-start [docker | guest] [N]`: what moat adds to the start of a sandbox.
//!
//! `moat run -- true` with a warm bridge, against `unshare` with the same namespaces around the same `true`, in pairs
//! whose order changes, so that both meet the same machine; with `docker`, `moat run --image X true` against `docker run
//! X true` on an engine of its own. What counts is the median of the pairs' differences; with an engine the ratio. Whether
//! the budget is kept can only be said of a machine that has time for it: when others use much of it, the output says
//! so, and the exit code is that of success. With `guest`, what the time goes into from the start of the sidecar in a virtual
//! machine to its agent's first tool result; that has no budget, for there is no KVM.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::{
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use moat_tests::{
    Outcome, Trouble,
    clock::{millis, now},
    engine,
    faults::Faults,
    guest::{Guest, Settings},
    inside::Request,
    measure::{Machine, Others, Spread, ms, processor_ms},
    place::Place,
    rig::Rig,
    trouble::ensure,
    upstream::Upstream,
};
use nix::sys::resource::{UsageWho, getrusage};

/// What moat may add to the median.
const BUDGET_MS: f64 = 60.0;
/// What a start in a container may cost, of what the engine's own client needs for it.
const RATIO: f64 = 1.15;
/// The share of the processors that others may use before the benchmark says nothing about the budget.
const OTHERS: f64 = 0.25;
/// Pairs of starts, unless the command line says otherwise.
const PAIRS: usize = 40;
const WARM_UP: usize = 3;
/// Guests, unless the command line says otherwise.
const GUESTS: usize = 7;

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
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "guest") {
        return guests(arguments.get(1).map_or(Ok(GUESTS), |text| text.parse())?);
    }
    let docker = arguments.first().is_some_and(|first| first == "docker");
    if docker {
        arguments.remove(0);
        Place::Docker.go();
    }
    let pairs = arguments.first().map_or(Ok(PAIRS), |text| text.parse())?;
    let judged = if docker { containers(pairs) } else { namespaces(pairs) };
    let left = engine::stop();
    ensure(left.is_empty(), || format!("left by the engine: {left:?}"))?;
    judged
}

/// One guest after another; the first is not counted.
fn guests(count: usize) -> Outcome<bool> {
    let mut parts: [Vec<f64>; 4] = Default::default();
    for number in 0..=count {
        let took = guest()?;
        if number > 0 {
            parts.iter_mut().zip(took).for_each(|(part, took)| part.push(took));
        }
    }
    println!(
        "a virtual machine without KVM (TCG) and without a network, the tunnel over vsock; {count} starts"
    );
    println!("                                median   (quartiles)");
    let names = ["boot, before the sidecar", "init", "tunnel", "call"];
    for (name, part) in names.into_iter().zip(&parts) {
        println!("  {name:<26}{}", shown(Spread::of(part.iter().copied())?));
    }
    let whole = (0..count).map(|index| parts[1..].iter().map(|part| part[index]).sum::<f64>());
    println!("  {:<26}{}", "sidecar to tool result", shown(Spread::of(whole)?));
    Ok(true)
}

/// Milliseconds until the sidecar starts, until it has started the relay, until the tunnel stands and the agent is started,
/// and of the agent's first call. The kernel tells starts in hundredths of a second.
fn guest() -> Outcome<[f64; 4]> {
    let rig = Rig::new()?;
    let server = Faults::plain()?;
    rig.config(&format!("mcp:\n  - name: open\n    url: {}\n", server.url()))?;
    let guest = Guest::start(&rig, &Settings::default())?;
    let before = now();
    let answer = guest.inside.answer(&Request::rpc("/mcp/open/ok", 1, "tools/call"))?;
    ensure(answer.status == 200, || format!("{answer:?}"))?;
    let call = millis(answer.end_at.saturating_sub(before));
    let said = guest.inside.exec(&["sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null"], &[])?.out;
    let started = |name: &str| {
        let of = |line: &str| {
            let (pid, rest) = line.split_once(" (")?;
            let (known, rest) = rest.rsplit_once(") ")?;
            let ticks: f64 = rest.split(' ').nth(19)?.parse().ok()?;
            (pid != "1" && name == known).then_some(ticks * 10.0)
        };
        said.lines().find_map(of).ok_or_else(|| Trouble::new(format!("no {name} in the guest: {said}")))
    };
    let sidecar = guest.machine.sidecar_started()? * 1000.0;
    let (relay, agent) = (started("exe")?, started("moat-fixture-cl")?);
    Ok([sidecar, relay - sidecar, agent - relay, call])
}

/// The same image, workspace and network, without moat.
fn containers(pairs: usize) -> Outcome<bool> {
    let rig = Rig::new()?;
    let engine = rig.engine()?;
    rig.config("")?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let moat = || rig.moat(&["run", &workspace, "--", "true"]);
    let volume = format!("{workspace}:/workspace");
    let bare = || {
        let mut docker = Command::new("docker");
        docker.env("DOCKER_HOST", engine.host());
        docker.args(["run", "--rm", "--network", "none", "--volume", &volume, engine::IMAGE, "true"]);
        Ok(docker)
    };
    let (with, without) = alternate(pairs, moat, bare)?;
    let wall = |took: &[Took]| Spread::of(took.iter().map(|took| took.wall));
    let (with, without) = (wall(&with)?, wall(&without)?);
    let ratio = with.median / without.median;
    println!(
        "start of `true` in a container of the same image, no network, the workspace mounted; {pairs} pairs"
    );
    println!("                             median   (quartiles)");
    println!("  moat run, warm bridge   {}", shown(with));
    println!("  docker run              {}", shown(without));
    println!("  ratio                   {ratio:6.2}   goal {RATIO}");
    Ok(ratio <= RATIO)
}

/// Pairs whose order changes, after a few to warm up.
fn alternate(
    pairs: usize,
    moat: impl Fn() -> Outcome<Command>,
    bare: impl Fn() -> Outcome<Command>,
) -> Outcome<(Vec<Took>, Vec<Took>)> {
    for _ in 0..WARM_UP {
        time(moat()?)?;
        time(bare()?)?;
    }
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        if pair % 2 == 0 {
            with.push(time(moat()?)?);
            without.push(time(bare()?)?);
        } else {
            without.push(time(bare()?)?);
            with.push(time(moat()?)?);
        }
    }
    Ok((with, without))
}

fn namespaces(pairs: usize) -> Outcome<bool> {
    let rig = Rig::new()?;
    let server = Upstream::plain("local", None)?;
    rig.config(&format!("mcp:\n  - name: local\n    url: {}\n", server.url()))?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    let moat = || rig.moat(&["run", &workspace, "--", "true"]);
    let machine = Machine::now(&[])?;
    let (with, without) = alternate(pairs, moat, || Ok(bare()))?;
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
