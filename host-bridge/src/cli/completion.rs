//! `moat completion`: the script that teaches a shell moat's verbs and flags.

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Outcome, print};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bash        moat completion bash > ~/.local/share/bash-completion/completions/moat
  zsh         moat completion zsh > \"${fpath[1]}/_moat\"
  fish        moat completion fish > ~/.config/fish/completions/moat.fish
  elvish      moat completion elvish > ~/.config/elvish/lib/moat.elv
  powershell  moat completion powershell >> $PROFILE")]
pub(crate) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Args {
    pub(crate) fn run(self) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut visible(&Cli::command()), "moat", &mut script);
        print::out(&String::from_utf8_lossy(&script));
        Ok(moat_shared::exit::OK)
    }
}

/// The command line without what is hidden, which generators would offer all the same.
fn visible(command: &Command) -> Command {
    Command::new("moat")
        .args(command.get_arguments().cloned())
        .subcommands(command.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn each_shell_learns_the_verbs_and_nothing_hidden() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut visible(&Cli::command()), "moat", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("destroy") && script.contains("follow"), "{shell}");
            assert!(!script.contains("__bridge") && !script.contains("__sandbox"), "{shell}");
        }
    }
}
