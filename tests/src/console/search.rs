//! A search through every byte that the program may read: files, and what `/proc` says of processes.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::needles;

/// What to look for, and where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Search {
    /// Texts, each looked for in all forms of [`needles::of`].
    pub secrets: Vec<String>,
    /// A text that is there, to prove that the search works.
    pub control: String,
    /// Where to start.
    pub roots: Vec<String>,
    /// Names that are not looked into.
    pub skip: Vec<String>,
}

#[derive(Default)]
struct Found {
    files: usize,
    hits: Vec<String>,
    controls: usize,
}

impl Found {
    fn judge(&mut self, path: &Path, bytes: &[u8], forms: &[(String, Vec<u8>)], control: &str) {
        for form in needles::found(forms, bytes) {
            self.hits.push(format!("{}: {form}", path.display()));
        }
        self.controls += usize::from(memchr::memmem::find(bytes, control.as_bytes()).is_some());
    }
}

/// Searches. The answer is `{"files": n, "hits": [..], "controls": n, "processes": [{"pid", "name", "open": [..]}]}`,
/// where `open` names what could be opened of a process that is not this one.
#[must_use]
pub fn search(search: &Search) -> Value {
    let forms: Vec<_> = search.secrets.iter().flat_map(|secret| needles::of(secret)).collect();
    let mut found = Found::default();
    for root in &search.roots {
        walk(Path::new(root), search, &forms, &mut found);
    }
    let processes: Vec<Value> =
        processes().iter().map(|process| look_at(process, search, &forms, &mut found)).collect();
    json!({"files": found.files, "hits": found.hits, "controls": found.controls, "processes": processes})
}

/// The same for the files alone. The answer is `{"files": n, "hits": [..], "controls": n}`.
#[must_use]
pub fn search_files(search: &Search) -> Value {
    let forms: Vec<_> = search.secrets.iter().flat_map(|secret| needles::of(secret)).collect();
    let mut found = Found::default();
    for root in &search.roots {
        walk(Path::new(root), search, &forms, &mut found);
    }
    json!({"files": found.files, "hits": found.hits, "controls": found.controls})
}

/// Judges what /proc says of a process, and notes what of its inside can be opened.
fn look_at(process: &Path, search: &Search, forms: &[(String, Vec<u8>)], found: &mut Found) -> Value {
    let own = fs::canonicalize("/proc/self").is_ok_and(|own| own == process);
    let mut open = Vec::new();
    for part in ["cmdline", "environ", "maps", "mem", "auxv", "stack", "status", "mountinfo"] {
        let path = process.join(part);
        let Ok(file) = File::open(&path) else { continue };
        if part == "mem" {
            open.push(part);
            continue;
        }
        // Root opens what is root's, and is then refused to read what it must not see.
        let mut bytes = Vec::new();
        if file.take(1 << 20).read_to_end(&mut bytes).is_ok() {
            open.push(part);
            found.judge(&path, &bytes, forms, &search.control);
        }
    }
    if entries(&process.join("fd")).iter().any(|descriptor| fs::read_link(descriptor).is_ok()) {
        open.push("fd");
        for descriptor in entries(&process.join("fd")) {
            if let Ok(target) = fs::metadata(&descriptor)
                && target.is_file()
            {
                walk(&descriptor, search, forms, found);
            }
        }
    }
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let pid = process.file_name().map(|n| n.to_string_lossy().into_owned());
    json!({"pid": pid, "name": name.trim(), "own": own, "open": open})
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn processes() -> Vec<PathBuf> {
    let digits = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let all = entries(Path::new("/proc")).into_iter().filter(|path| path.file_name().is_some_and(digits));
    all.filter(|path| !is_kernels(path)).collect()
}

/// A thread of the kernel's, which has no memory to look into: `PF_KTHREAD` among the flags, the ninth field of its `stat`.
fn is_kernels(process: &Path) -> bool {
    const KERNEL: u32 = 0x0020_0000;
    let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
    let flags = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & KERNEL != 0)
}

/// Reads every file below; other file systems that are mounted there have their own entry in `roots`.
fn walk(path: &Path, search: &Search, forms: &[(String, Vec<u8>)], found: &mut Found) {
    let Ok(metadata) = fs::metadata(path) else { return };
    if search.skip.iter().any(|skip| path.ends_with(skip)) {
        return;
    }
    if metadata.is_dir() {
        for entry in entries(path) {
            let Ok(inner) = fs::symlink_metadata(&entry) else { continue };
            if inner.is_file() || (inner.is_dir() && inner.dev() == metadata.dev()) {
                walk(&entry, search, forms, found);
            }
        }
    } else if metadata.is_file() {
        found.files += 1;
        let mut bytes = Vec::new();
        if File::open(path).is_ok_and(|file| file.take(64 << 20).read_to_end(&mut bytes).is_ok()) {
            found.judge(path, &bytes, forms, &search.control);
        }
    }
}
