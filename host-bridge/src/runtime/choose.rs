//! Which runtime: the one that was asked for, else what is there.

use super::{
    RuntimeError,
    docker::{Engine, engine::Kind},
};
use crate::{config::RuntimeName, env::Environment};

/// What drives the sandbox.
#[derive(Debug)]
pub(crate) enum Chosen {
    Process,
    Engine(Engine),
}

impl Chosen {
    /// As `runtime:` spells it.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Process => RuntimeName::Process.as_str(),
            Self::Engine(engine) => engine.kind.name(),
        }
    }
}

/// What was asked for; else Docker where an image is named, and namespaces where none is.
pub(crate) async fn choose(
    wanted: Option<RuntimeName>,
    names_image: bool,
    env: &Environment,
) -> Result<Chosen, RuntimeError> {
    match wanted {
        Some(RuntimeName::Process) => Ok(Chosen::Process),
        Some(RuntimeName::Docker) => Ok(Chosen::Engine(Kind::Docker.find(env).await?)),
        Some(RuntimeName::Podman) => Ok(Chosen::Engine(Kind::Podman.find(env).await?)),
        Some(other @ RuntimeName::Apple) => Err(RuntimeError::NotYet(other.as_str().to_owned())),
        // An image that nothing can start must not be ignored.
        None if names_image => Ok(Chosen::Engine(Kind::Docker.find(env).await?)),
        None => Ok(Chosen::Process),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_that_was_named_must_answer() {
        let env = Environment::from([("DOCKER_HOST", "unix:///nonexistent/docker.sock")]);
        assert!(choose(None, true, &env).await.is_err());
        assert!(choose(Some(RuntimeName::Docker), false, &env).await.is_err());
        assert_eq!(choose(None, false, &env).await.unwrap().name(), "process");
        assert_eq!(choose(Some(RuntimeName::Process), true, &env).await.unwrap().name(), "process");
    }
}
