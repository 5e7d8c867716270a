//! What is put into an engine: the sidecar, in the directory that every container of moat's has it in.

use std::io;

/// Where the archive is unpacked.
pub(super) const AT: &str = "/.moat/bin";
/// The sidecar, below it.
const SIDECAR: &str = "moat-sidecar";

/// The sidecar's path in the sandbox.
pub(super) fn sidecar() -> String {
    format!("{AT}/{SIDECAR}")
}

/// The archive, whole, in memory.
pub(super) fn of_sidecar(sidecar: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::with_capacity(sidecar.len() + 8 * 1024));
    append(&mut archive, SIDECAR, sidecar, 0o755)?;
    archive.into_inner()
}

/// An archive of one directory, where that one is mounted: an image that has nothing else.
pub(super) fn empty() -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut own = header(tar::EntryType::Directory, 0, 0o755);
    archive.append_data(&mut own, AT.trim_start_matches('/'), io::empty())?;
    archive.into_inner()
}

/// One file.
pub(super) fn append(
    archive: &mut tar::Builder<impl io::Write>,
    name: &str,
    bytes: &[u8],
    mode: u32,
) -> io::Result<()> {
    let length = u64::try_from(bytes.len()).map_err(io::Error::other)?;
    archive.append_data(&mut header(tar::EntryType::Regular, length, mode), name, bytes)
}

/// Root's, of no particular time: two archives of one sidecar are the same bytes.
fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_sidecar_can_be_executed_and_is_roots() {
        assert_eq!(entries(&of_sidecar(b"elf").unwrap()), [(SIDECAR.to_owned(), 0o755, 0, "elf".to_owned())]);
        assert_eq!(entries(&empty().unwrap()), [(".moat/bin".to_owned(), 0o755, 0, String::new())]);
    }

    /// Path, mode, owner, text.
    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, u64, String)> {
        let mut archive = tar::Archive::new(&mut bytes);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let path = entry.path().unwrap().display().to_string();
            let header = entry.header();
            seen.push((path, header.mode().unwrap(), header.uid().unwrap(), text));
        }
        seen
    }
}
