//! Puts the agents' files into the home and `.mcp.json` into the workspace, and takes the latter out again.
//!
//! ```text
//! PID 1 ──fork──► child becomes the agent's user ─► read all ─► edit all ─► (a fault: nothing is written)
//!                                                                   └─► write all ─► .mcp.json
//! ```
//!
//! All of it with the agent's own rights: a link that was planted in a persistent home reaches nothing that the
//! agent could not reach itself.

pub(crate) mod atomic;
pub(crate) mod json;
mod mcp_json;

use std::{io, path::PathBuf};

use moat_shared::{
    exit,
    plan::{McpJson, Plan},
};

use crate::{
    agents::{self, Fault},
    say,
    supervise::Ended,
    sys::{self, Waited},
    user,
};

/// Why a file was not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    /// What is in it stands in the way; it is left as it is.
    #[error("{path}:{line}: {fault}", line = fault.line())]
    Fault { path: PathBuf, fault: Fault },
    /// The process that was to do it did not come to its end.
    #[error("the agents' files could not be written")]
    Child(#[source] io::Error),
    /// Its reasons have been told.
    #[error("nothing was started")]
    Told,
}

/// Writes the files of this run's agents.
pub(crate) fn put_in(plan: &Plan) -> Result<(), FileError> {
    as_agent(plan, put_in_here)
}

/// Takes `.mcp.json` out again, after everything else in the sandbox has ended.
pub(crate) fn take_out(plan: &Plan) -> Result<(), FileError> {
    as_agent(plan, |plan| {
        let mut errors = Vec::new();
        if plan.mcp_json == McpJson::Workspace {
            errors.extend(mcp_json::clean(mcp_json::Place::Workspace, plan).err());
        }
        errors.extend(mcp_json::clean(mcp_json::Place::Home, plan).err());
        errors
    })
}

/// Does the work in a process of the agent's user, and waits for it.
fn as_agent(plan: &Plan, work: fn(&Plan) -> Vec<FileError>) -> Result<(), FileError> {
    let child = sys::fork(|| {
        if let Err((step, error)) = user::become_user(plan.user.ids) {
            say::line(&format!("cannot become the agent's user: {}: {error}", step.text()));
            return exit::SETUP;
        }
        let errors = work(plan);
        errors.iter().for_each(|error| say::error(error));
        if errors.is_empty() { exit::OK } else { exit::SETUP }
    })
    .map_err(FileError::Child)?;
    loop {
        match sys::wait(Some(child), true).map_err(FileError::Child)? {
            Waited::Ended(_, Ended::Code(exit::OK)) => return Ok(()),
            Waited::Ended(_, Ended::Code(_)) => return Err(FileError::Told),
            Waited::Ended(_, Ended::Signal(signal)) => {
                return Err(FileError::Child(io::Error::other(format!("killed by signal {signal}"))));
            }
            Waited::NoChild => return Err(FileError::Child(io::ErrorKind::NotFound.into())),
            Waited::Stopped(..) | Waited::Nothing => {}
        }
    }
}

/// In the child: all faults are found before anything is written.
fn put_in_here(plan: &Plan) -> Vec<FileError> {
    let mut texts = Vec::new();
    let mut errors = Vec::new();
    for agent in agents::of_run(plan) {
        let path = agents::path(agent, plan);
        let edited = atomic::read(&path).and_then(|before| {
            let text = agents::edited(agent, before.as_deref(), plan)
                .map_err(|fault| FileError::Fault { path: path.clone(), fault })?;
            Ok((before.as_deref() != Some(text.as_str())).then_some(text))
        });
        match edited {
            Ok(Some(text)) => texts.push((path, text)),
            // As it was: nobody has to wait for the disk.
            Ok(None) => {}
            Err(error) => errors.push(error),
        }
    }
    if !errors.is_empty() {
        return errors;
    }
    errors.extend(texts.iter().filter_map(|(path, text)| atomic::write(path, text, None).err()));
    if errors.is_empty() {
        mcp_json::put_in(plan).iter().for_each(|line| say::line(line));
    }
    errors
}
