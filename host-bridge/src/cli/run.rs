//! `moat run [path] [-- command...]`, and the flags that it shares with the agents' verbs.

use std::path::PathBuf;

use moat_shared::grant::GrantName;

use super::{Context, Failure, Outcome};
use crate::{
    config,
    run::{self, name::RunName, order::Request},
    runtime::TunnelKind,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  moat run ./project -- make test     a command, with the servers of ./project/moat.yaml
  moat run                            here, with the command of moat.yaml
  moat run -e DEBUG=1 -m ../lib:/lib2:ro . -- sh
  moat run --image node:22 -- npm test
                                      in a container of this image
  moat run -d . -- make nightly       returns at once; moat logs -f, moat stop")]
pub(crate) struct Args {
    /// The workspace
    #[arg(value_name = "PATH", default_value = ".")]
    workspace: PathBuf,
    /// The command and its arguments [default: 'command' of moat.yaml]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Insist on a terminal; without this, the sandbox has one when stdin and stdout are one
    #[arg(short, long, conflicts_with = "detach")]
    interactive: bool,
    #[command(flatten)]
    shared: Shared,
}

/// Flags of every verb that starts a run.
#[derive(Debug, clap::Args)]
pub(crate) struct Shared {
    /// Grants that the run needs besides those of its servers
    #[arg(short, long = "grant", value_name = "GRANT", value_delimiter = ',')]
    grants: Vec<GrantName>,
    /// Set a variable in the sandbox
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Show a directory or file of the host in the sandbox
    #[arg(short, long = "mount", value_name = "SRC:DST[:ro]")]
    mounts: Vec<config::Mount>,
    /// The run's name
    #[arg(short, long)]
    name: Option<RunName>,
    /// What drives the sandbox: process, docker, podman or apple [default: apple on macOS where it is installed, else docker where an image is named or moat's own of the agent is there, else process]
    #[arg(long, env = "MOAT_RUNTIME", hide_env_values = true, value_name = "NAME")]
    runtime: Option<String>,
    /// How container and bridge come together [default: unix; published where the engine runs in a machine of its own, and for apple; the next when that does not come up]
    #[arg(long, env = "MOAT_TUNNEL", hide_env_values = true, value_name = "KIND")]
    tunnel: Option<TunnelKind>,
    /// The container's image
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Return when the run is there; its id goes to stdout, what it prints to `moat logs`
    #[arg(short, long)]
    detach: bool,
    /// Never ask for missing grants
    #[arg(long)]
    no_prompt: bool,
    /// Build the image anew; the process runtime has none
    #[arg(long, hide = true)]
    rebuild: bool,
    /// Keep the sandbox when the run ends; the process runtime cannot
    #[arg(long, hide = true)]
    keep: bool,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        if self.interactive && !run::has_terminal() {
            return Err(Failure::new("--interactive needs a terminal as stdin and stdout"));
        }
        let request = Request { workspace: self.workspace, command: self.command, ..self.shared.request()? };
        run::start(request, context)
    }
}

impl Shared {
    /// What these flags say.
    pub(crate) fn request(self) -> Result<Request, Failure> {
        if self.keep {
            super::print::note("Note: --keep changes nothing: nothing of a sandbox is left");
        }
        if self.rebuild {
            super::print::note("Note: --rebuild changes nothing: moat image build does that");
        }
        Ok(Request {
            grants: self.grants,
            env: self.env,
            mounts: self.mounts,
            name: self.name,
            runtime: self.runtime,
            tunnel: self.tunnel,
            image: self.image,
            no_prompt: self.no_prompt,
            detached: self.detach,
            ..Request::default()
        })
    }
}

/// `KEY=VALUE`; the names that moat sets are its own.
fn variable(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("must be KEY=VALUE")?;
    if key.is_empty() {
        return Err("the name is empty".to_owned());
    }
    if key.starts_with("MOAT_") {
        return Err("names with MOAT_ are moat's own".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("A=b" => Ok(("A".to_owned(), "b".to_owned())))]
    #[test_case("A=b=c" => Ok(("A".to_owned(), "b=c".to_owned())); "only the first sign splits")]
    #[test_case("A=" => Ok(("A".to_owned(), String::new())); "empty value")]
    #[test_case("A" => Err("must be KEY=VALUE".to_owned()); "never taken from the environment")]
    #[test_case("=b" => Err("the name is empty".to_owned()); "no name")]
    #[test_case("MOAT_RUN_ID=x" => Err("names with MOAT_ are moat's own".to_owned()); "own")]
    fn variables(text: &str) -> Result<(String, String), String> {
        variable(text)
    }
}
