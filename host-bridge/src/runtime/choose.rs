//! Which runtime: the one that was asked for, else what is there.

use std::time::Duration;

use moat_shared::plan::Agent;

use super::{
    RuntimeError, apple,
    docker::{Engine, build, engine::Kind},
};
use crate::{config::RuntimeName, env::Environment};

/// What drives the sandbox.
#[derive(Debug)]
pub(crate) enum Chosen {
    Process,
    Engine(Engine),
    Apple(apple::Found),
}

impl Chosen {
    /// As `runtime:` spells it.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Process => RuntimeName::Process.as_str(),
            Self::Engine(engine) => engine.kind.name(),
            Self::Apple(_) => RuntimeName::Apple.as_str(),
        }
    }
}

/// What a run needs of its runtime.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs<'a> {
    /// The image that is named.
    pub(crate) image: Option<&'a str>,
    /// The agent whose verb it is.
    pub(crate) agent: Option<Agent>,
}

/// What was asked for, with the image that is named, else moat's own for the verb. Where nothing was asked for: on macOS Apple's
/// containers, where they are installed; else Docker where an image is named, or where it answers and has moat's own image of
/// the agent; else namespaces.
pub(crate) async fn choose(
    wanted: Option<RuntimeName>,
    needs: Needs<'_>,
    env: &Environment,
) -> Result<(Chosen, Option<String>), RuntimeError> {
    let named = needs.image.map(str::to_owned);
    let wanted = wanted.or_else(|| rule(cfg!(target_os = "macos"), apple::Cli::find(env).is_ok()));
    let engine = match wanted {
        Some(RuntimeName::Process) => return Ok((Chosen::Process, named)),
        Some(RuntimeName::Docker) => Kind::Docker.find(env).await?,
        Some(RuntimeName::Podman) => Kind::Podman.find(env).await?,
        Some(RuntimeName::Apple) => {
            let found = apple::find(env).await?;
            let image = match named {
                Some(named) => Some(named),
                None => {
                    let own = needs.agent.map_or(build::Kind::Base, build::Kind::Of).image();
                    apple::has_image(&found.cli, &own).await?.then_some(own)
                }
            };
            return Ok((Chosen::Apple(found), image));
        }
        // An image that nothing can start must not be ignored.
        None if named.is_some() => Kind::Docker.find(env).await?,
        None => return Ok(by_itself(needs.agent, env).await),
    };
    if named.is_some() {
        return Ok((Chosen::Engine(engine), named));
    }
    let own = needs.agent.map_or(build::Kind::Base, build::Kind::Of).image();
    let own = build::id_of(&engine, &own).await?.map(|_| own);
    Ok((Chosen::Engine(engine), own))
}

/// What is taken where nothing was asked for, before anything else is looked at. `container` is a common word: elsewhere than
/// on macOS a program of that name is not taken for Apple's.
pub(crate) fn rule(is_macos: bool, has_container: bool) -> Option<RuntimeName> {
    (is_macos && has_container).then_some(RuntimeName::Apple)
}

/// Nobody waits for an engine that was not asked for.
async fn by_itself(agent: Option<Agent>, env: &Environment) -> (Chosen, Option<String>) {
    let looking = async {
        let own = build::Kind::Of(agent?).image();
        let engine = Kind::Docker.find(env).await.ok()?;
        build::id_of(&engine, &own).await.ok()??;
        Some((Chosen::Engine(engine), Some(own)))
    };
    tokio::time::timeout(A_GLANCE, looking).await.ok().flatten().unwrap_or((Chosen::Process, None))
}

/// An engine: the one that is asked for, else the first that answers.
pub(crate) async fn engine(wanted: Option<RuntimeName>, env: &Environment) -> Result<Engine, RuntimeError> {
    match wanted {
        Some(RuntimeName::Docker) => Ok(Kind::Docker.find(env).await?),
        Some(RuntimeName::Podman) => Ok(Kind::Podman.find(env).await?),
        Some(RuntimeName::Process) => Err(RuntimeError::NoEngine),
        Some(RuntimeName::Apple) => Err(RuntimeError::NoBuilder),
        None => match Kind::Docker.find(env).await {
            Ok(engine) => Ok(engine),
            Err(first) => Kind::Podman.find(env).await.map_err(|_| first.into()),
        },
    }
}

/// How long an engine is looked at that was not asked for.
const A_GLANCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test_case::test_case(true, true => Some(RuntimeName::Apple); "macOS with it")]
    #[test_case::test_case(true, false => None; "macOS without it")]
    #[test_case::test_case(false, true => None; "Linux, where it is another program")]
    fn by_rule(is_macos: bool, has_container: bool) -> Option<RuntimeName> {
        rule(is_macos, has_container)
    }

    #[tokio::test]
    async fn apple_s_containers_are_told_when_they_are_not_there() {
        let env = Environment::from([("PATH", "/nonexistent")]);
        let needs = Needs { image: Some("x"), agent: None };
        let error = choose(Some(RuntimeName::Apple), needs, &env).await.unwrap_err();
        assert_eq!(error.to_string(), "there is no 'container' in PATH");
    }

    #[tokio::test]
    async fn an_engine_that_was_named_must_answer() {
        let env = Environment::from([("DOCKER_HOST", "unix:///nonexistent/docker.sock")]);
        let (image, agent) = (Some("x"), Some(Agent::Claude));
        let name = async |wanted, image, agent| {
            choose(wanted, Needs { image, agent }, &env).await.map(|(chosen, _)| chosen.name()).ok()
        };
        assert_eq!(name(None, image, None).await, None);
        assert_eq!(name(Some(RuntimeName::Docker), None, agent).await, None);
        assert_eq!(name(None, None, None).await, Some("process"));
        assert_eq!(name(None, None, agent).await, Some("process"), "nobody answers who could have its image");
        assert_eq!(name(Some(RuntimeName::Process), image, agent).await, Some("process"));
        assert!(engine(None, &env).await.is_err() && engine(Some(RuntimeName::Process), &env).await.is_err());
    }
}
