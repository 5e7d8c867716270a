//! The processes of this machine that belong to something of the tests', found by a mark that they carry.

use std::{fs, path::PathBuf};

use nix::unistd::Pid;

/// Every process but this one that carries the mark.
#[must_use]
pub(crate) fn marked(mark: &str) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.map(Pid::from_raw).filter(|&pid| carries(pid, mark)).collect()
}

/// Is it another process, with the mark in its environment, arguments or working directory?
#[must_use]
pub(crate) fn carries(pid: Pid, mark: &str) -> bool {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let holds = |name: &str| {
        let bytes = fs::read(directory.join(name)).unwrap_or_default();
        memchr::memmem::find(&bytes, mark.as_bytes()).is_some()
    };
    let cwd = fs::read_link(directory.join("cwd")).unwrap_or_default();
    pid != Pid::this() && (holds("environ") || holds("cmdline") || cwd.to_string_lossy().contains(mark))
}

/// Its number and its arguments, for people.
#[must_use]
pub(crate) fn named(pid: Pid) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    format!("{pid} {}", String::from_utf8_lossy(&line).replace('\0', " "))
}
