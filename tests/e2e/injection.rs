//! The server receives the credential exactly once, in the configured header, for the configured host only.

use moat_tests::{Outcome, faults::Faults, parts::Part, trouble::ensure};
use serde_json::json;

use crate::{
    Test,
    stage::{FAULTS_HEADER, FAULTS_STUB, Stage, VAULT_HEADER, VAULT_STUB, discover, expect_error, fault},
};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("exactly_once", SANDBOX, exactly_once),
    Test::new("a_foreign_value_is_refused", SANDBOX, a_foreign_value_is_refused),
    Test::new("a_redirect_never_carries_it", SANDBOX, a_redirect_never_carries_it),
    Test::new("a_reflection_is_scrubbed", SANDBOX, a_reflection_is_scrubbed),
    Test::new("other_credentials_do_not_travel", SANDBOX, other_credentials_do_not_travel),
    Test::new("a_grant_stays_with_its_host", SANDBOX, a_grant_stays_with_its_host),
];

fn exactly_once() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let calls = [("echo", json!({"text": "hello"})), ("add", json!({"a": 40, "b": 2}))];
    for (modern, headers) in [(true, &[(VAULT_HEADER, VAULT_STUB)][..]), (false, &[])] {
        let visit = inside.visit("vault", modern, headers, &calls)?;
        let texts = visit["results"].to_string();
        ensure(texts.contains("vault: hello") && texts.contains("\"42\""), || visit.to_string())?;
        inside.visit("local", modern, &[], &calls)?;
    }
    let requests = stage.vault.seen.requests();
    ensure(requests.len() >= 6, || format!("only {} requests", requests.len()))?;
    let host = stage.vault.url().trim_start_matches("https://").trim_end_matches("/mcp").to_owned();
    for request in &requests {
        ensure(request.values(VAULT_HEADER) == [stage.secret.as_str()], || format!("{request:?}"))?;
        ensure(request.mentions(&stage.secret) == 1 && request.mentions("moat-stub") == 0, || {
            format!("{request:?}")
        })?;
        ensure(request.values("host") == [host.as_str()], || format!("{request:?}"))?;
    }
    for request in stage.local.seen.requests() {
        ensure(request.mentions(&stage.secret) == 0, || {
            format!("a server without auth got it: {request:?}")
        })?;
    }
    inside.end()?;
    let injected =
        stage.rig.lines("audit.jsonl").into_iter().filter(|line| line["type"] == "credential.injected");
    let injected: Vec<_> = injected.collect();
    ensure(injected.len() == requests.len(), || {
        format!("{} of {} in the audit", injected.len(), requests.len())
    })?;
    let line = &injected[0];
    let as_promised =
        line["grant"] == "mcp-vault" && line["host"] == "localhost" && line["header"] == VAULT_HEADER;
    ensure(as_promised, || line.to_string())?;
    let trace = stage.rig.lines("network.jsonl");
    let of_vault =
        trace.iter().filter(|line| line["server"] == "vault" && line["duration_ms"].is_u64()).count();
    ensure(of_vault == requests.len(), || format!("{of_vault} of {} in the trace", requests.len()))?;
    let records = [trace, stage.rig.lines("audit.jsonl")].concat();
    stage.nothing_in("the records", &json!(records).to_string())?;
    stage.nothing_in("the log", &stage.rig.log())
}

fn a_foreign_value_is_refused() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let bearer = format!("Bearer {VAULT_STUB}");
    let upper = VAULT_STUB.to_uppercase();
    let foreign = ["my-own-key-0815", "", &bearer, &upper, FAULTS_STUB, "moat-stub-mcp-vault2"];
    for value in foreign {
        let answer = inside.answer(&discover("vault").header(VAULT_HEADER, value))?;
        expect_error(&format!("{value:?}"), &answer, 400, "foreign_credential")?;
        let silent = value.is_empty() || value.contains("moat-stub") || !answer.body.contains(value);
        ensure(silent, || format!("the value comes back: {}", answer.body))?;
    }
    let twice = discover("vault").header(VAULT_HEADER, VAULT_STUB).header(VAULT_HEADER, "my-own-key-0815");
    expect_error("twice", &inside.answer(&twice)?, 400, "foreign_credential")?;
    ensure(stage.vault.seen.requests().is_empty(), || "a refused request reached the server".to_owned())?;
    inside.end()?;
    let lines = stage.rig.lines("audit.jsonl");
    let denied = lines.iter().filter(|line| line["type"] == "request.denied").count();
    ensure(denied == foreign.len() + 1, || format!("{denied} of {} in the audit", foreign.len() + 1))?;
    let recorded = format!("{lines:?}{:?}{}", stage.rig.lines("network.jsonl"), stage.rig.log());
    ensure(!recorded.contains("my-own-key-0815"), || "the refused value was recorded".to_owned())
}

fn a_redirect_never_carries_it() -> Outcome {
    let stage = Stage::new()?;
    let elsewhere = Faults::plain()?;
    let inside = stage.rig.console()?;
    for to in [format!("{}/ok", elsewhere.url()), elsewhere.url().replace("localhost", "127.0.0.1")] {
        let answer = inside.answer(&fault(&format!("redirect?to={to}")))?;
        expect_error(&to, &answer, 502, "redirect_refused")?;
        ensure(answer.value("location").is_none(), || "Location came through".to_owned())?;
    }
    ensure(elsewhere.seen.requests().is_empty(), || "the second host was contacted".to_owned())?;
    let same = inside.answer(&fault("redirect?to=/ok"))?;
    ensure(matches!(same.status, 200 | 502) && same.value("location").is_none(), || format!("{same:?}"))
}

fn a_reflection_is_scrubbed() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    for form in ["plain", "json", "base64", "percent", "split", "events", "header", "gzip"] {
        let answer = inside.answer(&fault(&format!("echo/{form}?header={FAULTS_HEADER}")))?;
        ensure(answer.status == 200 && answer.clean, || format!("{form}: {answer:?}"))?;
        stage.clean(form, &answer)?;
        ensure(answer.value("content-encoding").is_none(), || {
            format!("{form}: came compressed: {answer:?}")
        })?;
        let replaced = match form {
            "header" => answer.value("x-you-sent") == Some(FAULTS_STUB),
            "base64" => answer.body.contains("you sent"),
            _ => answer.body.contains(FAULTS_STUB),
        };
        ensure(replaced, || format!("{form}: not replaced by the stub: {answer:?}"))?;
    }
    let sent = stage.faults.seen.requests();
    ensure(sent.iter().all(|r| r.values(FAULTS_HEADER) == [stage.faults_secret.as_str()]), || {
        format!("{sent:?}")
    })?;
    stage.rig.line("audit.jsonl", "secret.reflected", |line| line["type"] == "secret.reflected").map(|_| ())
}

fn other_credentials_do_not_travel() -> Outcome {
    let stage = Stage::new()?;
    let inside = stage.rig.console()?;
    let request = fault("ok")
        .header("Authorization", "Bearer of-the-agent")
        .header("Cookie", "session=of-the-agent")
        .header("Proxy-Authorization", "Basic of-the-agent")
        .header("X-Other", VAULT_STUB)
        .header("X-Forwarded-For", "10.9.8.7")
        .header("Mcp-Param-Kept", "kept");
    let answer = inside.answer(&request)?;
    ensure(answer.status == 200, || format!("{answer:?}"))?;
    let seen = stage.faults.seen.requests();
    let [request] = &seen[..] else { return ensure(false, || format!("{} requests", seen.len())) };
    for gone in ["of-the-agent", "moat-stub", "10.9.8.7"] {
        ensure(request.mentions(gone) == 0, || format!("{gone} travelled: {request:?}"))?;
    }
    ensure(request.values("mcp-param-kept") == ["kept"], || {
        format!("an unknown header was lost: {request:?}")
    })
}

fn a_grant_stays_with_its_host() -> Outcome {
    let stage = Stage::new()?;
    let other = stage.vault.url().replace("localhost", "127.0.0.1");
    stage.rig.config(&format!(
        "mcp:\n  - name: vault\n    url: {other}\n    auth: {{grant: mcp-vault, header: {VAULT_HEADER}}}\n"
    ))?;
    let ran = stage.rig.sandboxed(&["true"])?.expect_code(1)?;
    let said = "grant 'mcp-vault' was not granted for host '127.0.0.1'";
    ensure(ran.err.contains(said), || ran.err.clone())?;
    ensure(stage.vault.seen.requests().is_empty(), || "the other host was contacted".to_owned())
}
