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

/// Docker where its engine answers, else namespaces; unless something was asked for. An environment that names an engine
/// asks for it.
pub(crate) async fn choose(wanted: Option<RuntimeName>, env: &Environment) -> Result<Chosen, RuntimeError> {
    match wanted {
        Some(RuntimeName::Process) => Ok(Chosen::Process),
        Some(RuntimeName::Docker) => Ok(Chosen::Engine(Kind::Docker.find(env).await?)),
        Some(RuntimeName::Podman) => Ok(Chosen::Engine(Kind::Podman.find(env).await?)),
        Some(other @ RuntimeName::Apple) => Err(RuntimeError::NotYet(other.as_str().to_owned())),
        None => match Kind::Docker.find(env).await {
            Ok(engine) => Ok(Chosen::Engine(engine)),
            Err(error) if env.get("DOCKER_HOST").is_some() => Err(error.into()),
            Err(error) => {
                tracing::debug!("the process runtime is taken: {error}");
                Ok(Chosen::Process)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_that_was_named_must_answer() {
        let env = Environment::from([("DOCKER_HOST", "unix:///nonexistent/docker.sock")]);
        assert!(choose(None, &env).await.is_err());
        assert!(choose(Some(RuntimeName::Docker), &env).await.is_err());
        assert_eq!(choose(Some(RuntimeName::Process), &env).await.unwrap().name(), "process");
    }
}
