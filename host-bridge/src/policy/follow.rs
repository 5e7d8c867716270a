//! Follows the rule files of runs that are going, and writes down what a restart of the bridge must not forget.
//!
//! The agent can usually write the file. So an edit can only make the policy stricter: what the file says is judged beside
//! what was accepted, from the next call on, until `moat policy reload` accepts it on the host (P41). A file that is broken or gone
//! changes nothing but the state that people see (P40).

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use moat_shared::id::{RunId, ServerName};
use tokio::{sync::mpsc, time::sleep};

use super::{
    bound::{Bound, Memory},
    difference::Difference,
    file::{self, Broken, Loaded, Scopes},
};
use crate::{
    disk,
    home::Home,
    pipeline::{self, Notice},
    record::{AuditEvent, Recorder},
    registry::Registry,
    server::Server,
};

/// How often files are looked at.
const EVERY: Duration = Duration::from_millis(500);
/// Of a file's memory.
const MEMORY: u64 = 64 << 20;

type Key = (RunId, ServerName);
/// What tells one state of a file from another.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

/// Follows the rule files.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub(crate) registry: Registry,
    pub(crate) recorder: Recorder,
    pub(crate) notices: mpsc::Sender<Notice>,
    pub(crate) home: Home,
}

/// What was seen of one file, and what lies beside it.
#[derive(Debug, Default)]
struct Seen {
    files: Vec<PathBuf>,
    stamps: Vec<Stamp>,
    /// It was broken when it was looked at last; a second look tells whether it was only half written.
    doubtful: bool,
    told: Option<String>,
}

impl Watcher {
    /// Runs until the registry is gone.
    pub(crate) async fn run(self) {
        let mut seen: HashMap<Key, Seen> = HashMap::new();
        while let Ok(servers) = self.registry.policies().await {
            seen.retain(|key, _| servers.iter().any(|(run, server)| *run == key.0 && server.name == key.1));
            for (run, server) in servers {
                let Some(bound) = server.policy.clone() else { continue };
                let key = (run, server.name.clone());
                let state = seen.remove(&key).unwrap_or_default();
                let home = self.home.clone();
                let looking = {
                    let (key, bound) = (key.clone(), bound.clone());
                    tokio::task::spawn_blocking(move || {
                        save(&home, &key, &bound);
                        look(&server, &bound, state)
                    })
                };
                if let Ok((state, news)) = looking.await {
                    if let Some(news) = news {
                        self.tell(&key, &bound, news);
                    }
                    seen.insert(key, state);
                }
            }
            sleep(EVERY).await;
        }
    }

    fn tell(&self, (run, server): &Key, bound: &Bound, news: News) {
        let shown = bound.source.shown();
        let mended = news == News::Same;
        let (event, text) = match news {
            News::Pending { sha256, changes } => (
                AuditEvent::PolicyReloadPending {
                    server: server.clone(),
                    policy: sha256,
                    changes: changes.clone(),
                },
                format!(
                    "Policy of MCP server '{server}' changed ({changes}). Where it is stricter it is in force; where it \
                     is looser it waits for:\n  moat policy reload {run}"
                ),
            ),
            News::Failed(reason) => (
                AuditEvent::PolicyReloadFailed { server: server.clone(), reason: reason.clone() },
                format!(
                    "Warning: MCP server '{server}': the changed policy {shown} is not used, the one before stays in force: {reason}"
                ),
            ),
            News::Same => (
                AuditEvent::PolicyLoaded { server: server.clone(), policy: bound.sha256.clone() },
                format!("Policy of MCP server '{server}' is again the one that is in force."),
            ),
        };
        tracing::warn!(%run, %server, text, "a policy file changed");
        self.recorder.audit(run, event);
        let news = if mended { pipeline::News::Mended } else { pipeline::News::Trouble(text) };
        let notice = Notice { run: run.clone(), server: server.clone(), news };
        if self.notices.try_send(notice).is_err() {
            tracing::debug!("nobody takes the notices");
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    Pending {
        sha256: String,
        changes: String,
    },
    Failed(String),
    /// It says again what was accepted.
    Same,
}

/// One look at a server's file.
fn look(server: &Server, bound: &Bound, mut seen: Seen) -> (Seen, Option<News>) {
    let Some(path) = bound.source.file() else { return (seen, None) };
    if seen.files.is_empty() {
        seen.files = vec![path.to_path_buf()];
    }
    let stamps: Vec<Stamp> = seen.files.iter().map(|path| stamp(path)).collect();
    if stamps == seen.stamps && !seen.doubtful {
        return (seen, None);
    }
    let settled = stamps == seen.stamps;
    let loaded = file::load(path, bound.source.shown(), &Scopes::of_server(server.name.as_str()));
    seen.stamps = stamps;
    let news = match loaded {
        Ok(Loaded { policy, files, .. }) => {
            seen.doubtful = false;
            if files != seen.files {
                seen.stamps = files.iter().map(|path| stamp(path)).collect();
                seen.files = files;
            }
            // What is in force counts, not what is on its way to be.
            let same = bound.state().accepted.as_ref().map_or(&bound.sha256, |now| &now.hash) == &policy.hash;
            let news = if same {
                News::Same
            } else {
                let changes = bound.rule_set().map(|old| Difference::between(&old, &policy.set).summary());
                News::Pending { sha256: policy.hash.clone(), changes: changes.unwrap_or_default() }
            };
            bound.suggest((!same).then(|| Arc::new(policy.denying_only())), None);
            news
        }
        // Half written, perhaps.
        Err(_) if !settled => {
            seen.doubtful = true;
            return (seen, None);
        }
        Err(Broken(problems)) => {
            seen.doubtful = false;
            let reason = problems.into_iter().next().unwrap_or_default();
            // What was stricter stays so.
            let pending = bound.state().pending.clone();
            bound.suggest(pending, Some(reason.clone()));
            News::Failed(reason)
        }
    };
    let text = format!("{news:?}");
    // A file that is as it was at the start is no news.
    let first = seen.told.is_none() && news == News::Same;
    let told = seen.told.as_ref() == Some(&text);
    seen.told = Some(text);
    (seen, (!first && !told).then_some(news))
}

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Writes down what changed, at most as often as files are looked at (P43).
pub(crate) fn save(home: &Home, (run, server): &Key, bound: &Bound) {
    let Some(memory) = bound.memory() else { return };
    let path = home.policy_memory(run, server);
    let written = serde_json::to_vec(&memory).map_err(std::io::Error::other).and_then(|bytes| {
        path.parent().map_or(Ok(()), crate::home::private_dir).and_then(|()| disk::replace(&path, &bytes))
    });
    if let Err(error) = written {
        bound.not_written();
        tracing::error!(file = %path.display(), %error, "what a policy counts could not be written down");
    }
}

/// Takes back what was written down before a restart. Where it cannot be read nothing of the server passes: budgets
/// that are full again would be weaker than before.
pub(crate) fn restore(home: &Home, run: &RunId, server: &ServerName, bound: &Bound) {
    let path = home.policy_memory(run, server);
    let memory = match std::fs::metadata(&path) {
        Ok(metadata) if metadata.len() <= MEMORY => {
            std::fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Memory>(&bytes)?))
        }
        Ok(_) => Err(std::io::Error::other("too long")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => Err(error),
    };
    match memory {
        Ok(memory) => bound.remember(memory),
        Err(error) => {
            tracing::error!(file = %path.display(), %error, "what a policy counted before cannot be read");
            let remedy = format!("'moat policy reload {run}' lets it count anew");
            bound.close(format!("what its policy counted before cannot be read; {remedy}"));
        }
    }
}

#[cfg(test)]
mod tests;
