//! End to end: the real `moat`, its bridge and its sandboxes, with real servers and clients on both sides.
//!
//! Each test of a sandbox is a row per [`Place`]: namespaces, Docker, podman, Docker over a published port, a stand-in for Apple's containers;
//! those of [`GUEST`] in a virtual machine as well, and those of [`APPLE_GUEST`] with one behind the stand-in. A test that needs a part which this machine has not is ignored, and one line says so. With
//! `MOAT_TESTS_REQUIRE=all` it fails instead.
#![forbid(unsafe_code)]

mod agents;
mod apple;
mod carriers;
mod clients;
mod conformance;
mod containers;
mod crowds;
mod detached;
mod door;
mod eras;
mod faults;
mod files;
mod fixtures;
mod further;
mod guest;
mod hangs;
mod house;
mod images;
mod injection;
mod keep_alive;
mod machine;
mod matrix;
mod network;
mod oauth;
mod policy;
mod preflight;
mod published;
mod quirks;
mod restart;
mod rules;
mod sandbox;
mod secrets;
mod sidecar;
mod stage;
mod streaming;
mod strict;
mod upkeep;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use libtest_mimic::{Arguments, Failed, Trial};
use moat_tests::{Outcome, engine, listen, parts::Part, place::Place, trouble::ensure};
use tokio::signal::unix::{SignalKind, signal};

/// Has a person had enough? No further test begins then; those that run clean up after themselves, as always.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// One test.
struct Test {
    name: &'static str,
    needs: &'static [Part],
    run: fn() -> Outcome,
    /// It mostly waits: it is started before all others, beside them, and its trial waits for its end.
    ahead: bool,
}

impl Test {
    const fn new(name: &'static str, needs: &'static [Part], run: fn() -> Outcome) -> Self {
        Self { name, needs, run, ahead: false }
    }

    const fn ahead(self) -> Self {
        Self { ahead: true, ..self }
    }

    /// The trial of a test that can run.
    fn trial(&self, name: String, place: Place, arguments: &Arguments) -> Trial {
        let run = self.run;
        let run = move || {
            ensure(!INTERRUPTED.load(Ordering::Relaxed), || "interrupted".to_owned())?;
            place.go();
            run()
        };
        // An emulated machine does not wait, it works.
        let works = matches!(place, Place::Guest | Place::AppleGuest);
        if !self.ahead || works || arguments.list || !is_wanted(arguments, &name) {
            return Trial::test(name, move || finished(run()));
        }
        let started = std::thread::spawn(run);
        Trial::test(name, move || match started.join() {
            Ok(outcome) => finished(outcome),
            Err(_) => Err(Failed::from("it panicked")),
        })
    }
}

fn finished(outcome: Outcome) -> Result<(), Failed> {
    outcome.map_err(|trouble| Failed::from(trouble.to_string()))
}

/// Will the runner run it? What its filters mean.
fn is_wanted(arguments: &Arguments, name: &str) -> bool {
    let is = |filter: &str| if arguments.exact { name == filter } else { name.contains(filter) };
    arguments.filter.as_deref().is_none_or(is)
        && !arguments.skip.iter().any(|skip| is(skip))
        && !arguments.ignored
}

/// Tests of the process runtime alone, each for its reason.
const PROCESS_ONLY: [&str; 15] = [
    // Clients of this machine's own file system.
    "clients::",
    "hangs::",
    "conformance::",
    "eras::",
    // The host's matter, whatever the sandbox is.
    "oauth::",
    // Minutes of silence, which are the relay's and the bridge's alone.
    "keep_alive::",
    // Hundreds of cells, which are the relay's and the bridge's as well.
    "faults::",
    "strict::",
    // Thousands of exchanges, likewise.
    "crowds::",
    // The test's own sandbox, not moat's.
    "fixtures::",
    // The host's root file system, read-only, which no container has.
    "sandbox::the_host_is_read_only",
    // A container's agent is its image's user; [`containers`] has the same for each kind of user.
    "sandbox::no_privileges",
    // Of namespaces in namespaces.
    "sandbox::orphans_are_reaped_and_nothing_is_left",
    "preflight::",
    // Its own way out; containers have their engine's.
    "network::",
];

/// Tests that are run in a virtual machine as well, unchanged: all that need no more of `moat run` than a run.
const GUEST: [&str; 18] = [
    "door::",
    "injection::exactly_once",
    "injection::a_foreign_value_is_refused",
    "injection::a_redirect_never_carries_it",
    "injection::a_reflection_is_scrubbed",
    "injection::other_credentials_do_not_travel",
    "restart::killed_and_back",
    "restart::killed_in_a_call",
    "restart::an_unknown_server",
    "rules::",
    "secrets::nothing_inside_holds_a_credential",
    "secrets::the_host_side_is_out_of_reach",
    "streaming::r13_r15_r16_sessions_and_event_ids_pass",
    "streaming::r14_events_arrive_when_they_are_sent",
    "streaming::r17_a_departure_reaches_the_upstream",
    "streaming::r20_silence_brings_a_comment_after_15_seconds",
    "streaming::r23_many_streams_at_once",
    "streaming::sampling_and_elicitation_pass",
];

/// Tests that are run with guests behind the stand-in for Apple's containers as well, unchanged: a few of each kind, for a
/// guest takes seconds to start.
const APPLE_GUEST: [&str; 14] = [
    "apple::a_bridge_that_comes_back",
    "apple::a_relay_that_dies_of_one_refusal",
    "apple::a_relay_that_stops_delivering",
    "apple::a_terminal",
    "apple::both_carriers",
    "apple::nothing_is_kept",
    "apple::one_connection_at_a_time",
    "apple::stopped_by_the_tool",
    "apple::the_command_is_killed",
    "carriers::the_next_is_taken",
    "detached::outlives_a_bridge_and_is_stopped",
    "further::has_a_terminal",
    "secrets::nothing_inside_holds_a_credential",
    "streaming::r14_events_arrive_when_they_are_sent",
];

/// Where this test is run.
fn places(name: &str, test: &Test) -> Vec<Place> {
    let mut places = usual_places(name, test);
    places.extend(APPLE_GUEST.contains(&name).then_some(Place::AppleGuest));
    places
}

fn usual_places(name: &str, test: &Test) -> Vec<Place> {
    // A container's own properties, in each engine.
    if name.starts_with("containers::") || name.starts_with("images::") {
        return vec![Place::Docker, Place::Podman];
    }
    if name.starts_with("apple::") {
        return vec![Place::Apple];
    }
    if name.starts_with("carriers::") {
        return vec![Place::Docker, Place::Podman, Place::Apple];
    }
    if name.starts_with("published::") {
        return vec![Place::Published];
    }
    if name.starts_with("machine::") {
        return vec![Place::AppleGuest];
    }
    if name.starts_with("guest::") {
        return vec![Place::Guest];
    }
    let everywhere =
        test.needs.contains(&Part::Sandbox) && !PROCESS_ONLY.iter().any(|only| name.starts_with(only));
    match everywhere {
        false => vec![Place::Process],
        // Node and three agents, which are in no image of the stand-in's.
        true if name.starts_with("agents::") => {
            Place::ALL.into_iter().filter(|place| *place != Place::Apple).collect()
        }
        // A port is published on a network that the container has.
        true if name == "sandbox::only_loopback" => {
            Place::ALL.into_iter().filter(|place| *place != Place::Published).collect()
        }
        true if GUEST.iter().any(|guest| name.starts_with(guest)) => {
            Place::ALL.into_iter().chain([Place::Guest]).collect()
        }
        true => Place::ALL.to_vec(),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // Before the first test, whose time it would take otherwise.
    if !arguments.list
        && let Err(trouble) = moat_tests::rig::moat_binary()
    {
        say(&trouble.to_string());
        return ExitCode::FAILURE;
    }
    if let Err(trouble) = heed_interruptions() {
        say(&trouble.to_string());
        return ExitCode::FAILURE;
    }
    let required = std::env::var_os("MOAT_TESTS_REQUIRE").is_some_and(|value| value == "all");
    let subjects = [
        ("fixtures", fixtures::TESTS),
        ("house", house::TESTS),
        ("sidecar", sidecar::TESTS),
        ("preflight", preflight::TESTS),
        ("policy", policy::TESTS),
        ("upkeep", upkeep::TESTS),
        ("oauth", oauth::TESTS),
        ("secrets", secrets::TESTS),
        ("injection", injection::TESTS),
        ("restart", restart::TESTS),
        ("streaming", streaming::TESTS),
        ("hangs", hangs::TESTS),
        ("crowds", crowds::TESTS),
        ("strict", strict::TESTS),
        ("door", door::TESTS),
        ("eras", eras::TESTS),
        ("clients", clients::TESTS),
        ("conformance", conformance::TESTS),
        ("keep_alive", keep_alive::TESTS),
        ("rules", rules::TESTS),
        ("files", files::TESTS),
        ("sandbox", sandbox::TESTS),
        ("network", network::TESTS),
        ("detached", detached::TESTS),
        // By then those that were started ahead are over: what it takes a machine to do all that at once is no fault's.
        ("faults", faults::TESTS),
        ("further", further::TESTS),
        ("containers", containers::TESTS),
        ("published", published::TESTS),
        ("apple", apple::TESTS),
        ("carriers", carriers::TESTS),
        ("machine", machine::TESTS),
        ("guest", guest::TESTS),
        ("quirks", quirks::TESTS),
        ("agents", agents::TESTS),
        ("images", images::TESTS),
    ];
    let mut here = Parts::default();
    let (mut trials, mut last) = (Vec::new(), Vec::new());
    for (subject, tests) in subjects {
        for test in tests {
            let plain = format!("{subject}::{}", test.name);
            for place in places(&plain, test) {
                let name = if place == Place::Process {
                    plain.clone()
                } else {
                    format!("{}::{plain}", place.name())
                };
                let needs =
                    test.needs.iter().map(|&part| if part == Part::Sandbox { place.part() } else { part });
                let missing = needs.into_iter().find(|&part| !here.has(part));
                let trials = if test.ahead { &mut last } else { &mut trials };
                trials.push(match missing {
                    None => test.trial(name, place, &arguments),
                    Some(part) if required && part != Part::Schedule => {
                        let text = format!("needs {}", part.name());
                        Trial::test(name, move || Err(Failed::from(text)))
                    }
                    Some(part) => {
                        if !arguments.list {
                            say(&format!("skipped: {name}: needs {}", part.name()));
                        }
                        Trial::test(name, || Ok(())).with_ignored_flag(true)
                    }
                });
            }
        }
    }
    trials.append(&mut last);
    let conclusion = libtest_mimic::run(&arguments, trials);
    let left = engine::stop();
    if left.is_empty() {
        return conclusion.exit_code();
    }
    say(&format!("left by an engine: {left:?}"));
    ExitCode::FAILURE
}

/// From here on an interruption is a way to end, not an end in the middle; the second one is.
fn heed_interruptions() -> Outcome {
    let runtime = listen::runtime()?;
    let _context = runtime.enter();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    runtime.spawn(async move {
        let mut asked = async || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        asked().await;
        INTERRUPTED.store(true, Ordering::Relaxed);
        say("interrupted: what has begun is brought to its end; once more leaves it as it is");
        asked().await;
        #[expect(clippy::exit, reason = "asked for twice, with tests on every thread")]
        std::process::exit(130);
    });
    Ok(())
}

/// What is here, asked once.
#[derive(Default)]
struct Parts(Vec<(Part, bool)>);

impl Parts {
    fn has(&mut self, part: Part) -> bool {
        if let Some((_, here)) = self.0.iter().find(|(known, _)| *known == part) {
            return *here;
        }
        let here = part.here();
        self.0.push((part, here));
        here
    }
}

#[expect(clippy::print_stderr, reason = "the line that says what was skipped")]
fn say(line: &str) {
    eprintln!("{line}");
}
