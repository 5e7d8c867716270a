//! Whose is the workspace's `.mcp.json`? Another run's, or one that git tracks: then this run leaves it alone. Git's part is answered by reading git's index, never by starting git: an agent may
//! have written a `.git/config` that makes git start something else.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use moat_shared::{id::RunId, plan::McpJson};

use super::{metadata::Record, select};
use crate::home::Home;

const NAME: &str = ".mcp.json";
/// Larger indexes are taken to track everything.
const INDEX_MAX: u64 = 256 << 20;

/// Where this run's `.mcp.json` goes. The run has its record already: of two that start at once at least one sees the other.
pub(crate) fn mcp_json(home: &Home, run: &RunId, workspace: &Path) -> io::Result<McpJson> {
    Ok(match of_repository(workspace) {
        McpJson::Workspace if is_shared(&select::all(home)?.runs, run, workspace) => McpJson::Shared,
        place => place,
    })
}

/// Is there another run in this workspace?
fn is_shared(runs: &[Record], run: &RunId, workspace: &Path) -> bool {
    let workspace = workspace.display().to_string();
    runs.iter()
        .any(|other| other.id != *run && other.metadata.workspace == workspace && other.state().is_live())
}

/// Not over a file that may be under version control.
fn of_repository(workspace: &Path) -> McpJson {
    let present = fs::symlink_metadata(workspace.join(NAME));
    let absent = present.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    match tracked(workspace) {
        // A file that git tracks may be absent here because somebody deletes it just now.
        Ok(Some(true)) => McpJson::Home,
        Ok(Some(false) | None) => McpJson::Workspace,
        Err(_) if absent => McpJson::Workspace,
        Err(_) => McpJson::Home,
    }
}

/// `None`: the workspace is in no repository. An error: it may be tracked.
fn tracked(workspace: &Path) -> io::Result<Option<bool>> {
    for above in workspace.ancestors() {
        let git = above.join(".git");
        match fs::symlink_metadata(&git) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
            // A file or a link: a worktree or a submodule, whose index is elsewhere.
            Ok(meta) if !meta.is_dir() => return Err(io::ErrorKind::Unsupported.into()),
            Ok(_) => {}
        }
        let below = workspace.strip_prefix(above).map_err(io::Error::other)?.join(NAME);
        // Not blocking: a pipe of that name must not hold the start.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(git.join("index"));
        let index = match opened {
            Ok(index) => index,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(false)),
            Err(error) => return Err(error),
        };
        if !index.metadata()?.is_file() || index.metadata()?.len() > INDEX_MAX {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut bytes = Vec::new();
        index.take(INDEX_MAX).read_to_end(&mut bytes)?;
        return mentions(&bytes, below.as_os_str().as_encoded_bytes()).map(Some);
    }
    Ok(None)
}

/// Is this path in the index? Only versions 2 and 3 spell paths out; 4 compresses them, and others are unknown.
fn mentions(index: &[u8], path: &[u8]) -> io::Result<bool> {
    let version =
        index.strip_prefix(b"DIRC").and_then(|rest| rest.first_chunk()).map(|v| u32::from_be_bytes(*v));
    if !matches!(version, Some(2 | 3)) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // An entry's path ends with a zero. It may be a longer path's end too: then `.mcp.json` is spared needlessly.
    let mut ended = path.to_vec();
    ended.push(0);
    if contains(index, &ended) {
        return Ok(true);
    }
    // The extension of a split index, whose other half is elsewhere (or a path that ends so: then it is spared too).
    if contains(index, b"link\0\0") { Err(io::ErrorKind::Unsupported.into()) } else { Ok(false) }
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::api::Process,
        run::metadata::{Metadata, State},
    };
    use test_case::test_case;

    fn index(version: u32, path: &str) -> Vec<u8> {
        let mut bytes = b"DIRC".to_vec();
        bytes.extend(version.to_be_bytes());
        bytes.extend([0, 0, 0, 1]);
        bytes.extend([7; 62]);
        bytes.extend(path.as_bytes());
        bytes.extend([0; 4]);
        bytes
    }

    fn place(git: impl FnOnce(&Path), workspace: &str, file: bool) -> McpJson {
        let dir = tempfile::tempdir().unwrap();
        let workspace = dir.path().join(workspace);
        fs::create_dir_all(&workspace).unwrap();
        git(&dir.path().join(".git"));
        if file {
            fs::write(workspace.join(NAME), "{}").unwrap();
        }
        of_repository(&workspace)
    }

    fn with_index(bytes: Vec<u8>) -> impl FnOnce(&Path) {
        move |git| {
            fs::create_dir(git).unwrap();
            fs::write(git.join("index"), bytes).unwrap();
        }
    }

    #[test]
    fn without_git_it_goes_into_the_workspace() {
        assert_eq!(place(|_| {}, "", true), McpJson::Workspace);
    }

    #[test]
    fn tracked_or_not() {
        assert_eq!(place(with_index(index(2, ".mcp.json")), "", true), McpJson::Home);
        assert_eq!(place(with_index(index(2, ".mcp.json")), "", false), McpJson::Home);
        assert_eq!(place(with_index(index(2, "README.md")), "", true), McpJson::Workspace);
        assert_eq!(place(with_index(index(2, "sub/.mcp.json")), "sub", true), McpJson::Home);
        assert_eq!(place(with_index(index(2, "other/x")), "sub", true), McpJson::Workspace);
    }

    #[test]
    fn when_unsure_a_file_that_is_there_is_spared() {
        let worktree = |git: &Path| fs::write(git, "gitdir: /elsewhere").unwrap();
        assert_eq!(place(worktree, "", true), McpJson::Home);
        assert_eq!(place(worktree, "", false), McpJson::Workspace);
        assert_eq!(place(with_index(index(4, "x")), "", true), McpJson::Home);
        assert_eq!(place(with_index(b"garbage".to_vec()), "", true), McpJson::Home);
    }

    #[test]
    fn a_pipe_in_the_place_of_the_index_holds_nobody() {
        let pipe = |git: &Path| {
            fs::create_dir(git).unwrap();
            nix::unistd::mkfifo(&git.join("index"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        };
        let (done, end) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(place(pipe, "", true)));
        assert_eq!(end.recv_timeout(std::time::Duration::from_secs(10)), Ok(McpJson::Home));
    }

    #[test]
    fn the_real_git_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str]| {
            let done = std::process::Command::new("git").arg("-C").arg(dir.path()).args(arguments).output();
            done.is_ok_and(|output| output.status.success())
        };
        if !git(&["init", "-q"]) {
            return; // no git on this machine; the format's tests above stand
        }
        fs::write(dir.path().join(NAME), "{}").unwrap();
        assert_eq!(of_repository(dir.path()), McpJson::Workspace);
        assert!(git(&["add", NAME]));
        assert_eq!(of_repository(dir.path()), McpJson::Home);
    }

    #[test_case(1, "/w", State::Running => true; "another run here")]
    #[test_case(1, "/w", State::Starting => true; "another one that starts")]
    #[test_case(1, "/w", State::Stopped => false; "one that is over")]
    #[test_case(1, "/v", State::Running => false; "one elsewhere")]
    #[test_case(0, "/w", State::Running => false; "this very run")]
    fn shared(run: u8, workspace: &str, state: State) -> bool {
        let (holder, now) = (Process::current(), jiff::Timestamp::UNIX_EPOCH);
        let mut metadata = Metadata::new("a".into(), Path::new(workspace), "process", holder, now);
        metadata.state = state;
        let id = |last| RunId::from_random([0, 0, 0, 0, 0, last]);
        is_shared(&[Record { id: id(run), metadata }], &id(0), Path::new("/w"))
    }
}
