//! `moat grant`: store, list and show credentials, and say where they may be sent.

use clap::Subcommand;
use moat_shared::{exit, grant::GrantName};

use super::{
    Context, Failure, Outcome,
    ask::{Ask, Person},
    print,
};
use crate::{
    credentials::{Credential, Store, grant::hosts},
    server::Upstream,
};

mod inspect;
pub(crate) mod mcp;
pub(crate) mod oauth;

#[derive(Debug, clap::Args)]
#[command(
    long_about = "Store, list and show credentials.\n\n\
        A credential is stored as a grant, encrypted, on this machine. No sandbox ever holds it: the bridge puts it \
        into requests to the hosts that the grant is bound to, and to no other.",
    after_help = "\
Examples:
  moat grant mcp context7                                 # asks for the credential, without showing it
  pass show mine | moat grant mcp mine --url https://mcp.example.com/mcp
  moat grant oauth linear                                 # signs in with the browser
  moat grant allow mcp-mine mcp2.example.com              # may be sent there as well
  moat grant list"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Store the credential of an MCP server
    Mcp(mcp::Args),
    /// Sign in to an MCP server with OAuth
    Oauth(Box<oauth::Args>),
    /// Let a grant be sent to one more host
    Allow(AllowArgs),
    /// List the stored credentials
    List,
    /// Show one stored credential
    Show(inspect::ShowArgs),
    /// Store a token for GitHub
    Github,
    /// Store a key for OpenAI
    Openai,
    /// Store a key for Anthropic
    Anthropic,
    /// Store a key for Gemini
    Gemini,
}

#[derive(Debug, clap::Args)]
struct AllowArgs {
    /// The grant, like mcp-context7
    grant: GrantName,
    /// The host, like mcp.example.com
    #[arg(value_parser = host)]
    host: String,
}

impl Args {
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let store = Store::open(&context.home, &context.env, context.global.profile.as_ref());
        match self.what {
            What::Mcp(args) => args.run(context, &store),
            What::Oauth(args) => args.run(context, &store),
            What::Allow(args) => args.run(context, &store),
            What::List => inspect::list(context, &store),
            What::Show(args) => args.run(context, &store),
            What::Github => provider("github", context, &store),
            What::Openai => provider("openai", context, &store),
            What::Anthropic => provider("anthropic", context, &store),
            What::Gemini => provider("gemini", context, &store),
        }
    }
}

impl AllowArgs {
    fn run(self, context: &Context, store: &Store) -> Outcome {
        let Self { grant, host } = self;
        let credential = store.read(&grant).map_err(|error| Failure::from_error(&error))?;
        if hosts(&credential).contains(&host) {
            print::note(&format!("Grant '{grant}' may be sent to '{host}' already"));
        } else if context.global.dry_run {
            print::note(&format!("Would let grant '{grant}' be sent to '{host}'"));
        } else {
            store.bind(&grant, &host).map_err(|error| Failure::from_error(&error))?;
            print::note(&format!("Grant '{grant}' may now be sent to '{host}'"));
        }
        Ok(exit::OK)
    }
}

/// A host as a grant is bound to it; a URL is taken for its host.
fn host(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("https://{text}/") };
    let upstream = Upstream::try_from(url).map_err(|_| "not a host".to_owned())?;
    let default = if upstream.is_tls() { 443 } else { 80 };
    if !text.contains("://")
        && (upstream.port() != default || upstream.path() != "/" || upstream.query().is_some())
    {
        return Err("not a host; leave port and path away, a grant is bound to a host".to_owned());
    }
    Ok(upstream.host().to_owned())
}

/// `moat grant github` and the like.
fn provider(name: &str, context: &Context, store: &Store) -> Outcome {
    let grant: GrantName = name.parse().map_err(|error| Failure::new(format!("{error}")))?;
    if context.global.dry_run {
        print::note(&format!("Would save grant '{grant}' to {}", store.path(&grant).display()));
        return Ok(exit::OK);
    }
    let token = mcp::credential(&mut Person, "Credential: ")?;
    let saved =
        mcp::keep(&Credential::new(grant, token, [].into(), jiff::Timestamp::now()), store, &mut Person)?;
    Person.say(&format!("Credential '{name}' saved to {}", saved.display()));
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("mcp.example.com" => Ok("mcp.example.com".to_owned()))]
    #[test_case("MCP.Example.com" => Ok("mcp.example.com".to_owned()); "case")]
    #[test_case("[::1]" => Ok("[::1]".to_owned()))]
    #[test_case("http://localhost:3000/mcp" => Ok("localhost".to_owned()); "url")]
    #[test_case("a.com/x" => Err("not a host; leave port and path away, a grant is bound to a host".to_owned()); "path")]
    #[test_case("a.com:8443" => Err("not a host; leave port and path away, a grant is bound to a host".to_owned()); "port")]
    #[test_case("a.com@b.com" => Err("not a host".to_owned()); "user")]
    #[test_case("" => Err("not a host".to_owned()); "nothing")]
    fn hosts_are_given(text: &str) -> Result<String, String> {
        host(text)
    }
}
