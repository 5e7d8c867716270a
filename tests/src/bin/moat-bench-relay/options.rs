//! The command line.

use std::{path::PathBuf, time::Duration};

use moat_tests::{Outcome, Trouble};

/// What `--help` says.
const HELP: &str =
    "cargo bench-relay [PART...] [OPTION...]: ours and what a user would take instead, in one run, in turns

parts (all but the last two, unless some are named)
  calls         short tools/call from 1, 32 and 200 clients: latency and throughput
  streams       how late the first event of an answer is
  idle          thousands of idle event streams through one tunnel: memory, and what keeping them alive costs
  bodies        large answers through the credential scan
  footprint     size, resident memory, start of either end; a thousand runs
  instructions  instructions of one tools/call under callgrind, against tests/instructions.json
  build         the moat that is measured, without measuring it: what `cargo build-release` does

options
  --rounds N    rounds in which every target has its turn (default 7)
  --seconds S   how long a target is called in a round (default 1.5)
  --streams N   idle streams (default 10000)
  --clients N   for `calls`: this many clients only
  --only A,B    of the peers, only these (direct, nginx, nginx-64, envoy, mcp-proxy, moat)
  --brief       few starts, no wait for comments: to see that it works
  --keep        for `instructions`: write the numbers down as the new ones
  --profiles D  for `instructions`: leave callgrind's files in this directory
  --plain       measure what `cargo install` builds, and not what is released: no profile is made for it
  --json        figures for programs
  --verbose     every sample as it comes
  --help        this

What is measured is what is released, built by a profile; it is built first, which takes minutes when its source has changed.
Instructions are counted in a plain build. MOAT_BIN names another moat, and nothing is built.

The exit code is 1 when a bound was missed. Times mean nothing on a busy machine, ratios within a run do.";

/// What to do.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) parts: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
    pub(crate) streams: usize,
    pub(crate) clients: Option<usize>,
    pub(crate) only: Option<Vec<String>>,
    pub(crate) brief: bool,
    pub(crate) keep: bool,
    pub(crate) profiles: Option<PathBuf>,
    pub(crate) plain: bool,
    pub(crate) json: bool,
    pub(crate) verbose: bool,
}

/// All that are measured unless some are named.
pub(crate) const PARTS: [&str; 5] = ["calls", "streams", "idle", "bodies", "footprint"];
/// Measured when it is named.
pub(crate) const INSTRUCTIONS: &str = "instructions";
/// Builds what is measured.
pub(crate) const BUILD: &str = "build";

impl Options {
    /// Reads the arguments; `None` when help was asked for, which has been given.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Outcome<Option<Self>> {
        let mut options = Self {
            parts: Vec::new(),
            rounds: 7,
            time: Duration::from_millis(1500),
            streams: 10_000,
            clients: None,
            only: None,
            brief: false,
            keep: false,
            profiles: None,
            plain: false,
            json: false,
            verbose: false,
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().ok_or_else(|| Trouble::new(format!("{argument} wants a value")));
            match argument.as_str() {
                "--help" | "-h" => {
                    options.say(HELP);
                    return Ok(None);
                }
                "--" => {}
                "--rounds" => options.rounds = value()?.parse::<usize>()?.clamp(1, 100),
                "--seconds" => {
                    options.time = Duration::from_secs_f64(value()?.parse::<f64>()?.clamp(0.1, 60.0))
                }
                "--streams" => options.streams = value()?.parse::<usize>()?.clamp(1, 16_000),
                "--clients" => options.clients = Some(value()?.parse::<usize>()?.clamp(1, 2000)),
                "--only" => options.only = Some(value()?.split(',').map(str::to_owned).collect()),
                "--brief" => options.brief = true,
                "--keep" => options.keep = true,
                "--profiles" => options.profiles = Some(value()?.into()),
                "--plain" => options.plain = true,
                "--json" => options.json = true,
                "--verbose" => options.verbose = true,
                part if PARTS.contains(&part) || [INSTRUCTIONS, BUILD].contains(&part) => {
                    options.parts.push(part.to_owned());
                }
                unknown => return Err(Trouble::new(format!("what is {unknown:?}?\n\n{HELP}"))),
            }
        }
        if options.parts.is_empty() {
            options.parts = PARTS.map(str::to_owned).to_vec();
        }
        if let Some(alone) = [INSTRUCTIONS, BUILD].into_iter().find(|part| options.wants(part))
            && options.parts.len() > 1
        {
            return Err(Trouble::new(format!("{alone} stands for itself: ask for it without other parts")));
        }
        Ok(Some(options))
    }

    /// What an instrumented `moat` is put to, so that the profile knows where its time goes: ours alone, everything a little.
    pub(crate) fn training() -> Outcome<Self> {
        let arguments =
            ["calls", "streams", "bodies", "idle", "--streams", "500", "--only", "moat", "--rounds", "2"];
        let options = Self::parse(arguments.into_iter().map(str::to_owned))?;
        options.ok_or_else(|| Trouble::new("help was not asked for"))
    }

    /// Is this about a `moat` without a profile?
    pub(crate) fn is_plain(&self) -> bool {
        self.plain || self.wants(INSTRUCTIONS)
    }

    /// Is this part to be measured?
    pub(crate) fn wants(&self, part: &str) -> bool {
        self.parts.iter().any(|wanted| wanted == part)
    }

    /// Is this target to be measured?
    pub(crate) fn includes(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|wanted| wanted == name))
    }

    /// Says something to the person, on stderr where stdout is for programs.
    #[expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints; this is where")]
    pub(crate) fn say(&self, text: &str) {
        if self.json { eprintln!("{text}") } else { println!("{text}") }
    }
}
