//! What a grant is made from, who is asked meanwhile, and what comes out.

use std::{future::Future, path::PathBuf, time::Duration};

use moat_shared::{grant::GrantName, secret::Secret};
use url::Url;

use crate::oauth::{record::Record, token::AuthMethod};

/// What a person and their files say.
#[derive(Debug, Clone)]
pub(crate) struct Inputs {
    pub(crate) grant: GrantName,
    /// The MCP server.
    pub(crate) server: Option<Url>,
    /// Authorization and token endpoint.
    pub(crate) endpoints: Option<(Url, Url)>,
    pub(crate) client_id: Option<String>,
    pub(crate) client_secret: Option<Secret<String>>,
    pub(crate) auth_method: Option<AuthMethod>,
    pub(crate) client_metadata_url: Option<String>,
    pub(crate) scopes: Option<String>,
    pub(crate) issuer: Option<String>,
    /// `Some(None)`: none is to be sent.
    pub(crate) resource: Resource,
    pub(crate) redirect_uri: Option<Url>,
    pub(crate) redirect_port: Option<u16>,
    pub(crate) allow_private: bool,
    pub(crate) new_client: bool,
    pub(crate) device: bool,
    pub(crate) timeout: Duration,
    /// The grant is for this server's host alone.
    pub(crate) only_this_host: bool,
    /// Ask the server whether it takes the new token, before it is stored.
    pub(crate) verify: bool,
}

/// What is said about the resource (RFC 8707).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Resource {
    AsFound,
    Given(String),
    None,
}

/// Whoever sits there.
pub(crate) trait Host: Send {
    /// Tells something.
    fn say(&mut self, text: &str);
    /// Shows the address to go to, and opens it where there is a browser. `true`: it was opened.
    fn visit(&mut self, url: &Url, port: u16) -> bool;
    /// The next line that the person pastes. Never comes back when there is none.
    fn pasted(&mut self) -> impl Future<Output = String> + Send;
    /// Is there no browser, so that a device flow is better where the server has it?
    fn prefers_device(&self) -> bool;
}

/// What was stored.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) path: PathBuf,
    pub(crate) record: Record,
    pub(crate) new_key_file: Option<PathBuf>,
    /// The server could not say whether it takes the token.
    pub(crate) warning: Option<String>,
}
