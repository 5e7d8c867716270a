//! `start -a` and `exec`: commands in the foreground, whose exit status is the program's.
//!
//! Without a terminal the program has this process's own stdin, stdout and stderr. With one it has a terminal of its own,
//! and this process's is made raw; sizes are passed on, and no other signal is.

use std::{
    io::{IsTerminal, Read, Write},
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
};

use nix::sys::signalfd::SignalFd;

use super::{
    Answer, Refusal,
    machine::{self, Exec},
    relay,
    store::Store,
    terminal::{Pair, Raw, own_size, resizes, set_size},
};

pub(crate) fn start(store: &Store, words: &[&str]) -> Answer<u8> {
    let ["--attach", "--interactive", id] = words else {
        return Err(Refusal::Usage(format!("the stand-in knows no other start than -a -i: {words:?}")));
    };
    let container = Arc::new(store.container(id)?);
    if container.pid().is_some() {
        let text = "attach is currently unsupported on already running containers";
        return Err(Refusal::Said("invalidArgument", text.to_owned()));
    }
    relay::start(&container, store.settings.defects.clone())?;
    // The progress is for terminals.
    if std::io::stderr().is_terminal() {
        eprint!("\u{1b}[2KStarting container [0s]\r");
    }
    let terminal = container.wanted.tty.then(Terminal::new).transpose()?;
    let path = terminal.as_ref().map(Terminal::path).transpose()?;
    let mut command = machine::command(&container, path.as_deref())?;
    let (child, terminal) = spawn(&mut command, terminal)?;
    let pid = machine::first_process(&container, &child)?;
    std::fs::write(container.directory.join("pid"), pid.to_string())?;
    let code = finish(child, terminal);
    // It may have been deleted.
    let _gone = std::fs::remove_file(container.directory.join("pid"));
    code
}

pub(crate) fn exec(store: &Store, words: &[&str]) -> Answer<u8> {
    let (mut tty, mut user, mut directory) = (false, None, "/");
    let mut words = words.iter().copied();
    let id = loop {
        match words.next() {
            Some("--interactive") => {}
            Some("--tty") => tty = true,
            Some("--user") => user = words.next(),
            Some("--workdir") => directory = words.next().unwrap_or("/"),
            Some(id) if !id.starts_with('-') => break id,
            other => return Err(Refusal::Usage(format!("Unknown option {other:?}"))),
        }
    };
    let container = store.container(id)?;
    let pid = container
        .pid()
        .ok_or_else(|| Refusal::Said("invalidState", format!("container {id} is not running")))?;
    let exec = Exec {
        words: words.map(str::to_owned).collect(),
        user: user.map(str::to_owned),
        directory: directory.to_owned(),
    };
    let terminal = tty.then(Terminal::new).transpose()?;
    let path = terminal.as_ref().map(Terminal::path).transpose()?;
    let mut command = machine::exec(&container, pid, &exec, path.as_deref())?;
    let (child, terminal) = spawn(&mut command, terminal)?;
    finish(child, terminal)
}

/// A terminal for a program in the machine, and this process's own.
struct Terminal {
    pair: Pair,
    raw: Raw,
    resizes: SignalFd,
}

/// What is left of it while the program runs.
struct Attached {
    output: thread::JoinHandle<()>,
    _raw: Raw,
}

impl Terminal {
    fn new() -> Answer<Self> {
        let resizes = resizes()?;
        let pair = Pair::new()?;
        let terminal = Self { pair, raw: Raw::new()?, resizes };
        if let Ok(size) = own_size() {
            set_size(&terminal.path()?, &size);
        }
        Ok(terminal)
    }

    fn path(&self) -> Answer<PathBuf> {
        self.pair.path()
    }
}

fn spawn(command: &mut Command, terminal: Option<Terminal>) -> Answer<(Child, Option<Attached>)> {
    let Some(Terminal { pair, raw, resizes }) = terminal else {
        return Ok((command.spawn()?, None));
    };
    let path = pair.path()?;
    pair.give(command)?;
    let child = command.spawn()?;
    // The command keeps what it gave the child.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Pair { mut ours, theirs } = pair;
    drop(theirs);
    let mut keys = ours.try_clone()?;
    thread::spawn(move || copy(&mut std::io::stdin().lock(), &mut keys));
    let output = thread::spawn(move || copy(&mut ours, &mut std::io::stdout().lock()));
    thread::spawn(move || {
        while let Ok(Some(_)) = resizes.read_signal() {
            if let Ok(size) = own_size() {
                set_size(&path, &size);
            }
        }
    });
    Ok((child, Some(Attached { output, _raw: raw })))
}

fn copy(from: &mut impl Read, to: &mut impl Write) {
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let passed = to.write_all(piece.get(..length).unwrap_or_default()).and_then(|()| to.flush());
        if passed.is_err() {
            return;
        }
    }
}

/// The exit code, once everything that the program wrote is passed on.
fn finish(mut child: Child, attached: Option<Attached>) -> Answer<u8> {
    let status = child.wait()?;
    if let Some(Attached { output, .. }) = attached {
        let _panicked = output.join();
    }
    Ok(code(status))
}

/// As the tool says it.
pub(crate) fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
}
