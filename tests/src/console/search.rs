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
}

#[derive(Default)]
struct Found {
    files: usize,
    unreadable: Vec<String>,
    hits: Vec<String>,
    controls: usize,
}

/// Searches. The answer is `{"files": n, "processes": n, "unreadable": [..], "hits": [..], "controls": n}`.
#[must_use]
pub fn search(search: &Search) -> Value {
    let forms: Vec<_> = search.secrets.iter().flat_map(|secret| needles::of(secret)).collect();
    let mut found = Found::default();
    for root in &search.roots {
        walk(Path::new(root), &forms, &search.control, &mut found);
    }
    let processes = processes();
    for process in &processes {
        for part in ["environ", "cmdline", "mem", "maps", "stack"] {
            let path = process.join(part);
            match read_process(&path) {
                Some(bytes) => judge(&path, &bytes, &forms, &search.control, &mut found),
                None => found.unreadable.push(path.display().to_string()),
            }
        }
        for descriptor in entries(&process.join("fd")) {
            walk(&descriptor, &forms, &search.control, &mut found);
        }
    }
    json!({
        "files": found.files, "processes": processes.len(), "unreadable": found.unreadable,
        "hits": found.hits, "controls": found.controls,
    })
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn processes() -> Vec<PathBuf> {
    let numeric = |path: &PathBuf| {
        path.file_name().is_some_and(|n| n.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    };
    entries(Path::new("/proc")).into_iter().filter(numeric).collect()
}

/// The head of a file of /proc; of `mem`, what can be read is another process's business: being able to open it counts.
fn read_process(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    if path.ends_with("mem") {
        let own = fs::canonicalize("/proc/self").ok().is_some_and(|own| path.starts_with(own));
        return if own { None } else { Some(b"the memory of another process can be opened".to_vec()) };
    }
    file.take(1 << 20).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn walk(path: &Path, forms: &[(String, Vec<u8>)], control: &str, found: &mut Found) {
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    if metadata.is_dir() {
        for entry in entries(path) {
            // Other mounts of the host's own files (proc, sys, dev) are not the sandbox's bytes.
            if fs::symlink_metadata(&entry)
                .is_ok_and(|inner| inner.dev() == metadata.dev() || inner.is_file())
            {
                walk(&entry, forms, control, found);
            }
        }
    } else if metadata.is_file() {
        found.files += 1;
        match File::open(path).and_then(|file| {
            let mut bytes = Vec::new();
            file.take(64 << 20).read_to_end(&mut bytes).map(|_| bytes)
        }) {
            Ok(bytes) => judge(path, &bytes, forms, control, found),
            Err(_) => found.unreadable.push(path.display().to_string()),
        }
    }
}

fn judge(path: &Path, bytes: &[u8], forms: &[(String, Vec<u8>)], control: &str, found: &mut Found) {
    for form in needles::found(forms, bytes) {
        found.hits.push(format!("{}: {form}", path.display()));
    }
    found.controls += usize::from(memchr::memmem::find(bytes, control.as_bytes()).is_some());
}
