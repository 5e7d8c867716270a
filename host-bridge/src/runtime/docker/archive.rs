//! What is put into a container before it starts: the sidecar, and a place for its agent to live where the image has none.

use std::io;

/// Where the archive is unpacked. Also the one place that can be written in a container whose root file system cannot.
pub(super) const AT: &str = super::OWN;
/// The sidecar, below it.
const SIDECAR: &str = "moat-sidecar";

/// The sidecar's path in the sandbox.
pub(super) fn sidecar() -> String {
    format!("{}/{SIDECAR}", super::OWN)
}

/// The archive, whole, in memory.
pub(super) fn of_sidecar(sidecar: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::with_capacity(sidecar.len() + 8 * 1024));
    let mut home = header(tar::EntryType::Directory, 0, 0o1777);
    archive.append_data(&mut home, "home", io::empty())?;
    append(&mut archive, SIDECAR, sidecar, 0o755)?;
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
    fn the_sidecar_can_be_executed_and_the_home_is_anybodys() {
        let bytes = of_sidecar(b"elf").unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let path = entry.path().unwrap().display().to_string();
            let header = entry.header();
            seen.push((path, header.mode().unwrap(), header.uid().unwrap(), text));
        }
        let wanted = [("home", 0o1777, ""), (SIDECAR, 0o755, "elf")];
        assert_eq!(seen, wanted.map(|(path, mode, text)| (path.to_owned(), mode, 0, text.to_owned())));
    }
}
