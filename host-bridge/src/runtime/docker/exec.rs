//! A further command in a container: the engine starts the sidecar's asking half, which has PID 1 start the command.
//!
//! The engine would start a command with the rights that PID 1 has. So it starts something that needs none, as a user whom
//! nothing belongs to: even if the agent, being root of its container, has put something else in the sidecar's place, that
//! gains nothing.

use std::{io, time::Duration};

use bollard::models::ExecConfig;
use moat_shared::exec::ASKER;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    Pane, archive,
    engine::{self, Engine, EngineError},
    pair, raw,
    stream::{Of, Stream},
};
use crate::runtime::{Io, RuntimeError, Size};

/// From the end of a command's output until the engine knows its exit code.
const CODE: Duration = Duration::from_secs(10);
/// Of a command's terminal. Unlike [`raw`]'s these have to be text; the first of them is hardly on a keyboard.
const NO_KEYS: &str = "ctrl-^,ctrl-^,ctrl-^,ctrl-^,ctrl-^,ctrl-^,ctrl-^,ctrl-^";

/// A command that the engine has started.
#[derive(Debug)]
pub(crate) struct Further {
    engine: Engine,
    id: String,
    over: oneshot::Receiver<()>,
    _tasks: JoinSet<()>,
}

/// Starts it.
pub(crate) async fn start(
    engine: Engine,
    container: &str,
    command: &[String],
    size: Option<Size>,
) -> Result<(Further, Io), RuntimeError> {
    let inspected = match engine.api.inspect_container(container, None).await {
        Err(error) if engine::is_not_found(&error) => return Err(EngineError::Gone.into()),
        Err(source) => return Err(EngineError::Asking { doing: "looking at the container", source }.into()),
        Ok(inspected) => inspected,
    };
    // Where PID 1 is not root it is the image's user, and so is everybody else.
    let root = inspected.config.and_then(|config| config.user).is_some_and(|user| user == "0:0");
    // The sidecar sets the terminal's size before there is a command to look at it; the engine might be late.
    let size_of = |Size { rows, columns }: Size| format!("--size={rows}x{columns}");
    let words =
        [archive::sidecar(), "exec".to_owned()].into_iter().chain(size.map(size_of)).chain(["--".to_owned()]);
    let config = ExecConfig {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(size.is_some()),
        detach_keys: Some(NO_KEYS.to_owned()),
        cmd: Some(words.chain(command.iter().cloned()).collect()),
        user: root.then(|| format!("{ASKER}:{ASKER}")),
        privileged: Some(false),
        working_dir: Some("/".to_owned()),
        ..ExecConfig::default()
    };
    let made = engine.api.create_exec(container, config).await;
    let id = made.map_err(|source| EngineError::Asking { doing: "preparing the command", source })?.id;
    let attached = raw::start_exec(&engine.socket, &id, size.is_some()).await?;
    let (ended, over) = oneshot::channel();
    let (_never, nobody) = watch::channel(None);
    let stream = Stream { engine: engine.clone(), id: id.clone(), ended: nobody, of: Of::Command };
    let mut tasks = JoinSet::new();
    let io = match size {
        Some(size) => {
            stream.resize(size).await;
            let (bytes, theirs) = pair()?;
            let copying = stream.clone().terminal(attached, theirs);
            tasks.spawn(async move {
                copying.await;
                let _nobody_waits = ended.send(());
            });
            let (window, sizes) = mpsc::unbounded_channel();
            tasks.spawn(stream.resizes(sizes));
            Io::Terminal { bytes: bytes.into(), window: Box::new(Pane(window)) }
        }
        None => {
            let ((stdin, to), (stdout, out), (stderr, err)) = (pair()?, pair()?, pair()?);
            let copying = stream.pipes(attached, to, out, err);
            tasks.spawn(async move {
                copying.await;
                let _nobody_waits = ended.send(());
            });
            Io::Pipes { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() }
        }
    };
    Ok((Further { engine, id, over, _tasks: tasks }, io))
}

impl Further {
    /// The exit code.
    pub(crate) async fn wait(&mut self) -> io::Result<u8> {
        // An error is the end as well. May be asked again: what has ended stays so.
        let _ended = (&mut self.over).await.is_err();
        let until = Instant::now() + CODE;
        loop {
            let inspected = self.engine.api.inspect_exec(&self.id).await;
            match inspected {
                Ok(inspected) if inspected.running == Some(false) => {
                    let code = inspected.exit_code.and_then(|code| u8::try_from(code).ok());
                    return Ok(code.unwrap_or(moat_shared::exit::FAILURE));
                }
                // The container is gone, and the command with it.
                Err(error) if engine::is_not_found(&error) => return Ok(moat_shared::exit::from_signal(9)),
                Err(error) if Instant::now() >= until => return Err(io::Error::other(error)),
                Ok(_) if Instant::now() >= until => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) | Err(_) => sleep(engine::FIRST_PAUSE / 4).await,
            }
        }
    }
}
