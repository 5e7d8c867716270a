//! A throw-away home, a daemon in it, and the two ways to speak to it.

use std::{
    fs, io,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use moat_shared::{hello::Hello, plan::Identity, rt, tls, wire};
use serde_json::{Value, json};
use tokio::{net::UnixStream, task::JoinSet};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Nothing here takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// A home of its own.
#[derive(Debug, Clone)]
pub(crate) struct House {
    dir: Arc<tempfile::TempDir>,
    root: PathBuf,
}

impl House {
    pub(crate) fn new() -> Self {
        Self::below("home")
    }

    pub(crate) fn below(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(name);
        fs::create_dir(&root).unwrap();
        // For the test that becomes another user.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), open).unwrap();
        Self { dir: Arc::new(dir), root }
    }

    pub(crate) fn root(&self) -> PathBuf {
        assert!(self.dir.path().exists());
        self.root.clone()
    }

    pub(crate) fn proxy(&self) -> PathBuf {
        self.root.join("proxy")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.proxy().join("daemon.log")).unwrap_or_default()
    }

    /// The real binary, in this home.
    pub(crate) fn moat(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_moat"));
        command.env("MOAT_HOME", &self.root).args(arguments).stdin(Stdio::null());
        command
    }
}

/// A bridge in the foreground; killed with this.
pub(crate) struct Daemon(Child);

impl Daemon {
    pub(crate) async fn start(house: &House) -> Self {
        let daemon = Self::start_with(house, &[]).await;
        daemon.until_it_answers(house).await;
        daemon
    }

    pub(crate) async fn start_with(house: &House, arguments: &[&str]) -> Self {
        Self(house.moat(&["__bridge"]).args(arguments).spawn().unwrap())
    }

    /// One that may not have more descriptors than so many.
    pub(crate) async fn with_descriptors(house: &House, most: usize) -> Self {
        let program = format!("ulimit -n {most}; exec \"$0\" __bridge");
        let mut shell = Command::new("sh");
        shell.args(["-c", &program, env!("CARGO_BIN_EXE_moat")]).env("MOAT_HOME", house.root());
        let daemon = Self(shell.stdin(Stdio::null()).spawn().unwrap());
        daemon.until_it_answers(house).await;
        daemon
    }

    async fn until_it_answers(&self, house: &House) {
        let deadline = Instant::now() + PATIENCE;
        while status(house).await.is_err() {
            assert!(Instant::now() < deadline, "it does not answer: {}", house.log());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap())
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    pub(crate) async fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not leave");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A run that was acknowledged.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) id: String,
    identity: Identity,
}

/// Registers a run that this process holds.
pub(crate) async fn register(house: &House) -> Result<Run, Failure> {
    let auth = json!({"grant": "mcp-context7", "header": "CONTEXT7_API_KEY"});
    let server = json!({"name": "context7", "url": "https://mcp.context7.com/mcp", "auth": auth});
    register_with(house, &json!([server])).await
}

/// The same, with these servers.
pub(crate) async fn register_with(house: &House, servers: &Value) -> Result<Run, Failure> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let started: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse()?;
    register_for(house, servers, &json!({"pid": std::process::id(), "started": started})).await
}

/// The same, held by the process that `holder` names.
pub(crate) async fn register_for(house: &House, servers: &Value, holder: &Value) -> Result<Run, Failure> {
    let wish = json!({
        "name": "brave-otter", "runtime": "process", "workspace": "/w", "profile": null,
        "servers": servers,
        "holder": holder,
    });
    let (status, answer) = control(house, Method::POST, "/v1/runs", wish.to_string()).await?;
    if status != 201 {
        return Err(answer.to_string().into());
    }
    Ok(Run {
        id: answer["run"].as_str().unwrap().to_owned(),
        identity: serde_json::from_value(answer["identity"].clone())?,
    })
}

pub(crate) async fn unregister(house: &House, run: &str) {
    let (status, _) =
        control(house, Method::DELETE, &format!("/v1/runs/{run}"), String::new()).await.unwrap();
    assert_eq!(status, 204);
}

pub(crate) async fn status(house: &House) -> Result<Value, Failure> {
    Ok(control(house, Method::GET, "/v1/status", String::new()).await?.1)
}

async fn control(house: &House, method: Method, path: &str, body: String) -> Result<(u16, Value), Failure> {
    let stream = UnixStream::connect(house.proxy().join("daemon.sock")).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "bridge")
        .body(Full::<Bytes>::from(body))?;
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
}

/// TLS to the bridge with the run's key.
pub(crate) async fn secured(house: &House, run: &Run) -> io::Result<TlsStream<UnixStream>> {
    let stream = UnixStream::connect(house.proxy().join("tunnel/bridge.sock")).await?;
    let config = Arc::new(tls::sidecar_config(&run.identity).map_err(io::Error::other)?);
    TlsConnector::from(config).connect(tls::bridge_name(), stream).await
}

/// Says hello over the tunnel as the sidecar would; the status of the answer.
pub(crate) async fn hello(house: &House, run: &Run) -> Result<u16, Failure> {
    let stream = secured(house, run).await?;
    let (mut sender, connection) = http2::handshake(rt::exec::Owned::default(), TokioIo::new(stream)).await?;
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("https://{}{}", wire::BRIDGE_DNS_NAME, wire::HELLO_PATH))
        .body(Full::<Bytes>::from(serde_json::to_vec(&Hello::ours())?))?;
    let response: Response<Incoming> = sender.send_request(request).await?;
    Ok(response.status().as_u16())
}

/// Polls until it holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
