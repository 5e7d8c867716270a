//! The static sidecar that this `moat` carries, for its own architecture.

/// What build.rs built, or was given; empty where there is none.
static SIDECAR: &[u8] = include_bytes!(env!("MOAT_SIDECAR_FILE"));

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
pub(crate) fn sidecar() -> Result<&'static [u8], NoSidecar> {
    if SIDECAR.is_empty() { Err(NoSidecar) } else { Ok(SIDECAR) }
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn it_is_an_elf_file() {
        assert_eq!(&super::sidecar().unwrap()[..4], b"\x7fELF");
    }
}
