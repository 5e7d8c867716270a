//! The static sidecars that this `moat` carries: for its own architecture, and, if it was built so, for another.

use std::borrow::Cow;

use moat_shared::hint::Hint;

/// What build.rs built, or was given; empty where there is none.
static FILES: [Sidecar; 2] = [
    Sidecar { bytes: include_bytes!(env!("MOAT_SIDECAR_FILE")), digest: env!("MOAT_SIDECAR_DIGEST") },
    Sidecar {
        bytes: include_bytes!(env!("MOAT_SIDECAR_ALSO_FILE")),
        digest: env!("MOAT_SIDECAR_ALSO_DIGEST"),
    },
];

/// A sidecar and which one it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sidecar {
    pub(crate) bytes: &'static [u8],
    /// SHA-256, in hexadecimal digits.
    pub(crate) digest: &'static str,
}

/// Where an ELF file says for which machine it is, and what it says (`e_machine`, `EM_X86_64` and `EM_AARCH64`).
const MACHINE: std::ops::Range<usize> = 18..20;
const MACHINES: [([u8; 2], Architecture); 2] =
    [([62, 0], Architecture::Amd64), ([183, 0], Architecture::Arm64)];

/// What a sandbox's programs are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    Amd64,
    Arm64,
}

impl Architecture {
    /// This moat's own.
    pub(crate) const OWN: Self = if cfg!(target_arch = "aarch64") { Self::Arm64 } else { Self::Amd64 };

    /// As OCI, and so every engine, calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As Rust and the kernel call it.
    const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        [Self::Amd64, Self::Arm64].into_iter().find(|known| known.name() == name)
    }
}

/// This build has no sidecar for that.
#[derive(Debug, thiserror::Error)]
#[error("this build of moat carries no sidecar for {} (it carries: {})", .0.name(), carried_names())]
pub(crate) struct NoSidecar(Architecture);

impl Hint for NoSidecar {
    fn hint(&self) -> Option<Cow<'_, str>> {
        let target = self.0.target();
        Some(
            format!(
                "build moat with MOAT_SIDECAR_ALSO={target}, where Rust's target {target}-unknown-linux-gnu and a cross \
                 compiler are installed, or with MOAT_SIDECAR_ALSO=<path of a moat-sidecar for it>"
            )
            .into(),
        )
    }
}

/// The sidecar for this moat's own architecture.
pub(crate) fn sidecar() -> Result<Sidecar, NoSidecar> {
    sidecar_for(Architecture::OWN)
}

/// The sidecar for an architecture.
pub(crate) fn sidecar_for(wanted: Architecture) -> Result<Sidecar, NoSidecar> {
    FILES.into_iter().find(|file| of(file.bytes) == Some(wanted)).ok_or(NoSidecar(wanted))
}

/// The architectures that there is a sidecar for.
pub(crate) fn carried() -> impl Iterator<Item = Architecture> {
    FILES.into_iter().filter_map(|file| of(file.bytes))
}

/// The same for people.
pub(crate) fn carried_names() -> String {
    let names: Vec<_> = carried().map(Architecture::name).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// For which machine it is: the file's own word.
fn of(file: &[u8]) -> Option<Architecture> {
    let machine = file.starts_with(b"\x7fELF").then(|| file.get(MACHINE)).flatten()?;
    MACHINES.into_iter().find(|(number, _)| number == machine).map(|(_, architecture)| architecture)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn it_carries_what_it_says() {
        let own = sidecar().unwrap();
        assert_eq!((of(own.bytes), own.digest.len()), (Some(Architecture::OWN), 64));
        assert!(carried_names().contains(Architecture::OWN.name()));
        for architecture in [Architecture::Amd64, Architecture::Arm64] {
            let carries = carried().any(|carried| carried == architecture);
            assert_eq!(sidecar_for(architecture).is_ok(), carries);
        }
    }

    #[test]
    fn a_missing_one_is_told_with_its_remedy() {
        let error = NoSidecar(Architecture::Arm64);
        assert!(error.to_string().contains("no sidecar for arm64"), "{error}");
        assert!(error.hint().unwrap().contains("MOAT_SIDECAR_ALSO=aarch64"));
        assert_eq!((of(b""), of(b"#!/bin/sh"), of(b"\x7fELF")), (None, None, None));
    }
}
