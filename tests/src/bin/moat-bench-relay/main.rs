//! `cargo bench-relay`: ours and what a user would take instead, over the same upstream and with the same load, in one
//! run, in turns. Ratios are what it is for.
//!
//! ```text
//! clients ──► direct ───────────────────────────────────────────────────────────────► upstream (a process, TLS)
//!         ──► nginx ──TLS, unix socket──► nginx (adds the header) ──────────────────►
//!         ──► Envoy ──TLS, unix socket──► Envoy (filter mcp, adds the header) ──────►
//!         ──► mcp-proxy ────────────────────────────────────────────────────────────►
//!         ──► sidecar ──TLS 1.3 both ways, HTTP/2, unix socket──► bridge (everything on) ──►
//! ```
//!
//! All traffic stays on 127.0.0.1 and in unix sockets; every part is bounded in count and time; nothing is left behind.
#![forbid(unsafe_code)]

mod bodies;
mod calls;
mod footprint;
mod idle;
mod instructions;
mod options;
mod ours;
mod peers;
mod report;
mod streams;
mod target;
mod upstream;
mod wire;

use std::{
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use moat_tests::{
    Outcome,
    measure::{Machine, Others},
    release,
    rig::{self, Rig},
    trouble::ensure,
};

use self::{
    options::{BUILD, INSTRUCTIONS, Options},
    ours::Home,
    report::Report,
    upstream::Upstream,
};

/// This program as what trains an instrumented `moat`, which `MOAT_BIN` names.
const TRAINING: &str = "__training";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some(upstream::ROLE) => upstream::serve(&arguments.split_off(1)).map(|()| true),
        Some(TRAINING) => {
            let trained = Options::training().and_then(|options| measure(&options, &mut Report::default()));
            trained.map(|_others| true)
        }
        _ => run(arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            complain(&trouble.to_string());
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a benchmark prints")]
fn complain(trouble: &str) {
    eprintln!("it could not be carried out: {trouble}");
}

fn run(arguments: Vec<String>) -> Outcome<bool> {
    let Some(options) = Options::parse(arguments.into_iter())? else { return Ok(true) };
    let guided = || release::guided(train, |step| options.say(step));
    if options.wants(BUILD) {
        options.say(&guided()?.display().to_string());
        return Ok(true);
    }
    if std::env::var_os("MOAT_BIN").is_none() {
        rig::use_moat(if options.is_plain() { release::plain()? } else { guided()? });
    }
    let mut report = Report::default();
    let others = measure(&options, &mut report)?;
    if options.json {
        print(&serde_json::to_string_pretty(&report.json(others))?);
    } else {
        options.say(&report.text(others));
    }
    Ok(report.kept())
}

/// Has a `moat` go through what is measured.
fn train(moat: &Path) -> Outcome {
    let mut training = Command::new(std::env::current_exe()?);
    training.arg(TRAINING).env("MOAT_BIN", moat).stdin(Stdio::null());
    // Its own sidecar, and its counters where they were told to be.
    training.env_remove("MOAT_SIDECAR").env_remove("LLVM_PROFILE_FILE");
    let status = training.status()?;
    ensure(status.success(), || format!("{} could not be trained ({status})", moat.display()))
}

/// Measures what is to be measured; what others used of the machine meanwhile.
fn measure(options: &Options, report: &mut Report) -> Outcome<Others> {
    let files = tempfile::Builder::new().prefix("mp-").tempdir_in("/tmp")?;
    let rig = Rig::new()?;
    let upstream = Upstream::start(&rig.authority, files.path())?;
    let machine = Machine::now(&[upstream.pid()])?;
    if options.wants("calls") || options.wants("streams") || options.wants("bodies") {
        let rig = Rig::new()?;
        side_by_side(options, rig, report)?;
    }
    let home = Home::new(rig, &upstream)?;
    if options.wants("idle") {
        idle::run(options, &home, &upstream, report)?;
    }
    if options.wants("footprint") {
        footprint::run(options, &home, &upstream, report)?;
    }
    drop(home);
    if options.wants(INSTRUCTIONS) {
        instructions::run(options, report)?;
    }
    machine.others(&[upstream.pid()])
}

#[expect(clippy::print_stdout, reason = "the figures are this program's output")]
fn print(text: &str) {
    println!("{text}");
}

/// The parts that are compared with peers.
fn side_by_side(options: &Options, rig: Rig, report: &mut Report) -> Outcome {
    let files = tempfile::Builder::new().prefix("mp-").tempdir_in("/tmp")?;
    let upstream = Upstream::start(&rig.authority, files.path())?;
    let peers = peers::start(options, &rig.authority, &upstream, files.path())?;
    report.missing(&peers.missing);
    let home = Home::new(rig, &upstream)?;
    let (bridge, _) = home.bridge()?;
    let run = bridge.register(&upstream.url(false))?;
    let (relay, _) = bridge.relay(&run, &[])?;
    let ends = [
        ("sidecar", relay.processes.first().map(target::Process::pid).unwrap_or_default()),
        ("bridge", bridge.pid()),
    ];
    let mut targets = peers.here;
    targets.push(relay);
    targets.retain(|target| options.includes(target.name));
    if targets.iter().any(|target| target.name == "mcp-proxy") {
        report.note(
            "mcp-proxy is one hop and talks to the upstream without TLS: it trusts public authorities only",
        );
    }
    if options.wants("calls") {
        let calls = calls::run(options, &targets, report)?;
        // Everything was on, to the last call.
        bridge.traced(&run, calls)?;
        bridge.nothing_lost()?;
    }
    // What is left is asked by one client at a time.
    targets.retain(|target| target.name != peers::NGINX_FEW);
    if options.wants("streams") {
        streams::run(options, &targets, report)?;
    }
    if options.wants("bodies") {
        bodies::run(options, &targets, &ends, report)?;
    }
    bridge.nothing_lost()
}
