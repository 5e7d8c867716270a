//! The guest's files: one archive, made once for all guests of this process.
//!
//! The script that the kernel starts loads drivers and then is the sidecar (`exec`): no other program stays beside it.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::archive::{Archive, stripped};
use crate::{
    Outcome, Trouble,
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
    for place in ["proc", "sys", "dev", "run", "etc", "root", "mnt", "var/tmp"] {
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
    archive.program(AGENT, &client)?;
    archive.program("bin/bash", Path::new("/bin/bash"))?;
    archive.busybox()?;
    archive.drivers(modules, &[&DRIVERS[..], &[LOOPBACK]].concat())?;
    let mut file = tempfile::tempfile()?;
    file.write_all(&archive.finish())?;
    Ok(file)
}
