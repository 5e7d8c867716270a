//! The cases, each in both kinds of sandbox where that can make a difference.

use libtest_mimic::{Failed, Trial};
use serde_json::json;

use crate::{
    sandbox::{KEY, Sandbox, Uids},
    stand_in,
};

type Case = fn(Uids);

/// Every case and its name.
const CASES: [(&str, Case); 18] = [
    ("exit_codes_come_through", exit_codes),
    ("the_hook_runs_before_the_agent", hook),
    ("a_failing_hook_stops_the_start", failing_hook),
    ("without_a_tunnel_nothing_starts", no_tunnel),
    ("the_agent_has_no_privileges", privileges),
    ("the_agent_has_its_environment", environment),
    ("the_key_is_out_of_reach", key),
    ("nothing_outlives_the_agent", leftovers),
    ("among_others_only_our_own_are_ended", among_others),
    ("signals_are_forwarded", signals),
    ("sigterm_becomes_sigkill_after_the_grace", grace),
    ("sigterm_twice_is_harder", twice),
    ("the_relay_is_restarted_and_no_connection_is_lost", restart),
    ("the_terminal_is_the_agents", terminal),
    ("the_agents_find_their_files", files),
    ("a_broken_file_or_a_name_of_the_users_stops_the_start", refused_files),
    ("the_users_mcp_json_is_as_before_afterwards", mcp_json),
    ("a_crash_leaves_nothing_for_good_in_mcp_json", crash),
];

/// What needs a file of somebody else.
const THREE_UIDS: [(&str, Case); 1] = [("a_planted_link_reaches_nothing", planted)];

pub(crate) fn all() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (uids, kind, missing) in [
        (Uids::Three, "three uids", lacks(&["--pid", "--fork", "--mount-proc", "--net"])),
        (
            Uids::One,
            "one uid",
            lacks(&["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--net"]),
        ),
    ] {
        let more: &[_] = if uids == Uids::Three { &THREE_UIDS } else { &[] };
        for (name, case) in CASES.into_iter().chain(more.iter().copied()) {
            trials.push(
                match missing {
                    None => Trial::test(name, move || {
                        case(uids);
                        Ok::<(), Failed>(())
                    }),
                    Some(reason) => Trial::test(name, move || {
                        eprintln!("SKIPPED {name} ({kind}): {reason}");
                        Ok(())
                    })
                    .with_ignored_flag(true),
                }
                .with_kind(kind),
            );
        }
    }
    trials
}

/// Why such namespaces cannot be made here.
fn lacks(flags: &[&str]) -> Option<&'static str> {
    let made =
        std::process::Command::new("unshare").args(flags).args(["sh", "-c", "ip link set lo up"]).output();
    let missing =
        "these namespaces cannot be made by this user (unshare and ip are needed, and the right to use them)";
    match made {
        Ok(output) if output.status.success() => None,
        _ => {
            eprintln!("SKIPPED {}: {missing}", flags.join(" "));
            Some(missing)
        }
    }
}

fn exit_codes(uids: Uids) {
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        assert_eq!(Sandbox::new(uids, script).run().code, code, "{script}");
    }
    let missing = Sandbox::new(uids, "").set("command", json!(["no-such-agent"])).run();
    assert_eq!(
        (missing.code, &*missing.err),
        (127, "relay: a line on stderr\nmoat: no-such-agent: command not found\n")
    );
    let directory = Sandbox::new(uids, "").set("command", json!(["/etc"])).run();
    assert_eq!(directory.code, 126, "{directory:?}");
    assert!(directory.err.contains("moat: /etc: cannot be executed"), "{directory:?}");
}

fn hook(uids: Uids) {
    let sandbox = Sandbox::new(uids, "cat order; echo agent")
        .set("pre_run", json!("id -u; pwd; echo hook > order; cat"));
    let ended = sandbox.run();
    assert_eq!(
        (ended.code, &*ended.out),
        (0, "hook\nagent\n"),
        "the hook's output is not the agent's: {ended:?}"
    );
    let uid = &sandbox.plan["user"]["ids"]["uid"];
    assert!(ended.err.contains(&format!("{uid}\n{}\n", sandbox.path("work").display())), "{ended:?}");
}

fn failing_hook(uids: Uids) {
    let ended = Sandbox::new(uids, "echo agent").set("pre_run", json!("exit 3")).run();
    assert_eq!((ended.code, &*ended.out), (3, ""));
    assert!(
        ended.err.ends_with("moat: hooks.pre_run failed (exit code 3); the agent was not started\n"),
        "{ended:?}"
    );
}

fn no_tunnel(uids: Uids) {
    let says =
        Sandbox::new(uids, "echo agent").endpoint(stand_in::FAILS).set("pre_run", json!("echo hook")).run();
    assert_eq!((says.code, &*says.out), (i32::from(moat_shared::exit::NO_TUNNEL), ""));
    assert!(says.err.contains("moat: cannot reach the bridge: no way; nothing was started"), "{says:?}");
    assert!(!says.err.contains("hook"), "{says:?}");
    let dies = Sandbox::new(uids, "echo agent").endpoint(stand_in::DIES).run();
    assert_eq!((dies.code, &*dies.out), (i32::from(moat_shared::exit::NO_TUNNEL), ""));
    assert!(dies.err.contains("the relay ended (exit code 9)"), "{dies:?}");
    let silent =
        Sandbox::new(uids, "echo agent").endpoint(stand_in::SILENT).set("tunnel_ms", json!(1000)).run();
    assert_eq!((silent.code, &*silent.out), (i32::from(moat_shared::exit::NO_TUNNEL), ""));
    assert!(silent.err.contains("no answer within 1 seconds"), "{silent:?}");
}

fn privileges(uids: Uids) {
    let script = "grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|SigBlk|SigIgn):' /proc/self/status | tr -d ' \t'; umask; \
                  cat /proc/self/oom_score_adj; ls /proc/self/fd | tr '\n' ' '";
    let sandbox = Sandbox::new(uids, script);
    let ended = sandbox.run();
    let lines: Vec<&str> = ended.out.lines().collect();
    let uid = sandbox.plan["user"]["ids"]["uid"].to_string().repeat(4);
    for expected in [
        &*format!("Uid:{uid}"),
        &*format!("Gid:{uid}"),
        "CapInh:0000000000000000",
        "CapPrm:0000000000000000",
        "CapEff:0000000000000000",
        "CapBnd:0000000000000000",
        "CapAmb:0000000000000000",
        "NoNewPrivs:1",
        "SigBlk:0000000000000000",
        "SigIgn:0000000000000000",
        "0022",
        "0 1 2 3 ", // 3 is the directory that ls reads
    ] {
        assert!(lines.contains(&expected), "{expected} is not in {ended:?}");
    }
    assert!(lines.contains(&"Groups:") || uids == Uids::One, "{ended:?}");
    assert!(lines.iter().any(|line| line.parse::<i32>().is_ok_and(|score| score >= 100)), "{ended:?}");
}

fn environment(uids: Uids) {
    let script = "echo $HOME $USER $LOGNAME $MOAT_RUN_ID $MOAT_RELAY_URL $NO_PROXY $no_proxy $TERM; pwd";
    let sandbox = Sandbox::new(uids, script)
        .set("env", json!({"PATH": "/usr/bin:/bin", "TERM": "xterm", "NO_PROXY": "a"}));
    let expected = format!(
        "{} agent agent run_0123456789ab http://127.0.0.1:19080 a,localhost,127.0.0.1,::1 a,localhost,127.0.0.1,::1 xterm\n{}\n",
        sandbox.path("home").display(),
        sandbox.path("work").display()
    );
    assert_eq!(sandbox.run().out, expected);
}

/// Plan gone; neither PID 1 nor the relay can be read, traced or seen into; no process shows the key.
fn key(uids: Uids) {
    let script = format!(
        "for p in /proc/[0-9]*; do [ $p = /proc/$$ ] && continue; tr '\\0' ' ' < $p/cmdline; echo \" $p\"; \
         for f in environ mem maps fd/0 fd/3 auxv; do head -c1 $p/$f > /dev/null 2>&1 && echo readable $p/$f; done; done; \
         grep -rl {KEY} /tmp/plan.json '{{}}' 2>/dev/null; true"
    );
    let sandbox = Sandbox::new(uids, &script);
    let ended = sandbox.run();
    assert!(!sandbox.path("plan.json").exists());
    assert!(ended.out.contains("/proc/self/exe relay"), "{ended:?}");
    assert!(!ended.out.contains(KEY) && !ended.out.contains("readable /proc/1/"), "{ended:?}");
    let relay = ended.out.lines().find(|line| line.starts_with("/proc/self/exe relay")).unwrap();
    let relay = relay.split_whitespace().last().unwrap();
    assert!(!ended.out.contains(&format!("readable {relay}/")), "{ended:?}");
}

fn leftovers(uids: Uids) {
    let script =
        "setsid nohup sleep 1000 & (trap '' TERM HUP; sleep 1000) & (sleep 0.01; exit 5) & disown -a; exit 4";
    let before = std::time::Instant::now();
    assert_eq!(Sandbox::new(uids, script).run().code, 4);
    assert!(before.elapsed() < std::time::Duration::from_secs(10));
}

fn among_others(uids: Uids) {
    let mut bystander = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let script =
        "(setsid nohup sleep 1000 & echo $! > pid); while ! test -s pid; do sleep 0.01; done; exit 4";
    let sandbox = Sandbox::new(uids, script).among_others();
    let ended = sandbox.run();
    assert_eq!(ended.code, 4, "{ended:?}");
    let pid = std::fs::read_to_string(sandbox.path("work/pid")).unwrap();
    assert!(!std::path::Path::new("/proc").join(pid.trim()).exists(), "an orphan of the agent is left");
    assert!(bystander.try_wait().unwrap().is_none(), "somebody else was ended");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

/// Waits for a signal and tells it.
fn waiting(signal: &str, then: &str) -> String {
    format!("trap '{then}' {signal}; touch up; while :; do sleep 0.02; done")
}

fn signals(uids: Uids) {
    for signal in ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "WINCH"] {
        let sandbox = Sandbox::new(uids, &waiting(signal, &format!("echo got {signal}; exit 42")));
        let running = sandbox.start();
        sandbox.wait_for("work/up");
        running.signal(signal);
        let ended = running.wait();
        assert_eq!((ended.code, &*ended.out), (42, &*format!("got {signal}\n")), "{ended:?}");
    }
}

fn grace(uids: Uids) {
    let sandbox = Sandbox::new(uids, &waiting("TERM", "touch asked")).set("grace_ms", json!(300));
    let running = sandbox.start();
    sandbox.wait_for("work/up");
    running.signal("TERM");
    sandbox.wait_for("work/asked");
    assert_eq!(running.wait().code, 137);
}

fn twice(uids: Uids) {
    let sandbox = Sandbox::new(uids, &waiting("TERM", "touch asked")).set("grace_ms", json!(3_600_000));
    let running = sandbox.start();
    sandbox.wait_for("work/up");
    running.signal("TERM");
    sandbox.wait_for("work/asked");
    running.signal("TERM");
    assert_eq!(running.wait().code, 137);
}

fn restart(uids: Uids) {
    let script = "for i in 1 2 3; do exec 5<>/dev/tcp/127.0.0.1/19080; echo die >&5; exec 5>&-; \
                  exec 6<>/dev/tcp/127.0.0.1/19080; echo hey >&6; read answer <&6; echo $answer; exec 6>&-; done";
    let ended = Sandbox::new(uids, script).run();
    // Where the agent has the relay's uid, there must be no moment in which it could take hold of the new one.
    let answer = if uids == Uids::One { "relay closed\n" } else { "relay\n" };
    assert_eq!((ended.code, ended.out), (0, answer.repeat(3)));
    assert_eq!(
        ended.err, "relay: a line on stderr\n",
        "the restarted relay does not write where the agent does"
    );
}

fn terminal(uids: Uids) {
    let script = "trap 'echo int' INT; read -r _ _ _ _ group _ tty foreground _ < /proc/$$/stat; \
                  echo own $((group == foreground)) $((group == $$)) tty $((tty > 0)); echo > /dev/tty; touch up; \
                  kill -INT 0; kill -TSTP $$; echo continued; stty size > /dev/null && echo stty";
    let sandbox = Sandbox::new(uids, script).set("terminal", json!(true));
    let words: Vec<String> = sandbox.words().iter().map(|word| format!("'{word}'")).collect();
    let output = std::process::Command::new("script")
        .args(["-qefc", &words.join(" "), "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    for line in ["own 1 1 tty 1", "int", "continued", "stty"] {
        assert!(out.lines().any(|found| found == line), "{line} is not in {out:?}");
    }
    assert!(output.status.success(), "{out:?}");
}

fn files(uids: Uids) {
    let script = "cd $HOME; stat -c '%a %u %n' .claude.json .codex/config.toml .gemini/settings.json; \
                  stat -c '%a %u %n' $OLDPWD/.mcp.json; grep -c moat-stub-oauth:notion .claude.json .codex/config.toml \
                  .gemini/settings.json $OLDPWD/.mcp.json | sed 's/.*://' | tr -d '\n'";
    let sandbox = Sandbox::new(uids, script);
    let uid = &sandbox.plan["user"]["ids"]["uid"];
    let ended = sandbox.run();
    let work = sandbox.path("work");
    let expected = format!(
        "600 {uid} .claude.json\n600 {uid} .codex/config.toml\n600 {uid} .gemini/settings.json\n600 {uid} {}/.mcp.json\n1111",
        work.display()
    );
    assert_eq!(ended.out, expected, "{ended:?}");
    assert!(!work.join(".mcp.json").exists(), "taken out again");
    let only = Sandbox::new(uids, "ls -A $HOME").set("agent", json!("codex")).run();
    assert_eq!(only.out, ".codex\n");
}

/// Writes a file as the user of the sandbox has it.
fn users_file(sandbox: &Sandbox, name: &str, text: &str) -> std::path::PathBuf {
    let path = sandbox.path(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    let uid = sandbox.plan["user"]["ids"]["uid"].as_u64().map(|uid| u32::try_from(uid).unwrap());
    // With one uid, ours is the sandbox's already.
    let uid = uid.filter(|uid| *uid != 0);
    for path in [&*path, path.parent().unwrap()] {
        std::os::unix::fs::chown(path, uid, uid).unwrap();
    }
    path
}

fn refused_files(uids: Uids) {
    let sandbox = Sandbox::new(uids, "echo agent");
    let claude = users_file(&sandbox, "home/.claude.json", "{\n\"a\": 1,\n}\n");
    let codex = users_file(&sandbox, "home/.codex/config.toml", "[mcp_servers.notion]\ncommand = \"mine\"\n");
    let ended = sandbox.run();
    assert_eq!((ended.code, &*ended.out), (i32::from(moat_shared::exit::SETUP), ""));
    let expected = format!(
        "moat: {}:3: not valid JSON: a comma without a member after it\n\
         moat: {}:1: there is an MCP server \"notion\" of your own with the name of one from moat.yaml; rename one of the two\n\
         moat: nothing was started\n",
        claude.display(),
        codex.display()
    );
    assert_eq!(ended.err, expected);
    assert_eq!(std::fs::read_to_string(claude).unwrap(), "{\n\"a\": 1,\n}\n");
    assert!(!sandbox.path("home/.gemini").exists(), "nothing was written");
}

fn mcp_json(uids: Uids) {
    let users = "{ \"mcpServers\" : {\"mine\": {\"command\": \"m\"}} }";
    let during = "grep -o 'mcp/notion\\|\"mine\"' .mcp.json $HOME/.mcp.json 2>/dev/null | sed \"s|$HOME|~|\" | sort -u | tr '\\n' ' '";
    // (the user's file, where it goes, what the agent sees, what the user is told)
    let cases = [
        (users, "workspace", ".mcp.json:\"mine\" .mcp.json:mcp/notion ", ""),
        (
            users,
            "home",
            ".mcp.json:\"mine\" ~/.mcp.json:\"mine\" ~/.mcp.json:mcp/notion ",
            "moat: .mcp.json is under version control, so the merged one is in ~/.mcp.json\n",
        ),
        (
            users,
            "shared",
            ".mcp.json:\"mine\" ~/.mcp.json:\"mine\" ~/.mcp.json:mcp/notion ",
            "moat: .mcp.json is that of another run in this workspace, so the merged one is in ~/.mcp.json\n",
        ),
        (
            "{\"mine\"",
            "workspace",
            ".mcp.json:\"mine\" ~/.mcp.json:mcp/notion ",
            "moat: .mcp.json is left as it is (line 1: not valid JSON: a colon is missing), so the merged one is in ~/.mcp.json\n",
        ),
    ];
    for (text, place, seen, told) in cases {
        let sandbox = Sandbox::new(uids, during).set("mcp_json", json!(place));
        let path = users_file(&sandbox, "work/.mcp.json", text);
        let ended = sandbox.run();
        assert_eq!(
            (&*ended.out, ended.err.replace("relay: a line on stderr\n", "").as_str()),
            (seen, told),
            "{place} {ended:?}"
        );
        assert_eq!(std::fs::read_to_string(path).unwrap(), text);
        assert!(!sandbox.path("home/.mcp.json").exists());
    }
}

fn crash(uids: Uids) {
    let users = "{\"mcpServers\": {}}";
    let sandbox = Sandbox::new(uids, "touch up; sleep 1000");
    let path = users_file(&sandbox, "work/.mcp.json", users);
    let running = sandbox.start();
    sandbox.wait_for("work/up");
    running.signal("KILL");
    running.wait();
    assert!(std::fs::read_to_string(&path).unwrap().contains("/mcp/notion"));
    let again = Sandbox::new(uids, "true").servers(&[]).set("workspace", sandbox.plan["workspace"].clone());
    assert_eq!(again.run().code, 0);
    assert_eq!(std::fs::read_to_string(path).unwrap(), users);
}

/// Root's file stays root's, whatever the home says.
fn planted(uids: Uids) {
    let sandbox = Sandbox::new(uids, "echo agent");
    let roots = sandbox.path("roots.json");
    std::fs::write(&roots, "{}").unwrap();
    std::fs::set_permissions(&roots, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    std::os::unix::fs::symlink(&roots, sandbox.path("home/.claude.json")).unwrap();
    let ended = sandbox.run();
    assert_eq!((ended.code, &*ended.out), (i32::from(moat_shared::exit::SETUP), ""));
    assert!(ended.err.contains("cannot write") && ended.err.contains("Permission denied"), "{ended:?}");
    assert_eq!(std::fs::read_to_string(roots).unwrap(), "{}");
}
