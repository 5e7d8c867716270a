//! `moat claude`, `moat codex`, `moat gemini`: a run whose command is the agent's.
//!
//! In the sandbox an agent need not ask before it acts, so its own confirmations are off unless `--noyolo` says
//! otherwise.

use std::path::PathBuf;

use moat_shared::plan::Agent;

use super::{Context, Failure, Outcome, run::Shared};
use crate::run::{self, order::Request};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The workspace
    #[arg(default_value = ".")]
    workspace: PathBuf,
    /// Answer this prompt and end
    #[arg(short, long)]
    prompt: Option<String>,
    /// Let the agent ask before it acts
    #[arg(long)]
    noyolo: bool,
    /// Further arguments of the agent
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
    #[command(flatten)]
    shared: Shared,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ClaudeArgs {
    /// Go on with the most recent conversation
    #[arg(short = 'c', long = "continue")]
    resume_last: bool,
    /// Go on with this conversation
    #[arg(short, long, value_name = "SESSION", conflicts_with = "resume_last")]
    resume: Option<String>,
    #[command(flatten)]
    agent: Args,
}

impl Args {
    pub(crate) fn run(self, context: &Context, agent: Agent) -> Outcome {
        self.start(context, agent, Vec::new())
    }

    fn start(self, context: &Context, agent: Agent, flags: Vec<String>) -> Outcome {
        let says_nothing = self.prompt.is_none() && self.arguments.is_empty();
        let command = command(agent, !self.noyolo, flags, self.prompt, self.arguments);
        let request = Request {
            workspace: self.workspace,
            agent: Some(agent),
            command,
            confirm: self.noyolo,
            ..self.shared.request()?
        };
        if request.detached && says_nothing {
            return Err(Failure::new(format!(
                "{} has no terminal in a detached run, and nothing to do",
                agent.name()
            ))
            .with_hint("Give it a prompt: -d -p PROMPT"));
        }
        run::start(request, context)
    }
}

impl ClaudeArgs {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let mut flags = Vec::new();
        if self.resume_last {
            flags.push("--continue".to_owned());
        }
        if let Some(session) = self.resume {
            flags.extend(["--resume".to_owned(), session]);
        }
        self.agent.start(context, Agent::Claude, flags)
    }
}

/// The agent's command line.
fn command(
    agent: Agent,
    yolo: bool,
    flags: Vec<String>,
    prompt: Option<String>,
    arguments: Vec<String>,
) -> Vec<String> {
    let mut command = vec![agent.name().to_owned()];
    let mut add = |words: &[&str]| command.extend(words.iter().map(|word| (*word).to_owned()));
    match (agent, &prompt) {
        (Agent::Claude, _) if yolo => add(&["--dangerously-skip-permissions"]),
        (Agent::Gemini, _) if yolo => add(&["--yolo"]),
        // Codex reads what it may do in its configuration, and the workspace need not be a repository.
        (Agent::Codex, Some(_)) => add(&["exec", "--skip-git-repo-check"]),
        _ => {}
    }
    command.extend(flags);
    let last = match (agent, prompt) {
        (Agent::Claude | Agent::Gemini, Some(prompt)) => {
            command.extend(["-p".to_owned(), prompt]);
            None
        }
        (Agent::Codex, prompt) => prompt,
        (_, None) => None,
    };
    command.extend(arguments);
    command.extend(last);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(Agent::Claude, true, None => "claude --dangerously-skip-permissions ARG")]
    #[test_case(Agent::Claude, false, Some("hi") => "claude -p hi ARG"; "claude asks")]
    #[test_case(Agent::Codex, true, None => "codex ARG")]
    #[test_case(Agent::Codex, true, Some("hi") => "codex exec --skip-git-repo-check ARG hi"; "codex once")]
    #[test_case(Agent::Gemini, true, Some("hi") => "gemini --yolo -p hi ARG"; "gemini once")]
    #[test_case(Agent::Gemini, false, None => "gemini ARG"; "gemini asks")]
    fn commands(agent: Agent, yolo: bool, prompt: Option<&str>) -> String {
        command(agent, yolo, vec![], prompt.map(str::to_owned), vec!["ARG".to_owned()]).join(" ")
    }

    #[test]
    fn flags_come_before_the_prompt() {
        let flags = vec!["--continue".to_owned()];
        let command = command(Agent::Claude, false, flags, Some("hi".to_owned()), vec![]);
        assert_eq!(command, ["claude", "--continue", "-p", "hi"]);
    }
}
