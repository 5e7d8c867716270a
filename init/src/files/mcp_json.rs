//! Where `.mcp.json` goes: the workspace when nothing of the user's is lost there, else the agent's home.

use std::{
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use moat_shared::plan::{McpJson, Plan};

use super::{FileError, atomic};
use crate::{
    agents::mcp_json::{self as text, Afterwards},
    say,
};

const NAME: &str = ".mcp.json";

/// The two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Workspace,
    Home,
}

impl Place {
    fn path(self, plan: &Plan) -> PathBuf {
        match self {
            Self::Workspace => plan.workspace.join(NAME),
            Self::Home => plan.user.home.join(NAME),
        }
    }
}

/// Puts it where it can be; returns what the user has to know. It is a courtesy to other tools, so nothing here
/// stops the start.
pub(super) fn put_in(plan: &Plan) -> Vec<String> {
    if !text::is_needed(plan) {
        return Place::of(plan)
            .filter_map(|place| clean(place, plan).err())
            .map(|error| say::chain(&error))
            .collect();
    }
    let why_not = match plan.mcp_json {
        McpJson::Home => "is under version control".to_owned(),
        McpJson::Shared => "is that of another run in this workspace".to_owned(),
        McpJson::Workspace => match merge_in_workspace(plan) {
            Ok(()) => {
                return clean(Place::Home, plan).err().map(|error| say::chain(&error)).into_iter().collect();
            }
            Err(reason) => format!("is left as it is ({reason})"),
        },
    };
    match merge_in_home(plan) {
        Ok(()) => vec![format!("{NAME} {why_not}, so the merged one is in ~/{NAME}")],
        Err(error) => {
            vec![format!("{NAME} {why_not}, and there is none in the home: {}", say::chain(&error))]
        }
    }
}

impl Place {
    /// Where one of ours can be.
    fn of(plan: &Plan) -> impl Iterator<Item = Self> {
        [Self::Workspace, Self::Home]
            .into_iter()
            .filter(|place| *place == Self::Home || plan.mcp_json == McpJson::Workspace)
    }
}

/// Takes out what is ours in one place.
pub(super) fn clean(place: Place, plan: &Plan) -> Result<(), FileError> {
    let path = place.path(plan);
    // A link was never ours.
    if path.is_symlink() {
        return Ok(());
    }
    let Some(before) = atomic::read(&path)? else { return Ok(()) };
    // What is not JSON holds nothing that we could find.
    let after = text::without(&before, place == Place::Home).unwrap_or(Afterwards::Same);
    match after {
        Afterwards::Same => Ok(()),
        Afterwards::Text(text) => atomic::write(&path, &text, mode(&path)),
        Afterwards::Gone => {
            std::fs::remove_file(&path).map_err(|source| FileError::Write { path: path.clone(), source })
        }
    }
}

/// Into the workspace, or the reason why not.
fn merge_in_workspace(plan: &Plan) -> Result<(), String> {
    let path = Place::Workspace.path(plan);
    if path.is_symlink() {
        return Err("it is a link".into());
    }
    let before = atomic::read(&path).map_err(|error| say::chain(&error))?;
    match std::fs::metadata(&path) {
        Ok(about) if about.uid() != nix::unistd::geteuid().as_raw() => {
            return Err("it belongs to somebody else".into());
        }
        _ => {}
    }
    let merged =
        text::merged(before.as_deref(), plan).map_err(|fault| format!("line {}: {fault}", fault.line()))?;
    atomic::write(&path, &merged, mode(&path)).map_err(|error| say::chain(&error))
}

/// Into the home: with what is there, else with what the workspace's file says, else alone.
fn merge_in_home(plan: &Plan) -> Result<(), FileError> {
    clean(Place::Home, plan)?;
    let path = Place::Home.path(plan);
    let merged = match atomic::read(&path)? {
        Some(before) => text::merged(Some(&before), plan)
            .map_err(|fault| FileError::Fault { path: path.clone(), fault })?,
        None => copy_of_workspace(plan)
            .map_or_else(|| text::merged(None, plan), Ok)
            .map_err(|fault| FileError::Fault { path: path.clone(), fault })?,
    };
    atomic::write(&path, &merged, mode(&path))
}

fn copy_of_workspace(plan: &Plan) -> Option<String> {
    // Unreadable or in the way: then ours are alone in the home, which is all that can be done for them.
    let original = atomic::read(&Place::Workspace.path(plan)).ok()??;
    text::merged_copy(&original, plan).ok()
}

/// The file's mode as it is.
fn mode(path: &Path) -> Option<u32> {
    let about: io::Result<_> = std::fs::metadata(path);
    about.ok().map(|about| about.permissions().mode() & 0o777)
}
