//! `moat sidecar export PATH`: the embedded sidecar, for images of the user's own.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{Context, Failure, Outcome, print};
use crate::runtime::embed;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Write the sidecar to a file, executable
    Export {
        /// The file; an existing one is replaced
        path: PathBuf,
    },
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let Verb::Export { path } = self.verb;
        let sidecar = embed::sidecar().map_err(|error| Failure::from_error(&error))?.bytes;
        if context.global.dry_run {
            print::note(&format!("Would write {} bytes to {}", sidecar.len(), path.display()));
            return Ok(0);
        }
        export(sidecar, &path)
            .map_err(|error| Failure::new(format!("writing {}: {error}", path.display())))?;
        print::note(&format!("Sidecar written to {}", path.display()));
        Ok(0)
    }
}

/// Nobody ever sees half of it: written beside, then renamed.
fn export(sidecar: &[u8], path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
    let mut draft = std::ffi::OsString::from(".");
    draft.push(name);
    draft.push(format!(".{}", std::process::id()));
    let draft = path.with_file_name(draft);
    let written = fs::write(&draft, sidecar)
        .and_then(|()| fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        let _already_reported = fs::remove_file(&draft);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_executable_and_leaves_no_draft() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("moat-sidecar");
        fs::write(&path, "old").unwrap();
        export(b"new", &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
