//! The `container` command: each call under a deadline of its own, asked once more where nothing came of it.
//!
//! A restart of the service behind it makes its clients hang rather than fail, so that a call without an answer is the
//! ordinary failure here. What it says when it says no is matched by its texts: it has no codes.

use std::{
    borrow::Cow,
    io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use moat_shared::hint::Hint;
use tokio::{process::Command, time::timeout};

use super::version::{Version, VersionError};
use crate::{env::Environment, runtime::image::is_built_here};

/// What Apple's tool is called.
const NAME: &str = "container";
/// For an answer that is only looked up.
pub(super) const SOON: Duration = Duration::from_secs(10);
/// For the service to do something; making a container unpacks its image.
pub(super) const WORK: Duration = Duration::from_secs(120);
/// For an image to be fetched.
pub(super) const FETCH: Duration = Duration::from_secs(30 * 60);
/// What the tool needs of our environment. It gets no more: an argument that names a variable without a value takes it
/// from there.
const PASSED: [&str; 9] =
    ["HOME", "HTTPS_PROXY", "HTTP_PROXY", "LANG", "LOGNAME", "NO_PROXY", "PATH", "TMPDIR", "USER"];
/// And its own settings.
const ITS_OWN: &str = "CONTAINER_";

/// The command.
#[derive(Debug, Clone)]
pub(crate) struct Cli {
    program: PathBuf,
    env: Environment,
}

/// The command cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppleError {
    #[error("there is no 'container' in PATH")]
    NotThere,
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error("Apple's container service is not running ({0})")]
    NotRunning(String),
    #[error("Apple's container has no kernel to start containers with")]
    NoKernel,
    #[error("there is no image {0}")]
    NoImage(String),
    #[error("the image {image} is for {theirs}, which this moat has no sidecar for")]
    Architecture { image: String, theirs: String },
    #[error("{doing}: there is no such container or image")]
    Gone { doing: &'static str },
    #[error("{doing}: no answer within {} s", within.as_secs())]
    Silent { doing: &'static str, within: Duration },
    #[error("{doing}: {message}")]
    Refused { doing: &'static str, message: String },
    #[error("{doing}: what it says is in a form that this moat does not know")]
    Form {
        doing: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("removing what lay on the host for a container")]
    Stage(#[source] io::Error),
    #[error("starting {program}")]
    Start {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Hint for AppleError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::NotThere => Some(
                "install it: https://github.com/apple/container/releases (macOS 26, Apple silicon), or use another runtime"
                    .into(),
            ),
            Self::Version(error) => error.hint(),
            Self::NotRunning(_) => Some("container system start".into()),
            Self::NoKernel => Some("container system kernel set --recommended".into()),
            Self::NoImage(image) if is_built_here(image) => Some(
                "an image of localhost/ is never fetched: build it here, or container image load --input IMAGE.tar".into(),
            ),
            Self::NoImage(image) => Some(format!("container image pull {image}").into()),
            Self::Architecture { .. } => {
                Some("'moat version' says which it carries; docs/reference.md says how to build moat with another".into())
            }
            Self::Silent { .. } => {
                Some("if it does not answer you either: container system stop; container system start".into())
            }
            Self::Form { .. } => Some("'moat doctor' says which version it is, and which are tested".into()),
            Self::Gone { .. } | Self::Refused { .. } | Self::Stage(_) | Self::Start { .. } => None,
        }
    }
}

impl Cli {
    /// The first in PATH.
    pub(crate) fn find(env: &Environment) -> Result<Self, AppleError> {
        let is_program = |path: &PathBuf| {
            use std::os::unix::fs::PermissionsExt;
            path.metadata().is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
        };
        let absolute = env.path().filter(|directory| directory.is_absolute());
        let program = absolute.map(|directory| directory.join(NAME)).find(is_program);
        Ok(Self::at(program.ok_or(AppleError::NotThere)?, env))
    }

    /// This one.
    pub(crate) fn at(program: PathBuf, env: &Environment) -> Self {
        Self { program, env: env.clone() }
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    /// Which version it is.
    pub(crate) async fn version(&self) -> Result<Version, AppleError> {
        let said = self.ask("asking for the version", &["--version"], SOON).await?;
        Ok(Version::of(&said)?)
    }

    /// Asks, and returns what it answers on stdout. Asked once more when there is no answer, or its service went away
    /// meanwhile: so only for what may be done twice.
    pub(super) async fn ask<T: AsRef<str>>(
        &self,
        doing: &'static str,
        arguments: &[T],
        within: Duration,
    ) -> Result<String, AppleError> {
        match self.ask_once(doing, arguments, within).await {
            Err(error) if error.may_pass() => {
                tracing::info!("{error}; asking again");
                self.ask_once(doing, arguments, within).await
            }
            answered => answered,
        }
    }

    async fn ask_once<T: AsRef<str>>(
        &self,
        doing: &'static str,
        arguments: &[T],
        within: Duration,
    ) -> Result<String, AppleError> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let Output { status, stdout, stderr } = timeout(within, command.output())
            .await
            .map_err(|_| AppleError::Silent { doing, within })?
            .map_err(|source| AppleError::Start { program: self.program.clone(), source })?;
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        if status.success() {
            return Ok(stdout);
        }
        Err(refused(doing, &format!("{}\n{stdout}", String::from_utf8_lossy(&stderr))))
    }

    /// The command, in a process group of its own: what the user's keys say to moat is moat's to pass on.
    pub(super) fn command<T: AsRef<str>>(&self, arguments: &[T]) -> Command {
        let mut command = Command::new(&self.program);
        let passed = self.env.iter().filter(|(name, _)| {
            name.to_str().is_some_and(|name| PASSED.contains(&name) || name.starts_with(ITS_OWN))
        });
        command
            .args(arguments.iter().map(AsRef::as_ref))
            .env_clear()
            .envs(passed)
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

impl AppleError {
    /// May it go otherwise the next time?
    fn may_pass(&self) -> bool {
        const PASSING: [&str; 3] = ["XPC timeout", "XPC connection error", "Connection interrupted"];
        match self {
            Self::Silent { .. } | Self::NotRunning(_) => true,
            Self::Refused { message, .. } => PASSING.iter().any(|text| message.contains(text)),
            _ => false,
        }
    }
}

/// What a refusal means, by what it says.
pub(super) fn refused(doing: &'static str, said: &str) -> AppleError {
    let lower = said.to_ascii_lowercase();
    let says = |texts: &[&str]| texts.iter().any(|text| lower.contains(text));
    if says(&["kernel not configured"]) {
        return AppleError::NoKernel;
    }
    if says(&["apiserver is not running", "not registered with launchd", "ensure container system service"]) {
        return AppleError::NotRunning("its service does not answer".to_owned());
    }
    if says(&["notfound", "not found", "no such container"]) {
        return AppleError::Gone { doing };
    }
    // The first line that says something; the others are usage, or progress.
    let plain = crate::cli::text::visible(said.trim()).into_owned();
    let lines = said.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines.clone().find(|line| line.starts_with("Error")).or_else(|| lines.clone().next_back());
    let message = error.map_or(plain, |line| crate::cli::text::visible(line).into_owned());
    AppleError::Refused { doing, message: message.chars().take(400).collect() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use test_case::test_case;

    #[test_case("Error: notFound: \"container moat-1 not found\"" => "gone"; "a container")]
    #[test_case("Error: No such container: moat-1" => "gone"; "of kill")]
    #[test_case("Error: default kernel not configured for architecture arm64, please use the `container system kernel set` command to configure it" => "kernel"; "no kernel")]
    #[test_case("apiserver is not running and not registered with launchd\n" => "stopped"; "no service")]
    #[test_case("Error: interrupted: \"XPC connection error: Connection invalid\nEnsure container system service has been started with `container system start`.\"" => "stopped"; "no service to talk to")]
    #[test_case("Error: internalError: \"XPC timeout for request\"" => "passing"; "a restart")]
    #[test_case("\u{1b}[2KStarting\nError: invalidArgument: \"no\"\nUsage: x" => "Error: invalidArgument: \"no\""; "its own words")]
    #[test_case("" => ""; "none")]
    fn texts(said: &str) -> String {
        match refused("asking", said) {
            AppleError::Gone { .. } => "gone".into(),
            AppleError::NoKernel => "kernel".into(),
            AppleError::NotRunning(_) => "stopped".into(),
            AppleError::Refused { .. } if refused("asking", said).may_pass() => "passing".into(),
            AppleError::Refused { message, .. } => message,
            other => other.to_string(),
        }
    }

    fn tool(script: &str) -> (tempfile::TempDir, Cli) {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join(NAME);
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("relative:/nonexistent:{}:/usr/bin:/bin", directory.path().display());
        let env = Environment::from([("PATH", path.as_str()), ("SECRET", "s"), ("CONTAINER_DEBUG", "1")]);
        (directory, Cli::find(&env).unwrap())
    }

    #[tokio::test]
    async fn it_is_found_in_the_path_and_says_its_version() {
        let (directory, cli) = tool("echo 'container CLI version 1.2.1 (build: release, commit: x)'");
        assert_eq!(cli.program(), directory.path().join("container"));
        assert_eq!(cli.version().await.unwrap().to_string(), "1.2.1");
        let nobody = Cli::find(&Environment::from([("PATH", "/nonexistent")]));
        assert!(matches!(nobody, Err(AppleError::NotThere)));
    }

    #[tokio::test]
    async fn what_does_not_answer_is_asked_once_more() {
        let (directory, cli) =
            tool("cd \"${0%/*}\"; echo x >> asked; [ -e hung ] || { : > hung; exec sleep 60; }; echo yes");
        let answer = cli.ask("asking", &["x"], Duration::from_secs(2)).await.unwrap();
        assert_eq!(answer, "yes\n");
        let asked = || std::fs::read_to_string(directory.path().join("asked")).unwrap().lines().count();
        assert_eq!(asked(), 2);
        let (directory, cli) = tool("cd \"${0%/*}\"; echo x >> asked; exec sleep 60");
        let error = cli.ask("asking", &["x"], Duration::from_millis(500)).await.unwrap_err();
        assert!(matches!(error, AppleError::Silent { .. }) && error.hint().is_some(), "{error}");
        let asked = std::fs::read_to_string(directory.path().join("asked")).unwrap().lines().count();
        assert_eq!(asked, 2, "and not more often");
    }

    #[tokio::test]
    async fn a_refusal_is_not_asked_again() {
        let (directory, cli) =
            tool("cd \"${0%/*}\"; echo x >> asked; echo 'Error: exists: \"no\"' >&2; exit 1");
        let error = cli.ask("making it", &["x"], SOON).await.unwrap_err();
        assert_eq!(error.to_string(), "making it: Error: exists: \"no\"");
        assert_eq!(std::fs::read_to_string(directory.path().join("asked")).unwrap(), "x\n");
    }

    #[tokio::test]
    async fn it_sees_little_of_our_environment() {
        let (_directory, cli) = tool("env");
        let seen = cli.ask("asking", &["x"], SOON).await.unwrap();
        // What a shell says of itself is not ours.
        let names = seen.lines().filter_map(|line| Some(line.split_once('=')?.0));
        let mut names: Vec<&str> = names.filter(|name| !["PWD", "SHLVL", "_"].contains(name)).collect();
        names.sort_unstable();
        assert_eq!(names, ["CONTAINER_DEBUG", "PATH"], "not even what this process has");
    }
}
