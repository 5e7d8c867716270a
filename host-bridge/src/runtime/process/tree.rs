//! The sandbox's file system, built outside of it and locked by the copy that the sandbox gets.
//!
//! ```text
//! /            a tmpfs of the builder's, gone for the sandbox
//! ├── oldroot/ the host's root
//! ├── files/   generated files, bound over the host's
//! └── newroot/ what becomes the sandbox's root: read-only
//!     ├── usr, etc, opt, var, ...      the host's, read-only, without devices and set-id
//!     ├── workspace/                   the workspace
//!     ├── home/agent, tmp, var/tmp     empty, the agent's
//!     ├── run/moat/                    the tunnel's socket
//!     ├── dev/                         a handful of harmless devices
//!     └── proc/, sys/                  proc is mounted inside; sys stays empty
//! ```
//!
//! The sandbox's mount namespace belongs to a user namespace with fewer rights, so the kernel locks every mount made
//! here together with its flags: not even root inside can undo one.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use moat_shared::plan::Ids;
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    mount::{MsFlags, mount},
    sys::stat::{Mode, mkdirat},
    unistd::{chdir, pivot_root},
};

use super::{
    etc, hide, idmap,
    ids::Users,
    network,
    spec::{BuildError, Doing, Spec},
    sys::{self, attribute},
};

/// The host's root, while the sandbox is built.
pub(super) const OLD: &str = "/oldroot";
/// The sandbox's root, until it moves in.
pub(super) const NEW: &str = "/newroot";
const FILES: &str = "/files";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where the workspace is for the sandbox.
pub(crate) const WORKSPACE: &str = "/workspace";
/// Where the agent's home is.
pub(crate) const HOME: &str = "/home/agent";
/// Where the tunnel's directory is.
pub(crate) const TUNNEL: &str = "/run/moat";

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const HARMLESS: u64 = attribute::NO_SUID | attribute::NO_DEV;

/// A mount that was taken before the host's root went out of the way.
struct Taken {
    tree: OwnedFd,
    target: PathBuf,
    source: PathBuf,
    is_dir: bool,
}

/// Builds the sandbox's root at [`NEW`]. This process must have a mount namespace of its own.
pub(super) fn build(spec: &Spec) -> Result<(), BuildError> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .doing(|| "making mounts private".to_owned())?;
    let taken = take(spec)?;
    step_aside()?;
    let root =
        Root { init: spec.users.as_built(spec.users.init()), agent: spec.users.as_built(Users::agent()) };
    root.tmpfs(Path::new(NEW), 0o755, root.init, MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
    root.host_directories()?;
    root.hide(&spec.hidden)?;
    root.own_directories()?;
    root.devices()?;
    root.generated_files(spec)?;
    for one in taken {
        root.attach(&one, &spec.secret)?;
    }
    sys::restrict(Path::new(NEW), attribute::READ_ONLY | HARMLESS, false)
        .doing(|| "making the root read-only".to_owned())
}

/// Takes workspace, mounts and the tunnel's directory while their paths mean what the user meant.
fn take(spec: &Spec) -> Result<Vec<Taken>, BuildError> {
    let disguise = idmap::Disguise::new(&spec.users)?;
    let mut taken = Vec::new();
    let mut one = |source: &Path, target: &Path, read_only: bool| -> Result<(), BuildError> {
        let source_fd = open_canonical(source).doing(|| format!("looking at {}", source.display()))?;
        let meta = fs::File::from(source_fd.try_clone().doing(|| "copying a descriptor".to_owned())?)
            .metadata()
            .doing(|| format!("looking at {}", source.display()))?;
        let tree = sys::clone_tree(&source_fd).doing(|| format!("taking {}", source.display()))?;
        let flags = HARMLESS | if read_only { attribute::READ_ONLY } else { 0 };
        disguise.restrict(&tree, source, &meta, flags)?;
        taken.push(Taken {
            tree,
            target: target.to_path_buf(),
            source: source.to_path_buf(),
            is_dir: meta.is_dir(),
        });
        Ok(())
    };
    one(&spec.workspace, Path::new(WORKSPACE), false)?;
    for mount in &spec.mounts {
        one(&mount.source, &mount.target, mount.read_only)?;
    }
    // Never disguised: the socket's modes say who may connect.
    let tree = fs::canonicalize(&spec.tunnel_dir)
        .and_then(|path| sys::clone_tree(&open_canonical(&path)?))
        .doing(|| "taking the tunnel's directory".to_owned())?;
    sys::restrict_tree(&tree, HARMLESS | attribute::NO_EXEC | attribute::READ_ONLY, None)
        .doing(|| "restricting the tunnel's directory".to_owned())?;
    taken.push(Taken { tree, target: TUNNEL.into(), source: spec.tunnel_dir.clone(), is_dir: true });
    Ok(taken)
}

/// Opens a path that was canonical when it was judged. Where it has links by now somebody is playing tricks.
fn open_canonical(path: &Path) -> io::Result<OwnedFd> {
    let how =
        OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2(nix::fcntl::AT_FDCWD, path, how)?)
}

/// Puts a tmpfs in the place of the root and the root below it.
fn step_aside() -> Result<(), BuildError> {
    let stage = "/tmp";
    mount(Some("moat"), stage, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))
        .doing(|| "mounting a file system in memory".to_owned())?;
    for name in [OLD, NEW, FILES] {
        fs::create_dir(format!("{stage}{name}")).doing(|| format!("making {name}"))?;
    }
    pivot_root(stage, &*format!("{stage}{OLD}")).map_err(|error| {
        BuildError::new("changing the root")
            .with_source(error)
            .with_hint("the process runtime does not work where the root is an initial ramdisk")
    })?;
    chdir("/").doing(|| "going to the root".to_owned())
}

/// The root in the making: who owns what in it, as the builder names them.
struct Root {
    init: Ids,
    agent: Ids,
}

impl Root {
    fn tmpfs(&self, at: &Path, mode: u32, owner: Ids, flags: MsFlags) -> Result<(), BuildError> {
        let options = format!("mode={mode:04o},uid={},gid={}", owner.uid, owner.gid);
        mount(Some("moat"), at, Some("tmpfs"), flags, Some(options.as_str()))
            .doing(|| format!("mounting an empty {}", at.display()))
    }

    /// What the host has, read-only.
    fn host_directories(&self) -> Result<(), BuildError> {
        for entry in fs::read_dir(OLD).doing(|| "listing the root".to_owned())? {
            let entry = entry.doing(|| "listing the root".to_owned())?;
            let name = entry.file_name();
            let (from, to) = (entry.path(), Path::new(NEW).join(&name));
            let kind = entry.file_type().doing(|| format!("looking at {}", from.display()))?;
            let doing = || format!("showing /{}", name.display());
            if hide::TOP_LEVEL.iter().any(|own| name == *own) {
                continue;
            } else if kind.is_symlink() {
                symlink(fs::read_link(&from).doing(doing)?, &to).doing(doing)?;
            } else if kind.is_dir() {
                fs::create_dir(&to).doing(doing)?;
                bind(&from, &to, MsFlags::MS_REC).doing(doing)?;
                sys::restrict(&to, attribute::READ_ONLY | HARMLESS, true).map_err(too_old).doing(doing)?;
            }
        }
        Ok(())
    }

    fn hide(&self, hidden: &hide::Hidden) -> Result<(), BuildError> {
        let empty = Path::new(FILES).join("empty");
        fs::write(&empty, []).doing(|| "making an empty file".to_owned())?;
        for path in &hidden.files {
            let covered = cover(|| existing(path), |target| bind(&empty, &target.path(), MsFlags::empty()))?;
            covered.doing(|| format!("hiding {}", path.display()))?;
        }
        for path in &hidden.directories {
            let Some(target) = existing(path)? else { continue };
            self.nothing(&target.path()).doing(|| format!("hiding {}", path.display()))?;
        }
        Ok(())
    }

    /// An empty directory that stays so.
    fn nothing(&self, at: &Path) -> io::Result<()> {
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("moat"), at, Some("tmpfs"), flags, Some("mode=0555,nr_inodes=1")).map_err(io::Error::from)
    }

    fn own_directories(&self) -> Result<(), BuildError> {
        let make = |path: &str| fs::create_dir_all(format!("{NEW}{path}")).doing(|| format!("making {path}"));
        for path in ["/proc", "/sys", "/dev", WORKSPACE, HOME, "/root", "/run", "/tmp"] {
            make(path)?;
        }
        let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        self.tmpfs(&inside(HOME), 0o700, self.agent, harmless)?;
        self.tmpfs(&inside("/tmp"), 0o1777, self.init, harmless)?;
        if inside("/var/tmp").is_dir() {
            self.tmpfs(&inside("/var/tmp"), 0o1777, self.init, harmless)?;
        }
        self.tmpfs(&inside("/run"), 0o755, self.init, harmless)?;
        make(TUNNEL)
    }

    fn devices(&self) -> Result<(), BuildError> {
        let dev = inside("/dev");
        self.tmpfs(&dev, 0o755, self.init, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
        for name in DEVICES {
            let (from, to) = (Path::new(OLD).join("dev").join(name), dev.join(name));
            fs::write(&to, [])
                .and_then(|()| bind(&from, &to, MsFlags::empty()))
                .and_then(|()| sys::restrict(&to, attribute::NO_SUID | attribute::NO_EXEC, false))
                .doing(|| format!("showing /dev/{name}"))?;
        }
        let links = [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ];
        for (name, target) in links {
            symlink(target, dev.join(name)).doing(|| format!("linking /dev/{name}"))?;
        }
        for name in ["pts", "shm"] {
            fs::create_dir(dev.join(name)).doing(|| format!("making /dev/{name}"))?;
        }
        let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        self.tmpfs(&dev.join("shm"), 0o1777, self.init, harmless)?;
        sys::restrict(&dev, attribute::READ_ONLY, false).doing(|| "making /dev read-only".to_owned())
    }

    /// Files of /etc that know the agent and the sandbox's name.
    fn generated_files(&self, spec: &Spec) -> Result<(), BuildError> {
        let read = |path: &str| match fs::read_to_string(format!("{OLD}{path}")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).doing(|| format!("reading {path}")),
        };
        let agent = Users::agent();
        let files = [
            ("/etc/passwd", read("/etc/passwd")?.map(|host| etc::passwd(&host, agent, Path::new(HOME)))),
            ("/etc/group", read("/etc/group")?.map(|host| etc::group(&host, agent))),
            ("/etc/hosts", read("/etc/hosts")?.map(|_| etc::hosts(&spec.hostname))),
            (RESOLV_CONF, spec.pasta.as_ref().map(|_| etc::resolv_conf(&resolv_conf(), network::RESOLVER))),
        ];
        for (path, text) in files {
            let Some(text) = text else { continue };
            let doing = || format!("replacing {path}");
            let file = Path::new(FILES).join(path.trim_start_matches("/etc/"));
            fs::write(&file, text).doing(doing)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).doing(doing)?;
            if let Ok(link) = fs::read_link(inside(path))
                && existing(Path::new(path))?.is_none()
            {
                // Into a directory that the sandbox has empty: /run, where resolvers keep their file.
                make(&Path::new("/etc").join(link), false).doing(doing)?;
            }
            let Some(target) = existing(Path::new(path))? else { continue };
            bind(&file, &target.path(), MsFlags::empty()).doing(doing)?;
            sys::restrict(&target.reopened(Path::new(path))?.path(), attribute::READ_ONLY | HARMLESS, false)
                .doing(doing)?;
        }
        Ok(())
    }

    /// Puts what was taken in its place, without moat's own directory should it be in there.
    fn attach(&self, taken: &Taken, secret: &Path) -> Result<(), BuildError> {
        let doing = || format!("mounting {}", taken.target.display());
        make(&taken.target, taken.is_dir).map_err(|error| {
            BuildError::new(doing()).with_source(error).with_hint(format!(
                "{} is not there, and can only be made below {HOME}, /run, /tmp or a new directory of the root",
                taken.target.display()
            ))
        })?;
        let target = existing(&taken.target)?.ok_or_else(|| BuildError::new(doing()))?;
        sys::attach_tree(&taken.tree, &target.0).doing(doing)?;
        let Ok(below) = secret.strip_prefix(&taken.source) else { return Ok(()) };
        if taken.target == Path::new(TUNNEL) {
            return Ok(());
        }
        if below.as_os_str().is_empty() {
            return Err(BuildError::new(format!("{} is moat's own directory", taken.source.display())));
        }
        match existing(&taken.target.join(below))? {
            Some(target) => self.nothing(&target.path()).doing(|| format!("hiding {}", secret.display())),
            None => Ok(()),
        }
    }
}

/// What the host says of its resolver; nothing, where it says nothing.
fn resolv_conf() -> String {
    let place = PathBuf::from(format!("{OLD}{RESOLV_CONF}"));
    let place = match fs::read_link(&place) {
        Ok(link) if link.is_absolute() => PathBuf::from(format!("{OLD}{}", link.display())),
        _ => place,
    };
    fs::read_to_string(place).unwrap_or_default()
}

/// A place below [`NEW`], held open, found without leaving it by any link.
struct Place(OwnedFd);

impl Place {
    fn path(&self) -> PathBuf {
        Path::new(OLD).join(format!("proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// The same place, seen with what was mounted on it since.
    fn reopened(&self, path: &Path) -> Result<Self, BuildError> {
        existing(path)?.ok_or_else(|| BuildError::new(format!("{} is gone", path.display())))
    }
}

/// Covers what is found. What is gone by now needs no hiding; what goes while it is covered, which the kernel answers with
/// ENOENT, may have been made anew.
fn cover<T>(
    mut find: impl FnMut() -> Result<Option<T>, BuildError>,
    mut cover: impl FnMut(T) -> io::Result<()>,
) -> Result<io::Result<()>, BuildError> {
    /// How often one may go and come back meanwhile.
    const REMADE: usize = 8;
    for _ in 0..REMADE {
        let Some(found) = find()? else { return Ok(Ok(())) };
        match cover(found) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => return Ok(done),
        }
    }
    Ok(Err(io::ErrorKind::NotFound.into()))
}

/// The place that `path` is for the sandbox, if there is one.
fn existing(path: &Path) -> Result<Option<Place>, BuildError> {
    Ok(open_below(path).doing(|| format!("finding {}", path.display()))?.map(Place))
}

fn open_below(path: &Path) -> io::Result<Option<OwnedFd>> {
    let root = fs::File::open(NEW)?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .mode(Mode::empty())
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(&root, path, how) {
        Ok(fd) => Ok(Some(fd)),
        Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes a mount point and the directories above it where they are missing. The workspace is mounted by now, and the
/// links in it are a stranger's: each step is taken within the sandbox's root, and none follows a link that leaves it.
fn make(path: &Path, is_dir: bool) -> io::Result<()> {
    let mut above = open_below(Path::new("/"))?.ok_or(io::ErrorKind::NotFound)?;
    for part in path.ancestors().collect::<Vec<_>>().into_iter().rev().skip(1) {
        if let Some(there) = open_below(part)? {
            above = there;
            continue;
        }
        let name = part.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        if part == path && !is_dir {
            let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            drop(openat(&above, name, flags, Mode::from_bits_truncate(0o644))?);
        } else {
            mkdirat(&above, name, Mode::from_bits_truncate(0o755))?;
        }
        above = open_below(part)?.ok_or(io::ErrorKind::NotFound)?;
    }
    Ok(())
}

fn inside(path: &str) -> PathBuf {
    PathBuf::from(format!("{NEW}{path}"))
}

fn bind(from: &Path, to: &Path, flags: MsFlags) -> io::Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | flags, None::<&str>).map_err(io::Error::from)
}

/// `mount_setattr` came with Linux 5.12.
fn too_old(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => {
            io::Error::new(error.kind(), "this kernel is too old: Linux 5.12 or later is needed")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_while_it_is_covered_is_looked_for_again() {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let tried = |found: &[u8], ends: fn(u8) -> bool| {
            let (mut found, mut covered) = (found.iter().copied(), Vec::new());
            let done = cover(
                || Ok(found.next()),
                |socket| {
                    covered.push(socket);
                    if ends(socket) { Ok(()) } else { Err(gone()) }
                },
            );
            (done.unwrap().is_ok(), covered)
        };
        assert_eq!(tried(&[], |_| true), (true, vec![]), "gone before");
        assert_eq!(tried(&[1], |_| false), (true, vec![1]), "gone meanwhile, for good");
        assert_eq!(tried(&[1, 2, 3], |socket| socket == 2), (true, vec![1, 2]), "made anew, and covered");
        assert!(!tried(&[0; 99], |_| false).0, "not without end");
        let refused = cover(|| Ok(Some(())), |()| Err(io::ErrorKind::PermissionDenied.into()));
        assert!(refused.unwrap().is_err(), "another error is one");
    }
}
