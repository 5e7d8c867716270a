//! `moat grant mcp <server-name>`: asks for the credential of an MCP server and binds it to the server's hosts.

use std::{collections::BTreeSet, io, path::PathBuf};

use jiff::Timestamp;
use moat_shared::{exit, grant::GrantName, secret::Secret};

use super::super::{
    Context, Failure, Outcome,
    ask::{Ask, Person},
    news,
    proxy::block_on,
};
use crate::{
    config::{self, Config, catalog},
    credentials::{Credential, Store, grant::is_sendable},
    oauth::record::Record,
    server::Upstream,
};

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Store the credential of an MCP server.\n\n\
        On a terminal it is asked for and not shown; otherwise one line is read from stdin. It is stored encrypted, \
        as grant 'mcp-<server-name>', and bound to hosts: those of --url, else those of the known server of that \
        name, else those that the moat.yaml of the current directory uses the grant for.",
    after_help = "\
Examples:
  moat grant mcp context7
  printf %s \"$TOKEN\" | moat grant mcp mine --url https://mcp.example.com/mcp

Then, in moat.yaml:
  mcp:
    - context7
    - name: mine
      url: https://mcp.example.com/mcp
      auth: {grant: mcp-mine, header: Authorization}"
)]
pub(super) struct Args {
    /// The server's name, as in moat.yaml
    server_name: String,
    /// Where the server is; the grant is bound to this host alone
    #[arg(long, value_name = "URL", value_parser = |text: &str| Upstream::try_from(text.to_owned()))]
    url: Option<Upstream>,
}

impl Args {
    pub(super) fn run(self, context: &Context, store: &Store) -> Outcome {
        let grant = grant_of(&self.server_name)?;
        let workspace = std::env::current_dir()
            .map_err(|error| error.to_string())
            .and_then(|here| config::load(&here).map_err(|problems| problems.to_string()));
        let mut person = Person;
        let workspace = workspace.unwrap_or_else(|problems| {
            person.say(&format!("Warning: the moat.yaml of this directory is not used: {problems}"));
            Config::default()
        });
        if context.global.dry_run {
            person.say(&format!("Would save grant '{grant}' to {}", store.path(&grant).display()));
            return Ok(exit::OK);
        }
        person.say(&format!("Enter credential for MCP server '{}'", self.server_name));
        person.say(&format!("This will be stored as grant '{grant}'\n"));
        let token = credential(&mut person, "Credential: ")?;
        let hosts = self.hosts(&grant, store, &workspace, &mut person);
        let credential = Credential::new(grant.clone(), token, hosts, Timestamp::now());
        let path = keep(&credential, store, &mut person)?;
        let change = news::granted(&Record::of(credential));
        block_on(async {
            news::tell(&context.home, store, &grant, change).await;
            Ok(exit::OK)
        })?;
        person.say(&format!("\nMCP credential '{grant}' saved to {}", path.display()));
        if !uses(&workspace, &grant) {
            person.say(&format!("\nConfigure in moat.yaml:\n\n{}", self.snippet(&grant)));
        }
        person.say("\nThen run: moat claude ./workspace");
        Ok(exit::OK)
    }

    /// The hosts that the grant is bound to; says where they come from when that is not obvious.
    fn hosts(
        &self,
        grant: &GrantName,
        store: &Store,
        workspace: &Config,
        person: &mut dyn Ask,
    ) -> BTreeSet<String> {
        if let Some(url) = &self.url {
            return [url.host().to_owned()].into();
        }
        // A new token for the same purpose.
        if let Some(former) = store.read(grant).ok().filter(|former| !former.hosts.is_empty()) {
            person.say(&format!("Bound to the same hosts as before: {}", joined(&former.hosts)));
            return former.hosts;
        }
        let known = catalog::hosts_of(grant);
        if !known.is_empty() {
            return known;
        }
        let used = servers_with(workspace, grant).map(|server| server.upstream.host().to_owned());
        let used: BTreeSet<String> = used.collect();
        if !used.is_empty() {
            person.say(&format!("Bound to the hosts in this directory's moat.yaml: {}", joined(&used)));
        }
        used
    }

    /// Valid YAML that uses the grant.
    fn snippet(&self, grant: &GrantName) -> String {
        let known = catalog::find(&self.server_name);
        if let Some(known) = known.filter(|known| known.grant == grant.as_str() && self.url.is_none()) {
            return format!("mcp:\n  - {}", known.name);
        }
        let url = self.url.as_ref().map(Upstream::as_str).or_else(|| known.map(|known| known.url));
        format!(
            "mcp:\n  - name: {}\n    url: {}\n    auth:\n      grant: {grant}\n      header: Authorization",
            self.server_name,
            url.unwrap_or("https://mcp.example.com/mcp")
        )
    }
}

/// The grant of a server's name. The catalog's servers may share one.
fn grant_of(name: &str) -> Result<GrantName, Failure> {
    const INVALID: [char; 9] = ['/', '\\', ':', '*', '?', '"', '<', '>', '|'];
    if name.contains(INVALID) {
        return Err(Failure::new(format!("invalid server name: {name:?} contains invalid characters")));
    }
    if let Some(known) = catalog::find(name).filter(|known| known.grant.starts_with("mcp-")) {
        return known.grant.parse().map_err(|error| Failure::new(format!("{error}")));
    }
    name.parse::<moat_shared::id::ServerName>().map_err(|error| Failure::new(error.to_string()))?;
    GrantName::mcp(name).map_err(|error| Failure::new(error.to_string()))
}

/// Asks for a credential and checks that it can be sent.
pub(crate) fn credential(person: &mut dyn Ask, prompt: &str) -> Result<Secret<String>, Failure> {
    let given = match person.secret(prompt) {
        Ok(given) => given,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Secret::new(String::new()),
        Err(error) => return Err(Failure::new(format!("reading credential: {error}"))),
    };
    let token = Secret::new(given.expose().trim().to_owned());
    if token.expose().is_empty() {
        return Err(Failure::new("no credential provided"));
    }
    person.say("Validating credential...");
    if !is_sendable(token.expose()) {
        return Err(Failure::new(
            "this credential cannot be sent in a header: it has a control character or one that is not ASCII",
        ));
    }
    if token.expose().chars().count() < 8 {
        person.say("Warning: Credential seems short. MCP server may reject it.");
    }
    Ok(token)
}

/// Stores a credential; says where the encryption key is when that is news.
pub(crate) fn keep(credential: &Credential, store: &Store, person: &mut dyn Ask) -> Result<PathBuf, Failure> {
    let saved = store.put(credential).map_err(|error| Failure::from_error(&error))?;
    if let Some(file) = saved.new_key_file {
        person.say(&format!(
            "Warning: this machine has no keychain, so the encryption key is in {}. Whoever reads that file can read \
             your credentials.",
            file.display()
        ));
    }
    Ok(saved.path)
}

fn servers_with<'c>(
    config: &'c Config,
    grant: &'c GrantName,
) -> impl Iterator<Item = &'c crate::server::Server> {
    config
        .servers
        .iter()
        .filter(move |server| server.inject.as_ref().is_some_and(|inject| inject.grant == *grant))
}

fn uses(config: &Config, grant: &GrantName) -> bool {
    servers_with(config, grant).next().is_some()
}

fn joined(hosts: &BTreeSet<String>) -> String {
    hosts.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("context7" => Ok("mcp-context7".to_owned()))]
    #[test_case("langfuse-eu" => Ok("mcp-langfuse".to_owned()); "shared grant")]
    #[test_case("linear" => Ok("mcp-linear".to_owned()); "known for OAuth")]
    #[test_case("a/b" => Err("invalid server name: \"a/b\" contains invalid characters".to_owned()))]
    #[test_case("a:b" => Err("invalid server name: \"a:b\" contains invalid characters".to_owned()))]
    fn grants(name: &str) -> Result<String, String> {
        grant_of(name).map(String::from).map_err(|failure| failure.text)
    }

    #[test_case("context7", None, "context7"; "known")]
    #[test_case("linear", None, "mcp.linear.app"; "known for OAuth")]
    #[test_case("mine", None, "mcp.example.com"; "unknown")]
    #[test_case("mine", Some("http://localhost:3000/mcp"), "localhost"; "given")]
    fn the_snippet_is_a_valid_moat_yaml(name: &str, url: Option<&str>, holds: &str) {
        let url = url.map(|url| Upstream::try_from(url.to_owned()).unwrap());
        let grant = grant_of(name).unwrap();
        let snippet = Args { server_name: name.to_owned(), url }.snippet(&grant);
        assert!(snippet.contains(holds), "{snippet}");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("moat.yaml"), &snippet).unwrap();
        let config = config::load(dir.path()).unwrap();
        assert!(uses(&config, &grant));
    }
}
