//! The official suite's scenarios of authorization: `moat` is the client under test. All that the suite has are run, but
//! for those that stand here with the reason.

use std::collections::BTreeSet;

use moat_tests::{
    Outcome,
    rig::{Rig, binary, moat_binary},
    suite::{
        run::Edition,
        table::{hold, table},
    },
    trouble::ensure,
};

const NOT_RUN: [(&str, &str); 7] = [
    (
        "2025-03-26-oauth-endpoint-fallback",
        "wants endpoints to be guessed, which moat never does (O1): whoever answers there collects refresh tokens",
    ),
    ("client-credentials-basic", EXTENSION),
    ("client-credentials-jwt", EXTENSION),
    ("dpop", EXTENSION),
    ("dpop-nonce", EXTENSION),
    ("enterprise-managed-authorization", EXTENSION),
    ("wif-jwt-bearer", EXTENSION),
];
const EXTENSION: &str = "an extension that moat does not have: it signs in persons";

/// Every check of every scenario passes: `moat grant oauth` is the client, the bridge its other half.
pub(super) fn a2_suite(edition: Edition) -> Outcome {
    let revision = edition.title.rsplit(' ').next().unwrap_or_default();
    let not_run: BTreeSet<String> = NOT_RUN.iter().map(|(name, _)| format!("auth/{name}")).collect();
    let all = edition.authorization_scenarios()?;
    let known: BTreeSet<&String> = all.iter().map(|(name, _)| name).collect();
    ensure(not_run.iter().all(|name| known.contains(name)), || {
        format!("the suite no longer has all of {not_run:?}")
    })?;
    // What is of no revision that is run would be forgotten.
    let runs = |of: &str| ["2025-03-26", "2025-11-25", "2026-07-28"].contains(&of);
    for (name, of) in &all {
        ensure(not_run.contains(name) || of.iter().any(|of| runs(of)), || {
            format!("{name}: not run, and why?")
        })?;
    }
    let mine = |(name, of): &&(String, Vec<String>)| {
        of.iter().any(|of| of == revision) && !not_run.contains(name.as_str())
    };
    let scenarios: Vec<String> = all.iter().filter(mine).map(|(name, _)| name.clone()).collect();

    let rig = Rig::new()?;
    let script = format!("{}/clients/oauth_through_moat.sh", env!("CARGO_MANIFEST_DIR"));
    let client = binary("moat-fixture-client")?;
    let driver = format!("{script} {} {}", moat_binary()?.display(), client.display());
    let report = edition.client(&rig, &scenarios, &driver, "authorization")?;
    let troubles = report.troubles();
    ensure(troubles.is_empty(), || troubles.join("\n"))?;
    let seen = report.scenarios().count();
    ensure(seen == scenarios.len() && seen > 0, || format!("{seen} of {scenarios:?}"))?;
    let said = format!("Version {}.\n\n{}", edition.version()?, table(&[("moat", &report)]));
    hold(&format!("authorization, {}", edition.title), &said)?;
    let rows = NOT_RUN.map(|(name, why)| format!("| `{name}` | {why} |\n")).concat();
    hold("authorization, not run", &format!("| scenario | why it is not run |\n|---|---|\n{rows}"))
}
