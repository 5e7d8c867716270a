//! OAuth against a real authorization server that rotates refresh tokens and ends a family when one comes twice, and a
//! real MCP server that asks it about every token.

mod crashes;

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use moat_tests::{
    Outcome, Trouble,
    authorization::{AuthorizationServer, Gate},
    clock::eventually,
    inside::{Answer, Inside, Request},
    parts::Part,
    rig::{Ran, Rig, binary, moat_binary},
    suite::run::{Edition, NEWEST_2025, NEWEST_2026},
    trouble::ensure,
    upstream::Upstream,
};
use serde_json::{Value, json};

use crate::{
    Test,
    stage::{discover, expect_error},
};

const COMMAND: &[Part] = &[Part::Authorization, Part::Curl];
const SUITE: &[Part] = &[Part::Sandbox, Part::Suite, Part::Curl];
const TRACED: &[Part] = &[Part::Authorization, Part::Curl, Part::Sandbox, Part::Strace, Part::Root];
const ALL: &[Part] = &[Part::Authorization, Part::Curl, Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("a1_granted_and_used", ALL, a1_granted_and_used),
    Test::new("a1_clients_of_every_kind", COMMAND, a1_clients_of_every_kind),
    Test::new("a3_one_refresh_for_each_expiry", ALL, a3_one_refresh_for_each_expiry),
    Test::new("a_stream_outlives_its_token", ALL, a_stream_outlives_its_token),
    Test::new("a4_two_bridges_on_one_grant", ALL, a4_two_bridges_on_one_grant),
    Test::new("a5_killed_while_the_token_is_on_its_way", ALL, a5_killed_while_the_token_is_on_its_way),
    Test::new("a5_killed_before_each_write", TRACED, crashes::a5_killed_before_each_write),
    Test::new("a6_a_lost_answer_asks_for_a_new_grant", ALL, a6_a_lost_answer_asks_for_a_new_grant),
    Test::new("a6_what_passes_is_tried_again", ALL, a6_what_passes_is_tried_again),
    Test::new("a7_a_cancelled_request_does_not_cancel_it", ALL, a7_a_cancelled_request_does_not_cancel_it),
    Test::new("a8_a_storm_of_401", ALL, a8_a_storm_of_401),
    Test::new("a9_revoked_and_granted_anew", ALL, a9_revoked_and_granted_anew),
    Test::new("a10_pasted", COMMAND, a10_pasted),
    Test::new("a10_by_device", COMMAND, a10_by_device),
    Test::new("f7_an_empty_token_replaces_nothing", COMMAND, f7_an_empty_token_replaces_nothing),
    Test::new("suite_a2_2025_11_25", SUITE, || a2_suite(NEWEST_2025, &[])),
    Test::new("suite_a2_2026_07_28", SUITE, || a2_suite(NEWEST_2026, &OF_2026)),
];

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
const OF_2026: [&str; 11] = [
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

/// Fields are dropped in their order: the authorization server's process is one that the rig would miss.
struct OAuth {
    authority: AuthorizationServer,
    rig: Rig,
    server: Upstream,
}

const STUB: &str = "moat-stub-oauth:mine";

impl OAuth {
    fn new() -> Outcome<Self> {
        let mut rig = Rig::new()?;
        let gate = Gate::default();
        let server = Upstream::gated("mine", &rig.authority, &gate)?;
        let authority = AuthorizationServer::start(&rig, &rig.authority, &server.url(), &gate)?;
        rig.env.insert("BROWSER".to_owned(), AuthorizationServer::browser(&rig));
        rig.config(&configuration(&server))?;
        Ok(Self { authority, rig, server })
    }

    fn granted() -> Outcome<Self> {
        let stage = Self::new()?;
        stage.grant(&[])?.expect_code(0)?;
        Ok(stage)
    }

    fn grant(&self, flags: &[&str]) -> Outcome<Ran> {
        self.rig.run(&[&["grant", "oauth", "mine", "--timeout", "20s"], flags].concat())
    }

    fn token(&self) -> Outcome<String> {
        let shown =
            self.rig.run(&["grant", "show", "oauth:mine", "--show-token", "--json"])?.expect_code(0)?;
        let shown: Value = serde_json::from_str(&shown.out)?;
        Ok(shown["token"].as_str().unwrap_or_default().to_owned())
    }

    fn shown(&self) -> Outcome<Value> {
        let shown = self.rig.run(&["grant", "show", "oauth:mine", "--json"])?.expect_code(0)?;
        Ok(serde_json::from_str(&shown.out)?)
    }

    /// Every refresh token was spent once, and every refresh worked.
    fn spent_once(&self) -> Outcome<usize> {
        let refreshes = self.authority.refreshes()?;
        let spent: BTreeSet<&str> = refreshes.iter().filter_map(|line| line["spent"].as_str()).collect();
        ensure(spent.len() == refreshes.len() && refreshes.iter().all(|line| line["ok"] == true), || {
            format!("a refresh token was spent twice, or refused: {refreshes:?}")
        })?;
        let resource = self.server.url();
        ensure(refreshes.iter().all(|line| line["resource"] == resource.as_str()), || {
            format!("O5: not the server's own resource: {refreshes:?}")
        })?;
        Ok(refreshes.len())
    }
}

fn configuration(server: &Upstream) -> String {
    format!(
        "mcp:\n  - name: mine\n    url: {}\n    auth: {{grant: 'oauth:mine', header: Authorization}}\n",
        server.url()
    )
}

fn call() -> Request {
    discover("mine").header("Authorization", STUB)
}

fn works(inside: &Inside) -> Outcome {
    fine(&inside.answer(&call())?)
}

fn fine(answer: &Answer) -> Outcome {
    ensure(answer.status == 200, || format!("{} {}", answer.status, answer.body))
}

fn a1_granted_and_used() -> Outcome {
    let stage = OAuth::new()?;
    let granted = stage.grant(&[])?.expect_code(0)?;
    for text in [
        "Attempting OAuth discovery for ",
        "Discovered OAuth endpoints.",
        "Registering OAuth client...",
        "Open this URL in your browser to authorize:\n\n  https://localhost:",
        "OAuth credential 'oauth:mine' saved to ",
        "(auto-refresh enabled)",
        "Use in moat.yaml:",
    ] {
        ensure(granted.err.contains(text), || format!("no {text:?} in {}", granted.err))?;
    }
    let file = stage.rig.home().join("credentials/oauth:mine.enc");
    let mode = fs::metadata(&file)?.permissions().mode() & 0o777;
    ensure(mode == 0o600, || format!("mode {mode:o}"))?;
    let shown = stage.shown()?;
    ensure(shown["hosts"] == json!(["localhost"]) && shown["oauth"]["client"] == "dcr", || {
        shown.to_string()
    })?;
    // A second grant uses the client and the port again.
    stage.grant(&[])?.expect_code(0)?;
    let again = stage.grant(&[])?.expect_code(0)?;
    ensure(!again.err.contains("Registering"), || again.err.clone())?;

    let inside = stage.rig.console()?;
    for modern in [true, false] {
        let headers = [("Authorization", STUB)];
        let answer = inside.visit("mine", modern, &headers, &[("echo", json!({"text": "hello"}))])?;
        ensure(answer.to_string().contains("mine: hello"), || answer.to_string())?;
    }
    let token = stage.token()?;
    let bearer = format!("Bearer {token}");
    let seen = stage.server.seen.requests();
    let with_it = seen.iter().filter(|request| request.values("authorization") == [bearer.as_str()]).count();
    ensure(with_it >= 3, || format!("{with_it} requests with the token"))?;
    let environ = inside.environ()?.to_string();
    let argv = [
        "sh",
        "-c",
        "cat /proc/[0-9]*/cmdline; grep -rs . \"$HOME\" /workspace 2>/dev/null | head -c 1000000; true",
    ];
    let searched = inside.exec(&argv, &[])?;
    inside.end()?;
    let home = stage.rig.home();
    let mut all = vec![environ, searched.out, granted.err, stage.rig.log()];
    all.extend(stage.rig.lines("audit.jsonl").iter().map(ToString::to_string));
    all.extend(stage.rig.lines("network.jsonl").iter().map(ToString::to_string));
    all.push(stage.rig.run(&["status", "--json"])?.out);
    all.push(stage.rig.run(&["grant", "show", "oauth:mine", "--json"])?.out);
    ensure(all.iter().all(|text| !text.contains(&token)), || "A16: the token is somewhere else".to_owned())?;
    let names: Vec<_> =
        fs::read_dir(home.join("credentials"))?.flatten().map(|entry| entry.file_name()).collect();
    ensure(names.len() == 2, || format!("only the record and the lock: {names:?}"))
}

fn a1_clients_of_every_kind() -> Outcome {
    let stage = OAuth::new()?;
    let secret_by_flag = ["--client-id", "secret", "--client-secret", "s:+/ %"];
    for (flags, kind) in [(&["--client-id", "public"][..], "pre"), (&secret_by_flag, "pre")] {
        // One client is not shown to two records: each grant stands alone.
        stage.grant(flags)?.expect_code(0)?;
        ensure(stage.shown()?["oauth"]["client"] == kind, || format!("{:?}", stage.shown()))?;
        stage.rig.run(&["revoke", "oauth:mine"])?.expect_code(0)?;
    }
    // From the file; a mistake in it is told.
    let file = stage.rig.home().join("oauth/mine.yaml");
    fs::create_dir_all(stage.rig.home().join("oauth"))?;
    let issuer = &stage.authority.issuer;
    let text = format!(
        "auth_url: {issuer}/auth\ntoken_url: {issuer}/token\nclient_id: secret\nclient_secret: 's:+/ %'\nissuer: {issuer}\n\
         scopes: [mcp:read]\n"
    );
    fs::write(&file, &text)?;
    stage.grant(&[])?.expect_code(0)?;
    ensure(stage.shown()?["scopes"] == json!(["mcp:read"]), || format!("{:?}", stage.shown()))?;
    ensure(fs::read_to_string(&file)? == text, || "F15: the file was written".to_owned())?;
    fs::write(&file, "client-id: x\n")?;
    let refused = stage.grant(&[])?.expect_code(1)?;
    ensure(refused.err.contains("invalid oauth config") && refused.err.contains("mine.yaml:1:"), || {
        refused.err
    })
}

fn a3_one_refresh_for_each_expiry() -> Outcome {
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
    one.end()?;
    two.end()?;
    Ok(())
}

fn a_stream_outlives_its_token() -> Outcome {
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

fn a4_two_bridges_on_one_grant() -> Outcome {
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
    other.config(&configuration(&stage.server))?;
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

/// The grant's journal and temporary files.
fn traces(stage: &OAuth) -> Vec<String> {
    let entries = fs::read_dir(stage.rig.home().join("credentials")).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(".refresh") || name.ends_with(".new")).collect()
}

fn a5_killed_while_the_token_is_on_its_way() -> Outcome {
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
        let mut times = std::collections::BTreeMap::<&str, usize>::new();
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

fn a6_a_lost_answer_asks_for_a_new_grant() -> Outcome {
    let stage = OAuth::new()?;
    stage.authority.set("ttl=1")?;
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

fn a6_what_passes_is_tried_again() -> Outcome {
    let stage = OAuth::new()?;
    stage.authority.set("ttl=1")?;
    stage.grant(&[])?.expect_code(0)?;
    let inside = stage.rig.console()?;
    for fault in ["unavailable", "throttled", "redirect", "empty", "before"] {
        stage.authority.set("ttl=1")?;
        let answered = eventually("an expired token", Duration::from_secs(10), || {
            stage.authority.set(&format!("fault={fault}&times=1")).ok()?;
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

fn a7_a_cancelled_request_does_not_cancel_it() -> Outcome {
    let stage = OAuth::new()?;
    stage.authority.set("ttl=1")?;
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

fn a8_a_storm_of_401() -> Outcome {
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

fn a9_revoked_and_granted_anew() -> Outcome {
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
    inside.end().map(drop)
}

/// A command that does not outlive its test.
struct Waiting(Child);

impl Drop for Waiting {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Starts a grant whose address nobody opens by itself; gives what it printed so far.
fn waiting(stage: &OAuth, flags: &[&str], wanted: &str) -> Outcome<(Waiting, PathBuf, String)> {
    let said = stage.rig.user_home().join("said");
    let file = fs::File::create(&said)?;
    let arguments = [&["grant", "oauth", "mine", "--timeout", "25s"], flags].concat();
    let mut command = stage.rig.moat(&arguments)?;
    command.env_remove("BROWSER");
    let child = Waiting(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(file).spawn()?);
    let text = eventually("the address is printed", Duration::from_secs(10), || {
        fs::read_to_string(&said).ok().filter(|text| text.contains(wanted))
    })?;
    Ok((child, said, text))
}

/// The word after a text.
fn after<'t>(text: &'t str, before: &str) -> Outcome<&'t str> {
    let found = text.split_once(before).and_then(|(_, rest)| rest.split_whitespace().next());
    found.ok_or_else(|| Trouble::new(format!("no {before:?} in {text}")))
}

fn a10_pasted() -> Outcome {
    let stage = OAuth::new()?;
    let (mut child, said, text) = waiting(&stage, &["--client-id", "public"], "ssh -L")?;
    let url = after(&text, "to authorize:")?;
    // The browser is on another machine: it ends on an address that leads nowhere there.
    let jar = stage.rig.user_home().join("jar2").to_string_lossy().into_owned();
    let trust = stage.rig.trust().to_string_lossy().into_owned();
    let mut ended = url.to_owned();
    for _ in 0..10 {
        let page = std::process::Command::new("curl")
            .args([
                "-sS",
                "--cacert",
                &trust,
                "-c",
                &jar,
                "-b",
                &jar,
                "-o",
                "/dev/null",
                "-w",
                "%{redirect_url}",
            ])
            .arg(&ended)
            .output()?;
        ended = String::from_utf8(page.stdout)?;
        if ended.contains("/callback?") {
            break;
        }
    }
    ensure(ended.contains("/callback?"), || format!("it ends on {ended}"))?;
    let mut stdin = child.0.stdin.take().ok_or_else(|| Trouble::new("no stdin"))?;
    writeln!(stdin, "just-a-code")?;
    writeln!(stdin, "http://127.0.0.1:1/callback?code=c&state=of-another-sign-in")?;
    writeln!(stdin, "{ended}")?;
    drop(stdin);
    ensure(child.0.wait()?.success(), || fs::read_to_string(&said).unwrap_or_default())?;
    let text = fs::read_to_string(&said)?;
    ensure(text.contains("paste all of it") && text.contains("does not belong to this sign-in"), || {
        text.clone()
    })?;
    let code = after(&ended.replace('&', " "), "code=")?.to_owned();
    ensure(!text.contains(&code), || "O9: the code was printed".to_owned())?;
    stage.token().map(drop)
}

fn a10_by_device() -> Outcome {
    let stage = OAuth::new()?;
    let (mut child, said, text) = waiting(&stage, &["--device"], "enter the code: ")?;
    let (page, code) =
        (after(&text, "any device:")?.to_owned(), after(&text, "enter the code: ")?.to_owned());
    approve_device(&stage, &page, &code)?;
    ensure(child.0.wait()?.success(), || fs::read_to_string(&said).unwrap_or_default())?;
    ensure(stage.shown()?["oauth"]["auto_refresh"] == true, || format!("{:?}", stage.shown()))
}

/// Enters the code and says yes, as a person with a browser would.
fn approve_device(stage: &OAuth, page: &str, code: &str) -> Outcome {
    let jar = stage.rig.user_home().join("jar3").to_string_lossy().into_owned();
    let trust = stage.rig.trust().to_string_lossy().into_owned();
    let curl = |arguments: &[&str]| -> Outcome<String> {
        let ran = std::process::Command::new("curl")
            .args(["-sSL", "--cacert", &trust, "-c", &jar, "-b", &jar])
            .args(arguments)
            .output()?;
        ensure(ran.status.success(), || String::from_utf8_lossy(&ran.stderr).into_owned())?;
        Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
    };
    let hidden = |form: &str, name: &str| -> Option<String> {
        let (_, rest) = form.split_once(&format!("name=\"{name}\" value=\""))?;
        rest.split('"').next().map(str::to_owned)
    };
    let form = curl(&[page])?;
    let xsrf = hidden(&form, "xsrf").ok_or_else(|| Trouble::new(format!("no form: {form}")))?;
    let confirm = curl(&["-d", &format!("xsrf={xsrf}&user_code={code}"), page])?;
    let xsrf = hidden(&confirm, "xsrf").ok_or_else(|| Trouble::new(format!("no confirmation: {confirm}")))?;
    curl(&["-d", &format!("xsrf={xsrf}&user_code={code}&confirm=yes"), page]).map(drop)
}

fn f7_an_empty_token_replaces_nothing() -> Outcome {
    let stage = OAuth::granted()?;
    let file = stage.rig.home().join("credentials/oauth:mine.enc");
    let before = fs::read(&file)?;
    for fault in ["empty", "redirect", "unavailable", "lost"] {
        stage.authority.set(&format!("fault={fault}&times=1"))?;
        let failed = stage.grant(&[])?.expect_code(1)?;
        ensure(
            failed.err.contains("Error: exchanging code: token endpoint")
                && !failed.err.contains("SECRET-MARKER"),
            || format!("{fault}: {}", failed.err),
        )?;
        ensure(fs::read(&file)? == before, || format!("{fault}: O4: the old credential was touched"))?;
    }
    Ok(())
}

/// Every check of every scenario passes: `moat grant oauth` is the client, the bridge its other half.
fn a2_suite(edition: Edition, more: &[&str]) -> Outcome {
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
