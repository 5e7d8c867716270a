//! What becomes of a policy while its run lives, and what people see of it: a full disk, a broken or vanished file, what
//! other rules would have done, the starter packs.

use std::{fs, io::Write};

use moat_tests::{
    Outcome, Trouble, clock::eventually, console::http::Body, faults::Faults, inside::Request, parts::Part,
    rig::Rig, suite::server::SuiteServer, trouble::ensure,
};
use serde_json::{Value, json};

use crate::{
    Test,
    policy::{NOTICED, RULES, is_denied, visit, with_rules},
};

const SANDBOX: &[Part] = &[Part::Sandbox];

pub(crate) const TESTS: &[Test] = &[
    Test::new("a_full_disk_opens_nothing", SANDBOX, a_full_disk_opens_nothing),
    Test::new("p40_a_broken_or_vanished_file_is_told_everywhere", SANDBOX, broken_file),
    Test::new("p37_a_client_hears_of_another_list", SANDBOX, a_client_hears_of_another_list),
    Test::new("what_other_rules_would_have_done", SANDBOX, what_other_rules_would_have_done),
    Test::new("each_pack_is_checked_and_explained", &[], each_pack_is_checked_and_explained),
];

/// The bridge can write no record: a denied call is denied all the same, and what is missing is counted.
fn a_full_disk_opens_nothing() -> Outcome {
    const ROOM: u64 = 128 * 1024;
    let mut rig = Rig::new()?;
    let open = Faults::plain()?;
    // `ulimit -f` counts blocks of 512 bytes. Who ignores SIGXFSZ gets an error instead, like ENOSPC.
    let limited = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", ROOM / 512);
    rig.prefix = ["sh", "-c", &limited, "sh"].map(ToOwned::to_owned).to_vec();
    rig.run(&["proxy", "start"])?.expect_code(0)?;
    rig.prefix.clear();
    rig.config(&format!("mcp:\n  - {{name: open, url: {}/ok, policy: {{deny: ['wipe_*']}}}}\n", open.url()))?;
    let inside = rig.console()?;
    let run = rig.runs().pop().ok_or_else(|| Trouble::new("no run"))?;
    let files = ["audit.jsonl", "network.jsonl"].map(|name| {
        let mut file = fs::OpenOptions::new().create(true).append(true).open(run.join(name))?;
        file.write_all(&vec![b'\n'; usize::try_from(ROOM)?])?;
        Ok::<_, Trouble>(file)
    });
    let call = |tool: &str| {
        let call = json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": tool}});
        inside.answer(&Request::rpc("/mcp/open", 7, "x").body(Body::Text(call.to_string())))
    };
    let denied = call("wipe_board")?;
    ensure(is_denied(&denied.json()) && open.seen.requests().is_empty(), || format!("{denied:?}"))?;
    let log = || rig.log().contains("records could not be written").then_some(());
    eventually("the log says so", NOTICED, log)?;
    let passes = call("get")?;
    ensure(passes.status == 200 && open.seen.requests().len() == 1, || format!("{passes:?}"))?;
    for file in files {
        file?.set_len(0)?;
    }
    let denied = call("wipe_board")?;
    ensure(is_denied(&denied.json()) && open.seen.requests().len() == 1, || format!("{denied:?}"))?;
    let lost = |line: &Value| line["type"] == "records.lost" && line["count"].as_u64() >= Some(1);
    rig.line("audit.jsonl", "records.lost", lost)?;
    let told = |line: &Value| line["type"] == "request.denied" && line["operation"] == "wipe_board";
    rig.line("audit.jsonl", "the denial", told)?;
    ensure(inside.end()? == 0, || "the run's exit code".to_owned())
}

/// In the log, in `moat status`, on the terminal that holds the run and in the audit log; and the rules stay.
fn broken_file() -> Outcome {
    let (rig, _local) = with_rules()?;
    let inside = rig.console()?;
    let file = rig.workspace().join(".keep/local.yaml");
    let status = |wanted: bool| {
        let status = rig.run(&["status"]).ok()?;
        (status.out.contains("the changed file is not used") == wanted).then_some(())
    };
    let denied = |what: &str| {
        let (_, add, echo) = visit(&inside, false)?;
        ensure(is_denied(&add) && echo["result"]["isError"] != true, || format!("{what}: {add} {echo}"))
    };
    let told = |times: usize| {
        let count = inside.noise().matches("is not used, the one before stays in force").count();
        (count == times).then_some(())
    };
    fs::write(&file, "scope: [")?;
    eventually("moat status tells of the broken file", NOTICED, || status(true))?;
    eventually("the terminal tells of it", NOTICED, || told(1))?;
    rig.line("audit.jsonl", "the broken file", |line| line["type"] == "policy.reload_failed")?;
    ensure(rig.log().contains("a policy file changed"), || rig.log())?;
    denied("broken")?;
    fs::write(&file, RULES)?;
    eventually("moat status tells no more of it", NOTICED, || status(false))?;
    fs::remove_file(&file)?;
    eventually("moat status tells of the vanished file", NOTICED, || status(true))?;
    eventually("the terminal tells of it", NOTICED, || told(2))?;
    denied("vanished")?;
    ensure(inside.end()? == 0, || "the run's exit code".to_owned())
}

/// The client of rmcp listens, in both eras, while a stricter rule takes effect and is taken back on the host.
fn a_client_hears_of_another_list() -> Outcome {
    let rig = Rig::new()?;
    let server = SuiteServer::start()?;
    fs::create_dir_all(rig.workspace().join(".keep"))?;
    let file = rig.workspace().join(".keep/local.yaml");
    fs::write(&file, RULES)?;
    rig.config(&format!("mcp:\n  - {{name: local, url: {}, policy: .keep/local.yaml}}\n", server.url()))?;
    let inside = rig.console()?;
    let has = |seen: &Value, key: &str| {
        seen[key].as_array().into_iter().flatten().any(|tool| tool == "test_simple_text")
    };
    for modern in [false, true] {
        let before = server.seen.requests().len();
        let listening = inside.listen("local", modern)?;
        let asked = |what: &str| {
            let says = |body: &[u8]| String::from_utf8_lossy(body).contains(what);
            server
                .seen
                .requests()
                .iter()
                .skip(before)
                .any(|request| request.method == what || says(&request.body))
        };
        eventually("a client has listed the tools and listens", NOTICED, || {
            let listens = asked(if modern { "subscriptions/listen" } else { "GET" });
            (listens && asked("tools/list")).then_some(())
        })?;
        fs::write(&file, RULES.replace("operation: add", "operation: test_simple_*"))?;
        let seen = listening.value()?;
        ensure(has(&seen, "tools") && !has(&seen, "then"), || format!("modern: {modern}: {seen}"))?;
        fs::write(&file, RULES)?;
        rig.line("audit.jsonl", "it is as it was", |line| line["type"] == "policy.loaded")?;
        eventually("the tool is there again", NOTICED, || {
            inside.visit("local", modern, &[], &[]).ok().filter(|seen| has(seen, "tools")).map(|_| ())
        })?;
    }
    ensure(inside.end()? == 0, || "the run's exit code".to_owned())
}

fn what_other_rules_would_have_done() -> Outcome {
    let (rig, _local) = with_rules()?;
    let inside = rig.console()?;
    visit(&inside, false)?;
    visit(&inside, true)?;
    ensure(inside.end()? == 0, || "the run's exit code".to_owned())?;
    let other = rig.workspace().join("other.yaml");
    fs::write(
        &other,
        "scope: local\nmode: enforce\nrules:\n- {name: no-echo, action: deny, match: {operation: echo}}\n- {name: small, action: deny, match: {operation: add, when: 'params.a > 3'}}\n",
    )?;
    let other = other.to_string_lossy().into_owned();
    let replay = |rules: &str| -> Outcome<Value> {
        let ran = rig.run(&["policy", "backtest", "--rules", rules, "--json"])?.expect_code(0)?;
        Ok(serde_json::from_str(&ran.out)?)
    };
    let replayed = replay(&other)?;
    let expected = json!({
        "local add": {"calls": 2, "denied_then": 2, "now": "depends on the arguments", "rule": "small"},
        "local echo": {"calls": 2, "denied_then": 0, "now": "denied", "rule": "no-echo"},
    });
    ensure(replayed == expected, || replayed.to_string())?;
    let same = replay(&rig.workspace().join(".keep/local.yaml").to_string_lossy())?;
    ensure(same["local add"]["now"] == "denied" && same["local echo"]["now"] == "pass", || same.to_string())?;
    let words = rig.run(&["policy", "backtest", "--rules", &other])?.expect_code(0)?;
    let line = "local echo  calls: 2, then: passed, with these rules: denied (rule 'no-echo')";
    ensure(words.out.lines().any(|own| own == line), || words.out.clone())
}

/// Each starter pack in moat.yaml: it loads without a warning, lets a reading tool pass and denies a writing one.
fn each_pack_is_checked_and_explained() -> Outcome {
    let packs = [
        ("linear-readonly", Some("list_issues"), "create_issue"),
        ("github-readonly", Some("get_file_contents"), "merge_pull_request"),
        ("notion-readonly", Some("notion-search"), "notion-update-page"),
        ("sentry-readonly", Some("whoami"), "update_issue"),
        ("stripe-readonly", Some("list_customers"), "create_refund"),
        // It goes by what a server says, and here none has said anything.
        ("readonly", None, "list_issues"),
    ];
    let rig = Rig::new()?;
    let workspace = rig.workspace().to_string_lossy().into_owned();
    for (pack, reads, writes) in packs {
        rig.config(&format!("mcp:\n  - {{name: any, url: https://h.example/mcp, policy: {pack}}}\n"))?;
        let checked = rig.run(&["policy", "check", &workspace, "--strict"])?.expect_code(0)?;
        ensure(checked.out.starts_with(&format!("any: {pack} (enforce, ")), || checked.out.clone())?;
        for (tool, decision) in reads.map(|tool| (tool, "allow")).into_iter().chain([(writes, "deny")]) {
            let explain = ["policy", "explain", "any", tool, "--workspace", &workspace, "--json"];
            let explained: Value = serde_json::from_str(&rig.run(&explain)?.expect_code(0)?.out)?;
            ensure(explained["decision"] == decision, || format!("{pack}: {tool}: {explained}"))?;
            ensure(pack == "readonly" || explained["listed"] == (decision == "allow"), || {
                format!("{pack}: {tool}: {explained}")
            })?;
        }
    }
    Ok(())
}
