//! A guest that is a host itself: no vsock device, and the drivers with which a Linux machine is the host of others. What the
//! bridge does with its kernel's own vsock is seen there, since no test goes near this machine's.
//!
//! ```text
//! guest   an MCP server ◄── moat's bridge, at CID 2 ◄── vsock_loopback ──► a relay ◄── the fixture client
//! ```
//!
//! Its first program is `moat-fixture-host`. There is no second guest in it: what goes to CID 2 is carried by the kernel's
//! loopback, and never by `vhost_vsock`, which only makes that CID the machine's own.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use super::{
    QEMU,
    archive::{Archive, stripped},
    kernel, qemu, until_it_ends,
};
use crate::{
    Outcome, Trouble,
    rig::{Rig, binary, moat_binary},
    trouble::ensure,
};

/// The last line of a first program that has seen all it was to see.
pub const SHOWN: &str = "all of it was shown";
/// What makes a machine a host, where it is not yet one.
pub const DRIVER: &str = "vhost_vsock";

/// Both are there, and the first is loaded.
const DRIVERS: [&str; 2] = ["kernel/net/vmw_vsock/vsock_loopback.ko", "kernel/drivers/vhost/vhost_vsock.ko"];
/// The files are in it twice for a moment.
const MEGABYTES: u32 = 1024;

const INIT: &str = "#!/bin/sh
set -e
export PATH=/bin MOAT_BIN=/bin/moat
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/null >/dev/console 2>&1
ip link set lo up
depmod
modprobe vsock_loopback
exec moat-fixture-host
";

/// Starts it and waits for its end.
///
/// # Errors
/// When it does not end, or has not seen all of it; what its console said is in the text.
pub fn run(rig: &Rig) -> Outcome {
    let kernel = kernel().ok_or_else(|| Trouble::new("no kernel for a guest (see .ci/run)"))?;
    let directory = tempfile::Builder::new().prefix("g").rand_bytes(4).tempdir_in(rig.root())?.keep();
    let files = directory.join("files");
    fs::write(&files, archive(&kernel.modules, &directory)?)?;
    let mut command = qemu(Command::new(QEMU), &directory, MEGABYTES, &files, "")?;
    let said = until_it_ends(command.stdin(Stdio::null()).spawn()?, &directory)?;
    ensure(said.contains(SHOWN), || said.clone())
}

fn archive(modules: &Path, directory: &Path) -> Outcome<Vec<u8>> {
    let mut archive = Archive::default();
    for place in ["proc", "sys", "dev", "tmp"] {
        archive.directory(place, 0o755, 0);
    }
    archive.file("init", 0o755, INIT.as_bytes());
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n");
    for name in ["moat", "moat-fixture-host", "moat-fixture-client"] {
        let program = if name == "moat" { moat_binary()? } else { binary(name)? };
        archive.program(&format!("bin/{name}"), &stripped(&program, &directory.join(name))?)?;
    }
    archive.busybox()?;
    archive.modules(modules, &DRIVERS)?;
    Ok(archive.finish())
}
