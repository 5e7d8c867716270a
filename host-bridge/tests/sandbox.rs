//! The process runtime from outside: the real binary, a real bridge, a real sandbox, one table of what is in reach.
//!
//! What needs servers and clients as well is tested by the tests package.
#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it skips"
)]

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output, Stdio},
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Failed, Trial};

const MOAT: &str = env!("CARGO_BIN_EXE_moat");

/// An ordinary user that every machine has.
const NOBODY: u32 = 65534;

/// A home and a workspace of the test's own. The bridge that was started for it is ended with it.
struct Rig {
    dir: tempfile::TempDir,
    /// Start moat as this user.
    user: Option<u32>,
    /// The binary, where that user gets at it.
    moat: PathBuf,
}

/// Where the sandbox sees the host's files: what is hidden there must be hidden by name. The build may lie in a place
/// that is hidden as a whole.
fn visible_place() -> PathBuf {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let hidden = ["/tmp", "/var/tmp", "/home", "/root", "/run", "/mnt", "/media", "/boot"];
    if hidden.iter().any(|place| built.starts_with(place)) { "/var/lib".into() } else { built.into() }
}

impl Rig {
    fn new(user: Option<u32>) -> Self {
        let dir = match user {
            None => tempfile::Builder::new().prefix("sandbox").tempdir_in(visible_place()).unwrap(),
            // Another user has to get at it.
            Some(_) => tempfile::tempdir().unwrap(),
        };
        fs::create_dir(dir.path().join("workspace")).unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        let mut moat = PathBuf::from(MOAT);
        if let Some(user) = user {
            // The build may lie where only its owner gets in.
            moat = dir.path().join("moat");
            fs::copy(MOAT, &moat).unwrap();
            for path in [dir.path(), &dir.path().join("workspace"), &dir.path().join("home")] {
                std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
            }
        }
        Self { dir, user, moat }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn workspace(&self) -> PathBuf {
        self.dir.path().join("workspace")
    }

    fn moat(&self, arguments: &[&str]) -> Command {
        let mut command = match self.user {
            None => Command::new(&self.moat),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args([
                    &format!("--reuid={user}"),
                    &format!("--regid={user}"),
                    "--clear-groups",
                    "--",
                ]);
                command.arg(&self.moat);
                command
            }
        };
        command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
            .env("HOME", self.dir.path())
            .env("MOAT_HOME", self.home())
            .env("MOAT_KEYRING_BACKEND", "file");
        command.current_dir(self.workspace()).stdin(Stdio::null());
        command
    }

    /// What a shell says in the sandbox, and its exit code.
    fn sh(&self, script: &str) -> (String, i32) {
        let output = self.moat(&["run", "--", "sh", "-c", script]).output().unwrap();
        (text(&output.stdout), code(&output))
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _no_bridge_ran = self.moat(&["proxy", "stop"]).output();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("ended by a signal: {output:?}"))
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Why no sandbox can be started here, if so.
fn no_sandbox() -> Option<&'static str> {
    let namespaces = Command::new("unshare").args(["-Urn", "true"]).stderr(Stdio::null()).status();
    let made = namespaces.is_ok_and(|status| status.success());
    (!made).then_some("namespaces (root, or unprivileged user namespaces)")
}

/// Why no sandbox can be started here as another user, if so.
fn no_other_user() -> Option<&'static str> {
    if is_root() { no_sandbox() } else { Some("root, to be an ordinary user for a moment") }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = vec![
        trial("what_is_in_reach::as_who_runs_the_tests", no_sandbox(), || what_is_in_reach(None)),
        trial("what_is_in_reach::as_an_ordinary_user", no_other_user(), || what_is_in_reach(Some(NOBODY))),
        trial(
            "moat_s_own_directory_and_sockets_are_out_of_sight",
            no_sandbox(),
            moat_s_own_directory_and_sockets_are_out_of_sight,
        ),
        trial(
            "moat_s_own_directory_is_out_of_sight_below_the_workspace_too",
            no_sandbox(),
            moat_s_own_directory_is_out_of_sight_below_the_workspace_too,
        ),
        trial("mounts_are_what_they_say", no_sandbox(), mounts_are_what_they_say),
        trial(
            "a_mount_point_behind_a_link_is_not_made_on_the_host",
            no_sandbox(),
            a_mount_point_behind_a_link_is_not_made_on_the_host,
        ),
        trial(
            "a_mount_of_moat_yaml_that_leaves_the_workspace_is_the_users_to_allow",
            no_sandbox(),
            a_mount_of_moat_yaml_that_leaves_the_workspace_is_the_users_to_allow,
        ),
        trial("bytes_and_codes_pass", no_sandbox(), bytes_and_codes_pass),
        trial(
            "nothing_is_left_when_the_command_is_killed",
            no_sandbox(),
            nothing_is_left_when_the_command_is_killed,
        ),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// One test. Without what it needs it is skipped, by one line and by the count; where everything has to be there
/// (`MOAT_TESTS_REQUIRE=all`) it fails.
fn trial(name: &str, missing: Option<&'static str>, test: fn()) -> Trial {
    let run = move || {
        test();
        Ok(())
    };
    match missing {
        None => Trial::test(name, run),
        Some(part) if required() => Trial::test(name, move || Err(Failed::from(format!("needs {part}")))),
        Some(part) => {
            println!("skipped: {name}: needs {part}");
            Trial::test(name, run).with_ignored_flag(true)
        }
    }
}

fn required() -> bool {
    std::env::vars_os().any(|(name, value)| name == "MOAT_TESTS_REQUIRE" && value == "all")
}

fn what_is_in_reach(user: Option<u32>) {
    let rig = Rig::new(user);
    let table: [(&str, &str); 20] = [
        ("id -u", "1000"),
        ("id -un", "agent"),
        ("pwd", "/workspace"),
        ("echo $HOME", "/home/agent"),
        ("grep -c . /etc/shadow 2>/dev/null", ""),
        ("touch /etc/x 2>/dev/null; test -e /etc/x || echo no", "no"),
        ("touch /usr/x /x 2>/dev/null; ls -d /usr/x /x 2>/dev/null", ""),
        ("cat /proc/1/mem /proc/1/environ /proc/1/maps 2>/dev/null", ""),
        ("ls /proc/1/fd 2>/dev/null", ""),
        (
            "grep -E '^Cap' /proc/self/status | tr -d '0\\t' | tr '\\n' ' '",
            "CapInh: CapPrm: CapEff: CapBnd: CapAmb:",
        ),
        ("grep NoNewPrivs /proc/self/status | tr -d '\\t'", "NoNewPrivs:1"),
        ("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '", "lo"),
        ("cat /proc/sys/user/max_user_namespaces", "0"),
        ("unshare -U true 2>/dev/null || echo no", "no"),
        ("touch f && chmod u+s f 2>/dev/null || echo no", "no"),
        ("ls -A /root /mnt /sys 2>/dev/null | grep -v : | tr -d '\\n'", ""),
        ("ls /home", "agent"),
        ("find / -xdev -type b 2>/dev/null", ""),
        ("kill -9 1 2>/dev/null; kill -9 -1; echo alive", "alive"),
        ("echo kept > kept; cat kept", "kept"),
    ];
    for (script, expected) in table {
        let (said, _) = rig.sh(script);
        assert_eq!(said.trim_end(), expected, "{script}");
    }
    let kept = rig.workspace().join("kept");
    assert_eq!(fs::read_to_string(&kept).unwrap(), "kept\n");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&kept).unwrap());
    assert_eq!(
        owner,
        user.unwrap_or_else(|| nix::unistd::geteuid().as_raw()),
        "who owns what the agent makes"
    );
}

fn moat_s_own_directory_and_sockets_are_out_of_sight() {
    let rig = Rig::new(None);
    let secret = rig.home().join("secret");
    fs::write(&secret, "s3cr3t").unwrap();
    let socket = visible_place().join(format!("s{}.sock", std::process::id()));
    let listener = UnixListener::bind(&socket).unwrap();
    let script = format!(
        "cat {} 2>/dev/null; ls -A {}; test -S {} && echo socket; stat -c %a {} {}",
        secret.display(),
        rig.home().display(),
        socket.display(),
        rig.home().display(),
        rig.workspace().display(),
    );
    fs::set_permissions(rig.workspace(), fs::Permissions::from_mode(0o750)).unwrap();
    // Not below the user's home, which would hide it by itself. Its mode tells that another directory lies over it,
    // where the real one's would keep the agent out too; what lies beside it is seen.
    let output = rig.moat(&["run", "--", "sh", "-c", &script]).env("HOME", "/nonexistent").output().unwrap();
    drop(listener);
    fs::remove_file(&socket).unwrap();
    assert_eq!(text(&output.stdout), "555\n750", "{output:?}");
}

fn moat_s_own_directory_is_out_of_sight_below_the_workspace_too() {
    let rig = Rig::new(None);
    let home = rig.workspace().join(".moat");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("secret"), "s3cr3t").unwrap();
    let run = |arguments: &[&str]| rig.moat(arguments).env("MOAT_HOME", &home).output().unwrap();
    let output = run(&["run", "--", "sh", "-c", "ls -A .moat; touch .moat/x 2>/dev/null || echo read-only"]);
    run(&["proxy", "stop"]);
    assert_eq!(text(&output.stdout), "read-only", "{output:?}");
}

fn mounts_are_what_they_say() {
    let rig = Rig::new(None);
    let data = rig.dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("file"), "data").unwrap();
    fs::set_permissions(data.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    let mount = format!("{}:/data:ro", data.display());
    let script = "cat /data/file; touch /data/x 2>/dev/null || echo ' read-only'";
    let output = rig.moat(&["run", "-m", &mount, "--", "sh", "-c", script]).output().unwrap();
    assert_eq!(text(&output.stdout), "data read-only", "{output:?}");
    for target in ["/", "/run/moat", "/proc/x", "/workspace"] {
        let mount = format!("{}:{target}", data.display());
        let output = rig.moat(&["run", "-m", &mount, "--", "true"]).output().unwrap();
        assert_eq!(code(&output), 1, "{target}");
    }
}

/// While the sandbox is built the host's root is at /oldroot, where a link in a stranger's workspace can point.
fn a_mount_point_behind_a_link_is_not_made_on_the_host() {
    let rig = Rig::new(None);
    let victim = rig.dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join(".bashrc"), "kept").unwrap();
    let outside = format!("/oldroot{}", fs::canonicalize(&victim).unwrap().display());
    std::os::unix::fs::symlink(outside, rig.workspace().join("link")).unwrap();
    fs::create_dir(rig.workspace().join("dir")).unwrap();
    fs::write(rig.workspace().join("file"), "").unwrap();
    for mount in ["./file:/workspace/link/.bashrc", "./dir:/workspace/link/made", "./dir:/workspace/link/a/b"]
    {
        fs::write(rig.workspace().join("moat.yaml"), format!("mounts: [\"{mount}\"]\n")).unwrap();
        let output = rig.moat(&["run", "--", "true"]).output().unwrap();
        assert_eq!(code(&output), 1, "{output:?}");
    }
    assert_eq!(fs::read_to_string(victim.join(".bashrc")).unwrap(), "kept");
    assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
    // One that is missing elsewhere is made, with those above it.
    fs::write(rig.workspace().join("moat.yaml"), "mounts: ['./dir:/new/a/b', './file:/new/f']\n").unwrap();
    let output = rig.moat(&["run", "--", "ls", "-d", "/new/a/b", "/new/f"]).output().unwrap();
    assert_eq!(text(&output.stdout), "/new/a/b\n/new/f", "{output:?}");
}

fn a_mount_of_moat_yaml_that_leaves_the_workspace_is_the_users_to_allow() {
    let rig = Rig::new(None);
    fs::create_dir(rig.dir.path().join(".ssh")).unwrap();
    fs::write(rig.dir.path().join(".ssh/id"), "key").unwrap();
    fs::write(rig.workspace().join("moat.yaml"), "mounts: ['../.ssh:/data']\n").unwrap();
    let output = rig.moat(&["run", "--", "cat", "/data/id"]).output().unwrap();
    assert_eq!((code(&output), text(&output.stdout).as_str()), (1, ""), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains("lies outside of the workspace") && said.contains("-m "), "{said}");
    let output = rig.moat(&["run", "-m", "../.ssh:/data", "--", "cat", "/data/id"]).output().unwrap();
    assert_eq!(text(&output.stdout), "key", "{output:?}");
}

fn bytes_and_codes_pass() {
    let rig = Rig::new(None);
    let mut child = rig
        .moat(&["run", "--", "sh", "-c", "cat; echo error >&2; exit 42"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = (0..200_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 42);
    assert!(output.stdout == bytes, "{} bytes of {}", output.stdout.len(), bytes.len());
    assert!(text(&output.stderr).lines().any(|line| line == "error"));
}

fn nothing_is_left_when_the_command_is_killed() {
    let rig = Rig::new(None);
    let marker = format!("{}", 100_000 + std::process::id());
    let mut child = rig.moat(&["run", "--", "sleep", &marker]).spawn().unwrap();
    until("the sandbox runs", || !processes_with(&marker, child.id()).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    until("nothing is left", || processes_with(&marker, child.id()).is_empty());
}

/// Processes whose arguments are those of the sandbox's command, moat's own not counted.
fn processes_with(marker: &str, moat: u32) -> Vec<String> {
    let names = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
    let pids = names.filter_map(|name| name.to_str().and_then(|name| name.parse::<u32>().ok()));
    let arguments =
        |pid| text(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ");
    pids.filter(|pid| *pid != moat)
        .map(arguments)
        .filter(|line| line.trim() == format!("sleep {marker}"))
        .collect()
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
