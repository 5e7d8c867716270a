//! What this machine has of the parts that some tests need.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A part that may be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Namespaces that the process runtime can make.
    Sandbox,
    /// `curl`.
    Curl,
    /// `git`.
    Git,
    /// Python with the package `mcp`.
    Python,
    /// Node.
    Node,
    /// Any Python of version 3.
    AnyPython,
    /// Node with the TypeScript SDK.
    TypeScript,
    /// Node 22 with both editions of the official conformance suite and server-everything.
    Suite,
    /// The authorization server of the OAuth tests.
    Authorization,
    /// `script`, which makes terminals.
    Script,
    /// A C compiler.
    Cc,
    /// A C compiler with a static C library.
    StaticC,
    /// Root, to be another user for a moment.
    Root,
    /// `strace`, and leave to use it.
    Strace,
    /// Minutes: where nothing may be skipped, or on demand.
    Time,
    /// Many minutes: on a schedule only, whatever else is required.
    Schedule,
    /// Docker's engine, to be started by hand.
    Docker,
    /// podman, the same.
    Podman,
    /// What the stand-in for Apple's containers is made of.
    Apple,
    /// The same, and what its guests are made of.
    AppleGuest,
    /// QEMU, a kernel and the vsock device's program: a guest can be started.
    Guest,
    /// pasta, root to make hosts of the test's own with `ip`, and the device that pasta moves packets through.
    Pasta,
    /// Claude Code, Codex and Gemini CLI, and a Node that runs them.
    Agents,
    /// A Debian to make images on.
    Debian,
}

impl Part {
    /// Its name in a message.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "namespaces (root, or unprivileged user namespaces)",
            Self::Curl => "curl",
            Self::Git => "git",
            Self::Python => "python3 with the package mcp (see .ci/run)",
            Self::Node => "node",
            Self::AnyPython => "python3",
            Self::TypeScript => "node with @modelcontextprotocol/sdk (see .ci/run)",
            Self::Suite => "node 22, @modelcontextprotocol/conformance and server-everything (see .ci/run)",
            Self::Authorization => "node and oidc-provider (see .ci/run)",
            Self::Script => "script (util-linux)",
            Self::Cc => "cc",
            Self::StaticC => "cc and a static C library",
            Self::Root => "root",
            Self::Strace => "strace",
            Self::Time => "more than two minutes (MOAT_TESTS_LONG=1)",
            Self::Schedule => "more than five minutes (MOAT_TESTS_LONG=1, as .ci/long has it)",
            Self::Docker => "dockerd, docker, busybox-static, ip, and root",
            Self::Apple => "unshare, nsenter, busybox-static, ip, and root",
            Self::AppleGuest => {
                "what the stand-in for Apple's containers and a guest need, virtiofsd and setpriv (see .ci/run)"
            }
            Self::Podman => "podman, docker, busybox-static, and root",
            Self::Guest => {
                "qemu-system-x86_64, busybox-static, and a kernel and vhost-device-vsock in target/clients/guest (see .ci/run)"
            }
            Self::Pasta => "pasta (package passt), ip, /dev/net/tun, and root",
            Self::Debian => "a debootstrapped Debian (see .ci/run)",
            Self::Agents => "claude, codex, gemini and node 22 (see .ci/run)",
        }
    }

    /// Is it here?
    #[must_use]
    pub fn here(self) -> bool {
        match self {
            Self::Sandbox => succeeds(Command::new("unshare").args(["-Urn", "true"])),
            Self::Curl => succeeds(Command::new("curl").arg("--version")),
            Self::Git => succeeds(Command::new("git").arg("--version")),
            Self::Python => python().is_some_and(|p| succeeds(Command::new(p).args(["-c", "import mcp"]))),
            Self::Node => succeeds(Command::new("node").arg("--version")),
            Self::AnyPython => succeeds(Command::new("python3").arg("--version")),
            Self::TypeScript => typescript().is_some() && succeeds(Command::new("node").arg("--version")),
            Self::Suite => crate::suite::run::installed(),
            Self::Authorization => {
                authorization_server().is_some()
                    && (node22().is_some() || succeeds(Command::new("node").arg("--version")))
            }
            Self::Script => succeeds(Command::new("script").arg("--version")),
            Self::Cc => succeeds(Command::new("cc").arg("--version")),
            Self::StaticC => has_static_c(),
            Self::Root => nix::unistd::geteuid().is_root(),
            Self::Schedule => std::env::var_os("MOAT_TESTS_LONG").is_some(),
            Self::Strace => succeeds(Command::new("strace").args(["-o", "/dev/null", "true"])),
            Self::Time => {
                ["MOAT_TESTS_LONG", "MOAT_TESTS_REQUIRE"].iter().any(|name| std::env::var_os(name).is_some())
            }
            Self::Docker => has_engine("dockerd") && succeeds(Command::new("ip").arg("-V")),
            Self::Podman => has_engine("podman"),
            Self::Apple => {
                Self::Root.here()
                    && succeeds(Command::new("unshare").arg("--version"))
                    && succeeds(Command::new("nsenter").arg("--version"))
                    && succeeds(Command::new("busybox").arg("--list"))
                    && succeeds(Command::new("ip").arg("-V"))
            }
            Self::AppleGuest => Self::Apple.here() && crate::apple::has_guests(),
            Self::Guest => crate::guest::here(),
            Self::Pasta => {
                Self::Root.here()
                    && Path::new("/dev/net/tun").exists()
                    && succeeds(Command::new("pasta").arg("--version"))
                    && succeeds(Command::new("ip").arg("-V"))
            }
            Self::Debian => debian().is_some(),
            Self::Agents => agents().is_some() && node22().is_some(),
        }
    }
}

/// An engine, the client that asks it, and what its image is made of.
fn has_engine(daemon: &str) -> bool {
    Part::Root.here()
        && succeeds(Command::new(daemon).arg("--version"))
        && succeeds(Command::new("docker").arg("--version"))
        && succeeds(Command::new("busybox").arg("--list"))
}

/// The compiler answers with a path where it has the file, and with the bare name where it has not.
fn has_static_c() -> bool {
    let said = Command::new("cc").arg("-print-file-name=libc.a").stderr(Stdio::null()).output();
    said.is_ok_and(|said| said.stdout.starts_with(b"/"))
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// The Python that `.ci/run` makes: `target/clients/python/bin/python`.
#[must_use]
pub fn python() -> Option<PathBuf> {
    existing(crate::rig::target_directory()?.join("clients/python/bin/python"))
}

/// The modules that `.ci/run` installs: `target/clients/node/node_modules`.
#[must_use]
pub fn typescript() -> Option<PathBuf> {
    let modules = crate::rig::target_directory()?.join("clients/node/node_modules");
    existing(modules.join("@modelcontextprotocol/sdk")).map(|_| modules)
}

/// A Node of version 22 or later: the one that `.ci/run` installs, or this machine's own.
#[must_use]
pub fn node22() -> Option<PathBuf> {
    let ours = crate::rig::target_directory()?.join("clients/node22/node_modules");
    let packages = std::fs::read_dir(ours).into_iter().flatten().flatten();
    let installed = packages.map(|package| package.path().join("bin/node")).find(|node| node.exists());
    installed.or_else(|| {
        let new = |version: &[u8]| {
            let text = String::from_utf8_lossy(version);
            let major = text.trim_start_matches('v').split('.').next()?.parse::<u32>().ok()?;
            (major >= 22).then(|| PathBuf::from("node"))
        };
        Command::new("node").arg("--version").output().ok().and_then(|said| new(&said.stdout))
    })
}

/// The agents that `.ci/run` installs: `target/clients/agents/node_modules`.
#[must_use]
pub fn agents() -> Option<PathBuf> {
    let modules = crate::rig::target_directory()?.join("clients/agents/node_modules");
    let all = ["claude", "codex", "gemini"].iter().all(|agent| modules.join(".bin").join(agent).exists());
    all.then_some(modules)
}

/// The root file system that `.ci/run` makes: `target/clients/debian/root.tar`.
#[must_use]
pub fn debian() -> Option<PathBuf> {
    existing(crate::rig::target_directory()?.join("clients/debian/root.tar"))
}

/// The modules of the authorization server: `target/clients/oidc/node_modules`.
#[must_use]
pub fn authorization_server() -> Option<PathBuf> {
    let modules = crate::rig::target_directory()?.join("clients/oidc/node_modules");
    existing(modules.join("oidc-provider")).map(|_| modules)
}

fn existing(path: impl AsRef<Path>) -> Option<PathBuf> {
    let path = path.as_ref();
    path.exists().then(|| path.to_owned())
}
