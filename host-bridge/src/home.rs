//! Where everything lies below `~/.moat`, or `$MOAT_HOME`. The one place that knows these paths.

use std::{
    borrow::Cow,
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use moat_shared::{hint::Hint, id::RunId};

use crate::env::Environment;

/// The installation's directory.
#[derive(Debug, Clone)]
pub(crate) struct Home(PathBuf);

/// Neither `MOAT_HOME` nor `HOME` names an absolute directory.
#[derive(Debug, thiserror::Error)]
#[error("no home directory: set MOAT_HOME to an absolute path")]
pub(crate) struct NoHome;

/// The directory is somebody else's.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path} belongs to uid {owner}, and this is uid {uid}: what one of them writes the other cannot read"
)]
pub(crate) struct Foreign {
    path: PathBuf,
    owner: u32,
    uid: u32,
}

impl Hint for Foreign {
    fn hint(&self) -> Option<Cow<'_, str>> {
        Some(if self.uid == 0 {
            "run moat without sudo, or give root a home of its own: MOAT_HOME=/root/.moat".into()
        } else {
            format!(
                "set MOAT_HOME to a directory of your own, or: sudo chown -R {} {}",
                self.uid,
                self.path.display()
            )
            .into()
        })
    }
}

impl Home {
    /// Refuses a directory that is there and is not this user's: root would leave files in it that its owner cannot
    /// read, and anybody else would trust what a stranger put there.
    pub(crate) fn check_owner(&self) -> Result<(), Foreign> {
        let uid = nix::unistd::geteuid().as_raw();
        match fs::metadata(&self.0).map(|found| found.uid()) {
            Ok(owner) if owner != uid => Err(Foreign { path: self.0.clone(), owner, uid }),
            // What cannot be looked at is told of by whoever needs it.
            _ => Ok(()),
        }
    }

    /// `$MOAT_HOME`, else `~/.moat`.
    pub(crate) fn find(env: &Environment) -> Result<Self, NoHome> {
        let given = env.get("MOAT_HOME").map(PathBuf::from);
        let root = given.or_else(|| env.user_home().map(|home| home.join(".moat"))).ok_or(NoHome)?;
        if root.is_absolute() { Ok(Self(root)) } else { Err(NoHome) }
    }

    /// A given directory.
    #[cfg(test)]
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }
    /// The user's settings.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.0.join("config.yaml")
    }
    /// The credentials of a profile.
    pub(crate) fn credentials(&self, profile: Option<&Profile>) -> PathBuf {
        let base = self.0.join("credentials");
        match profile {
            Some(profile) => base.join("profiles").join(profile.as_str()),
            None => base,
        }
    }
    /// What a person knows of the authorization server of `oauth:<name>`.
    pub(crate) fn oauth_file(&self, name: &str) -> PathBuf {
        self.0.join("oauth").join(format!("{name}.yaml"))
    }
    pub(crate) fn key_file(&self) -> PathBuf {
        self.0.join("encryption.key")
    }
    pub(crate) fn key_lock(&self) -> PathBuf {
        self.0.join("key.lock")
    }
    /// The bridge's directory.
    pub(crate) fn proxy(&self) -> PathBuf {
        self.0.join("proxy")
    }
    pub(crate) fn runs_file(&self) -> PathBuf {
        self.proxy().join("runs.json")
    }
    /// The control socket.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.proxy().join("daemon.sock")
    }
    pub(crate) fn daemon_lock(&self) -> PathBuf {
        self.proxy().join("daemon.lock")
    }
    /// Held by the command that starts the bridge.
    pub(crate) fn spawn_lock(&self) -> PathBuf {
        self.proxy().join("spawn.lock")
    }
    pub(crate) fn daemon_log(&self) -> PathBuf {
        self.proxy().join("daemon.log")
    }
    pub(crate) fn ca(&self) -> PathBuf {
        self.proxy().join("ca")
    }
    /// The directory that sandboxes get to see, with nothing in it but the tunnel's socket.
    pub(crate) fn tunnel_dir(&self) -> PathBuf {
        self.proxy().join("tunnel")
    }
    pub(crate) fn tunnel_socket(&self) -> PathBuf {
        self.tunnel_dir().join("bridge.sock")
    }
    /// All runs.
    pub(crate) fn runs(&self) -> PathBuf {
        self.0.join("runs")
    }
    pub(crate) fn run(&self, run: &RunId) -> PathBuf {
        self.runs().join(run.as_str())
    }
    pub(crate) fn metadata(&self, run: &RunId) -> PathBuf {
        self.run(run).join("metadata.json")
    }
    pub(crate) fn logs(&self, run: &RunId) -> PathBuf {
        self.run(run).join("logs.jsonl")
    }
    pub(crate) fn network(&self, run: &RunId) -> PathBuf {
        self.run(run).join("network.jsonl")
    }
    /// What a server's policy counted and learned; a restart of the bridge takes it up again.
    pub(crate) fn policy_memory(&self, run: &RunId, server: &moat_shared::id::ServerName) -> PathBuf {
        self.run(run).join(format!("policy-{server}.json"))
    }
    /// The policies that a workspace last ran with; `key` is its path's.
    pub(crate) fn last_policies(&self, key: &str) -> PathBuf {
        self.0.join("policies").join(format!("{key}.json"))
    }
    pub(crate) fn audit(&self, run: &RunId) -> PathBuf {
        self.run(run).join("audit.jsonl")
    }
}

/// Makes a directory and its parents, each new one 0700, and takes the rights of group and others from the last.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// A named set of credentials: `[A-Za-z0-9][A-Za-z0-9_-]*`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Profile(String);

impl Profile {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What was given is not a profile's name.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "invalid profile name {0:?}: must start with a letter or digit and contain only letters, digits, hyphens, and \
     underscores"
)]
pub(crate) struct InvalidProfile(String);

impl FromStr for Profile {
    type Err = InvalidProfile;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
        if first && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) && text.len() <= 64 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidProfile(text.chars().take(64).collect()))
        }
    }
}
impl TryFrom<String> for Profile {
    type Error = InvalidProfile;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}
impl From<Profile> for String {
    fn from(profile: Profile) -> Self {
        profile.0
    }
}
impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
