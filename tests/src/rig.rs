//! A throw-away installation: its own home, workspace and bridge, driven through the real `moat` binary.
//!
//! Dropping it ends the bridge by its pid and fails the test when a process of the rig is left.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Outcome, Trouble,
    apple::Apple,
    clock::eventually,
    engine,
    guest::{Guest, Settings},
    inside::Inside,
    pki::Authority,
    place::Place,
    processes,
    trouble::ensure,
};

/// How long a command of moat may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The installation.
#[derive(Debug)]
pub struct Rig {
    /// Its name is in every process's environment, arguments or directory.
    mark: String,
    root: TempDir,
    workspace: PathBuf,
    /// Where its sandboxes are made.
    place: Place,
    /// The stand-in that makes them, if they are Apple's.
    apple: Option<Apple>,
    /// Trusted by this rig's bridge alone.
    pub authority: Authority,
    /// More environment for `moat`.
    pub env: BTreeMap<String, String>,
    /// A command that starts `moat`: `unshare` and its like.
    pub prefix: Vec<String>,
}

/// The directory of this build's binaries.
fn binaries() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let directory = own.parent()?;
    let directory = if directory.ends_with("deps") { directory.parent()? } else { directory };
    Some(directory.to_owned())
}

/// Cargo's target directory.
#[must_use]
pub fn target_directory() -> Option<PathBuf> {
    binaries()?.parent().map(Path::to_owned)
}

/// A binary of this build.
///
/// # Errors
/// When it is not there.
pub fn binary(name: &str) -> Outcome<PathBuf> {
    let path = binaries().map(|directory| directory.join(name)).filter(|path| path.exists());
    path.ok_or_else(|| Trouble::new(format!("{name} has not been built")))
}

/// The `moat` of all rigs.
static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();

/// Has all rigs use this `moat`, unless one has been built or named before.
pub fn use_moat(path: PathBuf) {
    BUILT.get_or_init(|| Ok(path));
}

/// The `moat` of this build; builds it first, once, unless `MOAT_BIN` names one.
///
/// # Errors
/// When it cannot be built.
pub fn moat_binary() -> Outcome<PathBuf> {
    BUILT.get_or_init(|| build_moat().map_err(|trouble| trouble.to_string())).clone().map_err(Trouble::new)
}

fn build_moat() -> Outcome<PathBuf> {
    if let Some(given) = std::env::var_os("MOAT_BIN") {
        return Ok(given.into());
    }
    let directory = binaries().ok_or_else(|| Trouble::new("where is this binary?"))?;
    let mut build = cargo();
    // Both packages, so that the features are those of the build that made this binary.
    build.args(["build", "--quiet", "--locked", "--package", "moat-tests", "--package", "moat-host-bridge"]);
    build.args(["--bin", "moat", "--bin", "moat-fixture-client", "--bin", "moat-fixture-model"]);
    if directory.ends_with("release") {
        build.arg("--release");
    }
    let target = directory.parent().unwrap_or(&directory);
    let output = build.arg("--target-dir").arg(target).stdin(Stdio::null()).output()?;
    ensure(output.status.success(), || {
        format!("moat cannot be built:\n{}", String::from_utf8_lossy(&output.stderr))
    })?;
    Ok(directory.join("moat"))
}

/// Cargo in this workspace, as if a person had called it.
#[must_use]
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    // `cargo run` and `cargo test` tell us which package we are. Told to cargo again, that changes the fingerprint of
    // build scripts that read it (ring's), and everything would be built anew, each time that one follows the other.
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_of_a_package(&name.to_string_lossy())) {
        cargo.env_remove(name);
    }
    cargo
}

/// Does cargo set this variable for what it runs, by what that is?
fn is_of_a_package(name: &str) -> bool {
    const OWN: [&str; 4] = ["CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE", "OUT_DIR"];
    OWN.contains(&name) || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}

/// What a command of moat left behind.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; 128 and the signal's number when it died.
    pub code: i32,
    /// Its stdout.
    pub out: String,
    /// Its stderr.
    pub err: String,
}

impl Ran {
    /// Fails unless the exit code is this.
    ///
    /// # Errors
    /// When it is another.
    pub fn expect_code(self, code: i32) -> Outcome<Self> {
        ensure(self.code == code, || {
            format!("exit code {}, not {code}\n{}\n{}", self.code, self.out, self.err)
        })?;
        Ok(self)
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let signal = output.status.signal().map(|signal| 128 + signal);
        Self {
            code: output.status.code().or(signal).unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Rig {
    /// A new one. The socket below its home must fit into 107 bytes, so it lies in /tmp; the workspace lies in the
    /// target directory, where the client can be a hard link.
    ///
    /// # Errors
    /// When a directory cannot be made or moat not be built.
    pub fn new() -> Outcome<Self> {
        moat_binary()?;
        let root = tempfile::Builder::new().prefix("mt-").rand_bytes(8).tempdir_in("/tmp")?;
        let mark = root.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let target = target_directory().ok_or_else(|| Trouble::new("where is the target directory?"))?;
        let workspace = target.join("rigs").join(&mark);
        // The repository around the target directory is not the workspace's.
        fs::create_dir_all(workspace.join(".git"))?;
        fs::create_dir(root.path().join("user"))?;
        let authority = Authority::new()?;
        authority.write_pem(&root.path().join("ca.pem"))?;
        let place = Place::here();
        let mut env = BTreeMap::from([("MOAT_RUNTIME".to_owned(), place.runtime().to_owned())]);
        if let Some(engine) = place.engine()? {
            let variable = if place == Place::Podman { "CONTAINER_HOST" } else { "DOCKER_HOST" };
            env.insert(variable.to_owned(), engine.host());
        }
        if place == Place::Published {
            env.insert("MOAT_TUNNEL".to_owned(), "published".to_owned());
        }
        let in_guests = place == Place::AppleGuest;
        let apple = (place.runtime() == "apple").then(|| Apple::new(root.path(), in_guests)).transpose()?;
        if let Some(apple) = &apple {
            env.insert("PATH".to_owned(), apple.path());
        }
        Ok(Self { mark, root, workspace, place, apple, authority, env, prefix: Vec::new() })
    }

    /// A text that no other rig has.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// What is removed with it.
    #[must_use]
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// `MOAT_HOME`.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.root.path().join("h")
    }

    /// The user's home.
    #[must_use]
    pub fn user_home(&self) -> PathBuf {
        self.root.path().join("user")
    }

    /// The certificate that this rig trusts.
    #[must_use]
    pub fn trust(&self) -> PathBuf {
        self.root.path().join("ca.pem")
    }

    /// The workspace.
    #[must_use]
    pub fn workspace(&self) -> &Path {
        &self.workspace
    }

    /// Writes the workspace's moat.yaml; in a container's, what makes it one comes last.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn config(&self, yaml: &str) -> Outcome {
        let mut yaml = yaml.to_owned();
        if !matches!(self.place, Place::Process | Place::Guest) {
            let network = if self.place == Place::Published { "open" } else { "none" };
            for (key, line) in [
                ("image:", format!("image: {}\n", engine::IMAGE)),
                ("network:", format!("network: {{mode: {network}}}\n")),
            ] {
                if !yaml.lines().any(|line| line.starts_with(key)) {
                    yaml.push_str(&line);
                }
            }
        }
        Ok(fs::write(self.workspace.join("moat.yaml"), yaml)?)
    }

    /// `moat` with these arguments, in this rig's environment and nothing else of ours.
    ///
    /// # Errors
    /// When it is not built.
    pub fn moat(&self, arguments: &[&str]) -> Outcome<Command> {
        let moat = moat_binary()?;
        let mut command = match self.prefix.split_first() {
            None => Command::new(moat),
            Some((program, before)) => {
                let mut command = Command::new(program);
                command.args(before).arg(moat);
                command
            }
        };
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.user_home())
            .env("TERM", "dumb")
            .env("MOAT_HOME", self.home())
            .env("MOAT_KEYRING_BACKEND", "file")
            .env("MOAT_NO_PROMPT", "1")
            .env("SSL_CERT_FILE", self.root.path().join("ca.pem"))
            .envs(&self.env)
            .current_dir(&self.workspace)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs `moat` to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, arguments: &[&str]) -> Outcome<Ran> {
        Ok(self.moat(arguments)?.output()?.into())
    }

    /// Runs a command of the sandbox to its end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn sandboxed(&self, command: &[&str]) -> Outcome<Ran> {
        let workspace = self.workspace.to_string_lossy();
        self.run(&[&["run", &workspace, "--"], command].concat())
    }

    /// Stores a credential as `moat grant mcp` does, bound to the host of `url`.
    ///
    /// # Errors
    /// When moat refuses.
    pub fn grant(&self, server: &str, secret: &str, url: &str) -> Outcome {
        let mut child = self
            .moat(&["grant", "mcp", server, "--url", url])?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(format!("{secret}\n").as_bytes())?;
        }
        Ran::from(child.wait_with_output()?).expect_code(0).map(|_| ())
    }

    /// Starts a sandbox with the fixture client in it.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn console(&self) -> Outcome<Inside> {
        self.console_with(&[])
    }

    /// The same, with more flags for `moat run`.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn console_with(&self, flags: &[&str]) -> Outcome<Inside> {
        if self.place == Place::Guest {
            ensure(flags.is_empty(), || "a guest has no flags".to_owned())?;
            return Ok(Guest::start(self, &Settings::default())?.into_inside());
        }
        let client = self.place("moat-fixture-client")?;
        let workspace = self.workspace.to_string_lossy();
        let mark = format!("RIG={}", self.mark);
        let arguments = [&["run", &workspace, "-e", &mark], flags, &["--", &client]].concat();
        Inside::start(self.moat(&arguments)?)
    }

    /// Puts a binary of this build into the workspace; its path as the sandbox sees it.
    ///
    /// # Errors
    /// When it can be neither linked nor copied.
    pub fn place(&self, name: &str) -> Outcome<String> {
        let place = self.workspace.join(".fixtures").join(name);
        if !place.exists() {
            fs::create_dir_all(self.workspace.join(".fixtures"))?;
            let original = binary(name)?;
            if fs::hard_link(&original, &place).is_err() {
                fs::copy(&original, &place)?;
            }
        }
        Ok(format!("./.fixtures/{name}"))
    }

    /// The runs' directories, oldest first.
    #[must_use]
    pub fn runs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.home().join("runs")).into_iter().flatten().flatten();
        let mut runs: Vec<_> = entries.map(|entry| entry.path()).collect();
        runs.sort_by_key(|path| fs::metadata(path).and_then(|m| m.created()).ok());
        runs
    }

    /// The lines of a file of the latest run that are complete: `network.jsonl`, `audit.jsonl`.
    #[must_use]
    pub fn lines(&self, file: &str) -> Vec<Value> {
        let text = self.runs().last().map(|run| fs::read_to_string(run.join(file)).unwrap_or_default());
        text.unwrap_or_default().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a line of such a file.
    ///
    /// # Errors
    /// When it does not come.
    pub fn line(&self, file: &str, what: &str, is_it: impl Fn(&Value) -> bool) -> Outcome<Value> {
        eventually(&format!("a line in {file}: {what}"), Duration::from_secs(3), || {
            self.lines(file).into_iter().find(|line| is_it(line))
        })
        .map_err(|trouble| {
            let lines: Vec<String> = self.lines(file).iter().map(ToString::to_string).collect();
            Trouble::new(format!("{trouble}\n{}", lines.join("\n")))
        })
    }

    /// How `moat status` shows the tunnel of the run that there is.
    ///
    /// # Errors
    /// When it shows none.
    pub fn tunnel(&self) -> Outcome<String> {
        let status = self.run(&["status"])?.expect_code(0)?.out;
        let line = status.lines().find_map(|line| line.trim().strip_prefix("Tunnel: "));
        line.map(str::to_owned).ok_or_else(|| Trouble::new(status.clone()))
    }

    /// The bridge's log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.home().join("proxy/daemon.log")).unwrap_or_default()
    }

    /// The bridge that runs now.
    #[must_use]
    pub fn bridge(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.home().join("proxy/daemon.lock")).ok()?;
        let lock: Value = serde_json::from_str(&text).ok()?;
        let pid = Pid::from_raw(i32::try_from(lock["pid"].as_i64()?).ok()?);
        processes::carries(pid, &self.mark).then_some(pid)
    }

    /// Ends the bridge at once, as a crash would.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_bridge(&self) -> Outcome<Pid> {
        let pid = self.bridge().ok_or_else(|| Trouble::new("no bridge to kill"))?;
        kill(pid, Signal::SIGKILL)?;
        eventually("the killed bridge is gone", PATIENCE, || {
            (!processes::carries(pid, &self.mark)).then_some(())
        })?;
        Ok(pid)
    }

    /// The containers of this rig.
    #[must_use]
    pub fn containers(&self) -> Vec<String> {
        if let Some(apple) = &self.apple {
            return apple.containers();
        }
        let engine = self.place.engine().ok().flatten();
        engine.map(|engine| engine.containers(&self.home()).unwrap_or_default()).unwrap_or_default()
    }

    /// The first process of each of them, as this machine numbers it.
    #[must_use]
    pub fn container_pids(&self) -> Vec<i32> {
        if let Some(apple) = &self.apple {
            return apple.pids();
        }
        let Ok(Some(engine)) = self.place.engine() else { return Vec::new() };
        let pid = |id: String| {
            engine.client(&["inspect", "-f", "{{.State.Pid}}", &id]).ok()?.out.trim().parse().ok()
        };
        self.containers().into_iter().filter_map(pid).collect()
    }

    /// Its engine, if it has one.
    ///
    /// # Errors
    /// When it is in namespaces.
    pub fn engine(&self) -> Outcome<&'static engine::Engine> {
        self.place.engine()?.ok_or_else(|| Trouble::new("namespaces have no engine"))
    }

    /// Its stand-in for Apple's containers.
    ///
    /// # Errors
    /// When it is in another place.
    pub fn apple(&self) -> Outcome<&Apple> {
        self.apple.as_ref().ok_or_else(|| Trouble::new("Apple's containers are not in this place"))
    }

    /// The processes of this rig.
    #[must_use]
    pub fn processes(&self) -> Vec<Pid> {
        processes::marked(&self.mark)
    }

    /// Asks every process of the rig to end, the bridge last, removes all files, and says which had to be killed.
    pub fn sweep(&self) -> Vec<Pid> {
        let bridge = self.bridge();
        for pid in self.processes().into_iter().filter(|pid| Some(*pid) != bridge) {
            let _already_gone = kill(pid, Signal::SIGTERM);
        }
        let alone = || self.processes().iter().all(|pid| Some(*pid) == bridge).then_some(());
        let _killed_below = eventually("the runs end", Duration::from_secs(10), alone);
        let left = self.end();
        for directory in [&self.workspace, self.root.path()] {
            let _left_for_the_next_cleaning = fs::remove_dir_all(directory);
        }
        left
    }

    /// Ends the bridge and says which processes of the rig had to be killed.
    fn end(&self) -> Vec<Pid> {
        if let Some(bridge) = self.bridge() {
            let _already_gone = kill(bridge, Signal::SIGTERM);
        }
        let empty = || self.processes().is_empty().then_some(());
        if eventually("all processes of the rig are gone", Duration::from_secs(10), empty).is_ok() {
            return Vec::new();
        }
        let left = self.processes();
        for &pid in &left {
            let _already_gone = kill(pid, Signal::SIGKILL);
        }
        left
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let before: Vec<(Pid, String)> =
            self.processes().into_iter().map(|pid| (pid, processes::named(pid))).collect();
        let left = self.end();
        let _left_for_the_next_cleaning = fs::remove_dir_all(&self.workspace);
        let gone = || self.containers().is_empty().then_some(());
        let containers = eventually("the containers are gone", Duration::from_secs(10), gone);
        if !thread::panicking() {
            assert!(containers.is_ok(), "containers of the rig are left: {:?}", self.containers());
            let names: Vec<_> =
                before.iter().filter(|(pid, _)| left.contains(pid)).map(|(_, name)| name).collect();
            assert!(left.is_empty(), "processes of the rig are left: {names:?}");
        }
    }
}
