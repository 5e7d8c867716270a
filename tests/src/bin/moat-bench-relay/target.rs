//! Something to be measured: where it listens, how it is spoken to, and what of it runs.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use moat_tests::{
    Outcome, Trouble, clock::eventually, listen::runtime, measure::processor_time, trouble::ensure,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::wire::Connection;

/// How long a peer may take to start.
const PATIENCE: Duration = Duration::from_secs(20);

/// One way to the upstream.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) path: &'static str,
    /// What the client holds: the credential itself, a stub, or nothing.
    pub(crate) authorization: Option<&'static str>,
    /// Before a tool's name.
    pub(crate) namespace: &'static str,
    /// Dropped with it.
    pub(crate) processes: Vec<Process>,
    /// Others that work for it.
    pub(crate) also: Vec<u32>,
}

impl Target {
    /// Processor time that its processes took so far, their children's included.
    pub(crate) fn processor_time(&self) -> Outcome<Duration> {
        let mut pids: Vec<u32> =
            self.processes.iter().map(Process::pid).chain(self.also.iter().copied()).collect();
        let mut next = 0;
        while let Some(pid) = pids.get(next) {
            let children =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            pids.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            next += 1;
        }
        pids.into_iter().map(processor_time).sum()
    }

    /// A connection, with nothing said on it yet.
    pub(crate) async fn connect(&self) -> Outcome<Connection> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Connection::new(Box::new(stream))) };
        let name = ServerName::try_from("localhost")?;
        Ok(Connection::new(Box::new(TlsConnector::from(tls.clone()).connect(name, stream).await?)))
    }

    fn head(&self, method: &str, session: Option<&str>) -> String {
        let Self { path, port, .. } = self;
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: application/json, text/event-stream\r\n\
             User-Agent: bench/1\r\nMCP-Protocol-Version: 2025-11-25\r\n"
        );
        for (name, value) in [("Authorization", self.authorization), ("Mcp-Session-Id", session)] {
            if let Some(value) = value {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        head
    }

    /// A POST of this body.
    pub(crate) fn post(&self, session: Option<&str>, body: &str) -> Vec<u8> {
        let head = self.head("POST", session);
        format!("{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    }

    /// A GET of the server's stream.
    pub(crate) fn get(&self, session: Option<&str>) -> Vec<u8> {
        format!("{}\r\n", self.head("GET", session)).into_bytes()
    }

    /// A call of a tool.
    pub(crate) fn call(&self, session: Option<&str>, tool: &str) -> Vec<u8> {
        let namespace = self.namespace;
        self.post(
            session,
            &format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"tools/call\",\"params\":{{\"name\":\"{namespace}{tool}\",\
                 \"arguments\":{{\"text\":\"The quick brown fox jumps over the lazy dog\"}},\
                 \"_meta\":{{\"progressToken\":7}}}}}}"
            ),
        )
    }

    /// The handshake of MCP; its session.
    pub(crate) async fn initialize(&self) -> Outcome<Option<String>> {
        let mut connection = self.connect().await?;
        let hello = self.post(
            None,
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\",\"params\":{\"protocolVersion\":\"2025-11-25\",\
             \"capabilities\":{},\"clientInfo\":{\"name\":\"bench\",\"version\":\"1\"}}}",
        );
        connection.send(&hello).await?;
        let mut head = connection.head().await?;
        let said = connection.whole(&mut head.body).await?;
        ensure(head.status == 200, || {
            format!("{}: {} {}", self.name, head.status, String::from_utf8_lossy(&said))
        })?;
        let done = self
            .post(head.session.as_deref(), "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}");
        connection.send(&done).await?;
        let mut answer = connection.head().await?;
        connection.skip(&mut answer.body).await?;
        ensure(matches!(answer.status, 200..=204), || format!("{}: {}", self.name, answer.status))?;
        Ok(head.session)
    }
}

/// A process that ends with its owner.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it in this directory; what it says goes to `<name>.log` there.
    pub(crate) fn start(command: &mut Command, directory: &Path, name: &str) -> Outcome<Self> {
        let path = directory.join(format!("{name}.log"));
        let log = std::fs::File::create(&path)?;
        let command = command.current_dir(directory).stdin(Stdio::null());
        Ok(Self { child: command.stdout(log.try_clone()?).stderr(log).spawn()?, log: path })
    }

    /// One that was started elsewhere.
    pub(crate) fn of(child: Child, log: PathBuf) -> Self {
        Self { child, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails when it has ended, with what it said last.
    pub(crate) fn alive(&mut self) -> Outcome {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let said = std::fs::read_to_string(&self.log).unwrap_or_default();
                let from = said.len().saturating_sub(2000);
                Err(Trouble::new(format!("it ended with {status}: {}", said.get(from..).unwrap_or(&said))))
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        let mut running = || matches!(self.child.try_wait(), Ok(None));
        if running() {
            let _already_gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let ended = eventually("it ends", Duration::from_secs(8), || (!running()).then_some(()));
            if ended.is_err() {
                let _gone = self.child.kill().and_then(|()| self.child.wait()).is_ok();
            }
        }
    }
}

/// Waits until the peer answers the handshake of MCP.
pub(crate) fn answers(target: &mut Target) -> Outcome {
    let runtime = runtime()?;
    let asked = eventually("the peer answers", PATIENCE, || {
        let asked = runtime.block_on(target.initialize());
        let ended = target.processes.iter_mut().find_map(|process| process.alive().err());
        ended.map(Err).or_else(|| asked.is_ok().then_some(Ok(())))
    });
    match asked {
        Ok(outcome) => outcome,
        Err(_) => runtime.block_on(target.initialize()).map(|_| ()),
    }
}

/// A port that nobody has just now.
pub(crate) fn free_port() -> Outcome<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
