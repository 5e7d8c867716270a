//! Ours, with everything that a user has on: the real bridge in a throw-away home, a registered run, and the sidecar
//! that `moat` carries, in relay mode, as PID 1 would start it. Only PID 1 and the namespaces around it are left out.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use moat_tests::{Outcome, Trouble, clock::eventually, rig::Rig, trouble::ensure};
use serde_json::{Value, json};

use crate::{
    target::{Process, Target},
    upstream::{CREDENTIAL, Upstream},
};

/// The server's name in the run, and the stub that stands for its credential.
const SERVER: &str = "bench";
const STUB: &str = "moat-stub-mcp-bench";
/// The path on the relay.
const PATH: &str = "/mcp/bench";
const PATIENCE: Duration = Duration::from_secs(60);

/// A home with the credential in it, and the sidecar beside it. No process yet.
pub(crate) struct Home {
    pub(crate) rig: Rig,
    files: tempfile::TempDir,
}

impl Home {
    /// Makes one; the credential is bound to the upstream's host. `MOAT_SIDECAR` names another sidecar than `moat`'s own.
    pub(crate) fn new(rig: Rig, upstream: &Upstream) -> Outcome<Self> {
        rig.grant(SERVER, CREDENTIAL, &upstream.url(false))?;
        let files = tempfile::Builder::new().prefix("mb-").tempdir()?;
        let home = Self { rig, files };
        let sidecar = home.sidecar();
        if let Some(given) = std::env::var_os("MOAT_SIDECAR") {
            fs::copy(given, &sidecar)?;
            return Ok(home);
        }
        home.rig.run(&["sidecar", "export", &sidecar.to_string_lossy()])?.expect_code(0)?;
        Ok(home)
    }

    /// The sidecar's file.
    pub(crate) fn sidecar(&self) -> PathBuf {
        self.files.path().join("moat-sidecar")
    }

    /// A directory for logs.
    pub(crate) fn files(&self) -> &Path {
        self.files.path()
    }

    /// Starts the bridge; how long it took until it had answered a request.
    pub(crate) fn bridge(&self) -> Outcome<(Bridge<'_>, Duration)> {
        let started = Instant::now();
        let process = Process::start(&mut self.rig.moat(&["__bridge"])?, self.files(), "bridge")?;
        let mut bridge = Bridge { home: self, process };
        let socket = self.rig.home().join("proxy/daemon.sock");
        while bridge.control("GET", "/v1/status", "").is_err() {
            bridge.process.alive()?;
            ensure(started.elapsed() < PATIENCE, || format!("{} is not there", socket.display()))?;
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok((bridge, started.elapsed()))
    }
}

/// A bridge that runs.
pub(crate) struct Bridge<'a> {
    home: &'a Home,
    process: Process,
}

impl Bridge<'_> {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// One request at the control socket; the answer's body.
    fn control(&self, method: &str, path: &str, body: &str) -> Outcome<Value> {
        let mut stream = UnixStream::connect(self.home.rig.home().join("proxy/daemon.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: moat\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| Trouble::new("no answer"))?;
        ensure(head.starts_with("HTTP/1.1 2"), || format!("{method} {path}: {answer}"))?;
        Ok(serde_json::from_str(body).unwrap_or_default())
    }

    /// Registers a run that may use the upstream at this URL.
    pub(crate) fn register(&self, url: &str) -> Outcome<Value> {
        let own = fs::read_to_string("/proc/self/stat")?;
        let after_name = own.rsplit(')').next().unwrap_or_default();
        let started: u64 = after_name.split_whitespace().nth(19).unwrap_or_default().parse()?;
        let run = json!({
            "name": "bench", "runtime": "process", "workspace": "/", "profile": null,
            "servers": [{ "name": SERVER, "url": url, "auth": { "grant": "mcp-bench", "header": "Authorization" } }],
            "holder": { "pid": std::process::id(), "started": started },
        });
        self.control("POST", "/v1/runs", &run.to_string())
    }

    /// Starts the relay of a registered run; how long it took until its tunnel stood. The shell that puts the
    /// descriptors where PID 1 does is part of that.
    pub(crate) fn relay(&self, registered: &Value, wrapper: &[String]) -> Outcome<(Target, Duration)> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let socket = self.home.rig.home().join("proxy/tunnel/bridge.sock");
        let told = json!({
            "run": registered["run"], "identity": registered["identity"], "relay_port": port,
            "tunnel": { "endpoint": format!("unix:{}", socket.display()), "dialler": "sidecar" },
        });
        let file = self.home.files().join("start.json");
        fs::write(&file, told.to_string())?;
        let log = self.home.files().join("relay.log");
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"exec 3<&0 4>&1 <"$1" >/dev/null; shift; exec "$@" relay"#, "sh"])
            .arg(&file)
            .args(wrapper)
            .arg(self.home.sidecar())
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log)?);
        let started = Instant::now();
        let mut child = command.spawn()?;
        let out = child.stdout.take();
        let process = Process::of(child, log);
        let mut line = String::new();
        if let Some(out) = out {
            BufReader::new(out).read_line(&mut line)?;
        }
        let took = started.elapsed();
        fs::remove_file(&file)?;
        ensure(line == "ready\n", || format!("the relay says {line:?}"))?;
        let target = Target {
            name: "moat",
            port,
            tls: None,
            path: PATH,
            authorization: Some(STUB),
            namespace: "",
            processes: vec![process],
            also: vec![self.pid()],
        };
        Ok((target, took))
    }

    /// Fails when records were lost: then the trace and the audit log were not on.
    pub(crate) fn nothing_lost(&self) -> Outcome {
        let lost = self.control("GET", "/v1/status", "")?["records_lost"].as_u64();
        ensure(lost == Some(0), || format!("records of the trace were lost: {lost:?}"))
    }

    /// Waits until the trace of the run that was registered holds `count` lines or more.
    pub(crate) fn traced(&self, registered: &Value, count: usize) -> Outcome {
        let run = registered["run"].as_str().unwrap_or_default();
        let file = self.home.rig.home().join("runs").join(run).join("network.jsonl");
        eventually("the trace is written", PATIENCE, || {
            let text = fs::read(&file).ok()?;
            (memchr::memchr_iter(b'\n', &text).count() >= count).then_some(())
        })
    }
}
