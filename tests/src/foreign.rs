//! An MCP server that is not ours in any part: made with the official Python SDK, in its own process. It asks the
//! authorization server about every token, and says what it was told.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;

use crate::{Outcome, Trouble, parts, rig::Rig};

/// The server's process.
#[derive(Debug)]
pub struct Foreign {
    child: Child,
    stdin: Option<ChildStdin>,
    port: u16,
    shown: Arc<Mutex<Vec<Value>>>,
}

impl Foreign {
    /// Starts it; it serves when it knows whom to ask ([`Foreign::trusts`]).
    ///
    /// # Errors
    /// When Python has no package `mcp`.
    pub fn start(rig: &Rig) -> Outcome<Self> {
        let place = |name: &str| rig.user_home().join(name);
        let (certificate, key) = (place("gated.pem"), place("gated.key"));
        rig.authority.write_server(&["localhost"], &certificate, &key)?;
        let python = parts::python().ok_or_else(|| Trouble::new("no python with mcp (see .ci/run)"))?;
        let script = format!("{}/clients/python_gated.py", env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(python)
            .args([script.as_ref(), certificate.as_os_str(), key.as_os_str(), rig.trust().as_os_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or_else(|| Trouble::new("no stdout"))?;
        let mut lines = BufReader::new(stdout);
        let mut first = String::new();
        lines.read_line(&mut first)?;
        let said: Value = serde_json::from_str(&first)?;
        let port = said["port"].as_u64().and_then(|port| u16::try_from(port).ok());
        let shown: Arc<Mutex<Vec<Value>>> = Arc::default();
        let noted = shown.clone();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_default();
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { child, stdin, port: port.ok_or_else(|| Trouble::new("no port"))?, shown })
    }

    /// Its URL, which is the resource that tokens have to be for.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://localhost:{}/mcp", self.port)
    }

    /// Whom it asks about tokens. From now on it serves.
    ///
    /// # Errors
    /// When it is gone.
    pub fn trusts(&mut self, issuer: &str) -> Outcome {
        let stdin = self.stdin.as_mut().ok_or_else(|| Trouble::new("no stdin"))?;
        Ok(writeln!(stdin, "{issuer}")?)
    }

    /// The tokens that it was shown, in their order: `{"token": "<hash>", "active"}`.
    #[must_use]
    pub fn shown(&self) -> Vec<Value> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
