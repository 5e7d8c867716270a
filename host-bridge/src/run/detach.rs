//! `-d`: the run's holder goes on without a terminal, in a session of its own, and the command that was typed returns.
//!
//! ```text
//! moat run -d ──checks, asks──► moat run -d (again, MOAT_DETACHED=1) ──registers, starts──► holds until the end
//!      │                             │ stdin: what the user allowed   stdout: one line, once it runs
//!      └────────── waits ◄───────────┘
//! ```
//!
//! One mechanism for every runtime: the holder is the same one that an attached run has, and everything that it answers
//! for (signals, the bridge's restart, the exit code, what is left) stays its own.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use moat_shared::{exit, id::RunId};
use nix::{
    sys::memfd::{MFdFlags, memfd_create},
    unistd::{dup2_stderr, setsid},
};
use serde::{Deserialize, Serialize};

use super::order::Order;
use crate::{
    cli::{Context, Failure, Outcome, print},
    control::spawn,
    env::Environment,
    runtime::Mount,
};

/// Set for the holder, and for nobody else.
pub(crate) const VARIABLE: &str = "MOAT_DETACHED";
/// What one hands to the other is small.
const LIMIT: u64 = 1 << 20;
/// How often what the holder says is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What the user was asked, so that nobody asks again.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Allowed {
    pub(crate) name: Option<String>,
    pub(crate) mounts: Vec<Mount>,
}

/// Says that the run is there.
#[derive(Debug, Serialize, Deserialize)]
struct Started {
    run: RunId,
    name: String,
}

/// Is this the holder of a detached run?
pub(crate) fn is_holder(env: &Environment) -> bool {
    env.flag(VARIABLE)
}

/// The holder's first step: out of the terminal's session, so that nothing that happens there concerns it; then it reads
/// what the user allowed. What comes on its stdin ends there: a detached run has none.
pub(crate) fn receive() -> Result<Allowed, Failure> {
    let failed = |error: io::Error| Failure::new(format!("detaching: {error}"));
    setsid().map_err(|error| failed(error.into()))?;
    let mut text = Vec::new();
    io::stdin().take(LIMIT).read_to_end(&mut text).map_err(failed)?;
    serde_json::from_slice(&text).map_err(|error| failed(error.into()))
}

/// The holder's word that its run is there. `Err`: nobody waits for it any more, and nobody will know of the run.
pub(crate) fn report(run: &RunId, name: &str) -> io::Result<()> {
    let mut line = serde_json::to_vec(&Started { run: run.clone(), name: name.to_owned() })?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()?;
    // The terminal is no longer its own.
    let null = File::options().write(true).open("/dev/null")?;
    Ok(dup2_stderr(&null)?)
}

/// Starts the holder and waits until its run is there.
pub(crate) fn start(order: &Order, context: &Context) -> Outcome {
    let failed = |error: io::Error| Failure::new(format!("detaching: {error}"));
    let allowed = Allowed { name: Some(order.name.to_string()), mounts: order.mounts.clone() };
    let allowed = serde_json::to_vec(&allowed).map_err(|error| failed(error.into()))?;
    let (theirs, mut said) = notes().map_err(failed)?;
    let mut child = Command::new(spawn::executable().map_err(failed)?)
        .arg0("moat")
        .args(std::env::args_os().skip(1))
        .env_clear()
        .envs(context.env.iter())
        .env(VARIABLE, "1")
        .env("MOAT_NO_PROMPT", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(theirs)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has ended already says why by itself.
        let _ended = stdin.write_all(&allowed).is_err();
    }
    let line = match child.stdout.take() {
        Some(stdout) => first_line(stdout, &mut said).map_err(failed)?,
        None => String::new(),
    };
    if let Ok(started) = serde_json::from_str::<Started>(&line) {
        if context.global.json {
            let answer = serde_json::json!({"run_id": started.run.to_string(), "name": started.name});
            print::line(&answer.to_string());
        } else {
            print::line(&started.run.to_string());
            print::note(&format!("Follow it: moat logs -f {0}\nEnd it:    moat stop {0}", started.run));
        }
        return Ok(exit::OK);
    }
    // It has said why.
    let ended = child.wait().map_err(failed)?;
    pass_on(&mut said).map_err(failed)?;
    let code = ended.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.filter(|code| *code != exit::OK).unwrap_or(exit::FAILURE))
}

/// Where the holder, and whatever it starts, says what it has to say before the run is there. No pipe: its other end
/// would be gone when this command is.
fn notes() -> io::Result<(File, File)> {
    let theirs = File::from(memfd_create(c"notes", MFdFlags::MFD_CLOEXEC)?);
    let said = File::open(format!("/proc/self/fd/{}", theirs.as_raw_fd()))?;
    Ok((theirs, said))
}

/// The holder's line, or nothing when it has ended without one. Passes on what it says meanwhile.
fn first_line(stdout: ChildStdout, said: &mut File) -> io::Result<String> {
    let (tell, told) = mpsc::channel();
    thread::Builder::new().name("holder".into()).spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout.take(LIMIT)).read_line(&mut line);
        let _nobody_waits = tell.send(read.map(|_| line)).is_err();
    })?;
    loop {
        let line = told.recv_timeout(LOOK);
        pass_on(said)?;
        match line {
            Ok(line) => return line,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(String::new()),
        }
    }
}

fn pass_on(said: &mut File) -> io::Result<()> {
    let mut text = Vec::new();
    said.read_to_end(&mut text)?;
    io::stderr().write_all(&text)
}
