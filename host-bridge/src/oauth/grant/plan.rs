//! All that one authorization has before anybody is asked: endpoints, resource, scopes.

use url::Url;

use super::{GrantError, Host, Inputs, Resource};
use crate::oauth::{
    discovery::{self, Authority, DiscoveryError, Wish},
    guard::Guard,
    http::Http,
    record::{Record, key},
};

/// What an OpenID server calls the wish for a refresh token.
const OFFLINE: &str = "offline_access";

/// All that one authorization has, whichever way the person takes.
pub(super) struct Plan<'a> {
    pub(super) http: &'a Http,
    pub(super) guard: Guard,
    pub(super) inputs: &'a Inputs,
    pub(super) authority: Authority,
    pub(super) resource: Option<String>,
    pub(super) scope: Option<String>,
    pub(super) prompt_consent: bool,
    pub(super) former: Option<Record>,
}

pub(super) async fn plan<'a>(
    http: &'a Http,
    inputs: &'a Inputs,
    former: Option<Record>,
    host: &mut impl Host,
) -> Result<Plan<'a>, GrantError> {
    let first = inputs.server.as_ref().or_else(|| inputs.endpoints.as_ref().map(|(_, token)| token));
    let guard = Guard::of(first, inputs.allow_private);
    let former_issuer = former.as_ref().and_then(|record| record.text(key::ISSUER)).map(str::to_owned);
    let wish = |server| Wish {
        server,
        issuer: inputs.issuer.as_deref(),
        former: former_issuer.as_deref(),
        authority: inputs.endpoints.is_none(),
    };
    let found = match &inputs.server {
        None => None,
        Some(server) if inputs.endpoints.is_none() => {
            host.say(&format!("Attempting OAuth discovery for {}...", shown(server)));
            let found = discovery::discover(http, guard, wish(server)).await;
            let found = found.map_err(GrantError::Discovery)?;
            host.say("Discovered OAuth endpoints.");
            Some(found)
        }
        // The endpoints are known: what the server says about itself is welcome, and that is all.
        Some(server) => discovery::discover(http, guard, wish(server)).await.ok(),
    };
    let (found_authority, found_resource, found_scopes) = match found {
        Some(found) => (found.authority, found.resource, found.scopes),
        None => (None, None, None),
    };
    let authority = match (&inputs.endpoints, found_authority) {
        (Some((auth_url, token_url)), _) => explicit(guard, auth_url, token_url, inputs)?,
        (None, Some(authority)) => authority,
        (None, None) => return Err(GrantError::Discovery(DiscoveryError::NoServers)),
    };
    let resource = match &inputs.resource {
        Resource::None => None,
        Resource::Given(resource) => Some(resource.clone()),
        Resource::AsFound => found_resource.or_else(|| inputs.server.as_ref().map(as_resource)),
    };
    // A new grant at the same issuer loses nothing that was asked for before.
    let before = former
        .as_ref()
        .filter(|record| record.text(key::ISSUER) == authority.issuer.as_deref())
        .and_then(|record| record.text(key::REQUESTED_SCOPE));
    let mut scope = inputs.scopes.clone().or_else(|| match (before, found_scopes) {
        (Some(before), Some(found)) => Some(union(before, &found)),
        (Some(one), None) => Some(one.to_owned()),
        (None, found) => found,
    });
    let mut prompt_consent = false;
    if let Some(scope) = scope.as_mut().filter(|scope| !scope.is_empty())
        && authority.scopes.iter().any(|known| known == OFFLINE)
    {
        *scope = union(scope, OFFLINE);
        prompt_consent = true;
    }
    Ok(Plan { http, guard, inputs, authority, resource, scope, prompt_consent, former })
}

fn explicit(guard: Guard, auth_url: &Url, token_url: &Url, inputs: &Inputs) -> Result<Authority, GrantError> {
    let check = |what, url: &Url| {
        guard.check_url(url).map_err(|why| GrantError::Url { what, why }).map(|()| url.clone())
    };
    Ok(Authority {
        issuer: inputs.issuer.clone(),
        auth_url: check("auth_url", auth_url)?,
        token_url: check("token_url", token_url)?,
        registration_url: None,
        revocation_url: None,
        device_url: None,
        promises_iss: false,
        auth_methods: Vec::new(),
        takes_documents: false,
        scopes: Vec::new(),
    })
}

/// The server's URL as a resource: no query, no fragment, no bare trailing slash.
fn as_resource(server: &Url) -> String {
    let mut url = server.clone();
    url.set_query(None);
    url.set_fragment(None);
    let text = url.to_string();
    if url.path() == "/" { text.trim_end_matches('/').to_owned() } else { text }
}

/// Without its query, which may hold a key.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.to_string()
}

/// Scopes of either, in their order, none twice.
pub(crate) fn union(one: &str, other: &str) -> String {
    let mut all: Vec<&str> = Vec::new();
    for scope in one.split(' ').chain(other.split(' ')).filter(|scope| !scope.is_empty()) {
        if !all.contains(&scope) {
            all.push(scope);
        }
    }
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_case::test_case;

    #[test_case("https://h/" => "https://h"; "a bare slash")]
    #[test_case("https://h/mcp?key=s3cr3t" => "https://h/mcp"; "a query")]
    #[test_case("https://h/mcp/" => "https://h/mcp/"; "a path keeps its slash")]
    fn o5_resources(server: &str) -> String {
        as_resource(&Url::parse(server).unwrap())
    }

    #[test]
    fn scopes_are_joined() {
        assert_eq!(union("a b", "b  c"), "a b c");
        assert_eq!(union("", "a"), "a");
    }
}
