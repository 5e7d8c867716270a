//! What of the host the sandbox gets to see besides the workspace, and whose word that is.
//!
//! | asked for by | then |
//! |---|---|
//! | config.yaml, `--mount` | the user's own word |
//! | moat.yaml, inside the workspace | the sandbox has it anyway |
//! | moat.yaml, anywhere else | asked on the terminal, or refused: a moat.yaml may be a stranger's |

use std::{
    borrow::Cow,
    fs, io,
    path::{Path, PathBuf},
};

use moat_shared::hint::Hint;

use crate::{
    cli::{ask::Ask, text},
    config,
    runtime::Mount,
};

/// Why a mount is not made.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    #[error("mount {path}")]
    Source {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("mount target {0} belongs to the sandbox itself")]
    Target(PathBuf),
    #[error("moat.yaml asks for {what}, which lies outside of the workspace")]
    Beyond { what: String, flag: String },
    #[error("asking")]
    Ask(#[source] io::Error),
}

impl Hint for MountError {
    fn hint(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Beyond { flag, .. } => Some(format!("if that is what you want: -m {flag}").into()),
            Self::Source { .. } | Self::Target(_) | Self::Ask(_) => None,
        }
    }
}

/// Where mounts come from.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// config.yaml's and the command line's.
    pub(super) own: Vec<&'a config::Mount>,
    /// moat.yaml's.
    pub(super) project: &'a [config::Mount],
    /// What the user has been asked for already.
    pub(super) allowed: &'a [Mount],
}

/// Checks all of them; nobody is asked without a `person`.
pub(super) fn check(
    wanted: &Wanted<'_>,
    workspace: &Path,
    mut person: Option<&mut dyn Ask>,
) -> Result<Vec<Mount>, MountError> {
    let of = |one: &config::Mount| resolve(one, workspace);
    let mut mounts = wanted.own.iter().copied().map(of).collect::<Result<Vec<_>, _>>()?;
    for one in wanted.project {
        let mount = resolve(one, workspace)?;
        if mounts.contains(&mount) {
            continue;
        }
        if !mount.source.starts_with(workspace) && !wanted.allowed.contains(&mount) {
            confirm(&mount, &mut person)?;
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

fn confirm(mount: &Mount, person: &mut Option<&mut dyn Ask>) -> Result<(), MountError> {
    let (source, target) = (mount.source.to_string_lossy(), mount.target.to_string_lossy());
    let (source, target) = (text::visible(&source), text::visible(&target));
    let rights = if mount.read_only { "read-only" } else { "writable" };
    let answer = match person {
        Some(person) => {
            let question =
                format!("moat.yaml asks to show {source} ({rights}) to the sandbox. Allow? [y/N] ");
            person.question(&question).map_err(MountError::Ask)?
        }
        None => None,
    };
    if matches!(answer.as_deref(), Some("y" | "Y" | "yes")) {
        return Ok(());
    }
    let mode = if mount.read_only { ":ro" } else { "" };
    Err(MountError::Beyond { what: format!("{source} ({rights})"), flag: format!("{source}:{target}{mode}") })
}

fn resolve(wanted: &config::Mount, workspace: &Path) -> Result<Mount, MountError> {
    const OWN: [&str; 8] =
        ["/proc", "/sys", "/dev", "/run/moat", "/.moat", "/workspace", "/home/agent", "/etc"];
    let target = &wanted.target;
    let covers = |own: &str| Path::new(own).starts_with(target);
    let inside = |own: &str| target.starts_with(own) && !matches!(own, "/workspace" | "/home/agent" | "/etc");
    if OWN.iter().any(|own| covers(own) || inside(own)) {
        return Err(MountError::Target(target.clone()));
    }
    let source = fs::canonicalize(workspace.join(&wanted.source))
        .map_err(|source| MountError::Source { path: wanted.source.clone(), source })?;
    Ok(Mount { source, target: target.clone(), read_only: wanted.read_only })
}

#[cfg(test)]
mod tests {
    use super::*;
    use moat_shared::secret::Secret;
    use std::os::unix::fs::symlink;
    use test_case::test_case;

    #[test_case("/data" => true)]
    #[test_case("/workspace/vendor" => true; "below the workspace")]
    #[test_case("/home/agent/.cache" => true; "below the home")]
    #[test_case("/" => false; "root")]
    #[test_case("/run" => false; "above the tunnel")]
    #[test_case("/run/moat" => false; "the tunnel")]
    #[test_case("/.moat/home" => false; "a container's own")]
    #[test_case("/workspace" => false; "the workspace")]
    #[test_case("/proc/1" => false; "proc")]
    #[test_case("/dev/shm" => false; "dev")]
    fn targets(target: &str) -> bool {
        let wanted = config::Mount { source: "/".into(), target: target.into(), read_only: true };
        resolve(&wanted, Path::new("/")).is_ok()
    }

    struct Says(&'static str, Vec<String>);

    impl Ask for Says {
        fn question(&mut self, question: &str) -> io::Result<Option<String>> {
            self.1.push(question.to_owned());
            Ok(Some(self.0.to_owned()))
        }
        fn secret(&mut self, _: &str) -> io::Result<Secret<String>> {
            Err(io::ErrorKind::Unsupported.into())
        }
        fn say(&mut self, _: &str) {}
    }

    /// How many questions there were, and whether the mounts are made.
    fn asked(source: &str, own: Option<&str>, answer: Option<&'static str>) -> (usize, bool) {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let workspace = root.join("workspace");
        fs::create_dir_all(workspace.join("data")).unwrap();
        fs::create_dir(root.join(".ssh")).unwrap();
        symlink("../.ssh", workspace.join("link")).unwrap();
        let mount = |source: &str| config::Mount {
            source: source.replace("ROOT", &root.to_string_lossy()).into(),
            target: "/data".into(),
            read_only: false,
        };
        let own = own.map(mount);
        let wanted = Wanted { own: own.iter().collect(), project: &[mount(source)], allowed: &[] };
        let mut person = Says(answer.unwrap_or_default(), Vec::new());
        let checked = check(&wanted, &workspace, answer.map(|_| &mut person as &mut dyn Ask));
        if let Ok(mounts) = &checked {
            assert_eq!(mounts.len(), 1);
        }
        (person.1.len(), checked.is_ok())
    }

    #[test_case("./data", None, None => (0, true); "inside the workspace")]
    #[test_case("../.ssh", None, None => (0, false); "beside it, nobody to ask")]
    #[test_case("ROOT/.ssh", None, Some("n") => (1, false); "no")]
    #[test_case("ROOT/.ssh", None, Some("") => (1, false); "no answer is no")]
    #[test_case("ROOT/.ssh", None, Some("y") => (1, true); "yes")]
    #[test_case("link", None, Some("n") => (1, false); "by a link that looks harmless")]
    #[test_case("..", None, None => (0, false); "above it")]
    #[test_case("/", None, None => (0, false); "everything")]
    #[test_case("../.ssh", Some("ROOT/.ssh"), None => (0, true); "the user has said so")]
    fn a_strangers_moat_yaml_gets_what_the_user_allows(
        source: &str,
        own: Option<&str>,
        answer: Option<&'static str>,
    ) -> (usize, bool) {
        asked(source, own, answer)
    }
}
