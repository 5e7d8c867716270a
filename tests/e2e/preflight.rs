//! What stops a start, before anything is started, with the command that mends it.

use moat_tests::{Outcome, parts::Part, rig::Rig, trouble::ensure};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    Test::new("a_missing_grant", &[], a_missing_grant),
    Test::new("what_cannot_be_enforced_stops_the_run", &[], what_cannot_be_enforced_stops_the_run),
    Test::new("all_problems_at_once", &[], all_problems_at_once),
    Test::new("grants_without_a_terminal", &[Part::Sandbox], grants_without_a_terminal),
];

fn refused(rig: &Rig, yaml: &str) -> Outcome<String> {
    rig.config(yaml)?;
    let ran = rig.sandboxed(&["touch", "started"])?.expect_code(1)?;
    ensure(ran.err.starts_with("Error: ") || ran.err.contains("\nError: "), || ran.err.clone())?;
    ensure(!rig.workspace().join("started").exists(), || "it started all the same".to_owned())?;
    ensure(rig.bridge().is_none() && rig.runs().is_empty(), || "something was started or made".to_owned())?;
    Ok(ran.err)
}

fn a_missing_grant() -> Outcome {
    let rig = Rig::new()?;
    let said = refused(&rig, "mcp: [context7]\n")?;
    let wanted = "Error: MCP server 'context7' requires grant 'mcp-context7' but it's not configured\n\nTo fix:\n  moat \
                  grant mcp context7\n\nThen run again.\n";
    ensure(said.ends_with(wanted), || format!("{said:?}\nnot\n{wanted:?}"))
}

fn what_cannot_be_enforced_stops_the_run() -> Outcome {
    let rig = Rig::new()?;
    let server = "mcp:\n  - name: a\n    url: http://localhost:1/mcp\n";
    for (yaml, word) in [
        (format!("{server}    policy: no-such-pack\n"), "policy"),
        (format!("{server}    policy: {{deny: []}}\n"), "policy"),
        ("mcp: [notion]\n".to_owned(), "oauth"),
        ("network: {policy: strict}\n".to_owned(), "network.policy"),
    ] {
        let said = refused(&rig, &yaml)?;
        ensure(said.contains(word), || format!("{yaml}: {said}"))?;
    }
    Ok(())
}

fn all_problems_at_once() -> Outcome {
    let rig = Rig::new()?;
    let yaml = "mcp:\n  - name: a\n    url: http://example.com/mcp\n  - name: b\n    url: https://b.example/\n    polcy: x\n";
    let said = refused(&rig, yaml)?;
    for wanted in ["moat.yaml:3", "'url' must use HTTPS", "moat.yaml:6", "polcy", "policy"] {
        ensure(said.contains(wanted), || format!("{wanted} is missing: {said}"))?;
    }
    Ok(())
}

fn grants_without_a_terminal() -> Outcome {
    let rig = Rig::new()?;
    rig.grant("demo", "a-credential-of-mine", "https://localhost:1/mcp")?;
    let shown = rig.run(&["grant", "show", "mcp:demo"])?.expect_code(0)?;
    ensure(!shown.out.contains("a-credential") && shown.out.contains("mine"), || shown.out.clone())?;
    let listed = rig.run(&["grant", "list"])?.expect_code(0)?;
    ensure(listed.out.contains("mcp-demo") || listed.out.contains("demo"), || listed.out.clone())?;
    let revoked = rig.run(&["revoke", "mcp-demo"])?.expect_code(0)?;
    ensure(format!("{}{}", revoked.out, revoked.err).contains("mcp-demo credential revoked"), || {
        format!("{revoked:?}")
    })?;
    rig.run(&["revoke", "mcp-demo"])?.expect_code(1).map(|_| ())
}
