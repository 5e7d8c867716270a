//! Processes told apart from later ones that got the same pid: by pid and start time.

use std::{fs, io};

use crate::control::api::Process;

impl Process {
    /// This process.
    pub(crate) fn current() -> Self {
        let pid = nix::unistd::getpid().as_raw();
        Self::of(pid).unwrap_or(Self { pid, started: 0 })
    }

    /// The process that has this pid now; `None` where there is none, or no /proc.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: stat(pid)?.started })
    }

    /// Does it still run? A zombie does not. Without /proc the pid alone has to do. One that cannot be looked at, for
    /// lack of descriptors, say, is taken to run: whoever asks would end what belongs to it.
    pub(crate) fn is_alive(self) -> bool {
        if self.pid <= 0 {
            return false;
        }
        if self.started != 0 {
            return self.is_in(read_stat(self.pid));
        }
        let probe = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid), None);
        matches!(probe, Ok(()) | Err(nix::errno::Errno::EPERM))
    }
}

impl Process {
    fn is_in(self, read: io::Result<String>) -> bool {
        match read {
            Ok(text) => parse_stat(&text).is_none_or(|stat| stat.started == self.started && !stat.is_dead),
            Err(error) => {
                error.kind() != io::ErrorKind::NotFound && error.raw_os_error() != Some(libc::ESRCH)
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    is_dead: bool,
    started: u64,
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&read_stat(pid).ok()?)
}

fn read_stat(pid: i32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/stat"))
}

/// Fields 3 (state) and 22 (start time) of /proc/pid/stat. Field 2, the name, may hold anything, parentheses and
/// spaces too; it ends at the last one that closes.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let is_dead = matches!(fields.next()?, "Z" | "X" | "x");
    let started = fields.nth(18)?.parse().ok()?;
    Some(Stat { is_dead, started })
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    const REST: &str = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";

    #[test_case("7 (cat) S" => Some((false, 4711)))]
    #[test_case("7 (a) Z 9) S" => Some((false, 4711)); "a name made to look like fields")]
    #[test_case("7 (cat) Z" => Some((true, 4711)); "zombie")]
    #[test_case("7 cat" => None; "no name")]
    fn stat_lines(head: &str) -> Option<(bool, u64)> {
        parse_stat(&format!("{head} {REST}")).map(|stat| (stat.is_dead, stat.started))
    }

    #[test_case(libc::ENOENT => false; "no such process")]
    #[test_case(libc::ESRCH => false; "gone while it was read")]
    #[test_case(libc::EMFILE => true; "no descriptor left to look")]
    fn only_what_is_known_to_be_gone_is_gone(errno: i32) -> bool {
        Process { pid: 7, started: 4711 }.is_in(Err(io::Error::from_raw_os_error(errno)))
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_another_process() {
        let this = Process::current();
        assert!(this.is_alive());
        assert!(!Process { started: this.started + 1, ..this }.is_alive());
        assert!(!Process { pid: 0, started: 0 }.is_alive());
        assert!(!Process { pid: i32::MAX, started: 0 }.is_alive());
    }
}
