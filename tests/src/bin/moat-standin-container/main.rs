//! A stand-in for Apple's `container` command, which runs on macOS only. It is NOT Apple's tool, and shows nothing about it.
//!
//! It keeps to what the sources of `container` 1.1 to 1.4 say of the few commands that moat uses: their flags (an unknown
//! one is refused with exit code 64), the JSON of each version, the texts and exit codes of refusals, the exit status of
//! `start -a`, one attach only, sockets that are relayed with the known defects. What it does not keep to: it never has a
//! network device, it lives in the process of the `start -a` that started it, its root file system is a shared directory
//! and no disk, and nothing is ever fetched. Its [`machine`] is a real guest, or only a set of namespaces.
//!
//! It is called by the name `container`; beside that name lie its settings (`standin.json`) and its containers.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this program's answers go to stdout and stderr"
)]

mod flags;
mod foreground;
mod json;
mod machine;
mod relay;
mod store;
mod terminal;

use std::{
    fmt,
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use self::store::{Container, Store};

/// What usage errors end with (Swift's argument parser: `EX_USAGE`).
const USAGE: u8 = 64;

/// Why a command was refused.
pub(crate) enum Refusal {
    /// `Error: <code>: "<message>"`, exit code 1.
    Said(&'static str, String),
    /// A line as it is, exit code 1.
    Plain(String),
    Usage(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Said(code, message) => write!(f, "Error: {code}: \"{message}\""),
            Self::Plain(line) => f.write_str(line),
            Self::Usage(text) => write!(f, "Error: {text}\nUsage: container <subcommand>"),
        }
    }
}

pub(crate) type Answer<T = ()> = Result<T, Refusal>;

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::internal(error)
    }
}

impl Refusal {
    /// By no fault of who asked.
    pub(crate) fn internal(why: impl fmt::Display) -> Self {
        Self::Said("internalError", why.to_string())
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args();
    let called = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let refusal = match answer(&called, &words) {
        Ok(code) => return ExitCode::from(code),
        Err(refusal) => refusal,
    };
    eprintln!("{refusal}");
    ExitCode::from(if matches!(refusal, Refusal::Usage(_)) { USAGE } else { 1 })
}

fn answer(called: &str, words: &[&str]) -> Answer<u8> {
    if let Some(code) = machine::own_part(words) {
        return code;
    }
    if let ["__create", called, wanted] = words {
        Store::beside(called)?.create(&serde_json::from_str(wanted)?)?;
        return Ok(0);
    }
    let store = Store::beside(called)?;
    store.note_environment()?;
    if words == ["--version"] {
        println!("container CLI version {} (build: release, commit: unspecified)", store.version());
        return Ok(0);
    }
    if words == ["system", "status", "--format", "json"] {
        println!("{}", json::status(&store));
        return Ok(u8::from(!store.settings.service));
    }
    if !store.settings.service {
        return Err(Refusal::Said(
            "interrupted",
            "XPC connection error: Connection invalid\nEnsure container system service has been started with `container \
             system start`."
                .to_owned(),
        ));
    }
    match words {
        ["image", "inspect", name] => {
            println!("{}", json::image(&store, name)?);
            Ok(0)
        }
        ["image", "pull", name] => Err(Refusal::Said("notFound", format!("nothing is fetched here: {name}"))),
        ["create", rest @ ..] => create(&store, called, rest),
        ["start", rest @ ..] => foreground::start(&store, rest),
        ["exec", rest @ ..] => foreground::exec(&store, rest),
        ["list", "--all", "--format", "json"] => {
            println!("{}", json::list(&store)?);
            Ok(0)
        }
        ["inspect", id] => {
            println!("{}", json::inspect(&store, id)?);
            Ok(0)
        }
        ["kill", "--signal", signal, id] => kill(&store.container(id)?, signal),
        ["stop", id] => stop(&store.container(id)?),
        ["delete", "--force", id] => delete(&store.container(id)?),
        _ => Err(Refusal::Usage(format!("Unexpected argument: {words:?}"))),
    }
}

/// Checks, and has it made by a process of its own: as with Apple's service, it is made whatever becomes of who asked.
fn create(store: &Store, called: &str, words: &[&str]) -> Answer<u8> {
    let wanted = flags::create(words)?;
    if !store.settings.kernel {
        return Err(Refusal::Plain(
            "Error: default kernel not configured for architecture arm64, please use the `container system kernel set` \
             command to configure it"
                .to_owned(),
        ));
    }
    let wanted_json = serde_json::to_string(&wanted)?;
    let mut service = Command::new(std::env::current_exe()?);
    let made = service.args(["__create", called, &wanted_json]).process_group(0).status()?;
    if made.success() {
        println!("{}", wanted.name);
    }
    Ok(u8::from(!made.success()))
}

fn kill(container: &Container, signal: &str) -> Answer<u8> {
    let signal: Signal =
        format!("SIG{signal}").parse().map_err(|_| Refusal::Usage(format!("no signal {signal}")))?;
    let pid = container.pid().ok_or_else(|| {
        Refusal::Plain(
            "Error from APIServer: invalidState: \"cannot kill: container is not running\"".to_owned(),
        )
    })?;
    machine::signal(container, pid, signal)?;
    if signal == Signal::SIGKILL {
        container.until_gone(Duration::from_secs(10));
    }
    println!("{}", container.id());
    Ok(0)
}

/// SIGTERM, five seconds, SIGKILL; one that has stopped is as good.
fn stop(container: &Container) -> Answer<u8> {
    if let Some(pid) = container.pid() {
        machine::signal(container, pid, Signal::SIGTERM)?;
        if !container.until_gone(Duration::from_secs(5)) {
            machine::signal(container, pid, Signal::SIGKILL)?;
        }
    }
    println!("{}", container.id());
    Ok(0)
}

fn delete(container: &Container) -> Answer<u8> {
    let container = container.put_away()?;
    for pid in [container.pid(), container.machine_pid()].into_iter().flatten() {
        let _just_ended = nix::sys::signal::kill(pid, Signal::SIGKILL);
    }
    container.until_gone(Duration::from_secs(10));
    // Whoever held it is still writing its last words.
    let mut removed = Ok(());
    for _ in 0..50 {
        removed = std::fs::remove_dir_all(&container.directory);
        if !container.directory.exists() {
            removed = Ok(());
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    removed?;
    println!("{}", container.id());
    Ok(0)
}
