//! What a guest of the stand-in's starts with: its first program, which is the stand-in itself, what that calls, and
//! drivers. The container's files are not in it.

use std::{fs, path::Path};

use crate::{
    Outcome, Trouble,
    guest::{
        archive::{Archive, stripped},
        kernel,
    },
    rig::binary,
};

/// Without the one that makes the host's CID the guest's own.
const DRIVERS: [&str; 3] = [
    "kernel/drivers/virtio/virtio_pci.ko",
    "kernel/fs/fuse/virtiofs.ko",
    "kernel/net/vmw_vsock/vmw_vsock_virtio_transport.ko",
];

/// Writes the archive to this file.
pub(super) fn make(to: &Path) -> Outcome {
    let kernel = kernel().ok_or_else(|| Trouble::new("no kernel for a guest (see .ci/run)"))?;
    let first = stripped(&binary("moat-standin-container")?, &to.with_extension("first"))?;
    let mut archive = Archive::default();
    for place in ["proc", "sys", "dev", "run", "root", "tmp"] {
        archive.directory(place, 0o755, 0);
    }
    archive.program("bin/first", &first)?;
    for program in ["unshare", "nsenter"] {
        archive.program(&format!("bin/{program}"), &Path::new("/usr/bin").join(program))?;
    }
    // For `ip` and `stty`.
    archive.busybox()?;
    archive.drivers(&kernel.modules, &DRIVERS)?;
    Ok(fs::write(to, archive.finish())?)
}
