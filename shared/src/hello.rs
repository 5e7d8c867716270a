//! The first exchange on a tunnel: what each side is.
//!
//! The sidecar POSTs its [`Hello`] to [`crate::wire::HELLO_PATH`]; the bridge answers with its own, or with a
//! [`crate::wire::ErrorKind::VersionMismatch`]. An old sidecar in an old image so gets one clear text.

use serde::{Deserialize, Serialize};

/// The protocol that this build speaks. Raised when an older peer could not be served correctly.
pub const PROTOCOL: u32 = 1;
/// The oldest protocol that this build still serves.
pub const OLDEST: u32 = 1;
/// This build, for people.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");

/// What one side says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The newest protocol it speaks.
    pub protocol: u32,
    /// The oldest it still serves.
    pub oldest: u32,
    /// Its version, for people and logs.
    pub build: String,
}

impl Hello {
    /// What this build says of itself.
    #[must_use]
    pub fn ours() -> Self {
        Self { protocol: PROTOCOL, oldest: OLDEST, build: BUILD.to_owned() }
    }
}

/// The two sides have no protocol in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the sidecar ({sidecar_build}) speaks tunnel protocol {sidecar}, the bridge ({bridge_build}) {bridge}: \
     rebuild the image or let moat put its own sidecar in; restart the bridge with `moat proxy restart` after an update"
)]
pub struct VersionMismatch {
    sidecar: u32,
    sidecar_build: String,
    bridge: u32,
    bridge_build: String,
}

/// The protocol that both speak: the older side's newest, if the newer side still serves it.
///
/// # Errors
/// When there is none.
pub fn negotiate(sidecar: &Hello, bridge: &Hello) -> Result<u32, VersionMismatch> {
    let common = sidecar.protocol.min(bridge.protocol);
    if common >= sidecar.oldest && common >= bridge.oldest {
        return Ok(common);
    }
    Err(VersionMismatch {
        sidecar: sidecar.protocol,
        sidecar_build: sidecar.build.clone(),
        bridge: bridge.protocol,
        bridge_build: bridge.build.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    fn side(oldest: u32, protocol: u32) -> Hello {
        Hello { protocol, oldest, build: "test".into() }
    }

    #[test_case((1, 1), (1, 1) => Some(1); "same")]
    #[test_case((1, 1), (1, 3) => Some(1); "old sidecar, patient bridge")]
    #[test_case((2, 3), (1, 2) => Some(2); "new sidecar, old bridge")]
    #[test_case((1, 1), (2, 3) => None; "bridge gave up on it")]
    #[test_case((3, 3), (1, 2) => None; "sidecar gave up on it")]
    fn versions(sidecar: (u32, u32), bridge: (u32, u32)) -> Option<u32> {
        negotiate(&side(sidecar.0, sidecar.1), &side(bridge.0, bridge.1)).ok()
    }
}
