//! Where engines are, and which of them answers.
//!
//! Only unix sockets: an engine elsewhere would see none of this machine's directories.

use std::{
    borrow::Cow,
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use bollard::{API_DEFAULT_VERSION, ClientVersion, errors::Error};
use moat_shared::hint::Hint;
use nix::sys::utsname::uname;
use tokio::time::timeout;

use crate::env::Environment;

/// How long an engine may take to say that it is there.
const ANSWER: Duration = Duration::from_secs(10);
/// How long one may take to do what it was asked.
const WORK: u64 = 120;
/// Pauses while an engine is away.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The two kinds of engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Docker,
    Podman,
}

/// An engine that answered.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(super) api: bollard::Docker,
    pub(crate) socket: PathBuf,
    pub(crate) kind: Kind,
    pub(crate) version: String,
    /// It runs in a virtual machine of its own, which sees this machine's files and none of its sockets.
    pub(crate) is_apart: bool,
}

/// A place where an engine may be, and who says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) socket: PathBuf,
    pub(crate) said_by: &'static str,
}

/// Why a container engine does not do what it is to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error("no {kind} engine answers ({})", .looked.join("; "))]
    NotThere { kind: Kind, looked: Vec<String> },
    #[error("{variable}={value}: only engines on unix sockets of this machine are supported")]
    Host { variable: &'static str, value: String },
    #[error("{doing}")]
    Asking {
        doing: &'static str,
        #[source]
        source: Error,
    },
    #[error("{doing}")]
    Raw {
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{doing}: the engine says: {message}")]
    Refused { doing: &'static str, message: String },
    #[error("the container is gone")]
    Gone,
    #[error("the engine has published no port for the tunnel")]
    NoPort,
    #[error("there is no image {0}")]
    NoImage(String),
    #[error("image {image} is not here and cannot be fetched")]
    Fetching {
        image: String,
        #[source]
        source: Error,
    },
    #[error("image {image} is for {theirs}, and the sidecar of this moat is for {ours}")]
    Architecture { image: String, theirs: String, ours: &'static str },
    #[error("the image is not built: {text}\n{output}")]
    Build {
        text: String,
        /// The last of what the build said.
        output: String,
    },
    #[error("preparing the container")]
    Archive(#[source] io::Error),
}

impl Hint for EngineError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::NotThere { kind: Kind::Docker, .. } => {
                Some("start it, point DOCKER_HOST at its socket (unix:///...), or use --runtime process".into())
            }
            Self::NotThere { kind: Kind::Podman, .. } => Some(
                "start its socket (systemctl --user start podman.socket, or podman system service -t 0), or point \
                 CONTAINER_HOST at it (unix:///...)"
                    .into(),
            ),
            Self::Host { .. } => Some("unset it, or set it to unix:///path/of/the/socket".into()),
            Self::NoImage(name) => Some(match name.strip_prefix("localhost/moat/") {
                Some(own) => {
                    let own = own.split(':').next().unwrap_or_default();
                    format!("moat image build {own}").into()
                }
                None => "is its name right? An image of localhost/ is never fetched".into(),
            }),
            Self::Fetching { .. } => Some("is its name right, and the registry within reach?".into()),
            Self::Architecture { ours, .. } => Some(format!("use an image for {ours}").into()),
            Self::Build { output, .. } if is_without_network(output) => Some(
                "the build could not reach a network: see whether --network host does, or bring along what is missing (--modules DIR for \
                 an agent, --from IMAGE for the tools of the base)"
                    .into(),
            ),
            Self::Build { .. } => None,
            Self::Asking { .. } | Self::Raw { .. } | Self::Refused { .. } | Self::Gone | Self::NoPort | Self::Archive(_) => None,
        }
    }
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// The network of a container for which nothing else is said.
    pub(super) const fn network(self) -> &'static str {
        match self {
            Self::Docker => "bridge",
            Self::Podman => "podman",
        }
    }

    /// The variable that says where the engine is.
    const fn variable(self) -> &'static str {
        match self {
            Self::Docker => "DOCKER_HOST",
            Self::Podman => "CONTAINER_HOST",
        }
    }

    /// Where it may be, the likeliest first. What the environment says is the only place.
    pub(crate) fn places(self, env: &Environment) -> Result<Vec<Place>, EngineError> {
        let variable = self.variable();
        if let Some(value) = env.get(variable) {
            let socket = value.strip_prefix("unix://").filter(|path| path.starts_with('/'));
            let socket = socket.ok_or_else(|| EngineError::Host { variable, value: value.to_owned() })?;
            return Ok(vec![Place { socket: socket.into(), said_by: variable }]);
        }
        let runtime = env.get("XDG_RUNTIME_DIR").map(PathBuf::from);
        let home = env.user_home();
        let place = |base: &Option<PathBuf>, rest: &str, said_by| {
            base.as_ref().map(|base| Place { socket: base.join(rest), said_by })
        };
        let root = Some(PathBuf::from("/"));
        let places = match self {
            Self::Docker => vec![
                place(&root, "var/run/docker.sock", "the usual place"),
                place(&runtime, "docker.sock", "rootless Docker's place"),
                place(&home, ".docker/desktop/docker.sock", "Docker Desktop's place"),
                place(&home, ".docker/run/docker.sock", "Docker Desktop's place"),
                place(&home, ".orbstack/run/docker.sock", "OrbStack's place"),
                place(&home, ".rd/docker.sock", "Rancher Desktop's place"),
                place(&home, ".colima/default/docker.sock", "Colima's place"),
            ],
            Self::Podman => vec![
                place(&runtime, "podman/podman.sock", "rootless podman's place"),
                place(&root, "run/podman/podman.sock", "the usual place"),
            ],
        };
        Ok(places.into_iter().flatten().collect())
    }

    /// The engine that answers first.
    pub(crate) async fn find(self, env: &Environment) -> Result<Engine, EngineError> {
        let mut looked = Vec::new();
        for place in self.places(env)? {
            let at = place.socket.display().to_string();
            if !place.socket.exists() {
                looked.push(format!("{at}: not there"));
                continue;
            }
            match timeout(ANSWER, Engine::at(&place.socket)).await {
                Ok(Ok(engine)) => return Ok(engine),
                Ok(Err(error)) => looked.push(format!("{at}: {}", crate::cli::with_causes(&error))),
                Err(_) => looked.push(format!("{at}: no answer within {} s", ANSWER.as_secs())),
            }
        }
        Err(EngineError::NotThere { kind: self, looked })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "Docker",
            Self::Podman => "podman",
        })
    }
}

impl Engine {
    /// The engine behind a socket.
    pub(crate) async fn at(socket: &Path) -> Result<Self, EngineError> {
        let asking = |source| EngineError::Asking { doing: "asking the container engine who it is", source };
        let path = socket.to_string_lossy();
        let connect = |version| bollard::Docker::connect_with_unix(&path, WORK, version).map_err(asking);
        let about = connect(API_DEFAULT_VERSION)?.version().await.map_err(asking)?;
        // What bollard's own negotiation does, which would ask for the same once more.
        let api = connect(&spoken(about.api_version.as_deref()))?;
        let is_podman =
            about.components.iter().flatten().any(|part| part.name.to_ascii_lowercase().contains("podman"));
        let kind = if is_podman { Kind::Podman } else { Kind::Docker };
        let is_apart = runs_apart(
            about.kernel_version.as_deref(),
            uname().ok().as_ref().and_then(|ours| ours.release().to_str()),
        );
        Ok(Self {
            api,
            socket: socket.to_path_buf(),
            kind,
            version: about.version.unwrap_or_default(),
            is_apart,
        })
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("socket", &self.socket)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// The older of the two versions.
fn spoken(theirs: Option<&str>) -> ClientVersion {
    let theirs = theirs.and_then(|text| text.split_once('.'));
    let theirs = theirs.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let ours = (API_DEFAULT_VERSION.major_version, API_DEFAULT_VERSION.minor_version);
    let (major_version, minor_version) = theirs.map_or(ours, |theirs: (usize, usize)| theirs.min(ours));
    ClientVersion { major_version, minor_version }
}

/// An engine with another kernel is in another machine: Docker Desktop, podman machine, Colima and the like.
fn runs_apart(theirs: Option<&str>, ours: Option<&str>) -> bool {
    match (theirs, ours) {
        (Some(theirs), Some(ours)) => theirs != ours,
        // One that does not say: on Linux it is the ordinary one.
        _ => cfg!(not(target_os = "linux")),
    }
}

/// As apt and npm say it.
fn is_without_network(output: &str) -> bool {
    const SAID: [&str; 7] = [
        "Temporary failure resolving",
        "Could not connect to",
        "Unable to fetch",
        "npm error network",
        "EAI_AGAIN",
        "ENOTFOUND",
        "ECONNREFUSED",
    ];
    SAID.iter().any(|said| output.contains(said))
}

/// There is no such thing.
pub(super) fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}

/// The engine answered, and it was an error.
pub(super) fn said_no(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { .. })
}

/// The container is not there, not running, or on its way out.
pub(super) fn is_over(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404 | 409, .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test_case::test_case(Some("1.41") => (1, 41); "older")]
    #[test_case::test_case(Some("9.99") => (API_DEFAULT_VERSION.major_version, API_DEFAULT_VERSION.minor_version); "newer")]
    #[test_case::test_case(Some("x") => (API_DEFAULT_VERSION.major_version, API_DEFAULT_VERSION.minor_version); "none")]
    fn api_versions(theirs: Option<&str>) -> (usize, usize) {
        let version = spoken(theirs);
        (version.major_version, version.minor_version)
    }

    #[test_case::test_case(Some("6.1.0-9-amd64"), Some("6.1.0-9-amd64") => false; "this machine")]
    #[test_case::test_case(Some("6.10.14-linuxkit"), Some("6.1.0-9-amd64") => true; "Docker Desktop on Linux")]
    #[test_case::test_case(Some("6.10.14-linuxkit"), Some("24.1.0") => true; "on macOS")]
    fn engines_in_machines_of_their_own(theirs: Option<&str>, ours: Option<&str>) -> bool {
        runs_apart(theirs, ours)
    }

    #[test]
    fn the_environments_word_is_the_only_one() {
        let env = Environment::from([("DOCKER_HOST", "unix:///a/b.sock"), ("HOME", "/home/alice")]);
        let places = Kind::Docker.places(&env).unwrap();
        assert_eq!(places, [Place { socket: "/a/b.sock".into(), said_by: "DOCKER_HOST" }]);
        assert!(Kind::Podman.places(&env).unwrap().iter().all(|place| place.said_by != "DOCKER_HOST"));
    }

    #[test]
    fn an_engine_elsewhere_is_refused() {
        for value in ["tcp://10.0.0.1:2375", "ssh://me@host", "unix://relative"] {
            let error = Kind::Docker.places(&Environment::from([("DOCKER_HOST", value)])).unwrap_err();
            assert!(error.to_string().contains(value), "{error}");
        }
    }

    #[tokio::test]
    async fn nobody_there_says_where_it_was_looked() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("none.sock");
        let env = Environment::from([("CONTAINER_HOST", &*format!("unix://{}", socket.display()))]);
        let error = Kind::Podman.find(&env).await.unwrap_err();
        assert!(error.to_string().contains(&*socket.to_string_lossy()), "{error}");
        assert!(error.hint().is_some());
    }
}
