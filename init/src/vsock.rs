//! Is this machine a guest with a vsock device? Asked by PID 1, since the relay's user may not open the device.
//!
//! Where the device or its driver is missing and the loopback driver is not, CID 2 is this machine itself: everything
//! that is dialled there would fail late, or reach somebody else's listener in here.

use std::{fs::File, io, path::Path};

use moat_shared::endpoint::Endpoint;
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use crate::sys;

const DEVICE: &str = "/dev/vsock";
/// The host of a guest.
const HOST: u32 = 2;
/// "Any": what a machine without a transport says that it has.
const NONE: u32 = u32::MAX;

/// The tunnel cannot go where the plan says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VsockError {
    #[error(
        "the tunnel is to go over vsock, and this machine has no vsock device (its own CID is {0}, which is no guest's): \
         give the virtual machine one, and load its driver (vmw_vsock_virtio_transport) before the sidecar starts"
    )]
    NoGuest(Cid),
    #[error("cannot ask {DEVICE} for this machine's CID")]
    Ask(#[source] io::Error),
}

/// A CID, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cid(u32);

impl std::fmt::Display for Cid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == NONE { f.write_str("none") } else { self.0.fmt(f) }
    }
}

/// Fails where the tunnel is to go over vsock and this machine is nobody's guest, whoever is to dial. A container has no
/// such device node, and cannot be asked: there a failing connection says it.
pub(crate) fn check(endpoint: &Endpoint) -> Result<(), VsockError> {
    if !matches!(endpoint, Endpoint::Vsock { .. }) {
        return Ok(());
    }
    match File::open(Path::new(DEVICE)) {
        Ok(device) => judge(sys::local_cid(&device).map_err(VsockError::Ask)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => family(),
        Err(error) => Err(VsockError::Ask(error)),
    }
}

/// Does this kernel know vsock at all?
fn family() -> Result<(), VsockError> {
    match socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None) {
        Err(Errno::EAFNOSUPPORT) => Err(VsockError::NoGuest(Cid(NONE))),
        // Forbidden, perhaps: who dials will hear it.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn judge(own: u32) -> Result<(), VsockError> {
    if own <= HOST || own == NONE { Err(VsockError::NoGuest(Cid(own))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guest_may_dial_its_host() {
        for own in [0, 1, 2, NONE] {
            let error = judge(own).unwrap_err().to_string();
            assert!(
                error.contains("no vsock device") && error.contains("vmw_vsock_virtio_transport"),
                "{error}"
            );
        }
        assert!(judge(NONE).unwrap_err().to_string().contains("CID is none"));
        for own in [3, 42, NONE - 1] {
            judge(own).unwrap();
        }
    }

    #[test]
    fn other_tunnels_are_none_of_its_business() {
        for endpoint in ["unix:/a", "tcp:127.0.0.1:1"] {
            check(&endpoint.parse().unwrap()).unwrap();
        }
    }
}
