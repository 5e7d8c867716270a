//! A machine of namespaces with a root directory of their own: of this machine's, or, the same code, of a guest's.
//!
//! [`become_it`] is what `unshare` starts in them, as their first process: it mounts, gives up what the container does not
//! get, and becomes the container's program.

use std::{
    fs, io,
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use caps::{CapSet, Capability};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{Gid, Pid, Uid, chdir, pivot_root, setgroups, sethostname, setresgid, setresuid},
};

use super::Exec;
use crate::{
    Answer, Refusal,
    store::{Around, Container},
    terminal,
};

/// For the machine's first process to be there.
const UP: Duration = Duration::from_secs(10);

/// What starts it; `terminal` is its end of one.
pub(crate) fn command(container: &Container, terminal: Option<&Path>) -> Answer<Command> {
    let mut command = Command::new("unshare");
    command
        .args(["--fork", "--kill-child=KILL"])
        .args(namespaces(container))
        .arg("--")
        .arg(std::env::current_exe()?)
        .arg("__machine")
        .arg(&container.directory)
        .args(terminal);
    Ok(command)
}

/// A guest's containers have its network and IPC, as Apple's do; this machine's never.
fn namespaces(container: &Container) -> &'static [&'static str] {
    const ALL: [&str; 5] = ["--pid", "--mount", "--uts", "--ipc", "--net"];
    if container.around == Around::Itself { &ALL[..3] } else { &ALL }
}

/// What starts a program beside the first process.
pub(crate) fn exec(container: &Container, pid: Pid, exec: &Exec) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &pid.to_string(), "--root"]).args(namespaces(container));
    command.arg(format!("--wd={}", exec.directory));
    let user = exec.user.as_ref().unwrap_or(&container.user);
    if let Some((uid, gid)) = user.split_once(':') {
        command.args(["--setuid", uid, "--setgid", gid]);
    }
    command
        .arg("--")
        .args(&exec.words)
        .env_clear()
        .envs(&container.env)
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
    command
}

/// `unshare` has one child: the machine's first process.
pub(crate) fn first_process(child: &Child) -> Answer<Pid> {
    let until = Instant::now() + UP;
    let path = format!("/proc/{0}/task/{0}/children", child.id());
    loop {
        let children = fs::read_to_string(&path).unwrap_or_default();
        if let Some(pid) = children.split_whitespace().next().and_then(|pid| pid.parse().ok()) {
            return Ok(Pid::from_raw(pid));
        }
        if Instant::now() > until {
            return Err(Refusal::Said("internalError", "the machine did not start".to_owned()));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// To a socket in the machine: on the container's root file system, as its relay finds it, and nowhere else.
pub(crate) fn connect(container: &Container, guest: &str) -> io::Result<UnixStream> {
    UnixStream::connect(inside(container, guest))
}

/// At a socket in the machine, with these mode bits.
pub(crate) fn listen(container: &Container, guest: &str, mode: u32) -> io::Result<UnixListener> {
    let path = inside(container, guest);
    fs::create_dir_all(path.parent().unwrap_or(&path))?;
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

fn inside(container: &Container, guest: &str) -> PathBuf {
    container.root().join(guest.trim_start_matches('/'))
}

/// In the namespaces. Returns only when it failed.
pub(crate) fn become_it(directory: &Path, terminal: Option<&Path>) -> Refusal {
    match prepare(directory, terminal) {
        Ok(mut command) => command.exec().into(),
        Err(refusal) => refusal,
    }
}

fn prepare(directory: &Path, terminal: Option<&Path>) -> Answer<Command> {
    let container = Container::load(directory)?;
    if let Some(terminal) = terminal {
        terminal::take(terminal)?;
    }
    let loopback = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if !loopback.success() {
        return Err(Refusal::Said("internalError", "no loopback".to_owned()));
    }
    sethostname(container.id())?;
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
