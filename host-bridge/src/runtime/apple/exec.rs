//! A further command in a container: the tool starts the sidecar's asking half, which has PID 1 start the command.
//!
//! As in an engine's container, and for the same reason: what the tool starts needs no rights and gets none.

use moat_shared::exec::ASKER;

use super::{
    arguments::SIDECAR,
    cli::{self, AppleError, Cli},
    foreground::{self, Foreground},
    json::{self, Container, State},
};
use crate::runtime::{Io, RuntimeError, Size};

/// A command that the tool has started.
#[derive(Debug)]
pub(crate) struct Further(Foreground);

/// Starts it.
pub(crate) async fn start(
    cli: &Cli,
    id: &str,
    command: &[String],
    size: Option<Size>,
) -> Result<(Further, Io), RuntimeError> {
    // Where PID 1 is not root it is the image's user, and so is everybody else.
    let asker = format!("{ASKER}:{ASKER}");
    let Container { state, is_root, .. } = look(cli, id).await?;
    if state == State::Stopped {
        return Err(AppleError::Gone { doing: "starting the command" }.into());
    }
    let size_of = |Size { rows, columns }: Size| format!("--size={rows}x{columns}");
    let size_of = size.map(size_of);
    let mut words = vec!["exec", "--interactive", "--workdir", "/"];
    words.extend(size.map(|_| "--tty"));
    if is_root {
        words.extend(["--user", &asker]);
    }
    words.extend([id, SIDECAR, "exec"]);
    words.extend(size_of.as_deref());
    words.push("--");
    words.extend(command.iter().map(String::as_str));
    let (foreground, io) = foreground::spawn(cli, &words, size)?;
    Ok((Further(foreground), io))
}

async fn look(cli: &Cli, id: &str) -> Result<Container, AppleError> {
    const DOING: &str = "looking at the container";
    let said = cli.ask(DOING, &["inspect", id], cli::SOON).await?;
    let containers = json::containers(&said).map_err(|source| AppleError::Form { doing: DOING, source })?;
    containers.into_iter().find(|container| container.id == id).ok_or(AppleError::Gone { doing: DOING })
}

impl Further {
    /// The exit code.
    pub(crate) async fn wait(&mut self) -> std::io::Result<u8> {
        self.0.wait().await
    }
}
