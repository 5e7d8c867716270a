//! What of the host's files the sandbox does not get to see. Pure, but for [`survey`].
//!
//! Everything else of the root file system stays visible, read-only, so that the tools of the host work inside.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
};

/// Directories of the root that the sandbox has its own of, or none.
pub(super) const TOP_LEVEL: [&str; 13] = [
    "boot",
    "dev",
    "home",
    "lost+found",
    "media",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "workspace",
    "Volumes",
];

/// Directories that hold the system: nobody's home, whatever /etc/passwd says.
const SYSTEM: [&str; 13] = [
    "/", "/bin", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/nix", "/opt", "/sbin", "/srv", "/usr",
    "/var",
];
/// Below these are programs and libraries only.
const PROGRAMS: [&str; 6] = ["/bin", "/lib", "/lib64", "/nix/store", "/sbin", "/usr"];

/// What is hidden: directories become empty, sockets become empty files.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Hidden {
    pub(super) directories: BTreeSet<PathBuf>,
    pub(super) files: BTreeSet<PathBuf>,
}

impl Hidden {
    /// Hides a directory, wherever links lead.
    pub(super) fn directory(&mut self, path: &Path) {
        if let Some(path) = fs::canonicalize(path).ok().filter(|path| may_be_hidden(path) && path.is_dir()) {
            self.directories.insert(path);
        }
    }

    /// Hides a directory that must be hidden. `Err`: it is one that the sandbox cannot do without.
    pub(super) fn secret(&mut self, path: &Path) -> Result<(), PathBuf> {
        match fs::canonicalize(path) {
            Ok(path) if SYSTEM.iter().any(|system| path == Path::new(system)) => Err(path),
            Ok(path) => {
                self.directories.insert(path);
                Ok(())
            }
            // What is not there needs no hiding; what cannot be looked at is no secret that could be kept.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(_) => Err(path.to_path_buf()),
        }
    }

    /// Hides a file, wherever links lead.
    pub(super) fn file(&mut self, path: &Path) {
        if let Some(path) = fs::canonicalize(path).ok().filter(|path| !path.is_dir()) {
            self.files.insert(path);
        }
    }

    /// Without what lies below something that is hidden anyway.
    pub(super) fn minimal(mut self) -> Self {
        let outer = self.directories.clone();
        let covered =
            |path: &Path| starts_in_own(path) || path.ancestors().skip(1).any(|above| outer.contains(above));
        self.directories.retain(|path| !covered(path));
        self.files.retain(|path| !covered(path));
        self
    }
}

/// Is the path in a top-level directory that the sandbox does not take from the host?
fn starts_in_own(path: &Path) -> bool {
    match path.components().nth(1) {
        Some(Component::Normal(first)) => TOP_LEVEL.iter().any(|own| first == *own),
        _ => false,
    }
}

fn may_be_hidden(path: &Path) -> bool {
    let program = PROGRAMS.iter().any(|program| path.starts_with(program));
    path.is_absolute() && !program && !SYSTEM.iter().any(|system| path == Path::new(system))
}

/// Adds the homes of this machine's people, the private places of daemons, and every socket that has a path.
pub(super) fn survey(hidden: &mut Hidden) {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    for home in homes(&passwd) {
        hidden.directory(Path::new(home));
    }
    if !fs::symlink_metadata("/var/run").is_ok_and(|meta| meta.is_symlink()) {
        hidden.directory(Path::new("/var/run"));
    }
    let sockets = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    for socket in socket_paths(&sockets) {
        hidden.file(Path::new(socket));
    }
}

/// The homes of root and of people (not of services).
fn homes(passwd: &str) -> impl Iterator<Item = &str> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let uid: u32 = fields.nth(2)?.parse().ok()?;
        let home = fields.nth(2)?;
        (uid == 0 || (1000..65534).contains(&uid)).then_some(home)
    })
}

/// The paths of /proc/net/unix, without the abstract ones.
fn socket_paths(table: &str) -> BTreeSet<&str> {
    // Num RefCount Protocol Flags Type St Inode Path
    let path = |line: &'_ str| -> Option<usize> { line.find(" /").map(|at| at + 1) };
    table.lines().filter_map(|line| path(line).and_then(|at| line.get(at..))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test]
    fn people_s_homes() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/x\n\
                      alice:x:1000:1000::/data/alice:/bin/sh\nnobody:x:65534:65534::/nonexistent:/x\nbroken\n";
        assert_eq!(homes(passwd).collect::<Vec<_>>(), ["/root", "/data/alice"]);
    }

    #[test]
    fn sockets_with_a_path() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     ffff8880: 00000002 00000000 00010000 0001 01 20 /var/lib/x/a b.sock\n\
                     ffff8881: 00000002 00000000 00010000 0001 01 21 @/tmp/abstract\n\
                     ffff8882: 00000003 00000000 00000000 0001 03 22\n";
        assert_eq!(socket_paths(table).into_iter().collect::<Vec<_>>(), ["/var/lib/x/a b.sock"]);
    }

    #[test]
    fn what_is_covered_is_not_hidden_twice() {
        let set = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<BTreeSet<_>>();
        let hidden = Hidden {
            directories: set(&["/home/alice", "/data", "/data/moat", "/srv/moat"]),
            files: set(&["/tmp/x.sock", "/data/y.sock", "/var/z.sock"]),
        };
        let expected = Hidden { directories: set(&["/data", "/srv/moat"]), files: set(&["/var/z.sock"]) };
        assert_eq!(hidden.minimal(), expected);
    }

    #[test_case("/" => false)]
    #[test_case("/usr" => false)]
    #[test_case("/usr/sbin" => false; "programs")]
    #[test_case("/opt" => false)]
    #[test_case("/opt/alice" => true)]
    #[test_case("/var/lib/alice" => true)]
    #[test_case("relative" => false)]
    fn homes_that_may_be_hidden(path: &str) -> bool {
        may_be_hidden(Path::new(path))
    }
}
