//! The official suite's scenarios of authorization: `moat` is the client under test.

use moat_tests::{
    Outcome,
    rig::{Rig, binary, moat_binary},
    suite::run::Edition,
    trouble::ensure,
};

/// The official suite's scenarios of authorization for clients that both revisions require.
const OF_BOTH: [&str; 14] = [
    "metadata-default",
    "metadata-var1",
    "metadata-var2",
    "metadata-var3",
    "basic-cimd",
    "scope-from-www-authenticate",
    "scope-from-scopes-supported",
    "scope-omitted-when-undefined",
    "scope-step-up",
    "scope-retry-limit",
    "token-endpoint-auth-basic",
    "token-endpoint-auth-post",
    "token-endpoint-auth-none",
    "pre-registration",
];
/// What 2026-07-28 adds.
pub(super) const OF_2026: [&str; 11] = [
    "resource-mismatch",
    "offline-access-scope",
    "offline-access-not-supported",
    "authorization-server-migration",
    "iss-supported",
    "iss-not-advertised",
    "iss-supported-missing",
    "iss-wrong-issuer",
    "iss-unexpected",
    "iss-normalized",
    "metadata-issuer-mismatch",
];

/// Every check of every scenario passes: `moat grant oauth` is the client, the bridge its other half.
pub(super) fn a2_suite(edition: Edition, more: &[&str]) -> Outcome {
    let rig = Rig::new()?;
    let scenarios: Vec<String> = OF_BOTH.iter().chain(more).map(|name| format!("auth/{name}")).collect();
    let script = format!("{}/clients/oauth_through_moat.sh", env!("CARGO_MANIFEST_DIR"));
    let client = binary("moat-fixture-client")?;
    let driver = format!("{script} {} {}", moat_binary()?.display(), client.display());
    let report = edition.client(&rig, &scenarios, &driver, "authorization")?;
    let troubles = report.troubles();
    ensure(troubles.is_empty(), || troubles.join("\n"))?;
    let (seen, checks) = (report.scenarios().count(), report.count(None).values().sum::<usize>());
    ensure(seen == scenarios.len() && checks > 10 * seen, || format!("{checks} checks of {seen} scenarios"))
}
