//! What must be there before a run starts: every grant, readable, and bound to the hosts it would be sent to.
//!
//! ```text
//! look ──nothing missing──► go
//!   │ something, and there is a terminal
//!   ▼
//! ask: grant it now? send it there? ──► look again ──► go, or everything that is still missing in one report
//! ```

use std::collections::BTreeSet;

use jiff::Timestamp;
use moat_shared::{
    grant::{GrantKind, GrantName},
    hint::Hint,
    id::ServerName,
};

use crate::{
    cli::{
        Failure,
        ask::{Ask, Person},
        grant::{
            mcp::{credential, keep},
            oauth,
        },
        print, with_causes,
    },
    config::{Config, Settings, catalog},
    credentials::{Credential, InjectError, ReadError, Store, token_for},
    env::Environment,
    home::{Home, Profile},
    oauth::record::{Life, Record},
};

/// May the user be asked?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PromptPolicy {
    Ask,
    Never,
}

impl PromptPolicy {
    /// Only on a terminal, and only unless `--no-prompt` or `MOAT_NO_PROMPT` says no.
    pub(crate) fn of(no_prompt: bool, env: &Environment) -> Self {
        if no_prompt || env.flag("MOAT_NO_PROMPT") || !print::can_ask() { Self::Never } else { Self::Ask }
    }
}

/// Checks everything that a run needs of the credentials, before anything is started.
pub(crate) fn preflight(
    config: &Config,
    home: &Home,
    env: &Environment,
    profile: Option<&Profile>,
    prompt: PromptPolicy,
) -> Result<(), Failure> {
    // Nobody should run with settings that are not the ones that were written.
    Settings::load(home, env).map_err(|problems| Failure::from_error(&problems))?;
    let store = Store::open(home, env, profile);
    match prompt {
        PromptPolicy::Never => report(&wants(config, &store), profile),
        PromptPolicy::Ask => {
            let sign_in = |grant: &GrantName| {
                let uses = |server: &&crate::server::Server| {
                    server.inject.as_ref().is_some_and(|injection| injection.grant == *grant)
                };
                let server = config.servers.iter().find(uses).map(|server| &server.upstream);
                oauth::inline(grant, server, home, env, &store)
            };
            with_prompts(config, &store, profile, &mut Person, &sign_in)
        }
    }
}

/// Something that is missing.
#[derive(Debug)]
enum Want {
    /// For a server of `mcp:`.
    Server { server: ServerName, error: InjectError },
    /// Of `grants:`.
    Grant { grant: GrantName, error: ReadError },
}

fn wants(config: &Config, store: &Store) -> Vec<Want> {
    let mut wants: Vec<Want> = config
        .servers
        .iter()
        .filter_map(|server| {
            let error = token_for(store, server).err().or_else(|| stale(store, server))?;
            Some(Want::Server { server: server.name.clone(), error })
        })
        .collect();
    let used: BTreeSet<_> = config
        .servers
        .iter()
        .filter_map(|server| server.inject.as_ref())
        .collect::<Vec<_>>()
        .into_iter()
        .map(|inject| &inject.grant)
        .collect();
    for grant in config.grants.iter().filter(|grant| !used.contains(grant)) {
        if let Err(error) = store.read(grant) {
            wants.push(Want::Grant { grant: grant.clone(), error });
        }
    }
    wants
}

/// An OAuth grant whose token has expired and cannot be renewed. One that expires soon is worth a word.
fn stale(store: &Store, server: &crate::server::Server) -> Option<InjectError> {
    let grant = &server.inject.as_ref()?.grant;
    if !matches!(grant.kind(), GrantKind::OAuth(_)) {
        return None;
    }
    let record = Record::of(store.read(grant).ok()?);
    let expired = record.life(Timestamp::now()) == Life::Expired;
    if expired && record.rejected().is_some() {
        return Some(InjectError::NeedsAuthorization { server: server.name.clone(), grant: grant.clone() });
    }
    if expired && record.refresh_token().is_none() {
        print::note(&format!(
            "Warning: the token of '{grant}' has expired and there is no refresh token. To sign in again: {}",
            grant.command()
        ));
    }
    None
}

fn with_prompts(
    config: &Config,
    store: &Store,
    profile: Option<&Profile>,
    person: &mut dyn Ask,
    sign_in: &dyn Fn(&GrantName) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("asking: {error}"));
    let missing = missing(&wants(config, store));
    if !missing.is_empty() {
        let list: String = missing.iter().map(|grant| format!("\n  • {grant}")).collect();
        person.say(&format!("\n{} grant(s) needed before this run can start:{list}\n", missing.len()));
        for grant in &missing {
            let command = command(grant.command(), profile);
            match person.question(&format!("Grant {grant} now? [Y/n] ")).map_err(failed)?.as_deref() {
                None => {
                    person.say("  Aborted.");
                    break;
                }
                Some("" | "y" | "Y" | "yes") => match grant_now(grant, store, person, sign_in) {
                    Ok(()) => person.say(&format!("  ✓ {grant} granted")),
                    Err(failure) => person.say(&format!("  {failure}")),
                },
                Some(_) => person.say(&format!("  Skipped. Run later with: {command}")),
            }
        }
    }
    confirm_hosts(&wants(config, store), store, person)?;
    report(&wants(config, store), profile)
}

/// The grants that a new credential would mend.
fn missing(wants: &[Want]) -> BTreeSet<GrantName> {
    let mends = |error: &ReadError| match error {
        ReadError::NotConfigured { grant } | ReadError::Decrypt { grant } => Some(grant.clone()),
        _ => None,
    };
    wants
        .iter()
        .filter_map(|want| match want {
            Want::Server { error: InjectError::Read(error), .. } | Want::Grant { error, .. } => mends(error),
            Want::Server { error: InjectError::NeedsAuthorization { grant, .. }, .. } => Some(grant.clone()),
            Want::Server { .. } => None,
        })
        .collect()
}

fn grant_now(
    grant: &GrantName,
    store: &Store,
    person: &mut dyn Ask,
    sign_in: &dyn Fn(&GrantName) -> Result<(), Failure>,
) -> Result<(), Failure> {
    if matches!(grant.kind(), GrantKind::OAuth(_)) {
        return sign_in(grant);
    }
    let token = credential(person, "  Credential: ")?;
    // A host that the catalog does not know is confirmed next.
    let new = Credential::new(grant.clone(), token, catalog::hosts_of(grant), Timestamp::now());
    keep(&new, store, person).map(drop)
}

/// Hosts are bound by the user, never by a moat.yaml alone.
fn confirm_hosts(wants: &[Want], store: &Store, person: &mut dyn Ask) -> Result<(), Failure> {
    let mut asked = BTreeSet::new();
    for want in wants {
        let Want::Server { error: InjectError::NotBound { grant, host, .. }, .. } = want else { continue };
        if !asked.insert((grant, host)) {
            continue;
        }
        let question = format!("Send grant '{grant}' to host '{host}'? [y/N] ");
        let answer = person.question(&question).map_err(|error| Failure::new(format!("asking: {error}")))?;
        if matches!(answer.as_deref(), Some("y" | "Y" | "yes")) {
            store.bind(grant, host).map_err(|error| Failure::from_error(&error))?;
        }
    }
    Ok(())
}

/// A command, for the profile that the run uses.
fn command(command: String, profile: Option<&Profile>) -> String {
    match profile {
        Some(profile) => format!("{command} --profile {profile}"),
        None => command,
    }
}

/// Everything that is missing, and what mends it.
fn report(wants: &[Want], profile: Option<&Profile>) -> Result<(), Failure> {
    let mut blocks = Vec::new();
    let servers: Vec<_> = wants
        .iter()
        .filter_map(|want| match want {
            Want::Server { server, error } => Some(of_server(server, error)),
            Want::Grant { .. } => None,
        })
        .collect();
    if !servers.is_empty() {
        let texts: Vec<_> = servers.iter().map(|(text, _)| text.as_str()).collect();
        let mut fixes: Vec<String> = Vec::new();
        for fix in servers.iter().flat_map(|(_, fixes)| fixes) {
            let fix = if fix.starts_with("moat ") { command(fix.clone(), profile) } else { fix.clone() };
            if !fixes.contains(&fix) {
                fixes.push(fix);
            }
        }
        let fixes = fixes.join("\n").replace('\n', "\n  ");
        blocks.push(format!("{}\n\nTo fix:\n  {fixes}\n\nThen run again.", texts.join("\n")));
    }
    let grants: String = wants
        .iter()
        .filter_map(|want| match want {
            Want::Grant { grant, error } => Some(of_grant(grant, error, profile)),
            Want::Server { .. } => None,
        })
        .collect();
    if !grants.is_empty() {
        blocks.push(format!("missing grants:{grants}\n\nConfigure the grants above, then run again."));
    }
    if blocks.is_empty() { Ok(()) } else { Err(Failure::new(blocks.join("\n\n"))) }
}

/// What a server lacks, and the commands (or the sentence) that mend it.
fn of_server(server: &ServerName, error: &InjectError) -> (String, Vec<String>) {
    let InjectError::Read(error) = error else {
        let fixes = match error {
            InjectError::NotBound { grant, host, .. } => vec![format!("moat grant allow {grant} {host}")],
            InjectError::NotAHeaderValue { grant, .. } | InjectError::NeedsAuthorization { grant, .. } => {
                vec![grant.command()]
            }
            InjectError::Read(_) => Vec::new(),
        };
        return (error.to_string(), fixes);
    };
    let requires = |grant: &GrantName| format!("MCP server '{server}' requires grant '{grant}' but it");
    match error {
        ReadError::NotConfigured { grant } => {
            (format!("{}'s not configured", requires(grant)), vec![grant.command()])
        }
        ReadError::Decrypt { grant } => {
            let text = format!("{} cannot be decrypted: the encryption key has changed", requires(grant));
            (text, vec![grant.command()])
        }
        ReadError::Malformed { grant, .. } | ReadError::Mismatch { grant, .. } => {
            let text = format!("{} cannot be read: {error}", requires(grant));
            (text, vec![format!("moat revoke {grant}"), grant.command()])
        }
        ReadError::Unreadable { grant, path, source } => {
            let text = format!("{} cannot be read: {source}", requires(grant));
            (text, vec![format!("check owner and rights of {}", path.display())])
        }
        ReadError::Key { grant, source } => {
            let text = format!("{} cannot be read: {}", requires(grant), with_causes(source));
            let hint = source.hint().map(|hint| hint.trim_start_matches("To fix:\n  ").to_owned());
            (text, hint.into_iter().collect())
        }
    }
}

fn of_grant(grant: &GrantName, error: &ReadError, profile: Option<&Profile>) -> String {
    let (reason, fix) = match error {
        ReadError::NotConfigured { .. } => ("not configured".to_owned(), grant.command()),
        ReadError::Decrypt { .. } => ("encryption key changed".to_owned(), grant.command()),
        ReadError::Malformed { .. } | ReadError::Mismatch { .. } => (error.to_string(), grant.command()),
        ReadError::Unreadable { source, .. } => (format!("cannot be read: {source}"), grant.command()),
        ReadError::Key { source, .. } => (with_causes(source), grant.command()),
    };
    format!("\n  - {grant}: {reason}\n    Run: {}", command(fix, profile))
}

#[cfg(test)]
mod tests;
