//! Renewing: before a token expires, when a server refuses it, when the answer does not come, and by many at once.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use moat_tests::{
    Outcome,
    clock::eventually,
    inside::Inside,
    rig::{PATIENCE, Rig},
    trouble::ensure,
    upstream::Upstream,
};
use serde_json::{Value, json};

use super::{OAuth, STUB, call, configuration, fine, traces, works};
use crate::stage::expect_error;

pub(super) fn a3_one_refresh_for_each_expiry() -> Outcome {
    let stage = OAuth::new()?;
    stage.authority.set("ttl=2")?;
    stage.grant(&[])?.expect_code(0)?;
    let (one, two) = (stage.rig.console()?, stage.rig.console()?);
    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed() < Duration::from_secs(9) {
        let pending = [one.call(&call())?, two.call(&call())?, one.call(&call())?];
        for pending in pending {
            fine(&pending.answer()?)?;
            calls += 1;
        }
    }
    let refreshes = stage.spent_once()?;
    // A token of two seconds is renewed after one, beside its use.
    ensure((3..=11).contains(&refreshes), || format!("{refreshes} refreshes for {calls} calls"))?;
    let status = stage.rig.run(&["status"])?.out;
    ensure(status.contains("oauth:mine  ok  expire"), || status.clone())?;
    // In the log of each run that uses it, whoever's request it was made for.
    eventually("every renewal is in both audit logs", PATIENCE, || {
        let whole = |line: &Value| {
            line["rotated"] == true && line["host"] == "localhost" && line["generation"].as_u64() >= Some(2)
        };
        let told = |run: &PathBuf| {
            let text = fs::read_to_string(run.join("audit.jsonl")).unwrap_or_default();
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.filter(|line| line["type"] == "credential.refreshed" && whole(line)).count()
        };
        let runs = stage.rig.runs();
        (runs.len() == 2 && runs.iter().all(|run| told(run) >= refreshes)).then_some(())
    })?;
    one.end()?;
    two.end()?;
    Ok(())
}

pub(super) fn a_stream_outlives_its_token() -> Outcome {
    let stage = OAuth::new()?;
    stage.authority.set("ttl=2")?;
    stage.grant(&[])?.expect_code(0)?;
    let inside = stage.rig.console()?;
    let headers = [("Authorization", STUB)];
    let steps = json!({"count": 30, "every_ms": 150});
    let answer =
        inside.visit("mine", true, &headers, &[("steps", steps), ("echo", json!({"text": "after"}))])?;
    ensure(answer.to_string().contains("30 steps") && answer.to_string().contains("mine: after"), || {
        answer.to_string()
    })?;
    let refreshes = stage.spent_once()?;
    ensure(refreshes >= 1, || "the token never expired".to_owned())?;
    inside.end().map(drop)
}

pub(super) fn a4_two_bridges_on_one_grant() -> Outcome {
    let stage = OAuth::new()?;
    stage.authority.set("ttl=2")?;
    stage.grant(&[])?.expect_code(0)?;
    // A second installation with the same credentials: another bridge, another process, the same files.
    let other = Rig::new()?;
    fs::create_dir(other.home())?;
    fs::set_permissions(other.home(), fs::Permissions::from_mode(0o700))?;
    symlink(stage.rig.home().join("credentials"), other.home().join("credentials"))?;
    fs::copy(stage.rig.home().join("encryption.key"), other.home().join("encryption.key"))?;
    fs::copy(stage.rig.trust(), other.trust())?;
    other.config(&configuration(&stage.server.url()))?;
    let (one, two) = (stage.rig.console()?, other.console()?);
    let start = Instant::now();
    let mut commands: Vec<Child> = Vec::new();
    while start.elapsed() < Duration::from_secs(8) {
        for pending in [one.call(&call())?, two.call(&call())?, one.call(&call())?, two.call(&call())?] {
            fine(&pending.answer()?)?;
        }
        if commands.len() < 4 && start.elapsed() > Duration::from_secs(2 * commands.len() as u64) {
            // Commands that change the record beside the bridges.
            let host = format!("h{}.example", commands.len());
            let mut command = stage.rig.moat(&["grant", "allow", "oauth:mine", &host])?;
            commands.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        }
    }
    for mut command in commands {
        ensure(command.wait()?.success(), || "moat grant allow".to_owned())?;
    }
    let refreshes = stage.spent_once()?;
    ensure(refreshes >= 3, || format!("{refreshes} refreshes"))?;
    let hosts = stage.shown()?["hosts"].as_array().map_or(0, Vec::len);
    ensure(hosts == 5, || format!("a host was lost: {:?}", stage.shown()))?;
    one.end()?;
    two.end()?;
    Ok(())
}

pub(super) fn a5_killed_while_the_token_is_on_its_way() -> Outcome {
    // The server takes its time: the bridge dies with the token under way. With rotation the answer is lost for good,
    // without it the same token works once more.
    for rotates in [true, false] {
        let stage = OAuth::new()?;
        stage.authority.set(&format!("ttl=2&rotate={rotates}"))?;
        stage.grant(&[])?.expect_code(0)?;
        let inside = stage.rig.console()?;
        stage.authority.set("fault=slow&wait=3000")?;
        let under_way = || traces(&stage).iter().any(|name| name.ends_with(".refresh")).then_some(());
        eventually("a refresh token is on its way", Duration::from_secs(20), || {
            let _abandoned = inside.call(&call()).is_ok();
            let taken = stage.authority.refreshes().ok()?;
            taken.iter().any(|line| line["ok"] == true).then_some(())
        })?;
        stage.rig.kill_bridge()?;
        ensure(under_way().is_some(), || "the journal is gone with the bridge".to_owned())?;
        stage.authority.set("ttl=3600")?;
        let answer = eventually("an answer that says how it is", Duration::from_secs(20), || {
            // The old token may be good for a moment yet.
            let answer = inside.answer(&call()).ok()?;
            let replayed = stage.authority.refreshes().ok()?.len() >= 2;
            let settled = if rotates { answer.kind() == "needs_grant" } else { answer.status == 200 };
            (replayed && settled).then_some(answer)
        })?;
        let refreshes = stage.authority.refreshes()?;
        if rotates {
            expect_error("rotation", &answer, 502, "needs_grant")?;
            stage.grant(&[])?.expect_code(0)?;
            works(&inside)?;
        } else {
            fine(&answer)?;
        }
        let mut times = BTreeMap::<&str, usize>::new();
        for line in &refreshes {
            *times.entry(line["spent"].as_str().unwrap_or_default()).or_default() += 1;
        }
        let worst = times.values().copied().max().unwrap_or_default();
        ensure(worst <= 2, || format!("O6: a token was sent {worst} times: {refreshes:?}"))?;
        eventually("nothing of it is left", Duration::from_secs(5), || {
            traces(&stage).is_empty().then_some(())
        })?;
        inside.end()?;
    }
    Ok(())
}

pub(super) fn a6_a_lost_answer_asks_for_a_new_grant() -> Outcome {
    let stage = OAuth::new()?;
    // Long enough to be verified on a busy machine.
    stage.authority.set("ttl=3")?;
    stage.grant(&[])?.expect_code(0)?;
    let inside = stage.rig.console()?;
    let environ = inside.environ()?;
    stage.authority.set("fault=lost&times=1")?;
    let answer = eventually("the token expires", Duration::from_secs(10), || {
        let answer = inside.answer(&call()).ok()?;
        (answer.status != 200).then_some(answer)
    })?;
    expect_error("lost", &answer, 502, "needs_grant")?;
    ensure(answer.body.contains("On the host run: moat grant oauth mine"), || answer.body.clone())?;
    let before = stage.authority.refreshes()?.len();
    ensure(before == 2, || format!("once, and once more: {:?}", stage.authority.refreshes()))?;
    for _ in 0..5 {
        expect_error("still", &inside.answer(&call())?, 502, "needs_grant")?;
    }
    ensure(stage.authority.refreshes()?.len() == before, || "O6: a silent loop".to_owned())?;
    let status = stage.rig.run(&["status"])?.out;
    ensure(status.contains("needs authorization  run: moat grant oauth mine  (invalid_grant"), || {
        status.clone()
    })?;
    let listed = stage.rig.run(&["grant", "list"])?.out;
    ensure(listed.contains("needs authorization"), || listed.clone())?;
    // Nothing new starts with it.
    let refused = eventually("the token expires", Duration::from_secs(10), || {
        stage.rig.sandboxed(&["true"]).ok().filter(|ran| ran.code == 1)
    })?;
    ensure(refused.err.contains("needs a new authorization"), || refused.err.clone())?;
    stage.authority.set("ttl=3600")?;
    stage.grant(&[])?.expect_code(0)?;
    works(&inside)?;
    inside.end()?;
    let run = environ["MOAT_RUN_ID"].as_str().unwrap_or_default();
    let audit = stage.rig.run(&["audit", run])?.out;
    ensure(audit.contains("credential.refresh_failed"), || audit.clone())
}

pub(super) fn a6_what_passes_is_tried_again() -> Outcome {
    let stage = OAuth::new()?;
    // Long enough to be verified on a busy machine.
    stage.authority.set("ttl=3")?;
    stage.grant(&[])?.expect_code(0)?;
    let inside = stage.rig.console()?;
    for fault in ["unavailable", "throttled", "redirect", "empty", "before"] {
        // Once: an answer without a token is asked for once more, and twice is for good.
        stage.authority.set(&format!("ttl=1&fault={fault}&times=1"))?;
        let answered = eventually("an expired token", PATIENCE, || {
            let answer = inside.answer(&call()).ok()?;
            let faults = stage.authority.log().ok()?;
            let happened = faults.iter().any(|line| line["kind"] == "fault" && line["fault"] == fault);
            happened.then_some(answer)
        })?;
        stage.authority.set("fault=none&times=0")?;
        let honest = answered.status == 200 || answered.kind() == "refresh_unavailable";
        ensure(honest && !answered.body.contains("SECRET-MARKER"), || {
            format!("{fault}: {} {}", answered.status, answered.body)
        })?;
        eventually(&format!("{fault} passes"), Duration::from_secs(15), || {
            inside.answer(&call()).ok().filter(|answer| answer.status == 200).map(|_| ())
        })?;
    }
    inside.end()?;
    let log = stage.rig.log();
    ensure(!log.contains("SECRET-MARKER"), || "F14: a body is in the log".to_owned())?;
    let elsewhere = stage.authority.log()?.iter().any(|line| line.to_string().contains("elsewhere"));
    ensure(!elsewhere, || "O3: a redirect was followed".to_owned())
}

pub(super) fn a7_a_cancelled_request_does_not_cancel_it() -> Outcome {
    let stage = OAuth::new()?;
    // Long enough to be verified on a busy machine.
    stage.authority.set("ttl=3")?;
    stage.grant(&[])?.expect_code(0)?;
    let inside = stage.rig.console()?;
    works(&inside)?;
    stage.authority.set("ttl=3600&fault=slow&wait=800&times=1")?;
    let pending = eventually("a request waits for a new token", Duration::from_secs(10), || {
        let pending = inside.call(&call()).ok()?;
        let under_way = || traces(&stage).iter().any(|name| name.ends_with(".refresh")).then_some(());
        eventually("a refresh", Duration::from_millis(300), under_way).ok().map(|()| pending)
    })?;
    pending.abandon()?;
    eventually("the refresh is done", Duration::from_secs(10), || {
        (traces(&stage).is_empty() && stage.shown().ok()?["oauth"]["auto_refresh"] == true).then_some(())
    })?;
    works(&inside)?;
    stage.spent_once()?;
    inside.end().map(drop)
}

pub(super) fn a8_a_storm_of_401() -> Outcome {
    let stage = OAuth::granted()?;
    let inside = stage.rig.console()?;
    works(&inside)?;
    stage.authority.kill(&stage.token()?)?;
    let pending: Vec<_> = (0..50).map(|_| inside.call(&call())).collect::<Outcome<_>>()?;
    for pending in pending {
        fine(&pending.answer()?)?;
    }
    let refreshes = stage.spent_once()?;
    ensure(refreshes == 1, || format!("{refreshes} refreshes for one dead token"))?;
    inside.end()?;
    let of_refresh = stage.rig.lines("network.jsonl").into_iter().filter(|line| line["oauth"] == "refresh");
    ensure(of_refresh.count() >= 1, || "the renewal is not in the trace".to_owned())?;
    let audit = stage.rig.lines("audit.jsonl");
    ensure(audit.iter().any(|line| line["type"] == "credential.refreshed"), || format!("{audit:?}"))
}

pub(super) fn a9_revoked_and_granted_anew() -> Outcome {
    let stage = OAuth::granted()?;
    let inside = stage.rig.console()?;
    works(&inside)?;
    let token = stage.token()?;
    let revoked = stage.rig.run(&["revoke", "oauth:mine"])?.expect_code(0)?;
    ensure(!revoked.err.contains("Warning"), || revoked.err.clone())?;
    ensure(stage.authority.log()?.iter().any(|line| line["kind"] == "revocation"), || {
        "F17: not told".to_owned()
    })?;
    expect_error("revoked", &inside.answer(&call())?, 502, "no_credential")?;
    stage.grant(&[])?.expect_code(0)?;
    works(&inside)?;
    ensure(stage.token()? != token, || "the same token".to_owned())?;

    // The runs that use a grant have it in their audit logs, and no others.
    let vault = Upstream::plain("vault", None)?;
    stage.rig.grant("vault", "a-key", &vault.url())?;
    stage.rig.config(&format!(
        "mcp:\n  - name: vault\n    url: {}\n    auth: {{grant: mcp-vault, header: X-Key}}\n",
        vault.url()
    ))?;
    let other = stage.rig.console()?;
    stage.rig.grant("vault", "another-key", &vault.url())?;
    stage.rig.run(&["revoke", "mcp-vault"])?.expect_code(0)?;
    stage.rig.run(&["revoke", "oauth:mine", "--local"])?.expect_code(0)?;
    let issuer = &stage.authority.issuer;
    let mine = changes(&stage, &inside)?;
    let expected = [
        json!(["credential.revoked", "oauth:mine", null, null, "ok"]),
        json!(["credential.granted", "oauth:mine", issuer, 1, null]),
        json!(["credential.revoked", "oauth:mine", null, null, "none"]),
    ];
    ensure(mine == expected, || format!("{mine:?}"))?;
    let theirs = changes(&stage, &other)?;
    let expected = [
        json!(["credential.granted", "mcp-vault", null, null, null]),
        json!(["credential.revoked", "mcp-vault", null, null, "none"]),
    ];
    ensure(theirs == expected, || format!("{theirs:?}"))?;
    other.end()?;
    inside.end().map(drop)
}

/// What a run's audit log says of grants that persons changed.
fn changes(stage: &OAuth, inside: &Inside) -> Outcome<Vec<Value>> {
    let environ = inside.environ()?;
    let run = environ["MOAT_RUN_ID"].as_str().unwrap_or_default();
    let shown = stage.rig.run(&["audit", run, "--json"])?.expect_code(0)?;
    let all: Vec<Value> = serde_json::from_str(&shown.out)?;
    let changed =
        |line: &&Value| ["credential.granted", "credential.revoked"].iter().any(|kind| line["type"] == *kind);
    let short = |line: &Value| {
        json!([line["type"], line["grant"], line["issuer"], line["generation"], line["remote"]])
    };
    Ok(all.iter().filter(changed).map(short).collect())
}
