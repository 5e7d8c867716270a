//! Runs the official conformance suite, as npm installed it: directly on the host, or as a program in a sandbox.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use super::report::Report;
use crate::{Outcome, Trouble, clock::eventually, inside::Inside, parts, rig::Rig, trouble::ensure};

/// An edition of the suite, and the requirements that it is run with.
#[derive(Debug, Clone, Copy)]
pub struct Edition {
    /// What it is called in docs/CONFORMANCE.md.
    pub title: &'static str,
    /// Its directory below `target/clients`.
    directory: &'static str,
    /// What selects the scenarios of a server.
    server: &'static [&'static str],
    /// What selects the wire of a client's scenario.
    client: &'static [&'static str],
    /// What lists the scenarios of a client.
    list: &'static [&'static str],
}

/// The edition that npm calls `latest`, with all that it has.
pub const STABLE: Edition = Edition {
    title: "stable",
    directory: "conformance-stable",
    server: &["--suite", "all"],
    client: &[],
    list: &["list", "--client"],
};
/// The newest edition, with what 2025-11-25 requires.
pub const NEWEST_2025: Edition = Edition {
    title: "newest, 2025-11-25",
    directory: "conformance-newest",
    server: &["--requirements", "2025-11-25"],
    client: &["--spec-version", "2025-11-25"],
    list: &["list", "--client", "--requirements", "2025-11-25"],
};
/// The newest edition, with what 2026-07-28 requires.
pub const NEWEST_2026: Edition = Edition {
    title: "newest, 2026-07-28",
    directory: "conformance-newest",
    server: &["--requirements", "2026-07-28"],
    client: &["--spec-version", "2026-07-28"],
    list: &["list", "--client", "--requirements", "2026-07-28"],
};

/// The newest edition, with the wire of 2025-03-26: of that revision only its way to find an authorization server is run.
pub const NEWEST_2025_03: Edition = Edition {
    title: "newest, 2025-03-26",
    directory: "conformance-newest",
    server: &[],
    client: &["--spec-version", "2025-03-26"],
    list: &[],
};

const EVERYTHING: &str = "everything/node_modules/@modelcontextprotocol/server-everything/dist/index.js";

/// Where `.ci/run` installs.
fn clients() -> Outcome<PathBuf> {
    crate::rig::target_directory()
        .map(|target| target.join("clients"))
        .ok_or_else(|| Trouble::new("where is the target directory?"))
}

/// Is everything here that the tests of conformance need?
#[must_use]
pub fn installed() -> bool {
    let there = |path: PathBuf| path.exists();
    let editions = [STABLE, NEWEST_2025].iter().all(|edition| edition.program().is_ok_and(there));
    editions && parts::node22().is_some() && clients().is_ok_and(|clients| there(clients.join(EVERYTHING)))
}

fn node() -> Outcome<String> {
    let node = parts::node22().ok_or_else(|| Trouble::new("no node 22"))?;
    Ok(node.to_string_lossy().into_owned())
}

impl Edition {
    fn program(&self) -> Outcome<PathBuf> {
        let package = "node_modules/@modelcontextprotocol/conformance/dist/index.js";
        Ok(clients()?.join(self.directory).join(package))
    }

    /// The command line up to the suite's own verb.
    fn command(&self) -> Outcome<Vec<String>> {
        Ok(vec![node()?, self.program()?.to_string_lossy().into_owned()])
    }

    /// The version that is installed.
    ///
    /// # Errors
    /// When its package cannot be read.
    pub fn version(&self) -> Outcome<String> {
        let program = self.program()?;
        let package = program.ancestors().nth(2).unwrap_or(&program).join("package.json");
        let package: serde_json::Value = serde_json::from_str(&fs::read_to_string(package)?)?;
        Ok(package["version"].as_str().unwrap_or("?").to_owned())
    }

    fn server_command(&self, url: &str, out: &str) -> Outcome<Vec<String>> {
        let mut argv = self.command()?;
        argv.extend(["server", "--url", url].map(ToOwned::to_owned));
        argv.extend(self.server.iter().map(|&word| word.to_owned()));
        argv.extend(["-o", out].map(ToOwned::to_owned));
        Ok(argv)
    }

    /// Runs all scenarios of a server against `url`, on the host.
    ///
    /// # Errors
    /// When the suite leaves no results.
    pub fn directly(&self, rig: &Rig, url: &str, name: &str) -> Outcome<Report> {
        let out = rig.workspace().join(name);
        let argv = self.server_command(url, &out.to_string_lossy())?;
        let (program, arguments) = argv.split_first().ok_or_else(|| Trouble::new("no command"))?;
        // Its exit code judges the server; the comparison is ours.
        let ran = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
        Report::read(&out)
            .map_err(|trouble| Trouble::new(format!("{trouble}\n{}", String::from_utf8_lossy(&ran.stdout))))
    }

    /// Runs all scenarios of a server against `url`, in the sandbox.
    ///
    /// # Errors
    /// When the suite leaves no results.
    pub fn inside(&self, rig: &Rig, inside: &Inside, url: &str, name: &str) -> Outcome<Report> {
        let argv = self.server_command(url, &format!("./{name}"))?;
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let ran = inside.exec(&argv, &[])?;
        Report::read(&rig.workspace().join(name))
            .map_err(|trouble| Trouble::new(format!("{trouble}\n{}\n{}", ran.out, ran.err)))
    }

    /// The scenarios of a client, without those of authorization, which is moat's and not the agent's.
    ///
    /// # Errors
    /// When the suite lists none.
    pub fn client_scenarios(&self) -> Outcome<Vec<String>> {
        let mut command = Command::new(node()?);
        let said = command.arg(self.program()?).args(self.list).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let (_, clients) = text.split_once("Client scenarios").ok_or_else(|| Trouble::new(text.clone()))?;
        let marked = text.lines().filter(|line| line.contains("[client]"));
        let names: Vec<String> = clients
            .lines()
            .skip(1)
            .take_while(|line| line.trim_start().starts_with("- "))
            .chain(marked)
            .filter_map(|line| line.trim_start().strip_prefix("- ")?.split(' ').next())
            .filter(|name| !name.starts_with("auth/"))
            .map(ToOwned::to_owned)
            .collect();
        ensure(!names.is_empty(), || format!("no scenario of a client in:\n{text}"))?;
        Ok(names)
    }

    /// The scenarios of authorization that it has for clients: `auth/name`, and the revisions (or `extension`) that it is of.
    ///
    /// # Errors
    /// When the suite lists none.
    pub fn authorization_scenarios(&self) -> Outcome<Vec<(String, Vec<String>)>> {
        let mut command = Command::new(node()?);
        let said = command.arg(self.program()?).args(["list", "--client"]).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let scenario = |line: &str| {
            let (name, rest) = line.trim_start().strip_prefix("- ")?.split_once(" [")?;
            let of = rest.split(']').next()?.split(',').map(|word| word.trim().to_owned()).collect();
            name.starts_with("auth/").then(|| (name.to_owned(), of))
        };
        let all: Vec<_> = text.lines().filter_map(scenario).collect();
        ensure(!all.is_empty(), || format!("no scenario of authorization in:\n{text}"))?;
        Ok(all)
    }

    /// Runs these scenarios of a client with `client`, a command that gets the URL of the suite's server as its last
    /// argument and runs in the environment of the rig's `moat`.
    ///
    /// # Errors
    /// When the suite leaves no results.
    pub fn client(&self, rig: &Rig, scenarios: &[String], client: &str, name: &str) -> Outcome<Report> {
        let out = rig.workspace().join(name);
        let mut report = Report::default();
        for scenario in scenarios {
            let own = out.join(scenario);
            let mut command = Command::new(node()?);
            command.env_clear();
            for (name, value) in rig.moat(&[])?.get_envs() {
                command.envs(value.map(|value| (name, value)));
            }
            command.arg(self.program()?).args(["client", "--command", client, "--scenario", scenario]);
            let ran = command.args(self.client).arg("-o").arg(&own).stdin(Stdio::null()).output()?;
            let said = || {
                format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr))
            };
            // A scenario of a group, `auth/...`, leaves its results one directory deeper.
            let group = scenario.split_once('/').map_or("", |(group, _)| group);
            let one = Report::read(&own.join(group));
            let one = one.map_err(|trouble| Trouble::new(format!("{scenario}: {trouble}\n{}", said())))?;
            report.extend(one.saying(&said()));
        }
        Ok(report)
    }
}

/// A sandbox that sees the suite.
///
/// # Errors
/// When it does not come up.
pub fn sandbox(rig: &Rig) -> Outcome<Inside> {
    let clients = clients()?.to_string_lossy().into_owned();
    rig.console_with(&["-m", &format!("{clients}:{clients}:ro")])
}

/// npm's server-everything, on 127.0.0.1 alone.
#[derive(Debug)]
pub struct Everything {
    child: Child,
    port: u16,
}

impl Everything {
    /// Starts it with the transport `streamableHttp` or `sse`.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn start(rig: &Rig, transport: &str) -> Outcome<Self> {
        let told = rig.workspace().join(format!("port-of-{transport}"));
        // By itself it binds all interfaces.
        let loopback = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/loopback.cjs");
        let child = Command::new(node()?)
            .arg("--require")
            .arg(loopback)
            .arg(clients()?.join(EVERYTHING))
            .arg(transport)
            .env("PORT", "0")
            .env("PORT_FILE", &told)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut server = Self { child, port: 0 };
        server.port = eventually("server-everything listens", Duration::from_secs(20), || {
            fs::read_to_string(&told).ok()?.trim().parse().ok()
        })?;
        Ok(server)
    }

    /// Its origin.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

impl Drop for Everything {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
