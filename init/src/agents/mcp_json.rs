//! `.mcp.json`: put in for the run, taken out after it, without a trace.
//!
//! What this makes is recognisable, so that the next start can clean up after a crash: a file that we made ends in
//! [`MADE`], an `mcpServers` that we made is spelled with [`MADE_OBJECT`].

use std::collections::BTreeMap;

use moat_shared::plan::{Plan, StdioServer};

use super::{
    Fault,
    claude::{self, SERVERS, replace_owned},
    owns,
};
use crate::files::json::{edit::Text, parse::Comments};

/// The end of a file that we made: blanks that nobody writes.
const MADE: &str = "\n\t\n";
/// The blanks between colon and brace of an object that we made.
const MADE_OBJECT: &str = "\t";

/// What the file is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Afterwards {
    /// Nothing in it is ours.
    Same,
    Text(String),
    /// We made it and nobody else put anything in.
    Gone,
}

/// Is there anything to put in?
pub(crate) fn is_needed(plan: &Plan) -> bool {
    !plan.servers.is_empty() || plan.stdio.values().any(|servers| !servers.is_empty())
}

/// The names of our servers in it.
pub(super) fn names(plan: &Plan) -> Vec<&str> {
    plan.servers.iter().map(|server| server.name.as_str()).chain(stdio(plan).into_keys()).collect()
}

/// The file with our servers in it.
pub(crate) fn merged(before: Option<&str>, plan: &Plan) -> Result<String, Fault> {
    let entries = claude::entries(plan, stdio(plan).into_iter());
    let mut text = Text::new(before.unwrap_or("{\n}"), Comments::Refused)?.spelling_made_objects(MADE_OBJECT);
    replace_owned(&mut text, &entries)?;
    Ok(text.into_string() + if before.is_none() { MADE } else { "" })
}

/// The same for the agent's home, where the text of the workspace's file is the start of a file of ours.
pub(crate) fn merged_copy(original: &str, plan: &Plan) -> Result<String, Fault> {
    let text = merged(Some(original), plan)?;
    Ok(text.trim_end().to_owned() + MADE)
}

/// The file without our servers. `copy`: a file of ours goes as a whole, whatever is in it.
pub(crate) fn without(before: &str, copy: bool) -> Result<Afterwards, Fault> {
    let made = before.ends_with(MADE);
    if made && copy {
        return Ok(Afterwards::Gone);
    }
    let mut text = Text::new(before, Comments::Refused)?.spelling_made_objects(MADE_OBJECT);
    if !made && !text.members(&[SERVERS])?.iter().any(|(name, _, value)| owns(name, value)) {
        return Ok(Afterwards::Same);
    }
    text.remove(&[SERVERS], owns)?;
    text.remove_made(SERVERS)?;
    if made && text.members(&[])?.is_empty() {
        return Ok(Afterwards::Gone);
    }
    let text = text.into_string();
    Ok(Afterwards::Text(text.strip_suffix(MADE).map_or_else(|| text.clone(), |text| format!("{text}\n"))))
}

/// The servers of all agents; of two with one name the first agent's.
fn stdio(plan: &Plan) -> BTreeMap<&str, &StdioServer> {
    let mut servers = BTreeMap::new();
    for (name, server) in plan.stdio.values().flatten() {
        servers.entry(name.as_str()).or_insert(server);
    }
    servers
}
