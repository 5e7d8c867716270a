//! The command line: which mode. Parsed by hand, since three words need no library.

use std::{ffi::OsString, os::fd::RawFd, path::PathBuf};

use moat_shared::{exit, hello};

use crate::{log, mode};

const USAGE: &str = "usage: moat-sidecar init --startup-fd N | init --startup-file PATH | init --startup-stdin | relay | exec [--size=ROWSxCOLUMNS] -- COMMAND... | version";

/// What to do.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Init(mode::StartupFrom),
    Relay,
    Exec(Vec<String>, Option<(u16, u16)>),
    Version,
}

/// Runs what the arguments say and returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    match parse(arguments) {
        Some(Command::Init(from)) => mode::init(from),
        Some(Command::Relay) => mode::relay(),
        Some(Command::Exec(argv, size)) => moat_init::exec::client::run(argv, size),
        Some(Command::Version) => print_version(),
        None => {
            log!("{USAGE}");
            exit::USAGE
        }
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Option<Command> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let words: Vec<Option<&str>> = arguments.iter().map(|argument| argument.to_str()).collect();
    match words.as_slice() {
        [Some("relay")] => Some(Command::Relay),
        [Some("version" | "--version")] => Some(Command::Version),
        [Some("exec"), Some("--"), command @ ..] => exec(command, None),
        [Some("exec"), Some(size), Some("--"), command @ ..] => {
            let (rows, columns) = size.strip_prefix("--size=")?.split_once('x')?;
            exec(command, Some((rows.parse().ok()?, columns.parse().ok()?)))
        }
        [Some("init"), Some("--startup-stdin")] => Some(Command::Init(mode::StartupFrom::Stdin)),
        [Some("init"), Some("--startup-fd"), Some(fd)] => {
            let fd = fd.parse::<RawFd>().ok().filter(|fd| *fd >= 0)?;
            Some(Command::Init(mode::StartupFrom::Descriptor(fd)))
        }
        [Some("init"), Some("--startup-file"), _] => {
            Some(Command::Init(mode::StartupFrom::File(PathBuf::from(arguments.get(2)?))))
        }
        _ => None,
    }
}

fn exec(command: &[Option<&str>], size: Option<(u16, u16)>) -> Option<Command> {
    let words: Vec<String> = command.iter().map(|word| word.map(str::to_owned)).collect::<Option<_>>()?;
    (!words.is_empty()).then_some(Command::Exec(words, size))
}

#[expect(clippy::print_stdout, reason = "the version is this command's output")]
fn print_version() -> u8 {
    println!("moat-sidecar {} (tunnel protocol {})", hello::BUILD, hello::PROTOCOL);
    exit::OK
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case(&["init", "--startup-fd", "3"] => Some(Command::Init(mode::StartupFrom::Descriptor(3))); "descriptor")]
    #[test_case(&["init", "--startup-file", "/a b"] => Some(Command::Init(mode::StartupFrom::File("/a b".into()))); "file")]
    #[test_case(&["init", "--startup-stdin"] => Some(Command::Init(mode::StartupFrom::Stdin)); "stdin")]
    #[test_case(&["relay"] => Some(Command::Relay); "relay")]
    #[test_case(&["exec", "--", "sh", "-c", "x"] => Some(Command::Exec(vec!["sh".into(), "-c".into(), "x".into()], None)); "exec")]
    #[test_case(&["exec", "--size=24x80", "--", "sh"] => Some(Command::Exec(vec!["sh".into()], Some((24, 80)))); "exec on a terminal")]
    #[test_case(&["exec", "--size=24", "--", "sh"] => None; "no size")]
    #[test_case(&["exec", "--"] => None; "exec nothing")]
    #[test_case(&["version"] => Some(Command::Version); "version")]
    #[test_case(&[] => None; "nothing")]
    #[test_case(&["init"] => None; "init alone")]
    #[test_case(&["init", "--startup-fd", "-1"] => None; "no descriptor")]
    #[test_case(&["init", "--startup-fd"] => None; "no value")]
    #[test_case(&["relay", "now"] => None; "too much")]
    fn commands(arguments: &[&str]) -> Option<Command> {
        parse(arguments.iter().map(OsString::from))
    }
}
