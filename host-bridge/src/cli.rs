//! The command line: one file per verb, parsed by clap, answered with an exit code.
//!
//! Data goes to stdout, everything else to stderr, both through [`print`]. An error is printed once, here, as
//! `Error: <text>`, with its remedy.

pub(crate) mod print;

use std::{fmt, process::ExitCode};

use clap::{Parser, Subcommand};
use moat_shared::{exit, hint::Hint};

use crate::{
    env::Environment,
    home::{Home, Profile},
};

mod agent;
pub(crate) mod ask;
mod audit;
mod bridge;
mod completion;
mod destroy;
mod doctor;
mod exec;
pub(crate) mod grant;
mod image;
mod list;
mod logs;
mod news;
mod pick;
mod policy;
mod proxy;
mod revoke;
mod run;
mod sandbox;
mod sidecar;
mod status;
mod stop;
mod table;
pub(crate) mod text;
mod trace;
mod version;
mod when;

const FIRST_STEPS: &str = "\
First steps:
  moat grant mcp context7      store a credential: typed without echo, or one line on stdin
  moat run ./project -- make   run a command in a sandbox, with the servers of its moat.yaml
  moat claude ./project        run an agent the same way; also: codex, gemini
  moat logs -f                 what it prints
  moat trace --network         what its MCP servers were asked
  moat audit                   where credentials went
  moat doctor                  what is wrong, and what mends it

A RUN is a run's id, the beginning of one (run_a1), or its name; none: the most recent.
`moat help <command>` tells more.";

/// MCP servers for AI coding agents in sandboxes, without a credential or a network in the sandbox.
#[derive(Debug, Parser)]
#[command(name = "moat", version = crate::build::VERSION, after_help = FIRST_STEPS)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags of every verb.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Global {
    /// Say more on stderr
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
    /// Check everything, start nothing
    #[arg(long, global = true)]
    pub(crate) dry_run: bool,
    /// Print JSON on stdout
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Use the credentials of this profile
    #[arg(long, global = true, env = "MOAT_PROFILE", hide_env_values = true, value_name = "NAME")]
    pub(crate) profile: Option<Profile>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a command in a sandbox with the MCP servers of its moat.yaml
    Run(run::Args),
    /// Run Claude Code in a sandbox
    Claude(agent::ClaudeArgs),
    /// Run Codex in a sandbox
    Codex(agent::Args),
    /// Run Gemini CLI in a sandbox
    Gemini(agent::Args),
    /// Store, list and show credentials
    #[command(alias = "grants")]
    Grant(grant::Args),
    /// Remove a credential
    Revoke(revoke::Args),
    /// List runs
    List(list::Args),
    /// Show what a run printed
    Logs(logs::Args),
    /// Show what a run requested
    Trace(trace::Args),
    /// Show how credentials were used
    Audit(audit::Args),
    /// Stop a running run
    Stop(stop::Args),
    /// Remove a stopped run and its records
    Destroy(destroy::Args),
    /// Run a command in a running sandbox
    Exec(exec::Args),
    /// Show bridge and runs in short
    Status(status::Args),
    /// Look for what is wrong, and say what mends it
    Doctor(doctor::Args),
    /// Drive the bridge
    Proxy(proxy::Args),
    /// Check, try, compare and reload what agents may do with servers
    Policy(policy::Args),
    /// Build moat's own container images
    Image(image::Args),
    /// The sidecar that this moat carries
    Sidecar(sidecar::Args),
    /// Print a completion script for a shell
    Completion(completion::Args),
    /// Print the version
    Version(version::Args),
    /// The bridge itself
    #[command(name = "__bridge", hide = true)]
    Bridge(bridge::Args),
    /// The sandbox's first half
    #[command(name = "__sandbox", hide = true)]
    Sandbox(sandbox::Args),
    /// The way into a sandbox
    #[command(name = "__enter", hide = true)]
    Enter(sandbox::EnterArgs),
}

/// What every verb gets.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) env: Environment,
    pub(crate) home: Home,
    pub(crate) global: Global,
}

/// Why a verb failed: a text, a remedy, an exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) text: String,
    pub(crate) hint: Option<String>,
    pub(crate) code: u8,
}

impl Failure {
    /// A failure with exit code 1.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), hint: None, code: exit::FAILURE }
    }

    /// With its remedy.
    #[must_use]
    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error, its causes and its remedy.
    pub(crate) fn from_error(error: &(impl Hint + 'static)) -> Self {
        let hint = error.hint().map(std::borrow::Cow::into_owned);
        Self { text: with_causes(error), hint, code: exit::FAILURE }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An error's text followed by those of its causes.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// How a verb ends: an exit code to pass on, or a failure to print.
pub(crate) type Outcome = Result<u8, Failure>;

/// Parses the command line and runs the verb.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(print::usage(&error)),
    };
    match cli.run(Environment::of_this_process()) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            print::failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

impl Cli {
    fn run(self, env: Environment) -> Outcome {
        let Self { global, verb } = self;
        let verb = match verb {
            // These answer without a home.
            Verb::Version(args) => return args.run(&global),
            Verb::Completion(args) => return args.run(),
            other => other,
        };
        let home = Home::find(&env).map_err(|error| Failure::new(error.to_string()))?;
        home.check_owner().map_err(|error| Failure::from_error(&error))?;
        verb.run(&Context { env, home, global })
    }
}

impl Verb {
    fn run(self, context: &Context) -> Outcome {
        match self {
            Self::Run(args) => args.run(context),
            Self::Claude(args) => args.run(context),
            Self::Codex(args) => args.run(context, moat_shared::plan::Agent::Codex),
            Self::Gemini(args) => args.run(context, moat_shared::plan::Agent::Gemini),
            Self::Grant(args) => args.run(context),
            Self::Revoke(args) => args.run(context),
            Self::List(args) => args.run(context),
            Self::Logs(args) => args.run(context),
            Self::Trace(args) => args.run(context),
            Self::Audit(args) => args.run(context),
            Self::Stop(args) => args.run(context),
            Self::Destroy(args) => args.run(context),
            Self::Exec(args) => args.run(context),
            Self::Status(args) => args.run(context),
            Self::Doctor(args) => args.run(context),
            Self::Proxy(args) => args.run(context),
            Self::Policy(args) => args.run(context),
            Self::Image(args) => args.run(context),
            Self::Sidecar(args) => args.run(context),
            Self::Completion(args) => args.run(),
            Self::Version(args) => args.run(&context.global),
            Self::Bridge(args) => args.run(context),
            Self::Sandbox(args) => args.run(context),
            Self::Enter(args) => args.run(context),
        }
    }
}

/// The command line, for whoever holds the documentation against it.
#[cfg(test)]
pub(crate) fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_explains_itself() {
        for verb in command().get_subcommands() {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.ends_with('.'), "{}", verb.get_name());
        }
    }
}
