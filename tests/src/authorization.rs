//! The authorization server of the tests (npm `oidc-provider`, in its own process) and an MCP server that asks it about
//! every token.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
    time::Duration,
};

use serde_json::Value;

use crate::{
    Outcome, Trouble,
    parts::{self, authorization_server},
    pki::Authority,
    rig::Rig,
    trouble::ensure,
};

/// Where tokens are asked about: the issuer, and the server's port of control. Set when the server is up.
pub type Gate = Arc<OnceLock<(String, u16)>>;

/// The server's process.
#[derive(Debug)]
pub struct AuthorizationServer {
    child: Child,
    /// Its identifier.
    pub issuer: String,
    control: u16,
}

impl AuthorizationServer {
    /// Starts one that gives tokens for `resource`; its certificate is `authority`'s.
    ///
    /// # Errors
    /// When it is not installed or does not come up.
    pub fn start(rig: &Rig, authority: &Authority, resource: &str, gate: &Gate) -> Outcome<Self> {
        let missing = || Trouble::new("oidc-provider is not installed (see .ci/run)");
        let modules = authorization_server().ok_or_else(missing)?;
        let place = |name: &str| rig.user_home().join(name);
        let (certificate, key) = (place("as.pem"), place("as.key"));
        authority.write_server(&["localhost"], &certificate, &key)?;
        let node = parts::node22().unwrap_or_else(|| PathBuf::from("node"));
        let script = format!("{}/clients/authorization_server.mjs", env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(node)
            .args([
                script.as_ref(),
                modules.as_os_str(),
                certificate.as_ref(),
                key.as_ref(),
                resource.as_ref(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| Trouble::new("no stdout"))?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line)?;
        let port =
            |name: &str| said[name].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or_default();
        let issuer = format!("https://localhost:{}", port("port"));
        let control = port("control");
        ensure(gate.set((issuer.clone(), control)).is_ok(), || "the gate has a server already".to_owned())?;
        // A browser that says yes to everything.
        let browser = place("browser");
        fs::write(
            &browser,
            format!(
                "#!/bin/sh\nexec curl -sSL --cacert {} -c {jar} -b {jar} -o {} \"$1\"\n",
                rig.trust().display(),
                place("page").display(),
                jar = place("jar").display()
            ),
        )?;
        fs::set_permissions(&browser, fs::Permissions::from_mode(0o755))?;
        Ok(Self { child, issuer, control })
    }

    /// The browser that [`AuthorizationServer::start`] made, for `BROWSER`.
    #[must_use]
    pub fn browser(rig: &Rig) -> String {
        rig.user_home().join("browser").to_string_lossy().into_owned()
    }

    /// Changes how it behaves: `ttl=2`, `rotate=false`, `fault=lost&times=1`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn set(&self, query: &str) -> Outcome {
        control(self.control, &format!("/set?{query}")).map(drop)
    }

    /// Lets an access token die.
    ///
    /// # Errors
    /// When it is gone.
    pub fn kill(&self, token: &str) -> Outcome {
        control(self.control, &format!("/kill?token={token}")).map(drop)
    }

    /// What it was asked: `{"kind", "spent", "ok", …}`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn log(&self) -> Outcome<Vec<Value>> {
        let (_, log) = control(self.control, "/log")?;
        Ok(log.as_array().cloned().unwrap_or_default())
    }

    /// Every refresh token was spent once, every refresh worked, and each was for this resource. How many there were.
    ///
    /// # Errors
    /// When it was otherwise.
    pub fn spent_once(&self, resource: &str) -> Outcome<usize> {
        let refreshes = self.refreshes()?;
        let spent: BTreeSet<&str> = refreshes.iter().filter_map(|line| line["spent"].as_str()).collect();
        ensure(spent.len() == refreshes.len() && refreshes.iter().all(|line| line["ok"] == true), || {
            format!("a refresh token was spent twice, or refused: {refreshes:?}")
        })?;
        ensure(refreshes.iter().all(|line| line["resource"] == resource), || {
            format!("O5: not the server's own resource: {refreshes:?}")
        })?;
        Ok(refreshes.len())
    }

    /// How often its metadata was asked for.
    ///
    /// # Errors
    /// When it is gone.
    pub fn discoveries(&self) -> Outcome<usize> {
        Ok(self.log()?.iter().filter(|line| line["kind"] == "metadata").count())
    }

    /// Every secret that it gave or was shown: `{"kind", "value"}`.
    ///
    /// # Errors
    /// When it is gone.
    pub fn secrets(&self) -> Outcome<Vec<Value>> {
        let (_, secrets) = control(self.control, "/secrets")?;
        Ok(secrets.as_array().cloned().unwrap_or_default())
    }

    /// The refreshes so far.
    ///
    /// # Errors
    /// When it is gone.
    pub fn refreshes(&self) -> Outcome<Vec<Value>> {
        Ok(self.log()?.into_iter().filter(|line| line["kind"] == "refresh_token").collect())
    }
}

impl Drop for AuthorizationServer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Is this token good at the server of the gate?
#[must_use]
pub fn is_active(gate: &Gate, token: &str) -> bool {
    let Some((_, port)) = gate.get() else { return false };
    control(*port, &format!("/active?token={token}")).is_ok_and(|(status, _)| status == 200)
}

/// Asks the server's control port.
fn control(port: u16, target: &str) -> Outcome<(u16, Value)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {target} HTTP/1.0\r\nHost: control\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let (_, body) = answer.split_once("\r\n\r\n").ok_or_else(|| Trouble::new("no answer"))?;
    Ok((status.ok_or_else(|| Trouble::new("no status"))?, serde_json::from_str(body)?))
}
