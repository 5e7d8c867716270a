//! What is to be run: the command line and moat.yaml together, checked, before anything is started.
//!
//! The command line wins over moat.yaml, moat.yaml over what an agent's verb means by itself.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use moat_shared::{grant::GrantName, hint::Hint, plan::Agent};

use super::{
    detach::Allowed,
    mounts,
    name::RunName,
    preflight::{PromptPolicy, preflight},
};
use crate::{
    cli::{
        Context, Failure,
        ask::{Ask, Person},
    },
    config::{self, Config, RuntimeName, Settings},
    runtime::{Mount, RuntimeError, TunnelKind},
};

/// The command line, as given.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub(crate) workspace: PathBuf,
    pub(crate) agent: Option<Agent>,
    /// Empty: moat.yaml's.
    pub(crate) command: Vec<String>,
    /// Agents ask before they act.
    pub(crate) confirm: bool,
    pub(crate) name: Option<RunName>,
    pub(crate) runtime: Option<String>,
    pub(crate) tunnel: Option<TunnelKind>,
    pub(crate) image: Option<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) grants: Vec<GrantName>,
    pub(crate) mounts: Vec<config::Mount>,
    pub(crate) no_prompt: bool,
    /// The command returns when the run is there.
    pub(crate) detached: bool,
    /// What the user has been asked already.
    pub(crate) allowed: Allowed,
}

/// Everything that a run needs to be started.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) name: RunName,
    /// Canonical.
    pub(crate) workspace: PathBuf,
    /// What was asked for; `None`: whatever is there.
    pub(crate) runtime: Option<RuntimeName>,
    /// `None`: what fits the engine.
    pub(crate) tunnel: Option<TunnelKind>,
    pub(crate) agent: Option<Agent>,
    /// Empty: the image's.
    pub(crate) command: Vec<String>,
    /// The container's, where the runtime makes containers.
    pub(crate) image: Option<String>,
    pub(crate) confirm: bool,
    /// Its holder has no terminal, and nobody reads what it prints but the log.
    pub(crate) detached: bool,
    /// Of moat.yaml and the command line, without moat's own.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) config: Config,
    /// For the user, before the start.
    pub(crate) warnings: Vec<String>,
}

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
enum OrderError {
    #[error("workspace {path}")]
    Workspace {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("workspace {0}: not a directory")]
    NoDirectory(PathBuf),
}

impl Hint for OrderError {}

/// Loads and checks everything; asks for missing grants where it may.
pub(crate) fn prepare(request: Request, context: &Context) -> Result<Order, Failure> {
    let own = |error: OrderError| Failure::from_error(&error);
    let workspace = workspace(&request.workspace).map_err(own)?;
    let settings =
        Settings::load(&context.home, &context.env).map_err(|problems| Failure::from_error(&problems))?;
    let mut config = config::load(&workspace).map_err(|problems| Failure::from_error(&problems))?;
    for grant in request.grants {
        if !config.grants.contains(&grant) {
            config.grants.push(grant);
        }
    }
    let runtime = wanted(request.runtime.as_deref(), &config).map_err(|error| Failure::from_error(&error))?;
    let command = if request.command.is_empty() { config.command.clone() } else { request.command };
    let image = request.image.or_else(|| config.image.clone());
    let prompt = PromptPolicy::of(request.no_prompt || context.global.dry_run, &context.env);
    let wanted = mounts::Wanted {
        own: settings.mounts.iter().chain(&request.mounts).collect(),
        project: &config.mounts,
        allowed: &request.allowed.mounts,
    };
    let mut person = Person;
    let person = (prompt == PromptPolicy::Ask).then_some(&mut person as &mut dyn Ask);
    let mounts = mounts::check(&wanted, &workspace, person).map_err(|error| Failure::from_error(&error))?;
    let chosen = request.allowed.name.as_deref().map(str::parse).transpose();
    let chosen = chosen.map_err(|error: super::name::InvalidRunName| Failure::new(format!("{error}")))?;
    let name = match (chosen.or(request.name), &config.name) {
        (Some(name), _) => name,
        (None, Some(name)) => name.parse().map_err(|error| Failure::new(format!("{error}")))?,
        (None, None) => RunName::random(),
    };
    preflight(&config, &context.home, &context.env, context.global.profile.as_ref(), prompt)?;

    let mut env = config.env.clone();
    env.extend(request.env);
    let mut warnings: Vec<String> =
        settings.warnings.iter().chain(&config.warnings).map(ToString::to_string).collect();
    warnings.extend(exposed_home(&workspace, context.env.user_home().as_deref()));
    let Request { agent, confirm, detached, tunnel, .. } = request;
    Ok(Order {
        name,
        workspace,
        runtime,
        tunnel,
        agent,
        command,
        image,
        confirm,
        detached,
        env,
        mounts,
        config,
        warnings,
    })
}

fn workspace(path: &Path) -> Result<PathBuf, OrderError> {
    let found = fs::canonicalize(path)
        .map_err(|source| OrderError::Workspace { path: path.to_path_buf(), source })?;
    if found.is_dir() { Ok(found) } else { Err(OrderError::NoDirectory(found)) }
}

/// A workspace is wide open to the sandbox: nobody should start one in the home by mistake.
fn exposed_home(workspace: &Path, home: Option<&Path>) -> Option<String> {
    let home = home.and_then(|home| fs::canonicalize(home).ok())?;
    home.starts_with(workspace).then(|| {
        format!(
            "the workspace {} holds your home directory: the sandbox can read and change everything in it, keys and \
             shell profiles included",
            workspace.display()
        )
    })
}

/// What was asked for: the command line's word before moat.yaml's.
fn wanted(flag: Option<&str>, config: &Config) -> Result<Option<RuntimeName>, RuntimeError> {
    let wanted = match flag {
        Some(text) => Some(text.parse::<RuntimeName>().map_err(|_| RuntimeError::Unknown(text.to_owned()))?),
        None => config.runtime,
    };
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("" => true; "the home")]
    #[test_case("." => true; "the home, too")]
    #[test_case(".." => true; "above it")]
    #[test_case("project" => false; "below it")]
    fn a_workspace_that_holds_the_home_is_told(workspace: &str) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir_all(home.join("project")).unwrap();
        let workspace = fs::canonicalize(home.join(workspace)).unwrap();
        exposed_home(&workspace, Some(&home)).is_some()
    }

    #[test_case(None, None => Ok(None))]
    #[test_case(None, Some(RuntimeName::Docker) => Ok(Some(RuntimeName::Docker)); "moat.yaml's")]
    #[test_case(Some("podman"), Some(RuntimeName::Docker) => Ok(Some(RuntimeName::Podman)); "the flag wins")]
    #[test_case(Some("apple"), None => Ok(Some(RuntimeName::Apple)))]
    #[test_case(Some("lxc"), None => Err("invalid runtime \"lxc\": must be 'process', 'docker', 'podman' or 'apple'".to_owned()))]
    fn runtimes(flag: Option<&str>, runtime: Option<RuntimeName>) -> Result<Option<RuntimeName>, String> {
        wanted(flag, &Config { runtime, ..Config::default() }).map_err(|error| error.to_string())
    }
}
