//! What an image wants, and what of it a run takes: the same in every runtime that has images.

use std::{collections::BTreeMap, path::PathBuf};

use super::{Order, RuntimeError};

/// An image that is here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    pub(crate) id: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) user: String,
    pub(crate) directory: String,
    pub(crate) env: BTreeMap<String, String>,
}

impl Image {
    /// What is started: ENTRYPOINT with the given arguments, or with CMD where there are none. An agent is started as
    /// it is, whatever the image's ENTRYPOINT.
    pub(crate) fn command(&self, order: &Order) -> Result<Vec<String>, RuntimeError> {
        let arguments = if order.command.is_empty() { &self.cmd } else { &order.command };
        let command: Vec<String> = match order.is_agent {
            true => arguments.clone(),
            false => self.entrypoint.iter().chain(arguments).cloned().collect(),
        };
        if command.is_empty() { Err(RuntimeError::NoCommand) } else { Ok(command) }
    }

    /// WORKDIR, where a program of the image's own is started. `None`: in the workspace.
    pub(crate) fn directory(&self, order: &Order) -> Option<PathBuf> {
        let own = !order.is_agent && (order.command.is_empty() || !self.entrypoint.is_empty());
        let named = !matches!(self.directory.as_str(), "" | "/");
        (own && named).then(|| PathBuf::from(&self.directory))
    }
}

/// Is it one that no registry has? `localhost/` is in front of what was built on this machine: podman writes it there, and
/// moat calls its own images so.
pub(crate) fn is_built_here(name: &str) -> bool {
    name.starts_with("localhost/")
}

/// An image's environment as pairs.
pub(crate) fn variables(env: &[String]) -> BTreeMap<String, String> {
    env.iter().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ContainerOptions;
    use test_case::test_case;

    fn order(command: &[&str], is_agent: bool) -> Order {
        Order {
            name: "n".into(),
            workspace: "/w".into(),
            mounts: vec![],
            terminal: None,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            is_agent,
            image: Some("x".into()),
            container: ContainerOptions::default(),
            network: None,
            tunnel: None,
        }
    }

    #[test_case(&["e"], &["c"], &[], false => "e c in /app"; "the image's own program")]
    #[test_case(&["e"], &["c"], &["x", "y"], false => "e x y in /app"; "arguments replace CMD")]
    #[test_case(&[], &["c"], &["x"], false => "x in workspace"; "a command of the user's")]
    #[test_case(&[], &["c"], &[], false => "c in /app"; "CMD alone")]
    #[test_case(&["e"], &["c"], &["claude", "-p"], true => "claude -p in workspace"; "an agent")]
    #[test_case(&[], &[], &[], false => "nothing"; "nothing to start")]
    fn what_is_started(entrypoint: &[&str], cmd: &[&str], command: &[&str], is_agent: bool) -> String {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let image = Image {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            directory: "/app".into(),
            ..Image::default()
        };
        let order = order(command, is_agent);
        let Ok(command) = image.command(&order) else { return "nothing".into() };
        let place =
            image.directory(&order).map_or_else(|| "workspace".into(), |path| path.display().to_string());
        format!("{} in {place}", command.join(" "))
    }
}
