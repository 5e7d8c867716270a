//! What most tests stand on: two real servers, two faulty ones, their credentials, and the moat.yaml that names them.

use std::time::Duration;

use moat_tests::{
    Outcome,
    faults::Faults,
    inside::{Answer, Request},
    needles,
    rig::Rig,
    trouble::ensure,
    upstream::{Demand, Upstream},
};
use serde_json::{Value, json};

/// The header of the server `vault`.
pub(crate) const VAULT_HEADER: &str = "X-Vault-Key";
/// What the agent holds for it.
pub(crate) const VAULT_STUB: &str = "moat-stub-mcp-vault";
/// The header of the server `faults`.
pub(crate) const FAULTS_HEADER: &str = "X-Faults-Key";
/// What the agent holds for it.
pub(crate) const FAULTS_STUB: &str = "moat-stub-mcp-faults";
/// Within this time trouble that can be known is told.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// The stage. Fields are dropped in their order: the rig, with its bridge, first.
pub(crate) struct Stage {
    pub(crate) rig: Rig,
    /// rmcp over HTTPS; demands its credential.
    pub(crate) vault: Upstream,
    /// rmcp over HTTP on loopback; open.
    pub(crate) local: Upstream,
    /// Faulty, over HTTPS, with a credential.
    pub(crate) faults: Faults,
    /// Faulty, over HTTP on loopback, without one.
    pub(crate) open: Faults,
    /// The credential of `vault`.
    pub(crate) secret: String,
    /// The credential of `faults`.
    pub(crate) faults_secret: String,
}

impl Stage {
    /// Everything set up and granted; nothing runs.
    pub(crate) fn new() -> Outcome<Self> {
        Self::with("")
    }

    /// The same, with more lines at the end of moat.yaml.
    pub(crate) fn with(more: &str) -> Outcome<Self> {
        let rig = Rig::new()?;
        // Characters that each encoding writes differently.
        let secret = format!("vault-{}/+=&%~.k", rig.mark());
        let faults_secret = format!("faults-{}/+=\"\\&%.k", rig.mark());
        let vault = Upstream::tls("vault", &rig.authority, false, Some(Demand::new(VAULT_HEADER, &secret)))?;
        let local = Upstream::plain("local", None)?;
        let faults = Faults::tls(&rig.authority, &["localhost"])?;
        let open = Faults::plain()?;
        rig.config(&format!(
            "mcp:\n  - name: vault\n    url: {}\n    auth: {{grant: mcp-vault, header: {VAULT_HEADER}}}\n  \
               - name: local\n    url: {}\n  - name: faults\n    url: {}\n    auth: {{grant: mcp-faults, header: \
               {FAULTS_HEADER}}}\n  - name: open\n    url: {}\n{more}",
            vault.url(),
            local.url(),
            faults.url(),
            open.url()
        ))?;
        rig.grant("vault", &secret, &vault.url())?;
        rig.grant("faults", &faults_secret, &faults.url())?;
        Ok(Self { rig, vault, local, faults, open, secret, faults_secret })
    }

    /// Fails when a credential is in what reached the sandbox.
    pub(crate) fn nothing_in(&self, what: &str, text: &str) -> Outcome {
        for secret in [&self.secret, &self.faults_secret] {
            let found = needles::found(&needles::of(secret), text.as_bytes());
            ensure(found.is_empty(), || format!("{what} holds a credential ({found:?}):\n{text}"))?;
        }
        Ok(())
    }

    /// Fails when a credential is in an answer's headers or body.
    pub(crate) fn clean(&self, what: &str, answer: &Answer) -> Outcome {
        self.nothing_in(what, &format!("{:?}\n{}", answer.headers, answer.body))?;
        let headers: Vec<&str> = answer.headers.iter().map(|(_, value)| value.as_str()).collect();
        self.nothing_in(what, &headers.join("\n"))
    }
}

/// A request to the faulty server with a credential, as an agent sends it.
pub(crate) fn fault(path: &str) -> Request {
    Request::rpc(&format!("/mcp/faults/{path}"), 7, "tools/call").header(FAULTS_HEADER, FAULTS_STUB)
}

/// A stateless request of 2026-07-28 to `server/discover`, the cheapest that rmcp answers.
pub(crate) fn discover(server: &str) -> Request {
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "probe", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let message = json!({"jsonrpc": "2.0", "id": 7, "method": "server/discover", "params": {"_meta": meta}});
    let post = Request::post(&format!("/mcp/{server}"), &message);
    post.header("MCP-Protocol-Version", "2026-07-28").header("Mcp-Method", "server/discover")
}

/// Fails unless the answer is an error that moat made, of this kind, for the request with id 7.
pub(crate) fn expect_error(what: &str, answer: &Answer, status: u16, kind: &str) -> Outcome {
    let body: Value = answer.json();
    ensure(answer.status == status && answer.kind() == kind, || {
        format!("{what}: wanted {status} {kind}, got {} {}\n{}", answer.status, answer.kind(), answer.body)
    })?;
    let told = body["error"]["message"].as_str().is_some_and(|text| text.len() > 20);
    ensure(told && body["error"]["data"]["source"] == "moat", || format!("{what}: says too little: {body}"))?;
    ensure(body["id"] == 7, || format!("{what}: the request's id is missing: {body}"))
}
