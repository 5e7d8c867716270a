//! `moat completion`: the script that teaches a shell moat's verbs and flags.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Context, Outcome, print};

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
    pub(crate) fn run(self, _context: &Context) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "moat", &mut script);
        print::out(&String::from_utf8_lossy(&script));
        Ok(moat_shared::exit::OK)
    }
}
