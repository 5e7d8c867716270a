//! A fresh namespace for one test: its directory, its plan, and how PID 1 is started in it.

use std::{
    io::Write,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// What no byte of the sandbox may show.
pub(crate) const KEY: &str = "moat-test-key-8f1d2c";

/// Who is who in the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uids {
    /// Root, agent and relay are three.
    Three,
    /// An unprivileged user namespace with a single mapping.
    One,
}

pub(crate) struct Sandbox {
    directory: tempfile::TempDir,
    pub(crate) plan: Value,
    uids: Uids,
    own_pids: bool,
}

impl Sandbox {
    /// With this shell script as its agent.
    pub(crate) fn new(uids: Uids, agent: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let (agent_uid, relay_uid) = if uids == Uids::Three { (12345, 12346) } else { (0, 0) };
        for name in ["home", "work"] {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).unwrap();
            if uids == Uids::Three {
                chown(&path, Some(agent_uid), Some(agent_uid)).unwrap();
            }
        }
        let plan = json!({
            "run": "run_0123456789ab",
            "tunnel": {"endpoint": "unix:/run/moat/bridge.sock", "dialler": "sidecar"},
            "relay_port": 19080,
            "servers": [{"name": "notion", "header": {"name": "Authorization", "stub": "moat-stub-oauth:notion"}}],
            "agent": null, "stdio": {}, "confirm": false, "mcp_json": "workspace",
            "workspace": directory.path().join("work"),
            "directory": directory.path().join("work"),
            "user": {"ids": {"uid": agent_uid, "gid": agent_uid}, "name": "agent", "home": directory.path().join("home")},
            "relay_user": {"uid": relay_uid, "gid": relay_uid},
            "image_user": null,
            "filters": [],
            "env": {"PATH": "/usr/local/bin:/usr/bin:/bin"},
            "pre_run": null,
            "command": ["bash", "-c", agent],
            "terminal": false,
            "grace_ms": 1000,
            "tunnel_ms": 20000
        });
        Self { directory, plan, uids, own_pids: true }
    }

    /// Among the host's processes: our init is then not number 1.
    pub(crate) fn among_others(mut self) -> Self {
        self.own_pids = false;
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn set(mut self, name: &str, value: Value) -> Self {
        self.plan[name] = value;
        self
    }

    pub(crate) fn servers(self, names: &[&str]) -> Self {
        let servers = names.iter().map(|name| json!({"name": name, "header": null})).collect();
        self.set("servers", servers)
    }

    pub(crate) fn endpoint(self, endpoint: &str) -> Self {
        self.set("tunnel", json!({"endpoint": endpoint, "dialler": "sidecar"}))
    }

    /// The plan's file, as a runtime leaves it.
    fn write_plan(&self) -> PathBuf {
        let path = self.path("plan.json");
        let startup = json!({
            "plan": self.plan,
            "identity": {"ca_pem": "ca", "certificate_pem": "certificate", "key_pem": KEY}
        });
        let mut file = std::fs::File::create(&path).unwrap();
        file.set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
        file.write_all(startup.to_string().as_bytes()).unwrap();
        path
    }

    /// The words that start PID 1 in its namespaces.
    pub(crate) fn words(&self) -> Vec<String> {
        let this = std::env::current_exe().unwrap();
        // A group to leave, where leaving groups is possible.
        let mut words: Vec<String> = match self.uids {
            Uids::Three => ["setpriv", "--groups", "4242", "unshare"].map(String::from).to_vec(),
            Uids::One => vec!["unshare".into()],
        };
        if self.uids == Uids::One {
            words.extend(["--user", "--map-root-user"].map(String::from));
        }
        if self.own_pids {
            words.extend(["--pid", "--fork", "--mount-proc"].map(String::from));
        }
        words.extend(["--mount", "--net", "sh", "-c"].map(String::from));
        words.push("ip link set lo up && mount -t tmpfs tmpfs /run && exec \"$@\"".into());
        words.extend(["sh".into(), this.display().to_string(), "init".into()]);
        words.push(self.write_plan().display().to_string());
        words
    }

    pub(crate) fn start(&self) -> Running {
        let words = self.words();
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Running { child }
    }

    pub(crate) fn run(&self) -> Ended {
        self.start().wait()
    }

    pub(crate) fn wait_for(&self, name: &str) {
        wait_for(&self.path(name));
    }
}

/// Waits until a file is there.
fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} did not come", path.display());
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Sends PID 1 a signal, as a runtime would.
    pub(crate) fn signal(&self, name: &str) {
        let unshare = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).unwrap();
        let pid1 = children.split_whitespace().next().unwrap();
        assert!(Command::new("kill").args(["-s", name, pid1]).status().unwrap().success());
    }

    pub(crate) fn wait(self) -> Ended {
        Ended::from(self.child.wait_with_output().unwrap())
    }
}

#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}
