//! What lies on the host for one container: the sidecar, in a directory of its own that is shared read-only, and a socket.
//!
//! ```text
//! proxy/apple/<container>/        0700
//! ├── bin/moat-sidecar            shared, read-only
//! ├── o                           made by the tool: the bridge dials it
//! ├── i                           ours: the container's machine dials it
//! └── holder                      whose it is
//! ```
//!
//! The tool shares the directory around a file: what is shared has nothing else in it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{
    control::api::Process,
    home::{Home, private_dir},
    runtime::{RuntimeError, owner},
};

/// The longest path of a socket on macOS, where `sun_path` has 104 bytes with the final zero.
const SOCKET: usize = 103;

/// The directory.
#[derive(Debug, Clone)]
pub(super) struct Stage(PathBuf);

impl Stage {
    /// Where it will be; nothing is there yet.
    pub(super) fn plan(home: &Home, name: &str) -> Result<Self, RuntimeError> {
        let stage = Self(directory(home).join(name));
        let length = stage.out_of().as_os_str().len();
        if length > SOCKET {
            return Err(RuntimeError::Refused {
                text: format!(
                    "the path {} is {length} bytes long, too long for a socket",
                    stage.out_of().display()
                ),
                hint: Some("set MOAT_HOME to a shorter one".to_owned()),
            });
        }
        Ok(stage)
    }

    pub(super) fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }

    pub(super) fn out_of(&self) -> PathBuf {
        self.0.join("o")
    }

    pub(super) fn host_socket(&self) -> PathBuf {
        self.0.join("i")
    }

    /// Makes it.
    pub(super) fn make(&self, sidecar: &[u8]) -> io::Result<()> {
        private_dir(&self.0)?;
        let Process { pid, started } = Process::current();
        write(&self.0.join("holder"), format!("{pid}.{started}").as_bytes(), 0o600)?;
        private_dir(&self.bin())?;
        write(&self.bin().join("moat-sidecar"), sidecar, 0o755)?;
        // The image's user has to come past it.
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(self.bin(), fs::Permissions::from_mode(0o755))
    }

    /// Takes it away. One that is not there is as good.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(bytes)
}

/// Where all of them are.
fn directory(home: &Home) -> PathBuf {
    home.proxy().join("apple")
}

/// Those whose holders have died.
pub(super) fn left_behind(home: &Home) -> io::Result<Vec<Stage>> {
    let entries = match fs::read_dir(directory(home)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut left = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let holder = fs::read_to_string(path.join("holder")).ok();
        // One without a name is being made, or being removed.
        if holder.as_deref().and_then(owner::holder).is_some_and(|holder| !holder.is_alive()) {
            left.push(Stage(path));
        }
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_is_made_and_found_when_its_holder_has_died() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        assert!(left_behind(&home).unwrap().is_empty());
        let stage = Stage::plan(&home, "moat-1").unwrap();
        stage.make(b"elf").unwrap();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(stage.0.clone()), mode(stage.bin())), (0o700, 0o755));
        assert_eq!(fs::read_dir(stage.bin()).unwrap().count(), 1, "nothing else is shared");
        assert!(left_behind(&home).unwrap().is_empty(), "its holder lives");
        fs::write(stage.0.join("holder"), "1.1").unwrap();
        assert_eq!(left_behind(&home).unwrap()[0].0, stage.0);
        stage.remove().unwrap();
        stage.remove().unwrap();
        assert!(left_behind(&home).unwrap().is_empty());
    }

    #[test]
    fn a_home_that_is_too_deep_is_told() {
        let error = Stage::plan(&Home::at(format!("/{}", "a".repeat(90))), "moat-1").unwrap_err();
        assert!(error.to_string().contains("too long for a socket"), "{error}");
    }
}
