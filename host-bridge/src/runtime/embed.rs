//! The static sidecar that this `moat` carries, for its own architecture.

/// What build.rs built, or was given; empty where there is none.
static SIDECAR: &[u8] = include_bytes!(env!("MOAT_SIDECAR_FILE"));

/// Its SHA-256.
const DIGEST: &str = env!("MOAT_SIDECAR_DIGEST");

/// The sidecar and which one it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sidecar {
    pub(crate) bytes: &'static [u8],
    /// SHA-256, in hexadecimal digits.
    pub(crate) digest: &'static str,
}

/// This build has no sidecar.
#[derive(Debug, thiserror::Error)]
#[error("this build of moat carries no sidecar (it was built for another system than Linux)")]
pub(crate) struct NoSidecar;

impl moat_shared::hint::Hint for NoSidecar {
    fn hint(&self) -> Option<std::borrow::Cow<'_, str>> {
        Some("build moat with MOAT_SIDECAR=<path of a moat-sidecar for Linux>".into())
    }
}

/// The embedded sidecar.
pub(crate) fn sidecar() -> Result<Sidecar, NoSidecar> {
    if SIDECAR.is_empty() { Err(NoSidecar) } else { Ok(Sidecar { bytes: SIDECAR, digest: DIGEST }) }
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn it_is_an_elf_file() {
        let sidecar = super::sidecar().unwrap();
        assert_eq!(&sidecar.bytes[..4], b"\x7fELF");
        assert_eq!(sidecar.digest.len(), 64);
    }
}
