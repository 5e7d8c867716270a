//! An archive of files in the form that a kernel unpacks before its first program ("newc"), and what goes into one.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{Outcome, Trouble, engine};

/// A cpio archive of the form "newc".
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    known: BTreeSet<String>,
}

impl Archive {
    pub(crate) fn directory(&mut self, path: &str, mode: u32, owner: u32) {
        let path = self.above(path);
        if self.known.insert(path.clone()) {
            self.entry(&path, 0o040_000 | mode, owner, &[]);
        }
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = self.above(path);
        if self.known.insert(path.clone()) {
            self.entry(&path, 0o100_000 | mode, 0, content);
        }
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        let path = self.above(path);
        if self.known.insert(path.clone()) {
            self.entry(&path, 0o120_777, 0, target.as_bytes());
        }
    }

    /// A program of this machine's, with the libraries that it loads.
    pub(crate) fn program(&mut self, path: &str, original: &Path) -> Outcome {
        self.file(path, 0o755, &fs::read(original)?);
        for library in engine::libraries(original)? {
            self.file(&library, 0o755, &fs::read(&library)?);
        }
        Ok(())
    }

    /// All its applets.
    pub(crate) fn busybox(&mut self) -> Outcome {
        let busybox = busybox()?;
        self.file("bin/busybox", 0o755, &fs::read(busybox)?);
        let applets = Command::new(busybox).arg("--list").output()?;
        for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox") {
            self.link(&format!("bin/{applet}"), "busybox");
        }
        Ok(())
    }

    /// Drivers and what they depend on, in /module; the file `order` there says which comes after which.
    pub(crate) fn drivers(&mut self, modules: &Path, drivers: &[&str]) -> Outcome {
        let mut order = String::new();
        for module in in_order(modules, drivers)? {
            let name = module.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            self.file(&format!("module/{name}"), 0o644, &fs::read(&module)?);
            order.push_str(&name);
            order.push('\n');
        }
        self.file("module/order", 0o644, order.as_bytes());
        Ok(())
    }

    /// The same where `modprobe` looks for them, once `depmod` has been there.
    pub(crate) fn modules(&mut self, modules: &Path, drivers: &[&str]) -> Outcome {
        let above = modules.parent().unwrap_or(modules);
        for module in in_order(modules, drivers)? {
            let place = Path::new("lib/modules").join(module.strip_prefix(above)?);
            self.file(&place.to_string_lossy(), 0o644, &fs::read(&module)?);
        }
        Ok(())
    }

    /// Makes the directories above it; the path as the archive has it.
    fn above(&mut self, path: &str) -> String {
        let path = path.trim_start_matches('/').to_owned();
        if let Some((directory, _)) = path.rsplit_once('/') {
            self.directory(directory, 0o755, 0);
        }
        path
    }

    fn entry(&mut self, path: &str, mode: u32, owner: u32, content: &[u8]) {
        let number = self.known.len();
        let (length, name) = (content.len(), path.len() + 1);
        // Number, mode, uid, gid, links, time, size, device twice two, name's size, sum.
        let head = format!(
            "070701{number:08x}{mode:08x}{owner:08x}{owner:08x}{:08x}{:08x}{length:08x}{:08x}{:08x}{:08x}{:08x}{name:08x}{:08x}",
            1, 0, 0, 0, 0, 0, 0
        );
        self.bytes.extend(head.as_bytes());
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, &[]);
        self.bytes
    }
}

/// Debian's, which is static.
pub(super) fn busybox() -> Outcome<&'static str> {
    let places = ["/bin/busybox", "/usr/bin/busybox"];
    places.into_iter().find(|path| Path::new(path).exists()).ok_or_else(|| Trouble::new("no busybox"))
}

/// Without its symbols, which are most of it, where `strip` is there.
pub(crate) fn stripped(original: &Path, to: &Path) -> Outcome<PathBuf> {
    let strip = Command::new("strip").arg("-o").arg(to).arg(original).stdin(Stdio::null()).status();
    Ok(if strip.is_ok_and(|status| status.success()) { to.to_owned() } else { original.to_owned() })
}

/// The drivers and what they depend on, each after what it depends on. Versions of one kernel differ in that, so it is
/// read from the files.
fn in_order(modules: &Path, drivers: &[&str]) -> Outcome<Vec<PathBuf>> {
    let mut all = Vec::new();
    find(&modules.join("kernel"), &mut all)?;
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for driver in drivers {
        visit(&modules.join(driver), &all, &mut seen, &mut order)?;
    }
    Ok(order)
}

fn visit(module: &Path, all: &[PathBuf], seen: &mut BTreeSet<PathBuf>, order: &mut Vec<PathBuf>) -> Outcome {
    if !seen.insert(module.to_owned()) {
        return Ok(());
    }
    let bytes = fs::read(module).map_err(|error| Trouble::new(format!("{}: {error}", module.display())))?;
    for name in depends(&bytes) {
        let is_it = |path: &&PathBuf| {
            path.file_stem().is_some_and(|stem| stem.to_string_lossy().replace('-', "_") == name)
        };
        let found = all.iter().find(is_it).ok_or_else(|| Trouble::new(format!("no module {name}")))?;
        visit(found, all, seen, order)?;
    }
    order.push(module.to_owned());
    Ok(())
}

/// The names after `depends=` in a module's own description.
fn depends(module: &[u8]) -> Vec<String> {
    let text = b"\0depends=";
    let Some(at) = memchr::memmem::find(module, text) else { return Vec::new() };
    let rest = &module[at + text.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
    let names = String::from_utf8_lossy(&rest[..end]).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

fn find(directory: &Path, all: &mut Vec<PathBuf>) -> Outcome {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), all)?;
        } else {
            all.push(entry.path());
        }
    }
    Ok(())
}
