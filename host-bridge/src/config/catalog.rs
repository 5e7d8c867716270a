//! The MCP servers that moat knows by name: where they are, and how they take a credential.

use std::collections::BTreeSet;

use moat_shared::grant::{GrantKind, GrantName};

use crate::server::Upstream;

/// A known server.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) name: &'static str,
    pub(crate) url: &'static str,
    pub(crate) grant: &'static str,
    pub(crate) header: &'static str,
}

/// All of them, in the order of their names.
pub(crate) const CATALOG: [Known; 14] = [
    oauth("asana", "https://mcp.asana.com/mcp", "oauth:asana"),
    oauth("betterstack", "https://mcp.betterstack.com", "oauth:betterstack"),
    oauth("cloudflare", "https://mcp.cloudflare.com/mcp", "oauth:cloudflare"),
    Known {
        name: "context7",
        url: "https://mcp.context7.com/mcp",
        grant: "mcp-context7",
        header: "CONTEXT7_API_KEY",
    },
    oauth("hubspot", "https://mcp.hubspot.com", "oauth:hubspot"),
    // The stored value is the whole `Basic <base64>`; the four share one grant.
    langfuse("langfuse-eu", "https://cloud.langfuse.com/api/public/mcp"),
    langfuse("langfuse-hipaa", "https://hipaa.cloud.langfuse.com/api/public/mcp"),
    langfuse("langfuse-jp", "https://jp.cloud.langfuse.com/api/public/mcp"),
    langfuse("langfuse-us", "https://us.cloud.langfuse.com/api/public/mcp"),
    oauth("linear", "https://mcp.linear.app/mcp", "oauth:linear"),
    oauth("notion", "https://mcp.notion.com/mcp", "oauth:notion"),
    oauth("posthog", "https://mcp.posthog.com/mcp", "oauth:posthog"),
    oauth("sentry", "https://mcp.sentry.dev/mcp", "oauth:sentry"),
    oauth("stripe", "https://mcp.stripe.com", "oauth:stripe"),
];

const fn oauth(name: &'static str, url: &'static str, grant: &'static str) -> Known {
    Known { name, url, grant, header: "Authorization" }
}

const fn langfuse(name: &'static str, url: &'static str) -> Known {
    Known { name, url, grant: "mcp-langfuse", header: "Authorization" }
}

/// The server of this name.
pub(crate) fn find(name: &str) -> Option<&'static Known> {
    CATALOG.iter().find(|known| known.name == name)
}

/// The names, for messages.
pub(crate) fn names() -> String {
    CATALOG.map(|known| known.name).join(", ")
}

impl Known {
    /// Is this URL the catalog's?
    pub(crate) fn is_at(&self, upstream: &Upstream) -> bool {
        Upstream::try_from(self.url.to_owned()).is_ok_and(|own| {
            own.origin() == upstream.origin()
                && own.path() == upstream.path()
                && own.query() == upstream.query()
        })
    }

    fn host(&self) -> Option<String> {
        Upstream::try_from(self.url.to_owned()).ok().map(|upstream| upstream.host().to_owned())
    }
}

/// The hosts that the catalog has for a grant: of the servers that use it, and for `mcp-<name>` of the server of
/// that name.
pub(crate) fn hosts_of(grant: &GrantName) -> BTreeSet<String> {
    let named = match grant.kind() {
        GrantKind::Mcp(name) => Some(name),
        GrantKind::OAuth(_) | GrantKind::Provider(_) => None,
    };
    let its = |known: &&Known| known.grant == grant.as_str() || Some(known.name) == named;
    CATALOG.iter().filter(its).filter_map(Known::host).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::InjectedHeader;
    use test_case::test_case;

    #[test]
    fn every_entry_is_usable_and_in_order() {
        assert!(CATALOG.is_sorted_by_key(|known| known.name));
        for known in &CATALOG {
            assert!(known.host().is_some(), "{}", known.name);
            assert_eq!(known.grant.parse::<GrantName>().unwrap().as_str(), known.grant);
            assert!(InjectedHeader::try_from(known.header.to_owned()).is_ok());
        }
    }

    #[test_case("mcp-context7", &["mcp.context7.com"])]
    #[test_case("mcp-langfuse", &["cloud.langfuse.com", "hipaa.cloud.langfuse.com", "jp.cloud.langfuse.com", "us.cloud.langfuse.com"])]
    #[test_case("oauth:linear", &["mcp.linear.app"])]
    #[test_case("mcp-linear", &["mcp.linear.app"])]
    #[test_case("mcp-mine", &[])]
    #[test_case("github", &[])]
    fn hosts(grant: &str, expected: &[&str]) {
        let hosts = hosts_of(&grant.parse().unwrap());
        assert_eq!(hosts.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }
}
