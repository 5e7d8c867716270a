//! The policies that a workspace last ran with, so that a start can say what has changed since (P42): an agent may have
//! written into the workspace, and a stranger into a branch that was checked out.
//!
//! One file per workspace in moat's own directory, where no sandbox sees it. It is a convenience: nothing is enforced by
//! it, and where it cannot be read or written the start says so and goes on.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use ring::digest;
use serde::{Deserialize, Serialize};

use crate::{
    disk,
    home::{self, Home},
    policy::{difference::Difference, model::RuleSet},
    server::Server,
};

/// A server's policy as it was.
#[derive(Debug, Serialize, Deserialize)]
struct Policy {
    /// How moat.yaml named it.
    shown: String,
    rules: RuleSet,
}

/// What a workspace ran with.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Policies {
    workspace: PathBuf,
    servers: BTreeMap<String, Policy>,
}

impl Policies {
    fn of(workspace: &Path, servers: &[Server]) -> Self {
        let policy = |server: &Server| {
            let bound = server.policy.as_ref()?;
            let policy = Policy { shown: bound.source.shown().to_owned(), rules: bound.rule_set().ok()? };
            Some((server.name.to_string(), policy))
        };
        Self { workspace: workspace.to_owned(), servers: servers.iter().filter_map(policy).collect() }
    }

    /// What is another now, a line for each server that is still there.
    fn changes(&self, now: &Self, servers: &[Server]) -> Vec<String> {
        let line = |server: &Server| {
            let name = server.name.as_str();
            match (self.servers.get(name), now.servers.get(name)) {
                (Some(old), Some(new)) => {
                    let difference = Difference::between(&old.rules, &new.rules);
                    (!difference.is_empty()).then(|| {
                        format!("{} changed since the last run: {}", new.shown, difference.summary())
                    })
                }
                (Some(old), None) => {
                    Some(format!("{} is gone since the last run: nothing is refused", old.shown))
                }
                (None, _) => None,
            }
            .map(|text| format!("MCP server '{name}': policy {text}"))
        };
        servers.iter().filter_map(line).collect()
    }
}

/// What has changed since the workspace's last run. With `keep`, this is its last run from now on.
pub(super) fn changes(home: &Home, workspace: &Path, servers: &[Server], keep: bool) -> Vec<String> {
    look(home, workspace, servers, keep).unwrap_or_else(|error| {
        vec![format!("the policies of this workspace's last run cannot be compared with today's: {error}")]
    })
}

fn look(home: &Home, workspace: &Path, servers: &[Server], keep: bool) -> io::Result<Vec<String>> {
    let now = Policies::of(workspace, servers);
    let file = home.last_policies(&key(workspace));
    let before: io::Result<Option<Policies>> = match fs::read(&file) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    if keep && (!matches!(before, Ok(None)) || !now.servers.is_empty()) {
        let directory = file.parent().unwrap_or(&file);
        home::private_dir(directory)?;
        // Two runs may start at once.
        let lock = disk::lock_file(&directory.join("lock"))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
        disk::replace(&file, &serde_json::to_vec(&now)?)?;
    }
    Ok(before?.map(|before| before.changes(&now, servers)).unwrap_or_default())
}

/// A file's name for a path that may be longer than a file's name.
fn key(workspace: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let hash = digest::digest(&digest::SHA256, workspace.as_os_str().as_bytes());
    hash.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn servers(policies: &[(&str, &str)]) -> Vec<Server> {
        let entry = |(name, policy): &(&str, &str)| {
            format!("  - {{name: {name}, url: 'http://localhost/', {policy}}}\n")
        };
        let yaml = format!("mcp:\n{}", policies.iter().map(entry).collect::<String>());
        config::check(&yaml).unwrap().servers
    }

    const ONE: (&str, &str) = ("a", "policy: {deny: [x, y]}");

    #[test]
    fn p42_what_changed_since_the_last_run_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        let start = |workspace: &str, with: &[(&str, &str)], keep| {
            changes(&home, Path::new(workspace), &servers(with), keep)
        };
        assert!(start("/w", &[ONE], true).is_empty(), "nothing to compare with");
        assert!(start("/w", &[ONE], true).is_empty(), "the same");
        let fewer = [("a", "policy: {deny: [x]}")];
        let said = "MCP server 'a': policy inline rules changed since the last run: 1 rule removed (deny-y)";
        assert_eq!(start("/w", &fewer, false), [said]);
        assert_eq!(start("/w", &fewer, true), [said], "a dry run changes nothing");
        assert!(start("/w", &fewer, true).is_empty(), "said already");
        assert!(start("/other", &[ONE], true).is_empty(), "another workspace");
        let gone = start("/w", &[("a", "")], true);
        assert_eq!(
            gone,
            ["MCP server 'a': policy inline rules is gone since the last run: nothing is refused"]
        );
        assert!(start("/w", &[ONE], true).is_empty(), "a policy where there was none");
    }

    #[test]
    fn what_cannot_be_read_is_said_and_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path());
        changes(&home, Path::new("/w"), &servers(&[ONE]), true);
        fs::write(home.last_policies(&key(Path::new("/w"))), "?").unwrap();
        let said = changes(&home, Path::new("/w"), &servers(&[ONE]), true);
        assert!(said.len() == 1 && said[0].contains("cannot be compared"), "{said:?}");
        assert!(changes(&home, Path::new("/w"), &servers(&[ONE]), true).is_empty(), "said once");
    }
}
