//! The official conformance suite says the same of a server, and of a client, with moat between them and without.
//!
//! What it says is published in docs/CONFORMANCE.md, table by table.

use std::fs;

use moat_tests::{
    Outcome,
    parts::Part,
    rig::{Rig, binary, moat_binary},
    suite::{
        report::Report,
        run::{Edition, Everything, NEWEST_2025, NEWEST_2026, STABLE, sandbox},
        server::SuiteServer,
        table::{hold, table},
    },
    trouble::ensure,
};

use crate::Test;

const SUITE: &[Part] = &[Part::Sandbox, Part::Suite];

pub(crate) const TESTS: &[Test] = &[
    Test::new("servers_stable", SUITE, || servers(STABLE)),
    Test::new("servers_newest_2025_11_25", SUITE, || servers(NEWEST_2025)),
    Test::new("servers_newest_2026_07_28", SUITE, || servers(NEWEST_2026)),
    Test::new("clients_stable", SUITE, || clients(STABLE)),
    Test::new("clients_newest_2025_11_25", SUITE, || clients(NEWEST_2025)),
    Test::new("clients_newest_2026_07_28", SUITE, || clients(NEWEST_2026)),
];

fn servers(edition: Edition) -> Outcome {
    let rig = Rig::new()?;
    let (fixture, everything) = (SuiteServer::start()?, Everything::start(&rig, "streamableHttp")?);
    let urls = [("fixture", fixture.url()), ("everything", format!("{}/mcp", everything.url()))];
    let servers: Vec<String> =
        urls.iter().map(|(name, url)| format!("  - name: {name}\n    url: {url}\n")).collect();
    rig.config(&format!("mcp:\n{}", servers.concat()))?;
    let inside = sandbox(&rig)?;
    let mut reports = Vec::new();
    for (name, url) in &urls {
        let direct = edition.directly(&rig, url, &format!("{name}-direct"))?;
        let before = fixture.seen.requests().len();
        let relay = format!("{}/mcp/{name}", inside.relay_url);
        let through = edition.inside(&rig, &inside, &relay, &format!("{name}-through"))?;
        same(name, &direct, &through)?;
        ensure(*name != "fixture" || fixture.seen.requests().len() > before, || {
            "nothing came through moat".to_owned()
        })?;
        reports.push((direct, through));
    }
    passes_in_full(&reports[0].0)?;
    let columns = [
        ("fixture", &reports[0].0),
        ("through moat", &reports[0].1),
        ("server-everything", &reports[1].0),
        ("through moat", &reports[1].1),
    ];
    hold(&format!("servers, {}", edition.title), &said(&edition, &columns)?)
}

fn clients(edition: Edition) -> Outcome {
    let rig = Rig::new()?;
    let client = binary("moat-fixture-client")?;
    let scenarios = edition.client_scenarios()?;
    let own = format!("{} suite", client.display());
    let direct = edition.client(&rig, &scenarios, &own, "direct")?;
    passes_in_full(&direct)?;
    let script = format!("{}/clients/through_moat.sh", env!("CARGO_MANIFEST_DIR"));
    let sandboxes = rig.workspace().join("sandboxes");
    fs::create_dir(&sandboxes)?;
    let through =
        format!("{script} {} {} {}", moat_binary()?.display(), client.display(), sandboxes.display());
    let through = edition.client(&rig, &scenarios, &through, "through")?;
    same("client", &direct, &through)?;
    ensure(fs::read_dir(&sandboxes)?.count() >= scenarios.len(), || {
        "not every client ran in a sandbox".to_owned()
    })?;
    let columns = [("client", &direct), ("through moat", &through)];
    hold(&format!("clients, {}", edition.title), &said(&edition, &columns)?)
}

fn same(what: &str, direct: &Report, through: &Report) -> Outcome {
    let lines = direct.differences(through);
    ensure(lines.is_empty(), || format!("{what} is another one through moat:\n{}", lines.join("\n")))
}

fn passes_in_full(report: &Report) -> Outcome {
    let lines = report.troubles();
    ensure(lines.is_empty(), || format!("not passed directly:\n{}", lines.join("\n")))
}

fn said(edition: &Edition, columns: &[(&str, &Report)]) -> Outcome<String> {
    Ok(format!("Version {}.\n\n{}", edition.version()?, table(columns)))
}
