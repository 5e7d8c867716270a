//! What an image wants, and what of it a run takes.

use std::{collections::BTreeMap, path::PathBuf};

use bollard::{models::ImageInspect, query_parameters::CreateImageOptionsBuilder};
use futures_util::TryStreamExt;

use super::{
    engine::{self, Engine, EngineError},
    variables,
};
use crate::runtime::{Order, RuntimeError};

/// An image that is here.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    pub(super) id: String,
    pub(super) entrypoint: Vec<String>,
    pub(super) cmd: Vec<String>,
    pub(super) user: String,
    pub(super) directory: String,
    pub(super) env: BTreeMap<String, String>,
}

/// Looks it up; fetches it first if it is not here. The tests' own images are never fetched: nobody offers them.
pub(super) async fn find(engine: &Engine, name: &str) -> Result<Image, EngineError> {
    let inspected = match engine.api.inspect_image(name).await {
        Err(error) if engine::is_not_found(&error) && !name.starts_with("moat-test:") => {
            fetch(engine, name).await?;
            engine.api.inspect_image(name).await
        }
        other => other,
    };
    match inspected {
        Ok(image) => Image::of(name, image),
        Err(error) if engine::is_not_found(&error) => Err(EngineError::NoImage(name.to_owned())),
        Err(source) => Err(EngineError::Asking { doing: "looking at the image", source }),
    }
}

async fn fetch(engine: &Engine, name: &str) -> Result<(), EngineError> {
    crate::cli::print::note(&format!("Fetching image {name}..."));
    let tagged = if name.contains('@') || name.rsplit('/').next().is_some_and(|last| last.contains(':')) {
        name.to_owned()
    } else {
        format!("{name}:latest")
    };
    let options = CreateImageOptionsBuilder::new().from_image(&tagged).build();
    let fetching = engine.api.create_image(Some(options), None, None);
    let progress = fetching.try_for_each(|step| async move {
        match step.error_detail.and_then(|detail| detail.message) {
            Some(error) => Err(bollard::errors::Error::DockerStreamError { error }),
            None => Ok(()),
        }
    });
    progress.await.map_err(|source| EngineError::Fetching { image: name.to_owned(), source })
}

impl Image {
    fn of(name: &str, inspected: ImageInspect) -> Result<Self, EngineError> {
        let ours = engine::architecture();
        let theirs = inspected.architecture.unwrap_or_default();
        if !theirs.is_empty() && theirs != ours {
            return Err(EngineError::Architecture { image: name.to_owned(), theirs, ours });
        }
        let config = inspected.config.unwrap_or_default();
        Ok(Self {
            id: inspected.id.unwrap_or_else(|| name.to_owned()),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            directory: config.working_dir.unwrap_or_default(),
            env: variables(&config.env.unwrap_or_default()),
        })
    }

    /// What is started: ENTRYPOINT with the given arguments, or with CMD where there are none. An agent is started as
    /// it is, whatever the image's ENTRYPOINT.
    pub(super) fn command(&self, order: &Order) -> Result<Vec<String>, RuntimeError> {
        let arguments = if order.command.is_empty() { &self.cmd } else { &order.command };
        let command: Vec<String> = match order.is_agent {
            true => arguments.clone(),
            false => self.entrypoint.iter().chain(arguments).cloned().collect(),
        };
        if command.is_empty() { Err(RuntimeError::NoCommand) } else { Ok(command) }
    }

    /// WORKDIR, where a program of the image's own is started. `None`: in the workspace.
    pub(super) fn directory(&self, order: &Order) -> Option<PathBuf> {
        let own = !order.is_agent && (order.command.is_empty() || !self.entrypoint.is_empty());
        let named = !matches!(self.directory.as_str(), "" | "/");
        (own && named).then(|| PathBuf::from(&self.directory))
    }
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

    #[test]
    fn a_foreign_architecture_is_refused() {
        let foreign = ImageInspect { architecture: Some("s390x".into()), ..ImageInspect::default() };
        assert!(Image::of("x", foreign).unwrap_err().to_string().contains("s390x"));
    }
}
