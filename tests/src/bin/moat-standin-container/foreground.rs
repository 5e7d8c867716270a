//! `start -a` and `exec`: commands in the foreground, whose exit status is the program's.
//!
//! Without a terminal the program has this process's own stdin, stdout and stderr. With one it has a terminal of its own,
//! and this process's is made raw; sizes are passed on, and no other signal is.

use std::{
    fs::File,
    io::{IsTerminal, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    pty::openpty,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr},
    },
};

use super::{Answer, Refusal, machine, relay, store::Store};

/// For the machine's first process to be there.
const UP: Duration = Duration::from_secs(10);

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
    let pid = first_process(&child)?;
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
    let terminal = tty.then(Terminal::new).transpose()?;
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--mount", "--pid", "--net", "--uts", "--ipc", "--root"]);
    command.arg(format!("--wd={directory}"));
    let user = user.unwrap_or(&container.user);
    if let Some((uid, gid)) = user.split_once(':') {
        command.args(["--setuid", uid, "--setgid", gid]);
    }
    command
        .arg("--")
        .args(words)
        .env_clear()
        .envs(&container.env)
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    let (child, terminal) = spawn(&mut command, terminal)?;
    finish(child, terminal)
}

/// A terminal for a program in the machine.
struct Terminal {
    ours: File,
    theirs: OwnedFd,
    /// How this process's own was.
    before: Option<Termios>,
    signals: SignalFd,
}

/// What is left of it while the program runs.
struct Attached {
    output: thread::JoinHandle<()>,
    before: Option<Termios>,
}

impl Terminal {
    fn new() -> Answer<Self> {
        let mut resized = SigSet::empty();
        resized.add(Signal::SIGWINCH);
        resized.thread_block()?;
        let signals = SignalFd::with_flags(&resized, SfdFlags::SFD_CLOEXEC)?;
        let pair = openpty(None, None)?;
        let before = tcgetattr(std::io::stdin()).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            cfmakeraw(&mut raw);
            tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw)?;
        }
        for end in [&pair.master, &pair.slave] {
            use nix::fcntl::{FcntlArg, FdFlag, fcntl};
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        let terminal = Self { ours: pair.master.into(), theirs: pair.slave, before, signals };
        pass_size(&terminal.path()?);
        Ok(terminal)
    }

    fn path(&self) -> Answer<PathBuf> {
        Ok(nix::unistd::ttyname(self.theirs.as_fd())?)
    }
}

/// From this process's terminal to that one. There is none when stdin is none.
fn pass_size(to: &std::path::Path) {
    let said = Command::new("stty").arg("size").stdin(Stdio::inherit()).stderr(Stdio::null()).output();
    let said = said.map(|said| String::from_utf8_lossy(&said.stdout).into_owned()).unwrap_or_default();
    if let Some((rows, columns)) = said.trim().split_once(' ') {
        let _gone = Command::new("stty").arg("-F").arg(to).args(["rows", rows, "cols", columns]).status();
    }
}

fn spawn(command: &mut Command, terminal: Option<Terminal>) -> Answer<(Child, Option<Attached>)> {
    let Some(terminal) = terminal else {
        return Ok((command.spawn()?, None));
    };
    let path = terminal.path()?;
    let Terminal { mut ours, theirs, before, signals } = terminal;
    let end = || theirs.try_clone().map(Stdio::from);
    let child = command.stdin(end()?).stdout(end()?).stderr(end()?).spawn()?;
    // The command keeps what it gave the child.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    drop(theirs);
    let mut keys = ours.try_clone()?;
    thread::spawn(move || copy(&mut std::io::stdin().lock(), &mut keys));
    let output = thread::spawn(move || copy(&mut ours, &mut std::io::stdout().lock()));
    thread::spawn(move || {
        while let Ok(Some(_)) = signals.read_signal() {
            pass_size(&path);
        }
    });
    Ok((child, Some(Attached { output, before })))
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

/// The exit status, once everything that the program wrote is passed on.
fn finish(mut child: Child, attached: Option<Attached>) -> Answer<u8> {
    let status = child.wait()?;
    if let Some(Attached { output, before }) = attached {
        let _panicked = output.join();
        if let Some(before) = before {
            let _gone = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &before);
        }
    }
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255))
}

/// `unshare` has one child: the machine's first process.
fn first_process(child: &Child) -> Answer<i32> {
    let until = Instant::now() + UP;
    let path = format!("/proc/{0}/task/{0}/children", child.id());
    loop {
        let children = std::fs::read_to_string(&path).unwrap_or_default();
        if let Some(pid) = children.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
            return Ok(pid);
        }
        if Instant::now() > until {
            return Err(Refusal::Said("internalError", "the machine did not start".to_owned()));
        }
        thread::sleep(Duration::from_millis(2));
    }
}
