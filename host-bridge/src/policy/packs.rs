//! The starter packs that moat carries.

use super::{
    file::{self, Loaded, Scopes},
    model::RuleSet,
};

/// A pack's name and its rule file.
const PACKS: [(&str, &str); 6] = [
    ("linear-readonly", include_str!("packs/linear-readonly.yaml")),
    ("github-readonly", include_str!("packs/github-readonly.yaml")),
    ("notion-readonly", include_str!("packs/notion-readonly.yaml")),
    ("sentry-readonly", include_str!("packs/sentry-readonly.yaml")),
    ("stripe-readonly", include_str!("packs/stripe-readonly.yaml")),
    ("readonly", include_str!("packs/readonly.yaml")),
];

/// Their names.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    PACKS.iter().map(|(name, _)| *name)
}

/// The text of a pack's rule file.
pub(crate) fn text(name: &str) -> Option<&'static str> {
    PACKS.iter().find(|(pack, _)| *pack == name).map(|(_, text)| *text)
}

/// A pack, for a server.
pub(crate) fn load(name: &str, scope: &str) -> Option<RuleSet> {
    let Loaded { policy, .. } = file::read(text(name)?, name, &Scopes::default()).ok()?;
    Some(RuleSet { scope: scope.to_owned(), ..policy.set })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::compile::Policy;
    use test_case::test_case;

    #[test]
    fn every_pack_loads_without_a_warning_and_enforces() {
        for (name, text) in PACKS {
            let loaded = file::read(text, name, &Scopes::default()).unwrap();
            assert_eq!(loaded.warnings, Vec::<String>::new(), "{name}");
            assert!(loaded.policy.enforces() && loaded.policy.fails_closed(), "{name}");
            Policy::compile(load(name, "mcp-x").unwrap()).unwrap();
        }
    }

    #[test_case("linear-readonly", &["list_issues", "get_user", "search_documentation"], &["create_issue", "x/get_y", "delete_comment", "update_listing"])]
    #[test_case("github-readonly", &["get_file_contents", "list_issues", "search_code", "issue_read", "get_me"], &["create_issue", "issue_write", "merge_pull_request", "actions_run_trigger", "delete_file"])]
    #[test_case("notion-readonly", &["notion-search", "notion-fetch", "notion-get-users", "API-retrieve-a-page", "search", "notion-query-data-sources"], &["notion-create-pages", "notion-update-page", "notion-move-pages", "API-post-page", "API-delete-a-block"])]
    #[test_case("sentry-readonly", &["whoami", "find_organizations", "get_issue_details", "search_events"], &["update_issue", "create_project", "analyze_issue_with_seer", "create_dsn"])]
    #[test_case("stripe-readonly", &["list_customers", "retrieve_balance", "search_stripe_documentation", "fetch_stripe_resources"], &["create_customer", "create_refund", "cancel_subscription", "update_dispute", "finalize_invoice"])]
    fn a_pack_shows_what_reads_and_nothing_else(pack: &str, reads: &[&str], writes: &[&str]) {
        use crate::policy::{
            engine::{Context, Kind},
            glob::Operation,
        };
        let policy = Policy::compile(load(pack, "mcp-x").unwrap()).unwrap();
        let hidden = |name: &str| {
            let operation = Operation::new(name);
            let context = Context { operation: operation.lower().to_owned(), ..Context::default() };
            policy.hides(Kind::Tool, &operation, &context).is_some()
        };
        for name in reads {
            assert!(!hidden(name), "{name} reads");
        }
        for name in writes {
            assert!(hidden(name), "{name} writes");
        }
    }
}
