//! The machine that a container runs in: here, namespaces with a root directory of their own. A real guest belongs behind
//! the same three functions: [`command`] starts one, [`connect`] and [`listen`] are its socket relay's far end.
//!
//! [`become_it`] is what `unshare` starts in them, as their first process: it mounts, gives up what the container does not
//! get, and becomes the container's program.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt, symlink},
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use caps::{CapSet, Capability};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{Gid, Uid, chdir, pivot_root, setgroups, sethostname, setresgid, setresuid, setsid},
};

use super::{
    Answer, Refusal,
    store::{Container, Store},
};

/// What starts it; `terminal` is its end of one.
pub(crate) fn command(container: &Container, terminal: Option<&Path>) -> Answer<Command> {
    let mut command = Command::new("unshare");
    command
        .args(["--fork", "--pid", "--mount", "--uts", "--ipc", "--net", "--kill-child=KILL", "--"])
        .arg(std::env::current_exe()?)
        .arg("__machine")
        .arg(&container.directory)
        .args(terminal);
    Ok(command)
}

/// To a socket in the machine: on the container's root file system, as its relay finds it, and nowhere else.
pub(crate) fn connect(container: &Container, guest: &str) -> io::Result<UnixStream> {
    UnixStream::connect(inside(container, guest))
}

/// At a socket in the machine, with the mode bits of the host's.
pub(crate) fn listen(container: &Container, guest: &str, like: &Path) -> io::Result<UnixListener> {
    let path = inside(container, guest);
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(fs::metadata(like)?.permissions().mode() & 0o777))?;
    Ok(listener)
}

fn inside(container: &Container, guest: &str) -> PathBuf {
    container.root().join(guest.trim_start_matches('/'))
}

/// In the namespaces. Returns only when it failed.
pub(crate) fn become_it(directory: &str, terminal: Option<&str>) -> Refusal {
    match prepare(Path::new(directory), terminal) {
        Ok(mut command) => command.exec().into(),
        Err(refusal) => refusal,
    }
}

fn prepare(directory: &Path, terminal: Option<&str>) -> Answer<Command> {
    let called = directory.parent().and_then(Path::parent).unwrap_or(directory).join("container");
    let id = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let container = Store::beside(&called.to_string_lossy())?.container(&id)?;
    if let Some(terminal) = terminal {
        setsid()?;
        // A session's first terminal that is opened is its own.
        OpenOptions::new().read(true).write(true).custom_flags(0).open(terminal)?;
    }
    let loopback = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if !loopback.success() {
        return Err(Refusal::Said("internalError", "no loopback".to_owned()));
    }
    sethostname(&id)?;
    mounts(&container)?;
    become_user(&container)?;
    let wanted = &container.wanted;
    let mut command = Command::new(&wanted.entrypoint);
    command.args(&wanted.arguments).env_clear().envs(&container.env);
    Ok(command)
}

const NOTHING: Option<&str> = None;

fn mounts(container: &Container) -> Answer {
    let root = container.root();
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING)?;
    bind(&root, &root, false)?;
    let place = |target: &str| -> io::Result<PathBuf> {
        let place = root.join(target.trim_start_matches('/'));
        fs::create_dir_all(&place)?;
        Ok(place)
    };
    for one in &container.wanted.mounts {
        bind(&one.source, &place(&one.target)?, one.read_only)?;
    }
    for target in &container.wanted.tmpfs {
        mount(Some("tmpfs"), &place(target)?, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=1777"))?;
    }
    let dev = place("dev")?;
    mount(Some("tmpfs"), &dev, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755"))?;
    for node in ["full", "null", "random", "tty", "urandom", "zero"] {
        fs::write(dev.join(node), "")?;
        bind(&Path::new("/dev").join(node), &dev.join(node), false)?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, dev.join(name))?;
    }
    let pts = Some("newinstance,ptmxmode=0666,mode=0620");
    mount(Some("devpts"), &place("dev/pts")?, Some("devpts"), MsFlags::MS_NOSUID, pts)?;
    mount(Some("tmpfs"), &place("dev/shm")?, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=1777"))?;
    mount(Some("proc"), &place("proc")?, Some("proc"), MsFlags::empty(), NOTHING)?;
    chdir(&root)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    let directory = Path::new(&container.wanted.directory);
    Ok(chdir(if directory.is_absolute() { directory } else { Path::new("/") })?)
}

fn bind(source: &Path, target: &Path, read_only: bool) -> Answer {
    mount(Some(source), target, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NOTHING, target, NOTHING, flags, NOTHING)?;
    }
    Ok(())
}

/// The container's capabilities, and its user by the image's own /etc/passwd.
fn become_user(container: &Container) -> Answer {
    for capability in caps::all() {
        let is_kept = container.wanted.capabilities.iter().any(|kept| *kept == capability.to_string());
        if !is_kept {
            // One that this kernel does not know is not there.
            let _unknown = caps::drop(None, CapSet::Bounding, capability);
        }
    }
    let _not_held = caps::drop(None, CapSet::Inheritable, Capability::CAP_SETUID);
    let (uid, gid) = ids(&container.user)?;
    if uid != 0 {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
    }
    Ok(())
}

fn ids(user: &str) -> Answer<(u32, u32)> {
    let (name, group) = user.split_once(':').unwrap_or((user, user));
    if let (Ok(uid), Ok(gid)) = (name.parse(), group.parse()) {
        return Ok((uid, gid));
    }
    let passwd = fs::read_to_string("/etc/passwd")?;
    let entry = passwd.lines().find(|line| line.split(':').next() == Some(name));
    let mut numbers = entry.unwrap_or_default().split(':').skip(2).filter_map(|field| field.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(uid), Some(gid)) => Ok((uid, gid)),
        _ if name.is_empty() => Ok((0, 0)),
        _ => Err(Refusal::Said("notFound", format!("user {name} not found"))),
    }
}
