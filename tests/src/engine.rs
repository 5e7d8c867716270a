//! Container engines of the tests' own: real ones, started by hand as root, on sockets and directories of their own, with
//! one image made of what this machine has. Nothing is fetched, and [`stop`] leaves nothing.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Outcome, Trouble,
    clock::eventually,
    processes,
    rig::{Ran, binary},
    trouble::ensure,
};

/// The image of most tests: busybox, bash, and what the fixture client needs. Its user is root.
pub const IMAGE: &str = "localhost/moat-test:base";
/// An engine comes up, or goes, within this.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    /// Its socket.
    pub socket: PathBuf,
    directory: PathBuf,
    daemon: Mutex<Child>,
    /// The bridge device that it made.
    device: Option<&'static str>,
}

/// An engine that does nothing for a while.
#[derive(Debug)]
pub struct Frozen(Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        let _gone = kill(self.0, Signal::SIGCONT);
    }
}

static DOCKER: OnceLock<Result<Engine, String>> = OnceLock::new();
static PODMAN: OnceLock<Result<Engine, String>> = OnceLock::new();

/// Docker; started by the first who asks.
///
/// # Errors
/// When it does not start.
pub fn docker() -> Outcome<&'static Engine> {
    of(&DOCKER, start_docker)
}

/// podman; started by the first who asks.
///
/// # Errors
/// When it does not start.
pub fn podman() -> Outcome<&'static Engine> {
    of(&PODMAN, start_podman)
}

fn of(
    engine: &'static OnceLock<Result<Engine, String>>,
    start: fn() -> Outcome<Engine>,
) -> Outcome<&'static Engine> {
    let started = engine.get_or_init(|| start().map_err(|trouble| trouble.to_string()));
    started.as_ref().map_err(|text| Trouble::new(text.clone()))
}

/// Ends every engine that was started, and says what it could not take away.
pub fn stop() -> Vec<String> {
    let started = [&DOCKER, &PODMAN].into_iter().filter_map(|engine| engine.get()?.as_ref().ok());
    started.flat_map(Engine::end).chain(crate::apple::stop()).collect()
}

fn start_docker() -> Outcome<Engine> {
    let directory = directory("docker")?;
    let socket = directory.join("d.sock");
    let device = to_be_made("docker0");
    let mut command = Command::new("dockerd");
    command
        .arg("--data-root")
        .arg(directory.join("data"))
        .arg("--exec-root")
        .arg(directory.join("exec"))
        .arg("--pidfile")
        .arg(directory.join("pid"))
        .arg(format!("--host=unix://{}", socket.display()))
        .args(["--iptables=false", "--ip6tables=false", "--ip-masq=false"]);
    Engine::start(command, directory, socket, device)
}

/// A bridge that was there stays, of course.
fn to_be_made(device: &'static str) -> Option<&'static str> {
    (!Path::new("/sys/class/net").join(device).exists()).then_some(device)
}

fn start_podman() -> Outcome<Engine> {
    let directory = directory("podman")?;
    let socket = directory.join("p.sock");
    // Its own limits are higher than what a machine without a service manager may give.
    let conf = directory.join("containers.conf");
    fs::write(&conf, "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n")?;
    let mut command = Command::new("podman");
    command
        .env("CONTAINERS_CONF", conf)
        // It forgets the archives of images there.
        .env("TMPDIR", &directory)
        .arg("--root")
        .arg(directory.join("storage"))
        .arg("--runroot")
        .arg(directory.join("run"))
        .arg("--tmpdir")
        .arg(directory.join("tmp"))
        .args(["--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=runc"])
        .args(["system", "service", "--time=0", &format!("unix://{}", socket.display())]);
    // Its networks are CNI's here; those of netavark go with their last container.
    Engine::start(command, directory, socket, to_be_made("cni-podman0"))
}

/// In /var/tmp: what an engine keeps is large, and a socket's path short.
fn directory(name: &str) -> Outcome<PathBuf> {
    let directory = PathBuf::from(format!("/var/tmp/moat-{name}-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

impl Engine {
    fn start(
        mut command: Command,
        directory: PathBuf,
        socket: PathBuf,
        device: Option<&'static str>,
    ) -> Outcome<Self> {
        let log = directory.join("log");
        let daemon = command
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log)?)
            .stderr(fs::File::options().append(true).open(&log)?)
            .spawn()?;
        let engine = Self { socket, directory, daemon: Mutex::new(daemon), device };
        let answers = || engine.client(&["version"]).ok().filter(|ran| ran.code == 0).map(|_| ());
        let up = eventually("the engine answers", PATIENCE, answers).and_then(|()| engine.make_image());
        up.map_err(|trouble| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            let last: Vec<&str> = said.lines().rev().take(10).collect();
            let left = engine.end();
            Trouble::new(format!("{trouble}\n{}\n{left:?}", last.join("\n")))
        })?;
        Ok(engine)
    }

    /// What `DOCKER_HOST` is for it.
    #[must_use]
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Asks it with the `docker` client, which podman understands as well.
    ///
    /// # Errors
    /// When there is no client.
    pub fn client(&self, arguments: &[&str]) -> Outcome<Ran> {
        let mut docker = Command::new("docker");
        docker.env("DOCKER_HOST", self.host()).env("HOME", &self.directory).env("DOCKER_BUILDKIT", "0");
        Ok(docker.args(arguments).stdin(Stdio::null()).output()?.into())
    }

    /// Builds an image from the tests' own: `FROM` is written already.
    ///
    /// # Errors
    /// When it is not built.
    pub fn build(&self, name: &str, dockerfile: &str) -> Outcome {
        let context = self.directory.join(format!("build-{}", name.replace([':', '/'], "-")));
        fs::create_dir_all(&context)?;
        fs::write(context.join("Dockerfile"), format!("FROM {IMAGE}\n{dockerfile}"))?;
        let context = context.to_string_lossy();
        self.client(&["build", "-q", "-t", name, &context])?.expect_code(0).map(|_| ())
    }

    /// The engine does nothing until this is dropped; its containers go on. Other tests wait so long.
    ///
    /// # Errors
    /// When it is gone.
    pub fn freeze(&self) -> Outcome<Frozen> {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = Pid::from_raw(i32::try_from(daemon.id())?);
        kill(pid, Signal::SIGSTOP)?;
        Ok(Frozen(pid))
    }

    fn make_image(&self) -> Outcome {
        let root = self.directory.join("image");
        make_root(&root)?;
        let archive = self.directory.join("image.tar");
        let packed = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").status()?;
        ensure(packed.success(), || "the image cannot be packed".to_owned())?;
        self.client(&["import", &archive.to_string_lossy(), IMAGE])?.expect_code(0)?;
        fs::remove_file(archive)?;
        Ok(fs::remove_dir_all(root)?)
    }

    /// The containers of an installation.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn containers(&self, home: &Path) -> Outcome<Vec<String>> {
        let label = format!("label=dev.moat.home={}", home.display());
        let listed = self.client(&["ps", "-aq", "--filter", &label])?.expect_code(0)?;
        Ok(listed.out.lines().map(str::to_owned).collect())
    }

    fn end(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        let containers = self.client(&["ps", "-aq"]).map(|ran| ran.out).unwrap_or_default();
        if !containers.trim().is_empty() {
            left.push(format!("containers: {}", containers.trim().replace('\n', " ")));
            let ids: Vec<&str> = containers.split_whitespace().collect();
            let _engine_told = self.client(&[&["rm", "-fv"], ids.as_slice()].concat());
        }
        let pid = Pid::from_raw(i32::try_from(daemon.id()).unwrap_or_default());
        let _already_gone = kill(pid, Signal::SIGTERM);
        let gone = eventually("the engine ends", PATIENCE, || daemon.try_wait().ok().flatten());
        if gone.is_err() {
            left.push("the engine itself".to_owned());
            let _already_gone = daemon.kill();
            let _nobody_waits = daemon.wait();
        }
        // Whoever tidies up after a container lives longer than the engine, and mounts what is unmounted below.
        let below = format!("{}/", self.directory.display());
        let over = || processes::marked(&below).is_empty().then_some(());
        if eventually("the engine's helpers end", PATIENCE, over).is_err() {
            left.extend(processes::marked(&below).into_iter().map(processes::named));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let ours = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for mount in ours.filter(|mount| Path::new(mount).starts_with(&self.directory)) {
            let _told_below = Command::new("umount").args(["-l", mount]).status();
        }
        if let Some(device) = self.device {
            let _not_made =
                Command::new("ip").args(["link", "delete", device]).stderr(Stdio::null()).status();
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            left.push(format!("{}: {error}", self.directory.display()));
        }
        left
    }
}

/// Makes the root file system of [`IMAGE`].
pub(crate) fn make_root(root: &Path) -> Outcome {
    for place in ["bin", "etc", "tmp", "root", "usr", "home/dev", "run", "var"] {
        fs::create_dir_all(root.join(place))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    std::os::unix::fs::chown(root.join("home/dev"), Some(1234), Some(1234))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\ndev:x:1234:1234:dev:/home/dev:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\ndev:x:1234:\n")?;
    symlink("../bin", root.join("usr/bin"))?;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.ok_or_else(|| Trouble::new("no busybox"))?;
    fs::copy(busybox, root.join("bin/busybox"))?;
    let applets = Command::new(busybox).arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|name| *name != "busybox") {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    let _an_applet_in_its_place = fs::remove_file(root.join("bin/bash"));
    fs::copy("/bin/bash", root.join("bin/bash"))?;
    for program in [PathBuf::from("/bin/bash"), binary("moat-fixture-client")?] {
        for library in libraries(&program)? {
            let place = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(place.parent().unwrap_or(root))?;
            fs::copy(&library, place)?;
        }
    }
    Ok(())
}

/// The shared libraries of a program, and its loader.
pub(crate) fn libraries(program: &Path) -> Outcome<Vec<String>> {
    let said = Command::new("ldd").arg(program).output()?;
    let words = String::from_utf8_lossy(&said.stdout).into_owned();
    Ok(words.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect())
}
