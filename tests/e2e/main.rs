//! End to end: the real `moat`, its bridge and its sandboxes, with real servers and clients on both sides.
//!
//! A test that needs a part which this machine has not is ignored, and one line says so. With
//! `MOAT_TESTS_REQUIRE=all` it fails instead.
#![forbid(unsafe_code)]

mod clients;
mod conformance;
mod door;
mod eras;
mod faults;
mod files;
mod fixtures;
mod house;
mod injection;
mod keep_alive;
mod preflight;
mod restart;
mod rules;
mod sandbox;
mod secrets;
mod sidecar;
mod stage;
mod streaming;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use moat_tests::{Outcome, parts::Part};

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
    fn trial(&self, name: String, arguments: &Arguments) -> Trial {
        let run = self.run;
        if !self.ahead || arguments.list || !is_wanted(arguments, &name) {
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

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    // Before the first test, whose time it would take otherwise.
    if !arguments.list
        && let Err(trouble) = moat_tests::rig::moat_binary()
    {
        say(&trouble.to_string());
        return ExitCode::FAILURE;
    }
    let required = std::env::var_os("MOAT_TESTS_REQUIRE").is_some_and(|value| value == "all");
    let subjects = [
        ("fixtures", fixtures::TESTS),
        ("house", house::TESTS),
        ("sidecar", sidecar::TESTS),
        ("preflight", preflight::TESTS),
        ("secrets", secrets::TESTS),
        ("injection", injection::TESTS),
        ("restart", restart::TESTS),
        ("streaming", streaming::TESTS),
        ("faults", faults::TESTS),
        ("door", door::TESTS),
        ("eras", eras::TESTS),
        ("clients", clients::TESTS),
        ("conformance", conformance::TESTS),
        ("keep_alive", keep_alive::TESTS),
        ("rules", rules::TESTS),
        ("files", files::TESTS),
        ("sandbox", sandbox::TESTS),
    ];
    let mut here = Parts::default();
    let (mut trials, mut last) = (Vec::new(), Vec::new());
    for (subject, tests) in subjects {
        for test in tests {
            let name = format!("{subject}::{}", test.name);
            let missing = test.needs.iter().find(|&&part| !here.has(part));
            let trials = if test.ahead { &mut last } else { &mut trials };
            trials.push(match missing {
                None => test.trial(name, &arguments),
                Some(&part) if required && part != Part::Schedule => {
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
    trials.append(&mut last);
    libtest_mimic::run(&arguments, trials).exit_code()
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
