//! A run of the bridge for a guest, which no runtime of moat starts: the control socket's own requests, and the plan.

use std::{
    fmt::Display,
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Value, json};

use super::{AGENT, PORT};
use crate::{
    Outcome, Trouble,
    clock::eventually,
    guest::initramfs,
    rig::{PATIENCE, Rig},
    trouble::ensure,
};

/// The bridge's control socket, below moat's home.
const CONTROL: &str = "proxy/daemon.sock";
/// The port of the relay, in every sandbox.
const RELAY: u16 = 19080;
/// The relay's user and group.
const RELAY_USER: u32 = 999;
/// Any CID of the guest's own.
pub const ANY: u32 = u32::MAX;
/// How often the holder looks whether it may go.
const LOOK: Duration = Duration::from_millis(50);

/// A run that the bridge serves, held by a thread of this process; dropping it ends the run.
#[derive(Debug)]
pub struct Registration {
    run: String,
    /// For the sidecar alone.
    identity: Value,
    servers: Vec<Server>,
    control: PathBuf,
    endpoint: String,
    over: Arc<AtomicBool>,
    holder: Option<JoinHandle<()>>,
}

/// A server of moat.yaml, in the form that tests write it in.
#[derive(Debug, Default, PartialEq, Eq)]
struct Server {
    name: String,
    url: String,
    /// Grant and header.
    auth: Option<(String, String)>,
}

impl Registration {
    /// Registers what the rig's moat.yaml names. `at`: the host's name for the guest's ports, which is the socket of its device,
    /// or a CID.
    ///
    /// # Errors
    /// When the bridge refuses.
    pub fn of(rig: &Rig, at: impl Display, listens: bool) -> Outcome<Self> {
        rig.run(&["proxy", "start"])?.expect_code(0)?;
        let servers = servers(&fs::read_to_string(rig.workspace().join("moat.yaml"))?)?;
        ensure(!servers.is_empty(), || "moat.yaml names no server".to_owned())?;
        let shown = servers.iter().map(|server| {
            let mut value = json!({"name": server.name, "url": server.url});
            if let Some((grant, header)) = &server.auth {
                value["auth"] = json!({"grant": grant, "header": header});
            }
            value
        });
        let endpoint = format!("vsock:{at}:{PORT}");
        let mut request = json!({
            "name": rig.mark(),
            "runtime": "guest",
            "workspace": rig.workspace(),
            "servers": shown.collect::<Vec<_>>(),
            "profile": null,
            "holder": {"pid": std::process::id(), "started": started()?},
        });
        if !listens {
            request["listen"] = json!(endpoint);
        }
        let control = rig.home().join(CONTROL);
        let registered: Value =
            serde_json::from_str(&ask(&control, "POST", "/v1/runs", Some(&request), 201)?)?;
        let run = registered["run"].as_str().ok_or_else(|| Trouble::new("no run in the bridge's answer"))?;
        let over = Arc::new(AtomicBool::new(false));
        let holding = {
            let (control, run, over) = (control.clone(), run.to_owned(), Arc::clone(&over));
            let start = starter(rig)?;
            move || hold(&control, &run, &over, start)
        };
        Ok(Self {
            run: run.to_owned(),
            identity: registered["identity"].clone(),
            servers,
            control,
            endpoint,
            over,
            holder: Some(thread::spawn(holding)),
        })
    }
}

impl Registration {
    /// Has the bridge dial the guest, which listens by now: a device that was dialled before there is anybody in its guest
    /// may not recover.
    ///
    /// # Errors
    /// When the bridge refuses.
    pub fn dial(&self) -> Outcome {
        let (dial, path) = (json!({"endpoint": self.endpoint}), format!("/v1/runs/{}/dial", self.run));
        ask(&self.control, "POST", &path, Some(&dial), 204).map(drop)
    }

    /// What PID 1 tells the relay, with its port and its tunnel.
    #[must_use]
    pub fn relay(&self, port: u16, tunnel: &Value) -> Value {
        json!({"run": self.run, "identity": self.identity, "relay_port": port, "tunnel": tunnel})
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(holder) = self.holder.take() {
            // One that panicked has said so.
            let _said = holder.join();
        }
        // A bridge that is gone has forgotten it, or the next one drops it with this process.
        let _gone = ask(&self.control, "DELETE", &format!("/v1/runs/{}", self.run), None, 204);
    }
}

/// What starts the rig's bridge.
fn starter(rig: &Rig) -> Outcome<impl Fn() -> Command + Send + use<>> {
    let command = rig.moat(&["proxy", "start"])?;
    let words: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(ToOwned::to_owned).collect();
    let env: Vec<_> =
        command.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
    let directory = rig.workspace().to_owned();
    Ok(move || {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().envs(env.iter().cloned()).current_dir(&directory);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    })
}

/// What `moat run` does while its sandbox lives: it holds the run, and starts the bridge again that is gone.
fn hold(control: &Path, run: &str, over: &AtomicBool, start: impl Fn() -> Command) {
    let is_over = || over.load(Ordering::SeqCst);
    while !is_over() {
        if let Ok(mut stream) = UnixStream::connect(control) {
            let request = format!("GET /v1/runs/{run}/hold HTTP/1.1\r\nHost: moat\r\n\r\n");
            let asked =
                stream.write_all(request.as_bytes()).and_then(|()| stream.set_read_timeout(Some(LOOK)));
            let mut told = [0; 1024];
            while asked.is_ok() && !is_over() {
                match stream.read(&mut told) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(_) => break,
                }
            }
        }
        if !is_over() {
            // Whether it worked is seen by connecting.
            let _seen = start().status().is_ok();
        }
    }
}

/// What the sidecar reads first: a line for the script that waits for the port, then the plan as `--startup-stdin`
/// wants it.
pub(super) fn startup(registration: &Registration, listens: bool) -> Outcome<Vec<u8>> {
    let servers = registration.servers.iter().map(|server| {
        let stub = |grant: &str| format!("moat-stub-{grant}");
        let header = server.auth.as_ref().map(|(grant, header)| json!({"name": header, "stub": stub(grant)}));
        json!({"name": server.name, "header": header})
    });
    let tunnel = if listens {
        json!({"endpoint": format!("vsock:{ANY}:{PORT}"), "dialler": "bridge"})
    } else {
        json!({"endpoint": format!("vsock:2:{PORT}"), "dialler": "sidecar"})
    };
    let plan = json!({
        "run": registration.run,
        "tunnel": tunnel,
        "relay_port": RELAY,
        "servers": servers.collect::<Vec<_>>(),
        "agent": null,
        "stdio": {},
        "confirm": false,
        "mcp_json": "workspace",
        "workspace": initramfs::WORKSPACE,
        "directory": initramfs::WORKSPACE,
        "user": {
            "ids": {"uid": initramfs::USER, "gid": initramfs::USER}, "name": "agent", "home": initramfs::HOME,
        },
        "relay_user": {"uid": RELAY_USER, "gid": RELAY_USER},
        "image_user": null,
        "filters": [],
        "env": {"PATH": "/bin"},
        "pre_run": null,
        "command": [AGENT],
        "terminal": false,
        "grace_ms": 5000,
        "tunnel_ms": 20000,
    });
    let text = json!({"plan": plan, "identity": registration.identity}).to_string();
    Ok(format!("{}\n{:08x}{text}", initramfs::GO, text.len()).into_bytes())
}

/// When this process started, in clock ticks since the machine did.
fn started() -> Outcome<u64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let field =
        after.split_whitespace().nth(19).ok_or_else(|| Trouble::new("/proc/self/stat is too short"))?;
    Ok(field.parse()?)
}

fn ask(socket: &Path, method: &str, path: &str, body: Option<&Value>, status: u16) -> Outcome<String> {
    // The next bridge may be on its way.
    let mut stream =
        eventually("the bridge's control socket", PATIENCE, || UnixStream::connect(socket).ok())?;
    let body = body.map(ToString::to_string).unwrap_or_default();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: moat\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    ensure(head.starts_with(&format!("HTTP/1.1 {status}")), || {
        format!("the bridge refuses {method} {path}: {head}\n{body}")
    })?;
    Ok(body.to_owned())
}

/// `- name: X`, `url: Y`, `auth: {grant: G, header: H}`, each on a line of its own. Anything else would be lost, and is
/// refused.
fn servers(yaml: &str) -> Outcome<Vec<Server>> {
    let mut servers: Vec<Server> = Vec::new();
    for line in yaml.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "mcp:") {
        let auth = line.strip_prefix("auth: {grant: ").and_then(|rest| rest.strip_suffix('}'));
        let auth = auth.and_then(|auth| auth.split_once(", header: "));
        match (servers.last_mut(), line.strip_prefix("- name: "), line.strip_prefix("url: "), auth) {
            (_, Some(name), ..) => servers.push(Server { name: name.to_owned(), ..Server::default() }),
            (Some(server), _, Some(url), _) => server.url = url.to_owned(),
            (Some(server), _, _, Some((grant, header))) => {
                server.auth = Some((grant.to_owned(), header.to_owned()));
            }
            _ => return Err(Trouble::new(format!("a guest's moat.yaml has no such line: {line}"))),
        }
    }
    Ok(servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_tests_write_them() {
        let yaml = "mcp:\n  - name: vault\n    url: https://localhost:1/mcp\n    auth: {grant: mcp-vault, header: X-Key}\n  \
                    - name: open\n    url: http://127.0.0.1:2/\n";
        let vault = Server {
            name: "vault".to_owned(),
            url: "https://localhost:1/mcp".to_owned(),
            auth: Some(("mcp-vault".to_owned(), "X-Key".to_owned())),
        };
        let open = Server { name: "open".to_owned(), url: "http://127.0.0.1:2/".to_owned(), auth: None };
        assert_eq!(servers(yaml).unwrap(), [vault, open]);
        for other in ["mcp:\n  - name: open\n    policy: x\n", "network: {mode: none}\n"] {
            assert!(servers(other).is_err(), "{other}");
        }
    }
}
