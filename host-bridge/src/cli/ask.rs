//! Asking people: questions on the terminal, and secrets that are not shown.

use std::{
    io::{self, BufRead, IsTerminal},
    os::unix::thread::JoinHandleExt,
};

use moat_shared::secret::Secret;
use nix::sys::{
    pthread::pthread_kill,
    signal::{SigSet, SigmaskHow, Signal, raise},
    termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr},
};

use super::print;

/// A secret given on stdin; tokens are a few kilobytes.
const SECRET: u64 = 64 * 1024;

/// Somebody who answers. Tests have their own.
pub(crate) trait Ask {
    /// The answer to a question, trimmed. `None`: there will be none.
    fn question(&mut self, question: &str) -> io::Result<Option<String>>;
    /// A secret, not shown while it is typed.
    fn secret(&mut self, prompt: &str) -> io::Result<Secret<String>>;
    /// Tells something.
    fn say(&mut self, text: &str);
}

/// Whoever sits at the terminal; for secrets also whatever is piped in.
#[derive(Debug)]
pub(crate) struct Person;

impl Ask for Person {
    fn question(&mut self, question: &str) -> io::Result<Option<String>> {
        print::prompt(question);
        let mut answer = String::new();
        let read = io::stdin().lock().read_line(&mut answer)?;
        Ok((read > 0).then(|| answer.trim().to_owned()))
    }

    fn secret(&mut self, prompt: &str) -> io::Result<Secret<String>> {
        if io::stdin().is_terminal() {
            return echo_comes_back(|| rpassword::prompt_password(prompt).map(Secret::new));
        }
        first_line(io::stdin().lock())
    }

    fn say(&mut self, text: &str) {
        print::note(text);
    }
}

/// Hides nothing for good: a signal that ends the process while `work` has the echo off turns it on again first.
fn echo_comes_back<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = tcgetattr(io::stdin())?;
    let done = Signal::SIGUSR1;
    let watched: SigSet =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, done].into_iter().collect();
    let mask = watched.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let result = while_watched(watched, done, before.clone(), || {
        // Before the prompt is seen: who types at once is not shown either.
        let mut hidden = before.clone();
        hidden.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &hidden)?;
        let answer = work();
        tcsetattr(io::stdin(), SetArg::TCSANOW, &before)?;
        answer
    });
    mask.thread_set_mask()?;
    result
}

/// The watcher takes the signals, which are blocked everywhere else; `done` sends it away.
fn while_watched<T>(
    watched: SigSet,
    done: Signal,
    before: Termios,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let watcher = std::thread::Builder::new().spawn(move || match watched.wait() {
        Ok(signal) if signal == done => Ok(()),
        Ok(signal) => die_of(signal, &before),
        Err(error) => Err(error.into()),
    })?;
    let result = work();
    pthread_kill(watcher.as_pthread_t(), done)?;
    watcher.join().unwrap_or_else(|_| Err(io::Error::other("the watcher of signals died")))?;
    result
}

fn die_of(signal: Signal, before: &Termios) -> io::Result<()> {
    tcsetattr(io::stdin(), SetArg::TCSANOW, before)?;
    SigSet::from(signal).thread_unblock()?;
    Ok(raise(signal)?)
}

/// The first line, with or without its end. Nothing after it is looked at.
fn first_line(input: impl BufRead) -> io::Result<Secret<String>> {
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(4096));
    input.take(SECRET).read_until(b'\n', &mut bytes)?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("abc\n" => "abc"; "with its end")]
    #[test_case("abc" => "abc"; "without")]
    #[test_case("abc\r\n" => "abc"; "windows")]
    #[test_case("abc\ndef\n" => "abc"; "more lines")]
    #[test_case("" => ""; "nothing")]
    fn one_line(input: &str) -> String {
        first_line(input.as_bytes()).unwrap().expose().clone()
    }
}
