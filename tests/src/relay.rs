//! A relay beside the bridge, without a sandbox: it is started as PID 1 starts it, and somebody asks it.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixListener,
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::{
    Outcome,
    clock::eventually,
    guest::register::Registration,
    inside::Inside,
    rig::{PATIENCE, Rig, binary},
    trouble::ensure,
};

/// A drain's five seconds, and some for a busy machine.
const ENDED: Duration = Duration::from_secs(15);

/// The relay of a run, and the fixture client before it.
#[derive(Debug)]
pub struct Relay {
    child: Running,
    /// Who asks it.
    pub inside: Inside,
}

#[derive(Debug)]
struct Running(Child);

impl Relay {
    /// `endpoint` is the sidecar's; where it `listens`, the bridge is told to dial.
    ///
    /// # Errors
    /// When it does not come up; what it said is in the text.
    pub fn start(rig: &Rig, run: &Registration, endpoint: &str, listens: bool) -> Outcome<Self> {
        let sidecar = rig.user_home().join("moat-sidecar");
        if !sidecar.exists() {
            rig.run(&["sidecar", "export", &sidecar.to_string_lossy()])?.expect_code(0)?;
        }
        let port = TcpListener::bind(("127.0.0.1", 0))?;
        let number = port.local_addr()?.port();
        let dialler = if listens { "bridge" } else { "sidecar" };
        let tunnel = json!({"endpoint": endpoint, "dialler": dialler});
        let told = rig.user_home().join("start.json");
        fs::write(&told, run.relay(number, &tunnel).to_string())?;
        let log = rig.user_home().join("relay.log");
        let mut command = Command::new("sh");
        // The descriptors are those that PID 1 leaves.
        command
            .args(["-c", r#"exec 3<&0 5<&2 4>&1 <"$1" >/dev/null 2>>"$2"; exec "$3" relay"#, "sh"])
            .args([&told, &log, &sidecar])
            .stdin(Stdio::from(OwnedFd::from(port)))
            .stdout(Stdio::piped());
        // PID 1 listens at such a socket.
        if let (true, Some(at)) = (listens, endpoint.strip_prefix("unix:")) {
            let _before = fs::remove_file(at);
            command.stderr(Stdio::from(OwnedFd::from(UnixListener::bind(at)?)));
        }
        let mut child = Running(command.spawn()?);
        if listens {
            run.dial()?;
        }
        let mut line = String::new();
        if let Some(ready) = child.0.stdout.take() {
            // It says nothing before it has a tunnel.
            let mut asked = [PollFd::new(ready.as_fd(), PollFlags::POLLIN)];
            if poll(&mut asked, PollTimeout::try_from(PATIENCE)?)? > 0 {
                BufReader::new(ready).read_line(&mut line)?;
            }
        }
        fs::remove_file(&told)?;
        ensure(line == "ready\n", || format!("the relay says {line:?}: {:?}", fs::read_to_string(&log)))?;
        let mut client = Command::new(binary("moat-fixture-client")?);
        client.env("MOAT_RELAY_URL", format!("http://127.0.0.1:{number}"));
        Ok(Self { child, inside: Inside::start(client)? })
    }

    /// As PID 1 ends it; its exit code.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(mut self) -> Outcome<Option<i32>> {
        kill(Pid::from_raw(i32::try_from(self.child.0.id())?), Signal::SIGTERM)?;
        let ended = eventually("the relay ends", ENDED, || self.child.0.try_wait().ok().flatten())?;
        Ok(ended.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended_already = (self.0.kill(), self.0.wait());
    }
}
