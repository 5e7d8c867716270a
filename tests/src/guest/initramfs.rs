//! The guest's files: one archive, made once for all guests of this process, in the form that a kernel unpacks ("newc").
//!
//! The script that the kernel starts loads drivers and then is the sidecar (`exec`): no other program stays beside it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::{
    Outcome, Trouble, engine,
    rig::{Rig, binary},
};

/// The fixture client.
pub const AGENT: &str = "/bin/moat-fixture-client";
/// The agent's workspace.
pub(super) const WORKSPACE: &str = "/workspace";
/// Its home.
pub(super) const HOME: &str = "/home/agent";
/// Its user and group.
pub(super) const USER: u32 = 1000;
/// The line after which the plan comes.
pub(super) const GO: &str = "go";
/// Before the time at which the sidecar starts, on the console.
pub(super) const STARTED: &str = "the sidecar starts at ";

/// The drivers; what they depend on comes with them.
const DRIVERS: [&str; 3] = [
    "kernel/drivers/virtio/virtio_pci.ko",
    "kernel/drivers/char/virtio_console.ko",
    "kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko",
];
/// With it and without a device, CID 2 is the guest itself.
const LOOPBACK: &str = "kernel/net/vmw_vsock/vsock_loopback.ko";

/// Stdin and stdout are one port, which says "end of file" until the host's end is known to be open.
const INIT: &str = r#"#!/bin/sh
set -e
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
while read -r module; do insmod "/module/$module"; done </module/order
ip link set lo up
until port=$(ls /dev/vport*p1 2>/dev/null); do usleep 2000; done
exec 0<>"$port" 1>&0
until read -r line && [ "$line" = "@GO@" ]; do usleep 2000; done
read -r up rest </proc/uptime
echo "@STARTED@$up" >/dev/console
exec /moat-sidecar init --startup-stdin
"#;

/// Debian's, which is static.
pub(super) fn busybox() -> Outcome<&'static str> {
    let places = ["/bin/busybox", "/usr/bin/busybox"];
    places.into_iter().find(|path| Path::new(path).exists()).ok_or_else(|| Trouble::new("no busybox"))
}

/// Where QEMU finds the archive: a file without a name, which goes with this process.
pub(super) fn image(rig: &Rig, modules: &Path) -> Outcome<PathBuf> {
    static IMAGE: OnceLock<Result<File, String>> = OnceLock::new();
    let made = IMAGE.get_or_init(|| make(rig, modules).map_err(|trouble| trouble.to_string()));
    let file = made.as_ref().map_err(|trouble| Trouble::new(trouble.clone()))?;
    Ok(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into())
}

fn make(rig: &Rig, modules: &Path) -> Outcome<File> {
    let directory = tempfile::tempdir()?;
    let directory = directory.path();
    let sidecar = directory.join("moat-sidecar");
    rig.run(&["sidecar", "export", &sidecar.to_string_lossy()])?.expect_code(0)?;
    let client = stripped(&binary("moat-fixture-client")?, &directory.join("client"))?;
    let init = INIT.replace("@GO@", GO).replace("@STARTED@", STARTED);
    let mut archive = Archive::default();
    for place in ["proc", "sys", "dev", "run", "etc", "root", "mnt", "var/tmp", "module"] {
        archive.directory(place, 0o755, 0);
    }
    archive.directory("tmp", 0o1777, 0);
    archive.directory(HOME, 0o700, USER);
    archive.directory(WORKSPACE, 0o755, USER);
    archive.file("init", 0o755, init.as_bytes());
    archive.file("moat-sidecar", 0o755, &fs::read(&sidecar)?);
    archive.file(
        "etc/passwd",
        0o644,
        format!("root:x:0:0:root:/root:/bin/sh\nagent:x:{USER}:{USER}::{HOME}:/bin/sh\n").as_bytes(),
    );
    archive.file(AGENT, 0o755, &fs::read(&client)?);
    archive.file("bin/bash", 0o755, &fs::read("/bin/bash")?);
    for program in [client.as_path(), Path::new("/bin/bash")] {
        for library in engine::libraries(program)? {
            archive.file(&library, 0o755, &fs::read(&library)?);
        }
    }
    let busybox = busybox()?;
    archive.file("bin/busybox", 0o755, &fs::read(busybox)?);
    let applets = Command::new(busybox).arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox") {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    let mut order = String::new();
    for module in in_order(modules)? {
        let name = module.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        archive.file(&format!("module/{name}"), 0o644, &fs::read(&module)?);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("module/order", 0o644, order.as_bytes());
    let mut file = tempfile::tempfile()?;
    file.write_all(&archive.finish())?;
    Ok(file)
}

/// Without its symbols, which are most of it, where `strip` is there.
fn stripped(original: &Path, to: &Path) -> Outcome<PathBuf> {
    let strip = Command::new("strip").arg("-o").arg(to).arg(original).stdin(Stdio::null()).status();
    Ok(if strip.is_ok_and(|status| status.success()) { to.to_owned() } else { original.to_owned() })
}

/// The drivers and what they depend on, each after what it depends on. Versions of one kernel differ in that, so it is
/// read from the files.
fn in_order(modules: &Path) -> Outcome<Vec<PathBuf>> {
    let mut all = Vec::new();
    find(&modules.join("kernel"), &mut all)?;
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for driver in DRIVERS.into_iter().chain([LOOPBACK]) {
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

/// A cpio archive of the form "newc".
#[derive(Debug, Default)]
struct Archive {
    bytes: Vec<u8>,
    known: BTreeSet<String>,
}

impl Archive {
    fn directory(&mut self, path: &str, mode: u32, owner: u32) {
        let path = self.above(path);
        if self.known.insert(path.clone()) {
            self.entry(&path, 0o040_000 | mode, owner, &[]);
        }
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = self.above(path);
        if self.known.insert(path.clone()) {
            self.entry(&path, 0o100_000 | mode, 0, content);
        }
    }

    fn link(&mut self, path: &str, target: &str) {
        let path = self.above(path);
        if self.known.insert(path.clone()) {
            self.entry(&path, 0o120_777, 0, target.as_bytes());
        }
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

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 0, &[]);
        self.bytes
    }
}
